"""Runs a script as a user does: alone under plain ``python``, or in a job of two trainers and two servers."""

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
"""Precedes each script."""
SECONDS = 100.0
"""Time limit of a run; none comes near it."""


@dataclass(frozen=True)
class Result:
    """The result of running a script."""

    work: Path
    """The folder in which it ran."""
    codes: dict[int, int]
    """Exit codes by trainer."""
    logs: dict[int, str]
    """Output of the script and the trainer library, by trainer."""
    outcome: Outcome | None = None
    """The job's outcome. None: the script ran alone, or the job did not end."""
    master: str = ""
    """The master's log."""

    @property
    def output(self) -> str:
        """The output of all trainers."""
        return "\n".join(self.logs.values())

    def lines(self, beginning: str) -> list[str]:
        """Return the rest of each output line that begins with this text."""
        found = [line for line in self.output.splitlines() if line.startswith(beginning)]
        return [line.removeprefix(beginning).strip() for line in found]

    def model(self, name: str = "out.safetensors") -> dict:
        """Load a saved model file."""
        return load_file(self.work / name)

    def counts(self, name: str = "out.safetensors", entry: str = "w") -> list[float]:
        """Return the distinct values of the counter's entries."""
        return self.model(name)[entry].unique().tolist()


def _write(script: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "script.py"
    path.write_text(HEAD + textwrap.dedent(script))
    return path


def alone(zygote: Zygote, folder: Path, script: str, *, code: int | None = 0) -> Result:
    """Run a script under plain ``python``.

    Args:
        zygote: Starts the process.
        folder: Takes the script's files.
        script: The script's text, after ``HEAD``.
        code: The expected exit code. None: any.
    """
    work = folder / "work"
    work.mkdir(parents=True)
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "PWD": str(work)}
    child = zygote.spawn(["script", str(_write(script, folder))], environment=environment, log=folder / "log")
    ended = child.wait(SECONDS)
    result = Result(work=work, codes={0: ended}, logs={0: (folder / "log").read_text()})
    assert code is None or ended == code, (ended, result.output)
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
    """Run a script in a job of real processes, until all trainers have exited, or one is refused.

    Args:
        zygote: Starts the processes.
        folder: Takes the job's files.
        script: The script's text, after ``HEAD``.
        etcd: A running etcd.
        code: The expected exit code. None: any.
        trainers: Number of trainers.
        complete: Whether, with code 0, the job must be complete, and no sample lost or counted twice.
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
            assert outcome is not None, job.last_lines()
            assert outcome.state == "Complete", (outcome, job.last_lines())
            assert outcome.account is not None
            assert (outcome.account.samples.lost, outcome.account.samples.twice) == (0, 0)
        elif code:
            assert code in result.codes.values(), (result.codes, job.last_lines())
    return result
