"""`shoal run`: executes the supervisor's actions on real processes.

It reports exits, the master's progress, the user's requests and the time to the supervisor. All processes start at the
same time, because most of them import torch for some seconds; a process waits for the others that it needs.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import msgspec

from shoal.api import TrainingJob
from shoal.local.control_socket import AskScale, AskStop, Control, ControlRefused
from shoal.local.hang_detector import HangDetector
from shoal.local.job_etcd import OwnEtcd
from shoal.local.launch import Launcher
from shoal.local.processes import LaunchError, Processes
from shoal.local.progress_observer import observe
from shoal.local.state.job_record import PINNED
from shoal.local.state.recorder import Recorder
from shoal.local.state.state_folder import RunEnd, StateFolder
from shoal.local.supervisor import ETCD, Action, Finish, PrintLine, RunSettings, Signal, Start, Supervisor
from shoal.local.view.events import Events
from shoal.local.view.formatting import counted, process_name
from shoal.local.view.plain import ProgressView
from shoal.local.view.status import RunStatus, account_of, rows_of
from shoal.protocol.environment import EXIT_REFUSED, LONG_FACTOR
from shoal.protocol.messages import JobProgress
from shoal.transport.auth import Token

__all__ = ["Runner", "run"]

_TICK_SECONDS: Final = 0.1
_SHOW_SECONDS: Final = 0.5
_KEEP_SECONDS: Final = 5.0
_PROBE_SECONDS: Final = 2.0


class Runner:
    """Runs one job to its end.

    Args:
        job: The job.
        state: The job's state folder, locked and prepared.
        launcher: Creates the launch of each process.
        etcd: The etcd to run for the job; None: an etcd runs already.
        trainers: Number of trainers that the job has by itself.
        pinned: Number of trainers that a user pinned in an earlier run. Default: None, `trainers`.
        view: Output of progress and messages.
    """

    def __init__(
        self,
        job: TrainingJob,
        *,
        state: StateFolder,
        launcher: Launcher,
        etcd: OwnEtcd | None,
        trainers: int,
        view: ProgressView,
        pinned: int | None = None,
    ) -> None:
        policy = job.spec.run_policy
        self._job = job
        self._state = state
        self._launcher = launcher
        self._etcd = etcd
        self._view = view
        self._supervisor = Supervisor(
            RunSettings(
                trainers=pinned or trainers,
                servers=job.servers,
                own_etcd=etcd is not None,
                backoff_limit=policy.backoff_limit,
                deadline_seconds=policy.active_deadline_seconds,
            )
        )
        self._first_trainers = trainers
        self._processes = Processes(state.logs, self._exited)
        self._progress: JobProgress | None = None
        self._events = Events()
        self._recorder = Recorder(state)
        self._restarts: dict[tuple[str, int], int] = {}
        self._failed = ""
        self._finish: Finish | None = None
        self._finished = asyncio.Event()
        self._started = time.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()
        self._shown = self._kept = 0.0
        self._watchdog = HangDetector(self._started, step_seconds=policy.step_timeout.seconds * LONG_FACTOR)

    async def run(self) -> RunEnd:
        """Run the job and return its end, which is also written into the state folder."""
        control = Control(self._state, self._answer)
        await control.open(f"unix://{self._launcher.sockets / 'run'}")
        self._watch_signals()
        watching = asyncio.create_task(
            observe(
                f"file://{self._launcher.master}",
                token=Token.read(self._launcher.token),
                job=self._launcher.uid,
                on_progress=self._progressed,
            )
        )
        etcd_probe = asyncio.create_task(self._probe_etcd())
        self._recorder.resize(self._supervisor.desired, "the job's processes are started")
        try:
            self._execute(self._supervisor.begin(time.monotonic()))
            await self._until_finished()
        finally:
            for task in (watching, etcd_probe):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            control.close()
            self._processes.kill_all()
            await asyncio.gather(*self._tasks)
            if self._etcd is not None:
                await self._etcd.stop()
            self._state.drop_sockets()
        return self._write_end()

    async def _until_finished(self) -> None:
        while not self._finished.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_TICK_SECONDS):
                    await self._finished.wait()
            now = time.monotonic()
            self._execute(self._supervisor.tick(now))
            self._end_hung(now)
            for level, text in self._events.due(now):
                self._print(level, text)
            self._recorder.write()
            if now - self._shown >= _SHOW_SECONDS:
                self._show()
            if now - self._kept >= _KEEP_SECONDS:
                self._keep()

    async def _probe_etcd(self) -> None:
        while self._etcd is not None:
            await asyncio.sleep(_PROBE_SECONDS)
            with suppress(Exception):  # any error means that etcd did not answer
                if self._etcd.pid is not None and await asyncio.to_thread(self._etcd.answers):
                    self._watchdog.etcd_answered(time.monotonic())

    def _end_hung(self, now: float) -> None:
        """Kill hung processes; the supervisor restarts them after their exit."""
        if self._supervisor.is_ending:
            return
        running = [place for place, draining in self._supervisor.alive.items() if not draining]
        for place, seconds in self._watchdog.hung({place: now - self._age(*place) for place in running}, now).items():
            self._print("warning", f"{process_name(*place)} has not answered for {seconds:.0f} s; it is killed")
            if place[0] == ETCD and self._etcd is not None:
                self._etcd.kill()
            else:
                self._processes.signal(*place, signal.SIGKILL)

    def _age(self, role: str, index: int) -> float:
        return self._etcd.age if role == ETCD and self._etcd is not None else self._processes.age(role, index)

    def _write_end(self) -> RunEnd:
        assert self._finish is not None
        last_account = self._progress.account if self._progress is not None else None
        if last_account is None or last_account.state != self._finish.state:
            last_account = account_of(self._finish.state, self._progress, seconds=time.monotonic() - self._started)
        end = RunEnd(
            state=self._finish.state,
            reason=self._finish.reason,
            final=self._finish.final,
            account=last_account,
            process=self._failed if self._finish.state == "Failed" else "",
        )
        self._recorder.write(at_once=True)
        self._state.write_end(end)
        self._keep()
        return end

    # --- Events ---

    def _watch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup
            loop.add_signal_handler(number, lambda: self._execute(self._supervisor.interrupt(time.monotonic())))

    def _exited(self, role: str, index: int, code: int, last_lines: str) -> None:
        place = (role, index)
        if self._supervisor.alive.get(place, True):  # drained; a later process of this name is a new one
            self._restarts.pop(place, None)
        else:
            self._restarts[place] = self._restarts.get(place, 0) + 1
            if code > 0:
                self._failed = f"{role}-{index}"
        self._execute(self._supervisor.exited(role, index, code, time.monotonic(), last_lines=last_lines))

    def _progressed(self, progress: JobProgress) -> None:
        self._progress = progress
        self._watchdog.progress_reported(((each.role, each.index) for each in progress.members), time.monotonic())
        self._recorder.progressed(progress)
        for level, text in self._events.new(progress, time.monotonic()):
            self._print(level, text)
        self._execute(
            self._supervisor.progressed(
                progress.state,
                progress.reason,
                progress.samples_total,
                time.monotonic(),
                joins=progress.joins,
                trainers=sum(member.role == "trainer" for member in progress.members),
            )
        )
        self._show()

    def _answer(self, question: Any) -> RunStatus | ControlRefused:
        match question:
            case AskScale():
                return self._scale(question) or self.status()
            case AskStop():
                self._stop(kill=question.kill)
        return self.status()

    def _scale(self, question: AskScale) -> ControlRefused | None:
        trainer = self._job.spec.trainer
        desired = question.trainers if question.trainers is not None else self._first_trainers
        if self._supervisor.is_ending:
            return ControlRefused(reason="the job is ending")
        if not trainer.min_replicas <= desired <= trainer.most:
            return ControlRefused(
                reason=f"{counted(desired, 'trainer')}: it can use {trainer.min_replicas} to {trainer.most} "
                "(--trainers of `shoal run`, or spec.trainer in the manifest)"
            )
        if desired != self._supervisor.desired:
            self._print("info", f"trainers wanted: {desired} instead of {self._supervisor.desired}")
        cause = "un-pinned: the number at the start" if question.trainers is None else f"{PINNED} by a user"
        self._recorder.resize(desired, cause, question.by)
        self._recorder.write(at_once=True)  # who asks next for the history sees this change
        self._execute(self._supervisor.scale(desired, time.monotonic()))
        return None

    def _stop(self, *, kill: bool) -> None:
        """Stop the job; the second interrupt of the supervisor kills."""
        if self._supervisor.outcome is None or kill:
            self._execute(self._supervisor.interrupt(time.monotonic()))
        if kill:
            self._execute(self._supervisor.interrupt(time.monotonic()))

    # --- Actions ---

    def _execute(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Start():
                    self._start(action.role, action.index)
                case Signal():
                    self._signal(action)
                case PrintLine():
                    self._print(action.level, action.text)
                case Finish():
                    self._finish = action
                    self._finished.set()

    def _print(self, level: str, text: str) -> None:
        self._recorder.add_event(level, text)
        self._view.print_event(level, text)

    def _start(self, role: str, index: int) -> None:
        if role == ETCD:
            assert self._etcd is not None
            self._spawn(self._etcd.start(lambda code, last_lines: self._exited(ETCD, 0, code, last_lines)))
            return
        launch = self._launcher.launch(role, index, trainers=self._supervisor.desired)
        try:
            self._processes.start(role, index, launch)
        except LaunchError as error:
            # Deferred, because the supervisor's call that requested the start has not returned yet.
            loop = asyncio.get_running_loop()
            loop.call_soon(self._exited, role, index, EXIT_REFUSED, str(error))

    def _signal(self, action: Signal) -> None:
        if action.role != ETCD:
            self._processes.signal(action.role, action.index, action.number)
        elif self._etcd is not None:
            self._spawn(self._etcd.stop(kill=action.number == signal.SIGKILL))

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- Status ---

    def status(self) -> RunStatus:
        """Return the job's present status."""
        trainer = self._job.spec.trainer
        outcome = self._finish or self._supervisor.outcome
        return RunStatus(
            name=self._job.metadata.name,
            state=self._state_now(),
            reason=outcome.reason if outcome is not None else "",
            runner=os.getpid() if self._finish is None else 0,
            trainers=self._supervisor.desired,
            least=trainer.min_replicas,
            most=trainer.most,
            members=self._rows(),
            progress=self._progress,
            account=self._progress.account if self._progress is not None else None,
        )

    def _state_now(self) -> str:
        if self._finish is not None:
            return self._finish.state
        if self._supervisor.outcome is not None and not self._supervisor.complete:
            return "Stopping"
        return self._progress.state if self._progress is not None else "Starting"

    def _rows(self) -> list[Any]:
        now = time.monotonic()
        running = []
        for (role, index), draining in self._supervisor.alive.items():
            own = role == ETCD and self._etcd is not None
            pid = self._etcd.pid if own and self._etcd is not None else self._processes.pid(role, index)
            running.append((role, index, pid or 0, self._age(role, index), draining))
        waiting = [(role, index, max(0.0, due - now)) for (role, index), due in self._supervisor.pending.items()]
        members = self._progress.members if self._progress is not None else []
        return rows_of(running, waiting, members, complete=self._supervisor.complete, restarts=self._restarts)

    def _show(self) -> None:
        self._shown = time.monotonic()
        self._view.show(self.status())

    def _keep(self) -> None:
        self._kept = time.monotonic()
        self._state.write_last(msgspec.json.encode(self.status()))


def run(make: Callable[[], Runner]) -> RunEnd:
    """Run a job on a new event loop."""

    async def main() -> RunEnd:
        return await make().run()

    return asyncio.run(main())
