"""Creates, starts, stops and removes jobs on this machine. Blocking: `LocalBackend` calls it in threads.

A job is one `shoal run` in the background, in a session of its own, so that it survives the program that submitted it.
All functions may be called by several programs at the same time: the lock of the job's state folder decides.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from shoal.api import TrainingJob, from_mapping
from shoal.local.control_socket import AskStatus, AskStop, ask
from shoal.local.etcd_server import EtcdError, find_etcd, is_endpoint
from shoal.local.state.state_folder import BusyError, Origin, StateFolder
from shoal.local.view.status import RunStatus
from shoal.sdk.errors import AlreadyExistsError, InvalidJobError, NotFoundError, NotInstalledError, ShoalError
from shoal.sdk.manifests import Submission
from shoal.sdk.sources import Sources

__all__ = ["create", "remove", "require_etcd", "start", "stop"]

_START_SECONDS: Final = 120.0
"""Longest time until `shoal run` accepts a job; it imports for about a second."""
_STOP_SECONDS: Final = 300.0
"""Longest time of a graceful stop: 60 s each for the trainers and for the servers' snapshots, and less for the others."""
_SILENT_SECONDS: Final = 20.0
"""Time after which a run that does not answer on its control socket is stopped by a signal."""
_POLL_SECONDS: Final = 0.05
_LONGEST_MESSAGE: Final = 16 << 10


def require_etcd(choice: str | None) -> None:
    """Check that there is an etcd for `shoal run`.

    Args:
        choice: Value of its option ``--etcd``; None: the one that is found.

    Raises:
        NotInstalledError: There is none.
    """
    if choice is not None and is_endpoint(choice):
        return
    try:
        find_etcd(choice)
    except EtcdError as error:
        raise NotInstalledError(str(error)) from None


def create(base: Path, submission: Submission) -> StateFolder:
    """Write a job into its state folder.

    Args:
        base: Folder of all jobs.
        submission: The job. Its shipped files become the folder that its processes run in.

    Raises:
        AlreadyExistsError: There is a job of this name.
        ShoalError: The folder cannot be written.
    """
    name = submission.job.metadata.name
    state = StateFolder(base, name)
    taken = AlreadyExistsError(f"job {name} exists already in {base}; choose another name=, or delete it")
    try:
        if state.exists:
            raise taken
        try:
            state.lock()
        except BusyError:
            raise taken from None
        try:
            if state.exists:
                raise taken
            _write(state, submission)
        finally:
            state.unlock()
    except OSError as error:
        raise ShoalError(f"the state of job {name} cannot be written: {error}; name another folder by state=") from None
    return state


def _write(state: StateFolder, submission: Submission) -> None:
    try:
        state.clear()  # what an interrupted submit has left
        folder = submission.folder.resolve()
        if submission.sources is not None:
            folder = state.source
            _ship(submission.sources, folder)
        state.create(submission.job, Origin(folder=str(folder), source=""))
    except BaseException:
        with suppress(OSError):
            state.remove()
        raise


def _ship(sources: Sources, folder: Path) -> None:
    for name, content in sources.files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise InvalidJobError(f"{name}: a shipped file has a path below the working directory")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def start(state: StateFolder, interrupted: threading.Event) -> None:
    """Start a job, or resume it, and return when its run has accepted it or has ended already.

    Args:
        state: The job's state folder.
        interrupted: Set by the caller when its call was cancelled; the run is then killed.

    Raises:
        InvalidJobError: The run refuses the job; the text is its message.
        ShoalError: The run cannot be started, or does not answer in time.
    """
    before = _stamp(state)
    job = state.job()
    if job.spec.suspend:
        state.write_job(_unsuspended(job))
    choice = state.etcd_choice()
    command = [
        *(sys.executable, "-m", "shoal.cli", "run", str(state.manifest)),
        *("--state", str(state.path.parent), "--quiet"),
        *(("--etcd", choice) if choice is not None else ()),
    ]
    try:
        with state.run_log.open("ab") as log:
            offset = log.tell()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=state.path,
                start_new_session=True,
            )
    except OSError as error:
        raise ShoalError(f"`shoal run` cannot be started for job {state.name}: {error}") from None
    # A process that has ended is reaped, also long after this call.
    threading.Thread(target=process.wait, name=f"shoal-run-{state.name}", daemon=True).start()
    _until_accepted(state, process, before, offset, interrupted)


def _unsuspended(job: TrainingJob) -> TrainingJob:
    mapping = job.to_mapping()
    return from_mapping({**mapping, "spec": {**mapping["spec"], "suspend": False}})


def _until_accepted(
    state: StateFolder,
    process: subprocess.Popen[bytes],
    before: tuple[int, int] | None,
    offset: int,
    interrupted: threading.Event,
) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None:
        status = ask(state, AskStatus())
        if isinstance(status, RunStatus) and status.runner == process.pid:
            return
        if interrupted.wait(_POLL_SECONDS) or time.monotonic() >= deadline:
            process.kill()
            process.wait()
            raise ShoalError(
                f"`shoal run` of job {state.name} was not ready after {_START_SECONDS:.0f} s; it was killed"
            )
    # It has run already if it wrote its end; or another run was faster, or the job is complete.
    if _stamp(state) != before or state.runner() is not None or process.returncode == 0:
        return
    raise InvalidJobError(_message(state, offset) or f"`shoal run` ended with code {process.returncode}")


def _stamp(state: StateFolder) -> tuple[int, int] | None:
    """Return what distinguishes one end of a run from another."""
    try:
        found = (state.path / "end.json").stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino


def _message(state: StateFolder, offset: int) -> str:
    """Return the message of the last run, without the form in which the command line prints it."""
    try:
        with state.run_log.open("rb") as log:
            log.seek(offset)
            text = log.read(_LONGEST_MESSAGE).decode(errors="replace")
    except OSError:
        return ""
    _, found, message = text.rpartition("error: ") if text.startswith("error: ") else text.rpartition("\nerror: ")
    lines = (message if found else text).strip().splitlines()
    return "\n".join(line.removeprefix("       ") for line in lines)


def stop(state: StateFolder, uid: str, *, kill: bool = False) -> None:
    """Stop the run of a job and return when it has ended; nothing happens if it does not run.

    Args:
        state: The job's state folder.
        uid: Uid of the job; a later job of the same name is not stopped.
        kill: Whether processes are killed instead of stopped gracefully. Default: false.

    Raises:
        ShoalError: The run has not ended in time.
    """
    deadline = time.monotonic() + _STOP_SECONDS
    silent = time.monotonic()
    while (runner := state.runner()) is not None and state.uid == uid:
        now = time.monotonic()
        if ask(state, AskStop(kill=kill)) is not None:
            silent = now
        elif now - silent > _SILENT_SECONDS:
            _signal(state, runner, signal.SIGKILL if kill else signal.SIGTERM)
            silent = now
        if now >= deadline:
            raise ShoalError(f"job {state.name} has not ended after {_STOP_SECONDS:.0f} s (shoal run: pid {runner})")
        time.sleep(2 * _POLL_SECONDS)  # the end of another session's process sends no event


def _signal(state: StateFolder, pid: int, number: signal.Signals) -> None:
    """Send a signal to the run of a job, if the process of this id is still that run."""
    if pid <= 0 or pid == os.getpid():
        return
    with suppress(ProcessLookupError, PermissionError):
        descriptor = os.pidfd_open(pid)
        try:
            if state.runner() == pid:
                signal.pidfd_send_signal(descriptor, number)
                # It has no time for more than its end, so that the lock is free at the next look.
                select.select([descriptor], [], [], 1.0)
        finally:
            os.close(descriptor)


def remove(state: StateFolder, uid: str) -> None:
    """Stop a job and remove its state folder.

    Args:
        state: The job's state folder.
        uid: Uid of the job.

    Raises:
        NotFoundError: Another program has removed the job, or created it again.
        ShoalError: The run has not ended in time, or the folder cannot be removed.
    """
    deadline = time.monotonic() + _STOP_SECONDS
    while True:
        if state.uid != uid:
            raise NotFoundError(f"job {state.name} was deleted by another program at the same time")
        stop(state, uid, kill=True)
        try:
            state.lock()
        except BusyError:
            if time.monotonic() >= deadline:
                raise ShoalError(f"job {state.name} was started again and again while it was deleted") from None
            continue
        break
    try:
        if state.uid != uid:
            # The lock has made an empty folder, or the job is another one.
            if not state.exists:
                state.remove()
            raise NotFoundError(f"job {state.name} was deleted by another program at the same time")
        state.remove()
    except OSError as error:
        raise ShoalError(f"the state of job {state.name} cannot be removed: {error}") from None
    finally:
        state.unlock()
