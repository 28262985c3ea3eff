"""Command, environment and number of threads of each process of a job on one machine. Pure."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shoal.api import ManifestError, Problem, ResourceRequirements, TrainingJob
from shoal.local.processes import Launch
from shoal.local.supervisor import MASTER, SERVER, TRAINER
from shoal.protocol import environment as names

__all__ = ["Launcher", "variables"]

_PYTHONS = {"python", "python3"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Launcher:
    """Creates the `Launch` of each process of one job.

    Attributes:
        job: The job.
        manifest: File with the manifest, for the master.
        folder: Working directory of the training command.
        token: File with the job's token.
        uid: The job's uid.
        sockets: Folder of the sockets; its path is within the kernel's limit.
        master: File with the master's address.
        snapshots: Folder with one folder of snapshots per parameter server.
        etcd: Endpoint of etcd.
        cores: Number of cores that the job may use.
        inherited: Environment of this process.
    """

    job: TrainingJob
    manifest: Path
    folder: Path
    token: Path
    uid: str
    sockets: Path
    master: Path
    snapshots: Path
    etcd: str
    cores: int
    inherited: Mapping[str, str]

    def launch(self, role: str, index: int, *, trainers: int) -> Launch:
        """Return the launch for a role and index while ``trainers`` trainers are desired."""
        if role == TRAINER:
            return self._trainer(index, trainers)
        command = self._master_command() if role == MASTER else self._server_command(index)
        environment = self._environment(role, index, trainers)
        return Launch(command=command, environment=environment, folder=self.manifest.parent)

    def _trainer(self, index: int, trainers: int) -> Launch:
        spec = self.job.spec
        command = [*spec.command, *spec.args]
        # Use the Python of the job's other processes, so that all have the same Shoal, also without an activated
        # environment and for programs that are started by a shell in the command.
        if command[0] in _PYTHONS:
            command[0] = sys.executable
        path = f"{Path(sys.executable).parent}{os.pathsep}{self.inherited.get('PATH', os.defpath)}"
        given = {"PATH": path, **variables(self.job, self.inherited)}
        environment = self._environment(TRAINER, index, trainers, given) | {names.FOLDER: str(self.folder)}
        return Launch(command=command, environment=environment, folder=self.folder)

    def _master_command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "shoal.master"),
            *("--manifest", str(self.manifest)),
            *("--etcd", self.etcd),
            *("--listen", f"unix://{self.sockets / 'master'}"),
            *("--address-file", str(self.master)),
        ]

    def _server_command(self, index: int) -> list[str]:
        return [
            *(sys.executable, "-m", "shoal.pserver"),
            *("--listen", f"unix://{self.sockets / f'pserver-{index}'}"),
            *("--snapshots", str(self.snapshots / f"pserver-{index}")),
        ]

    def _environment(
        self, role: str, index: int, trainers: int, given: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        environment = {**self.inherited, **(given or {})}
        environment.setdefault("OMP_NUM_THREADS", str(self._threads(role, trainers)))
        # The output of a script appears in its log without buffering.
        environment.setdefault("PYTHONUNBUFFERED", "1")
        environment |= {
            names.MASTER: f"file://{self.master}",
            names.TOKEN_FILE: str(self.token),
            names.UID: self.uid,
            names.ROLE: role,
            names.INDEX: str(index),
        }
        if self.job.spec.seed is not None:
            environment[names.SEED] = str(self.job.spec.seed)
        return environment

    def _threads(self, role: str, trainers: int) -> int:
        resources = _resources(self.job, role)
        if resources is not None and "cpu" in resources.requests:
            return max(1, int(resources.requests["cpu"].amount))
        return max(1, self.cores // (trainers + self.job.servers))


def _resources(job: TrainingJob, role: str) -> ResourceRequirements | None:
    spec = job.spec
    part = {TRAINER: spec.trainer, SERVER: spec.parameter_server, MASTER: spec.master}[role]
    return part.resources if part is not None else None


def variables(job: TrainingJob, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the trainers' environment variables from the manifest.

    A variable with ``valueFrom`` is taken from the environment of ``shoal run``.

    Raises:
        ManifestError: A variable with ``valueFrom`` is not set in that environment.
    """
    found: dict[str, str] = {}
    problems = []
    for number, entry in enumerate(job.spec.env):
        if entry.value_from is None:
            found[entry.name] = entry.value or ""
        elif entry.name in inherited:
            found[entry.name] = inherited[entry.name]
        else:
            problems.append(
                Problem(
                    f"spec.env[{number}].valueFrom",
                    f"needs a cluster; on one machine run with {entry.name} set: export {entry.name}=...",
                )
            )
    if problems:
        raise ManifestError(problems)
    return found
