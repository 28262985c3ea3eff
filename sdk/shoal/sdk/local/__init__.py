"""Jobs on this machine: each one is a `shoal run` in the background, and a state folder that outlives it.

No server is needed: clients read the state folder, and ask a running job on its control socket.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from shoal.api import ManifestError, TrainingJob
from shoal.api.status import State
from shoal.local.control_socket import AskScale, ControlRefused, ask
from shoal.local.launch import variables
from shoal.local.state.job_record import JobRecord
from shoal.local.state.jobs import NoSuchJobError, find_job, status_of
from shoal.local.state.state_folder import StateFolder, base_folder, job_names
from shoal.local.view.status import RunStatus
from shoal.sdk.backend import Failure, JobKey, LogOptions
from shoal.sdk.errors import (
    AlreadyExistsError,
    FetchError,
    InvalidJobError,
    JobDeletedError,
    NotFoundError,
    ShoalError,
)
from shoal.sdk.local import conversion, runs
from shoal.sdk.local.logs import last_lines, read_logs
from shoal.sdk.manifests import Submission
from shoal.sdk.types import Event, JobStatus, LogLine, Member, SizeChange

__all__ = ["LocalBackend"]

_MANAGER: Final = "shoal-sdk"
_POLL_SECONDS: Final = 0.1
_SCALE_SECONDS: Final = 10.0
"""Time in which a run that is just starting answers a change of its size."""
_CHUNK: Final = 4 << 20
_LAST_LINES: Final = 20


class LocalBackend:
    """Jobs on this machine.

    Args:
        state: Folder of all jobs. Default: None, ``$SHOAL_STATE`` or the user's state folder.
    """

    def __init__(self, state: str | Path | None = None) -> None:
        self._base = base_folder(state)

    def key(self, name: str) -> JobKey:
        """Return the identity of a job by its name."""
        return JobKey(name)

    async def close(self) -> None:
        """Do nothing: no connection outlives a call."""

    # --- Submitting ---

    async def submit(self, submission: Submission) -> JobKey:
        """Create a job and start it; it runs on when this program ends.

        A job whose manifest has ``suspend: true`` is created and not started.
        """
        interrupted = threading.Event()
        try:
            return await asyncio.to_thread(self._submit, submission, interrupted)
        except asyncio.CancelledError:
            interrupted.set()
            raise

    def _submit(self, submission: Submission, interrupted: threading.Event) -> JobKey:
        name = submission.job.metadata.name
        with _translated(name):
            variables(submission.job, os.environ)
            runs.require_etcd(None)
            state = runs.create(self._base, submission)
            key = JobKey(name, uid=state.uid)
            if not submission.job.spec.suspend:
                try:
                    runs.start(state, interrupted)
                except BaseException:
                    with suppress(ShoalError):
                        runs.remove(state, key.uid)
                    raise
        return key

    async def dry_run(self, submission: Submission) -> dict[str, Any]:
        """Check the job's name and environment, and return its manifest."""
        name = submission.job.metadata.name
        with _translated(name):
            variables(submission.job, os.environ)
            if StateFolder(self._base, name).exists:
                raise AlreadyExistsError(
                    f"job {name} exists already in {self._base}; choose another name=, or delete it"
                )
        return submission.job.to_mapping()

    # --- Reading ---

    def _find(self, key: JobKey) -> StateFolder:
        """Return the state folder of a job.

        Raises:
            NotFoundError: The job does not exist, or another one has its name.
        """
        try:
            state = find_job(key.name, self._base)
        except NoSuchJobError as error:
            raise NotFoundError(str(error)) from None
        except OSError as error:
            raise _translation(error, key.name) from None
        if key.uid and state.uid != key.uid:
            raise NotFoundError(f"job {key} was deleted, and another job has its name now")
        return state

    @contextmanager
    def _reading(self, key: JobKey) -> Iterator[None]:
        """Raise errors of a state folder as those of the SDK; of one that is removed meanwhile, NotFoundError."""
        try:
            yield
        except _UNREADABLE as error:
            self._find(key)
            raise _translation(error, key.name) from None

    async def status(self, key: JobKey) -> JobStatus:
        """Return the state of a job."""
        return await asyncio.to_thread(self._status, key)

    def _status(self, key: JobKey) -> JobStatus:
        return self._converted(key, self._read(key)[1])

    def _read(self, key: JobKey) -> tuple[StateFolder, RunStatus]:
        """Return the state folder and the runner's status of a job."""
        state = self._find(key)
        with self._reading(key):
            found = status_of(state)
        self._find(key)  # what was read is not of a later job of this name
        return state, found

    def _converted(self, key: JobKey, found: RunStatus) -> JobStatus:
        state = self._find(key)
        with self._reading(key):
            record = JobRecord(state.record())
            times = conversion.Times(
                now=datetime.now(UTC),
                created=_changed_at(state.path / "uid"),
                started=_time(record.began),
                ended=_changed_at(state.path / "end.json"),
            )
            return conversion.job_status(found, servers=state.job().servers, uid=state.uid, times=times)

    async def list_jobs(self, *, labels: Mapping[str, str], all_namespaces: bool) -> list[JobStatus]:  # noqa: ARG002 - one machine has no namespaces
        """Return the state of all jobs; one whose manifest is damaged is Pending and refused."""
        with _translated("list"):
            names = await asyncio.to_thread(job_names, self._base)
        found = await asyncio.gather(*(asyncio.to_thread(self._listed, name, labels) for name in names))
        return [each for each in found if each is not None]

    def _listed(self, name: str, labels: Mapping[str, str]) -> JobStatus | None:
        try:
            own = self._manifest(JobKey(name)).metadata.labels
            return self._status(JobKey(name)) if labels.items() <= own.items() else None
        except NotFoundError:
            return None  # it was deleted since the names were read
        except ShoalError as error:
            return JobStatus(name, refusal=str(error)) if not labels else None

    def _manifest(self, key: JobKey) -> TrainingJob:
        with self._reading(key):
            return self._find(key).job()

    async def watch(self, key: JobKey) -> AsyncIterator[JobStatus]:
        """Yield the state of a job, and again after each change, until the job ends or its run was killed."""
        last: JobStatus | None = None
        while True:
            try:
                status = await asyncio.to_thread(self._status, key)
            except NotFoundError as error:
                if last is None and not key.uid:
                    raise
                was = f"; it was {last.state.value} at {last.progress.samples:,} samples" if last else ""
                raise JobDeletedError(f"job {key} was deleted: {error}{was}") from None
            key = JobKey(key.name, uid=status.uid)
            if last is None or not conversion.is_same(status, last):
                last = status
                yield status
            if status.is_ended or status.reason == conversion.RUN_KILLED:
                return
            await asyncio.sleep(_POLL_SECONDS)

    async def members(self, key: JobKey) -> list[Member]:
        """Return the processes of a running job, by role and index."""
        _, found = await asyncio.to_thread(self._read, key)
        return [conversion.member(row) for row in found.members]

    async def events(self, key: JobKey) -> list[Event]:
        """Return the last 200 messages of the master and of `shoal run`, the oldest first."""
        record = await asyncio.to_thread(self._record, key)
        return [conversion.event(each) for each in record.events]

    async def history(self, key: JobKey) -> list[SizeChange]:
        """Return the last 100 changes of the number of trainers, the oldest first."""
        record = await asyncio.to_thread(self._record, key)
        return [conversion.size_change(each) for each in record.changes]

    def _record(self, key: JobKey) -> JobRecord:
        state = self._find(key)
        with self._reading(key):
            return JobRecord(state.record())

    async def metrics(self, key: JobKey) -> list[dict[str, Any]]:
        """Return the values that the script logged, up to some seconds ago, the oldest first."""
        return await asyncio.to_thread(self._metrics, key)

    def _metrics(self, key: JobKey) -> list[dict[str, Any]]:
        state = self._find(key)
        with self._reading(key):
            content = state.metrics()
            return msgspec.json.decode(content, type=list[dict[str, Any]]) if content else []

    async def logs(self, key: JobKey, options: LogOptions) -> AsyncIterator[LogLine]:
        """Yield lines of the logs of a job's processes."""
        state = self._find(key)
        key = JobKey(key.name, uid=state.uid)

        def is_over() -> bool:
            try:
                status = self._status(key)
            except NotFoundError:
                return True
            return (status.is_ended or status.reason == conversion.RUN_KILLED) and state.runner() is None

        async with aclosing(read_logs(state, options, is_over)) as lines:
            async for line in lines:
                yield line

    async def failure(self, key: JobKey) -> Failure:
        """Return the process whose failure ended the job, with the last lines of its log."""
        return await asyncio.to_thread(self._failure, key)

    def _failure(self, key: JobKey) -> Failure:
        state = self._find(key)
        with self._reading(key):
            end = state.end()
            if end is None or not end.process:
                return Failure()
            return Failure(end.process, last_lines(state, end.process, _LAST_LINES))

    # --- Changing ---

    async def scale(self, key: JobKey, *, replicas: int | None, low: int | None, high: int | None) -> None:
        """Pin the number of trainers of a running job; None returns to the number that it has by itself."""
        bounds = " and ".join(name for name, value in (("min=", low), ("max=", high)) if value is not None)
        if bounds:
            fix = "suspend the job, change spec.trainer of its manifest, and start it by `shoal run`"
            raise InvalidJobError(f"{bounds}: on one machine the bounds of a job do not change while it runs; {fix}")
        await asyncio.to_thread(self._scale, key, replicas)

    def _scale(self, key: JobKey, replicas: int | None) -> None:
        deadline = time.monotonic() + _SCALE_SECONDS
        while True:
            state = self._find(key)
            answer = ask(state, AskScale(trainers=replicas, by=_MANAGER))
            if isinstance(answer, ControlRefused):
                raise InvalidJobError(f"job {key}: {answer.reason}")
            if answer is not None:
                return
            if state.runner() is None or time.monotonic() >= deadline:
                status = self._status(key)
                fix = "; resume it first" if status.state is State.SUSPENDED else ""
                raise InvalidJobError(f"job {key} does not run: it is {status.state.value}{fix}")
            time.sleep(_POLL_SECONDS)  # a run that is just starting does not listen yet

    async def suspend(self, key: JobKey, *, suspend: bool) -> None:
        """Stop a job gracefully and return when it has ended, or start it again; an ended job stays as it is."""
        if suspend:
            await asyncio.to_thread(self._suspend, key)
            return
        interrupted = threading.Event()
        try:
            await asyncio.to_thread(self._resume, key, interrupted)
        except asyncio.CancelledError:
            interrupted.set()
            raise

    def _suspend(self, key: JobKey) -> None:
        state = self._find(key)
        runs.stop(state, key.uid or state.uid)

    def _resume(self, key: JobKey, interrupted: threading.Event) -> None:
        state = self._find(key)
        with self._reading(key):
            end = state.end()
            if state.runner() is not None and not end:
                return
            if end is not None and end.state == "Complete":
                return
            if end is not None and end.final:
                raise InvalidJobError(f"job {key} has failed and cannot continue: {end.reason}")
            variables(state.job(), os.environ)
            runs.require_etcd(state.etcd_choice())
            runs.start(state, interrupted)

    async def delete(self, key: JobKey) -> None:
        """Kill the processes of a job and remove its state folder, with the shipped files and what was written there."""
        await asyncio.to_thread(self._delete, key)

    def _delete(self, key: JobKey) -> None:
        state = self._find(key)
        runs.remove(state, key.uid or state.uid)

    # --- Results ---

    async def output(self, key: JobKey) -> str:
        """Return the path of the model file: that of ``spec.output``, else the file that the script saved last."""
        return await asyncio.to_thread(self._output, key)

    def _output(self, key: JobKey) -> str:
        output = self._manifest(key).spec.output
        if output is not None:
            return output.path
        progress = self._read(key)[1].progress
        if progress is not None and progress.saved:
            return progress.saved[-1]
        raise FetchError(
            f"job {key} has no spec.output and has saved no model; name the file, such as fetch_model('model.safetensors')"
        )

    async def fetch(self, key: JobKey, name: str, target: Path, on_progress: Callable[[int, int], None]) -> None:
        """Copy a file from the folder that the job's processes run in."""
        path = await asyncio.to_thread(self._path, key, name)
        try:
            with path.open("rb") as source, target.open("xb") as copy:
                whole, done = os.fstat(source.fileno()).st_size, 0
                on_progress(done, whole)
                while count := await asyncio.to_thread(_copy, source, copy):
                    done += count
                    on_progress(done, max(done, whole))
        except OSError as error:
            raise FetchError(f"{path} cannot be copied to {target.parent}: {error}") from None
        if done < whole:
            raise FetchError(f"{path} became shorter while it was copied: {done:,} of {whole:,} bytes; fetch it again")

    def _path(self, key: JobKey, name: str) -> Path:
        """Return the path of a file of the job.

        Raises:
            FetchError: It is outside of the job's folder, or not a file.
        """
        state = self._find(key)
        with self._reading(key):
            output = state.job().spec.output
            origin = state.origin()
        folder = Path(origin.folder if origin is not None else state.path)
        path = folder / name
        saved = getattr(self._read(key)[1].progress, "saved", [])
        known = name in saved or (output is not None and name == output.path)
        if not known and not path.resolve().is_relative_to(folder.resolve()):
            raise FetchError(f"{name} is not in {folder}, the folder of job {key}; copy it from where it is")
        if not path.is_file():
            there = "is not a file" if path.exists() else f"does not exist (the job is {self._status(key).state.value})"
            raise FetchError(f"{path} {there}; job.save writes it when the script calls it, or at the job's end")
        return path

    async def plan(self, namespace: str) -> Any:
        """Raise an error: one machine has no autoscaler."""
        del namespace
        raise ShoalError(
            "one machine has no autoscaler, so there is no plan; set the number of trainers by job.scale()"
        )


def _copy(source: BinaryIO, target: BinaryIO) -> int:
    return target.write(source.read(_CHUNK))


def _changed_at(path: Path) -> datetime | None:
    try:
        return _time(path.stat().st_mtime)
    except OSError:
        return None


def _time(seconds: float | None) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds is not None else None


_UNREADABLE: Final = (ManifestError, OSError, msgspec.DecodeError, UnicodeDecodeError)


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """Raise errors of manifests and of the state folder as those of the SDK."""
    try:
        yield
    except _UNREADABLE as error:
        raise _translation(error, name) from None


def _translation(error: Exception, name: str) -> ShoalError:
    if isinstance(error, ManifestError):
        return InvalidJobError.of(error)
    return ShoalError(f"the state of job {name} cannot be read: {error}")
