"""Decides which processes of a job run on this machine, and when the job has ended.

Pure: each event is a method call that returns a list of actions, which ``runner`` executes. So the invariants (never two
processes of one role and index, no process left at the end, the counts) are tested with random histories.

The exit code decides what follows. After a signal the process is restarted at once. A positive code of a trainer is a
failure of the user's script: it counts to ``backoffLimit`` until samples are committed again (after a failure within 30 s
of the start, also not before 30 s have passed). Code 78 is final: the job fails with the message. The master and the
parameter servers are always restarted.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Final

from shoal.local.view.formatting import NEVER_JOINED, output_suffix, process_name, signal_name
from shoal.protocol.environment import EXIT_REFUSED

__all__ = [
    "ETCD",
    "MASTER",
    "SERVER",
    "TRAINER",
    "Action",
    "Finish",
    "Place",
    "PrintLine",
    "RunSettings",
    "Signal",
    "Start",
    "Supervisor",
]

TRAINER: Final = "trainer"
SERVER: Final = "pserver"
MASTER: Final = "master"
ETCD: Final = "etcd"

_ORDER: Final = (TRAINER, SERVER, MASTER, ETCD)
"""Order of termination: each role needs the later ones for a graceful exit."""
_EARLY_EXIT_SECONDS: Final = 1.0
"""A process that exits within this time has failed to start."""
_STEADY_SECONDS: Final = 30.0
"""A process that runs for longer has started well: its next exit is not related to the last one."""
_LONGEST_DELAY_SECONDS: Final = 10.0
_LONGEST_FIRST_DELAY_SECONDS: Final = 2.0
"""Longest delay before the first committed sample: an error is probably a mistake in the script, to be reported soon."""
_GRACE_SECONDS: Final = 2.0
"""Delay between an exit with code 0 and the restart: the report that the job is complete may arrive in this time."""
_SHORT_GRACE_SECONDS: Final = 10.0
_REMINDER_SECONDS: Final = 10.0
"""Delay, after the job is complete, of the message that names the scripts that still run."""
# A shell around the training command reports a signal in this way.
_SIGNALS_BY_SHELL: Final = {
    128 + number for number in (signal.SIGABRT, signal.SIGBUS, signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM)
}


@dataclass(frozen=True, slots=True)
class Start:
    """Start a process."""

    role: str
    index: int


@dataclass(frozen=True, slots=True)
class Signal:
    """Send a signal; SIGKILL is sent to the whole process group."""

    role: str
    index: int
    number: int


@dataclass(frozen=True, slots=True)
class PrintLine:
    """Print a message; ``level`` is ``info``, ``warning`` or ``error``."""

    level: str
    text: str


@dataclass(frozen=True, slots=True)
class Finish:
    """End of the run: no process runs any more.

    Attributes:
        state: ``Complete``, ``Failed`` or ``Stopped``.
        reason: Reason of the failure or of an early completion; empty otherwise.
        final: Whether the master recorded this end, so that the job cannot resume.
    """

    state: str
    reason: str
    final: bool


Action = Start | Signal | PrintLine | Finish


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """Settings of the supervisor for one job.

    Attributes:
        trainers: Initial number of trainers.
        servers: Number of parameter servers.
        own_etcd: Whether etcd is one of the processes. Default: true.
        backoff_limit: Number of consecutive failures of the script that do not fail the job. Default: 6.
        deadline_seconds: Time after which the job fails. Seconds. Default: None, no limit.
        drain_seconds: Time between SIGTERM and SIGKILL for trainers and servers. Seconds. Default: 60.
    """

    trainers: int
    servers: int
    own_etcd: bool = True
    backoff_limit: int = 6
    deadline_seconds: float | None = None
    drain_seconds: float = 60.0


@dataclass(slots=True)
class _Process:
    started: float
    draining: bool = False
    kill_at: float | None = None


Place = tuple[str, int]


class Supervisor:
    """Decides what runs. Every event returns the actions to execute; times are seconds of one monotonic clock."""

    def __init__(self, settings: RunSettings) -> None:
        self.desired = settings.trainers
        self._settings = settings
        self._alive: dict[Place, _Process] = {}
        self._pending: dict[Place, float] = {}
        self._left: dict[Place, str] = {}
        """Pending trainers whose script exited with code 0, with its last output."""
        self._early_exits: dict[Place, int] = {}
        self._errors: dict[int, int] = {}
        self._failures = 0
        self._last_failure = ""
        self._keep_failures_until = 0.0
        """Before this time committed samples do not reset the failures: a script that always fails early commits some."""
        self._departures = 0
        self._samples: int | None = None
        self._joins: int | None = None
        """Number of joins before this run, from its first progress report."""
        self._joined = False
        """Whether any trainer of this run joined."""
        self._complete = False
        self._complete_reason = ""
        self._saved = False
        """Whether a script has exited with code 0 after the job was complete: the model is written."""
        self._outcome: Finish | None = None
        self._stage = -1
        self._finished = False
        self._interrupts = 0
        self._deadline: float | None = None
        self._reminder_due: float | None = None
        self._out: list[Action] = []

    # --- State ---

    @property
    def alive(self) -> dict[Place, bool]:
        """Role and index of every running process, and whether it is being terminated."""
        return {place: process.draining for place, process in self._alive.items()}

    @property
    def pending(self) -> dict[Place, float]:
        """Processes that wait for their restart, with its time."""
        return dict(self._pending)

    @property
    def is_ending(self) -> bool:
        """Whether the job is complete or its processes are being terminated."""
        return self._outcome is not None or self._complete

    @property
    def outcome(self) -> Finish | None:
        """The end for which the processes are being terminated; None before."""
        return self._outcome

    @property
    def complete(self) -> bool:
        """Whether the training is complete; the processes may still run."""
        return self._complete and (self._outcome is None or self._outcome.state == "Complete")

    @property
    def failures(self) -> int:
        """Failures of the script since samples were last committed."""
        return self._failures

    # --- Events ---

    def begin(self, now: float) -> list[Action]:
        """Start all processes at the same time; each waits by itself for the others that it needs."""
        if self._settings.deadline_seconds is not None:
            self._deadline = now + self._settings.deadline_seconds
        # The processes with the longest start are started first.
        self._balance(now)
        for index in range(self._settings.servers):
            self._start((SERVER, index), now)
        if self._settings.own_etcd:
            self._start((ETCD, 0), now)
        self._start((MASTER, 0), now)
        return self._flush()

    def exited(self, role: str, index: int, code: int, now: float, *, last_lines: str = "") -> list[Action]:
        """Handle the exit of a process.

        Args:
            role: Role of the process.
            index: Index of the process.
            code: Exit code; negative: the signal that terminated it.
            now: Present time.
            last_lines: Last output of the process. Default: empty.
        """
        place = (role, index)
        process = self._alive.pop(place)
        if code in _SIGNALS_BY_SHELL and role == TRAINER:
            code = 128 - code
        if self._restarts(role):
            if code == EXIT_REFUSED and not process.draining:
                self._end("Failed", last_lines or f"{role}-{index} refused the job; see its log", now)
            elif role == TRAINER:
                self._trainer_exited(place, process, code, now, last_lines)
            else:
                self._service_exited(place, process, code, now, last_lines)
        self._settle(now)
        return self._flush()

    def progressed(
        self, state: str, reason: str, samples: int, now: float, *, joins: int, trainers: int
    ) -> list[Action]:
        """Handle a progress report of the master.

        Args:
            state: State of the job.
            reason: Reason of its end.
            samples: Samples committed over all epochs.
            now: Present time.
            joins: Number of joins of trainers since the job's first run.
            trainers: Number of joined trainers now.
        """
        self._joins = joins if self._joins is None else min(joins, self._joins)
        self._joined = self._joined or bool(trainers) or joins > self._joins
        # A restored slot may have lost some samples, so the growth since the last report counts.
        before, self._samples = self._samples, samples
        if before is not None and samples > before:
            self._departures = 0
            self._early_exits.clear()
            if now >= self._keep_failures_until:
                self._failures = 0
                self._errors.clear()
        if self._outcome is None:
            if state == "Failed":
                self._end("Failed", reason, now, final=True)
            elif state == "Complete" and not self._complete:
                self._became_complete(reason, now)
        self._settle(now)
        return self._flush()

    def scale(self, trainers: int, now: float) -> list[Action]:
        """Set the desired number of trainers."""
        self.desired = trainers
        self._settle(now)
        return self._flush()

    def interrupt(self, now: float) -> list[Action]:
        """Handle the user's interrupt: the first one stops the job gracefully, the second one kills all processes."""
        self._interrupts += 1
        if self._interrupts > 1:
            self._end("Stopped", "", now)
            self._pending.clear()
            for role, index in self._alive:
                self._out.append(Signal(role, index, signal.SIGKILL))
        elif self._outcome is None:
            self._print("info", "stopping: the servers write a snapshot (Ctrl-C again: kill at once)")
            self._end("Stopped", "", now)
        self._settle(now)
        return self._flush()

    def tick(self, now: float) -> list[Action]:
        """Handle deadlines, reminders and due restarts."""
        if self._deadline is not None and now >= self._deadline and not self.is_ending:
            seconds = self._settings.deadline_seconds
            self._end("Failed", f"runPolicy.activeDeadlineSeconds: {seconds:g} s have passed", now)
        if self._reminder_due is not None and now >= self._reminder_due and self._outcome is None:
            self._reminder_due = None
            trainers = {place for place in [*self._alive, *self._pending] if place[0] == TRAINER}
            names = ", ".join(process_name(*place) for place in sorted(trainers))
            if names:
                self._print("info", f"the training is complete; waiting for the scripts of {names} to end")
        for (role, index), process in self._alive.items():
            if process.kill_at is not None and now >= process.kill_at:
                process.kill_at = None
                self._print("warning", f"{process_name(role, index)} did not exit after SIGTERM; it is killed")
                self._out.append(Signal(role, index, signal.SIGKILL))
        for place in [place for place, due in self._pending.items() if now >= due]:
            if place in self._left and self._joins is not None and not self._joined:
                self._end("Failed", f"{NEVER_JOINED}{output_suffix(self._left[place])}", now)
                break
            if place in self._left:
                self._print(
                    "warning", f"{process_name(*place)}: the script ended before the job was complete; it starts again"
                )
            self._start(place, now)
        self._settle(now)
        return self._flush()

    # --- Exits of processes ---

    def _restarts(self, role: str) -> bool:
        """Return whether a process of this role is restarted after its exit."""
        if self._outcome is None:
            return True
        # Trainers need the other processes while they drain; a failed job needs none.
        return self._outcome.state != "Failed" and _ORDER.index(role) > self._stage and self._interrupts < 2

    def _trainer_exited(self, place: Place, process: _Process, code: int, now: float, last_lines: str) -> None:
        name = process_name(*place)
        if process.draining:
            self._print("info", f"{name} left")
        elif code < 0:
            self._print("warning", f"{name} was ended by {signal_name(code)}; it starts again")
            self._restart(place, process, now)
        elif code > 0:
            if now - process.started < _STEADY_SECONDS:
                self._keep_failures_until = now + _STEADY_SECONDS
            self._script_failed(place, code, now, last_lines)
        elif self._complete:
            self._saved = True
        else:
            self._departed(place, now, last_lines)

    def _script_failed(self, place: Place, code: int, now: float, last_lines: str) -> None:
        self._failures += 1
        limit = self._settings.backoff_limit
        if self._failures > limit:
            times = "once" if self._failures == 1 else f"{self._failures} times"
            what = "the training is complete, but the script" if self._complete else "the script"
            reason = f"{what} failed {times} in a row (runPolicy.backoffLimit: {limit}){output_suffix(last_lines)}"
            self._end("Failed", reason, now)
            return
        count = self._errors[place[1]] = self._errors.get(place[1], 0) + 1
        delay = _delay(count) if self._samples else min(_LONGEST_FIRST_DELAY_SECONDS, _delay(count))
        last_line = last_lines.rstrip().rpartition("\n")[2]
        what = f"failed (exit code {code}{': ' + last_line if last_line else ''})"
        same, self._last_failure = what == self._last_failure and self._failures > 1, what
        self._print(
            "warning",
            f"{process_name(*place)}: the script {'failed in the same way' if same else what}; "
            f"again in {delay:g} s (failures in a row: {self._failures}; the job fails at {limit + 1})",
        )
        self._pending[place] = now + delay

    def _departed(self, place: Place, now: float, last_lines: str) -> None:
        """Handle a script that exits with code 0 before the job is complete: it was drained, or it stops too early.

        Whether it has ever joined is known after the next progress report, within the delay of _GRACE_SECONDS.
        """
        self._departures += 1
        if self._joins is not None and self._departures > self._settings.backoff_limit + self.desired:
            output = output_suffix(last_lines)
            reason = f"the script ended {self._departures} times in a row although the job was not complete{output}"
            self._end("Failed", reason, now)
            return
        self._left[place] = last_lines
        self._pending[place] = now + _GRACE_SECONDS

    def _service_exited(self, place: Place, process: _Process, code: int, now: float, last_lines: str) -> None:
        how = f"was ended by {signal_name(code)}" if code < 0 else f"ended with code {code}"
        last_line = last_lines.rstrip().rpartition("\n")[2] if code > 0 else ""
        self._print("warning", f"{process_name(*place)} {how}{': ' + last_line if last_line else ''}; it starts again")
        self._restart(place, process, now, back_off=code >= 0)

    def _restart(self, place: Place, process: _Process, now: float, *, back_off: bool = False) -> None:
        """Restart a process: at once, or with a back-off after repeated quick exits."""
        count = 0
        if now - process.started > _STEADY_SECONDS:
            self._early_exits.pop(place, None)
        if back_off or now - process.started < _EARLY_EXIT_SECONDS:
            count = self._early_exits[place] = self._early_exits.get(place, 0) + 1
        self._pending[place] = now + _delay(count - 1)
        if self._pending[place] <= now:
            self._start(place, now)

    # --- End of a job ---

    def _became_complete(self, reason: str, now: float) -> None:
        self._complete, self._complete_reason = True, reason
        self._reminder_due = now + _REMINDER_SECONDS
        if self._left:
            self._saved = True

    def _end(self, state: str, reason: str, now: float, *, final: bool = False) -> None:
        if self._outcome is not None:
            return
        self._outcome = Finish(state, reason, final)
        self._stage = 0
        self._pending = {place: due for place, due in self._pending.items() if self._restarts(place[0])}
        self._terminate(TRAINER, now)

    def _terminate(self, role: str, now: float) -> None:
        for index in sorted(index for other, index in self._alive if other == role):
            self._drain((role, index), now)

    def _drain(self, place: Place, now: float) -> None:
        process = self._alive[place]
        if process.draining:
            return
        process.draining = True
        process.kill_at = now + self._grace(place[0])
        self._out.append(Signal(*place, signal.SIGTERM))

    def _grace(self, role: str) -> float:
        """Return the seconds between SIGTERM and SIGKILL: more for a process that has work to hand back or to save."""
        failed = self._outcome is not None and self._outcome.state == "Failed"
        busy = role == SERVER or (role == TRAINER and not failed)
        return self._settings.drain_seconds if busy else min(_SHORT_GRACE_SECONDS, self._settings.drain_seconds)

    def _settle(self, now: float) -> None:
        """Start and terminate processes to reach the desired state."""
        if self._outcome is None:
            self._balance(now)
            if self._complete and not self._any(TRAINER):
                self._end("Complete", self._complete_reason, now, final=True)
        while self._outcome is not None and not self._finished and not self._any(_ORDER[self._stage]):
            self._next_stage(now)

    def _any(self, role: str) -> bool:
        return any(other == role for other, _ in (*self._alive, *self._pending))

    def _next_stage(self, now: float) -> None:
        assert self._outcome is not None
        self._stage += 1
        if self._stage == len(_ORDER):
            self._finished = True
            self._out.append(self._outcome)
            return
        self._pending = {place: due for place, due in self._pending.items() if self._restarts(place[0])}
        self._terminate(_ORDER[self._stage], now)

    # --- Number of trainers ---

    def _balance(self, now: float) -> None:
        if self._complete:
            if self._saved:
                self._pending = {place: due for place, due in self._pending.items() if place[0] != TRAINER}
            elif not self._any(TRAINER):
                self._start((TRAINER, 0), now)
            return
        active = sorted(
            [index for (role, index), process in self._alive.items() if role == TRAINER and not process.draining]
            + [index for role, index in self._pending if role == TRAINER]
        )
        for index in reversed(active[self.desired :]):
            self._release((TRAINER, index), now)
        for _ in range(self.desired - len(active)):
            self._start((TRAINER, self._lowest_free()), now)

    def _release(self, place: Place, now: float) -> None:
        if self._pending.pop(place, None) is None:
            self._drain(place, now)
        self._left.pop(place, None)

    def _lowest_free(self) -> int:
        index = 0
        while (TRAINER, index) in self._alive or (TRAINER, index) in self._pending:
            index += 1
        return index

    def _start(self, place: Place, now: float) -> None:
        self._pending.pop(place, None)
        self._left.pop(place, None)
        self._alive[place] = _Process(started=now)
        self._out.append(Start(*place))

    # --- Messages ---

    def _print(self, level: str, text: str) -> None:
        self._out.append(PrintLine(level, text))

    def _flush(self) -> list[Action]:
        actions, self._out = self._out, []
        return actions


def _delay(count: int) -> float:
    """Return the back-off before the ``count``-th consecutive attempt: 1, 2, 4, ... at most 10 s; 0 for a count of 0."""
    return min(_LONGEST_DELAY_SECONDS, 2.0 ** min(count - 1, 10)) if count > 0 else 0.0
