"""Runs a script as its author does: alone under plain ``python``, or in a job of two trainers and two servers."""

from __future__ import annotations

import os
import textwrap
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from shoal.master.state.records import Outcome
from shoal.protocol.environment import EXIT_REFUSED
from tests.etcds import Etcd
from tests.realjob import RealJob
from tests.zygote import Zygote

__all__ = ["HEAD", "SECONDS", "Result", "alone", "in_job"]

HEAD = """
import os, signal, subprocess, sys, threading
import numpy as np
import torch
from pathlib import Path
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from shoal import trainer
from tests.scripts.pieces import *

"""
"""Stands before each script."""
SECONDS = 100.0
"""After which a run is given up; none comes near it."""


@dataclass(frozen=True)
class Result:
    """What became of a script."""

    work: Path
    """Where it ran."""
    codes: dict[int, int]
    """Exit codes by trainer."""
    logs: dict[int, str]
    """What it and its trainer library wrote, by trainer."""
    outcome: Outcome | None = None
    """Of a job that came to its end."""
    master: str = ""
    """The master's log."""

    @property
    def said(self) -> str:
        """What was written by all trainers."""
        return "\n".join(self.logs.values())

    def lines(self, beginning: str) -> list[str]:
        """The rest of those lines of the script that begin so."""
        found = [line for line in self.said.splitlines() if line.startswith(beginning)]
        return [line.removeprefix(beginning).strip() for line in found]

    def model(self, name: str = "out.safetensors") -> dict:
        """A file that was saved."""
        return load_file(self.work / name)

    def counts(self, name: str = "out.safetensors", entry: str = "w") -> list[float]:
        """The values that the counter's entries have, each once."""
        return self.model(name)[entry].unique().tolist()


def _write(script: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "script.py"
    path.write_text(HEAD + textwrap.dedent(script))
    return path


def alone(zygote: Zygote, folder: Path, script: str, *, code: int | None = 0) -> Result:
    """Run it under plain ``python``.

    Args:
        zygote: Starts it.
        folder: For its files.
        script: Its text, behind ``HEAD``.
        code: The exit code that is right; None: any.
    """
    work = folder / "work"
    work.mkdir(parents=True)
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "PWD": str(work)}
    child = zygote.spawn(["script", str(_write(script, folder))], environment=environment, log=folder / "log")
    ended = child.wait(SECONDS)
    result = Result(work=work, codes={0: ended}, logs={0: (folder / "log").read_text()})
    assert code is None or ended == code, (ended, result.said)
    return result


def in_job(
    zygote: Zygote,
    folder: Path,
    script: str,
    *,
    etcd: Etcd,
    code: int | None = 0,
    trainers: int = 2,
    complete: bool = True,
) -> Result:
    """Run it in a job of real processes, until all trainers have ended, or one was refused.

    Args:
        zygote: Starts them.
        folder: For the job's files.
        script: Its text, behind ``HEAD``.
        etcd: One that runs.
        code: The exit code that is right; None: any.
        trainers: Of the job.
        complete: Whether the job must be complete, and no sample lost or counted twice, where the code is 0.
    """
    path = _write(script, folder)
    final = frozenset({EXIT_REFUSED} if code != 0 else ())
    with RealJob(
        zygote, folder, script=path, trainers=trainers, epochs=None, lease_seconds=5.0, etcd=etcd, final=final
    ) as job:
        job.run_to_the_end(seconds=SECONDS, until_refused=True)
        ended = {index: child.returncode for (role, index), child in job.children.items() if role == "trainer"}
        result = Result(
            work=job.work,
            codes={index: code for index, code in ended.items() if code is not None},
            logs={index: job.log("trainer", index) for index in range(trainers)},
            outcome=job.found_outcome(),
            master=job.log("master", 0),
        )
        if code == 0 and complete:
            outcome = result.outcome
            assert outcome is not None, job.last_words()
            assert outcome.state == "Complete", (outcome, job.last_words())
            assert outcome.account is not None
            assert (outcome.account.samples.lost, outcome.account.samples.twice) == (0, 0)
        elif code:
            assert code in result.codes.values(), (result.codes, job.last_words())
    return result
