"""Which processes of a job run on this machine, and when the job is over.

Pure: events and the time come in as calls, what is to be done goes out as a list of actions; ``runner`` carries them
out. So the promises (never two processes of one role and index, nothing left behind, the counts) are tested with random
histories and without a single process.

Who ends how decides what follows. A signal is nobody's fault: the process starts again at once. A positive code of a
trainer is an error of the user's script: it counts to ``backoffLimit`` until samples are committed again (and, after one
that ended the script soon, until the scripts ran well for half a minute). Code 78 is a final word: the job fails with the message. The master and the parameter servers always come back.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Final

from shoal.local.view.formatting import NEVER_JOINED, behind, process_name, signal_name
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
"""Who ends first: each of them needs those behind it to leave in good order."""
_QUICK_SECONDS: Final = 1.0
"""A process that lives for less has not even started well."""
_STEADY_SECONDS: Final = 30.0
"""A process that lives for longer had a good start: its next end has nothing to do with the last one."""
_LONGEST_DELAY_SECONDS: Final = 10.0
_LONGEST_FIRST_DELAY_SECONDS: Final = 2.0
"""Before anything was ever committed an error is most likely a mistake in the script, and its author waits for the news."""
_GRACE_SECONDS: Final = 2.0
"""Between a script's good end and its restart: the word that the job is complete may be on its way."""
_SHORT_PATIENCE_SECONDS: Final = 10.0
_REMIND_SECONDS: Final = 10.0
"""What a script does after its training is its own business, but a user who waits should know for what."""
# A shell around the training command reports the signal that ended it in this way.
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
    """Send a signal; SIGKILL goes to the process with all its children."""

    role: str
    index: int
    number: int


@dataclass(frozen=True, slots=True)
class PrintLine:
    """Tell the user; ``level`` is ``info``, ``warning`` or ``error``."""

    level: str
    text: str


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing runs any more.

    Attributes:
        state: ``Complete``, ``Failed`` or ``Stopped``.
        reason: Why it failed, or why it was complete early; empty otherwise.
        final: Whether the master recorded this end, so that the job cannot go on from here.
    """

    state: str
    reason: str
    final: bool


Action = Start | Signal | PrintLine | Finish


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What the supervisor must know of a job.

    Attributes:
        trainers: How many trainers are wanted at first.
        servers: How many parameter servers there are.
        own_etcd: Whether etcd is one of the processes.
        backoff_limit: How many errors of the script in a row are borne.
        deadline_seconds: After which the job fails; None: never.
        drain_seconds: A trainer or server told to end is killed after so long.
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
    """Decides what runs. Every call returns what is to be done now; times are seconds of one monotonic clock."""

    def __init__(self, settings: RunSettings) -> None:
        self.wanted = settings.trainers
        self._settings = settings
        self._alive: dict[Place, _Process] = {}
        self._pending: dict[Place, float] = {}
        self._left: dict[Place, str] = {}
        """Among the pending: whose script came to a good end, and its last words."""
        self._quick: dict[Place, int] = {}
        self._errors: dict[int, int] = {}
        self._failures = 0
        self._last_failure = ""
        self._doubtful_until = 0.0
        """Until then committed samples do not show that the script works: one that always fails early commits some."""
        self._departures = 0
        self._samples: int | None = None
        self._joins: int | None = None
        """How many trainers had joined before this run, as far as its first progress tells."""
        self._joined = False
        """Whether any trainer of this run joined."""
        self._complete = False
        self._complete_reason = ""
        self._saved = False
        """Some script came to its end after the job was complete: the model is written."""
        self._outcome: Finish | None = None
        self._stage = -1
        self._finished = False
        self._interrupts = 0
        self._deadline: float | None = None
        self._remind_at: float | None = None
        self._out: list[Action] = []

    # --- What can be asked ---

    @property
    def alive(self) -> dict[Place, bool]:
        """Role and index of every running process, and whether it was told to end."""
        return {place: process.draining for place, process in self._alive.items()}

    @property
    def pending(self) -> dict[Place, float]:
        """Who waits to be started again, and until when."""
        return dict(self._pending)

    @property
    def ending(self) -> bool:
        """Whether the end has begun."""
        return self._outcome is not None or self._complete

    @property
    def leaving(self) -> bool:
        """Whether the processes are being ended."""
        return self._outcome is not None

    @property
    def complete(self) -> bool:
        """Whether the training is complete; the processes may still have to end."""
        return self._complete and (self._outcome is None or self._outcome.state == "Complete")

    @property
    def failures(self) -> int:
        """Errors of the script since samples were last committed."""
        return self._failures

    # --- Events ---

    def begin(self, now: float) -> list[Action]:
        """Start everything at once; who needs another one waits for it by itself."""
        if self._settings.deadline_seconds is not None:
            self._deadline = now + self._settings.deadline_seconds
        # Those that take longest to start go first.
        self._balance(now)
        for index in range(self._settings.servers):
            self._start((SERVER, index), now)
        if self._settings.own_etcd:
            self._start((ETCD, 0), now)
        self._start((MASTER, 0), now)
        return self._flush()

    def exited(self, role: str, index: int, code: int, now: float, *, words: str = "") -> list[Action]:
        """A process ended.

        Args:
            role: Its role.
            index: Its index.
            code: Exit code; negative: the signal that ended it.
            now: The time.
            words: The last thing it said, for people.
        """
        place = (role, index)
        process = self._alive.pop(place)
        if code in _SIGNALS_BY_SHELL and role == TRAINER:
            code = 128 - code
        if self._comes_back(role):
            if code == EXIT_REFUSED and not process.draining:
                self._end("Failed", words or f"{role}-{index} refused the job; its log says why", now)
            elif role == TRAINER:
                self._trainer_exited(place, process, code, now, words)
            else:
                self._service_exited(place, process, code, now, words)
        self._settle(now)
        return self._flush()

    def progressed(
        self, state: str, reason: str, samples: int, now: float, *, joins: int, trainers: int
    ) -> list[Action]:
        """The master told how the job is.

        Args:
            state: Its state.
            reason: Why it ended.
            samples: Committed over all epochs.
            now: The time.
            joins: How many trainers have joined in the job's whole life.
            trainers: How many of them are here now.
        """
        self._joins = joins if self._joins is None else min(joins, self._joins)
        self._joined = self._joined or bool(trainers) or joins > self._joins
        # A restored slot may have lost some: what counts is growth since the last word.
        before, self._samples = self._samples, samples
        if before is not None and samples > before:
            self._departures = 0
            self._quick.clear()
            if now >= self._doubtful_until:
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
        """Another number of trainers is wanted."""
        self.wanted = trainers
        self._settle(now)
        return self._flush()

    def interrupt(self, now: float) -> list[Action]:
        """The user wants it to stop: first in good order, the second time at once."""
        self._interrupts += 1
        if self._interrupts > 1:
            self._end("Stopped", "", now)
            self._pending.clear()
            for role, index in self._alive:
                self._out.append(Signal(role, index, signal.SIGKILL))
        elif self._outcome is None:
            self._tell("info", "stopping: the servers write a snapshot (Ctrl-C again: kill at once)")
            self._end("Stopped", "", now)
        self._settle(now)
        return self._flush()

    def tick(self, now: float) -> list[Action]:
        """Time passed."""
        if self._deadline is not None and now >= self._deadline and not self.ending:
            seconds = self._settings.deadline_seconds
            self._end("Failed", f"runPolicy.activeDeadlineSeconds: {seconds:g} s have passed", now)
        if self._remind_at is not None and now >= self._remind_at and self._outcome is None:
            self._remind_at = None
            trainers = {place for place in [*self._alive, *self._pending] if place[0] == TRAINER}
            names = ", ".join(process_name(*place) for place in sorted(trainers))
            if names:
                self._tell("info", f"the training is complete; waiting for the scripts of {names} to end")
        for (role, index), process in self._alive.items():
            if process.kill_at is not None and now >= process.kill_at:
                process.kill_at = None
                self._tell("warning", f"{process_name(role, index)} did not end when told to; it is killed")
                self._out.append(Signal(role, index, signal.SIGKILL))
        for place in [place for place, due in self._pending.items() if now >= due]:
            if place in self._left and self._joins is not None and not self._joined:
                self._end("Failed", f"{NEVER_JOINED}{behind(self._left[place])}", now)
                break
            if place in self._left:
                self._tell(
                    "warning", f"{process_name(*place)}: the script ended before the job was complete; it starts again"
                )
            self._start(place, now)
        self._settle(now)
        return self._flush()

    # --- How processes end ---

    def _comes_back(self, role: str) -> bool:
        """Whether the end of a process of this role matters now."""
        if self._outcome is None:
            return True
        # While trainers drain they need the rest; a job that failed needs nothing more.
        return self._outcome.state != "Failed" and _ORDER.index(role) > self._stage and self._interrupts < 2

    def _trainer_exited(self, place: Place, process: _Process, code: int, now: float, words: str) -> None:
        name = process_name(*place)
        if process.draining:
            self._tell("info", f"{name} left")
        elif code < 0:
            self._tell("warning", f"{name} was ended by {signal_name(code)}; it starts again")
            self._again(place, process, now)
        elif code > 0:
            if now - process.started < _STEADY_SECONDS:
                self._doubtful_until = now + _STEADY_SECONDS
            self._script_failed(place, code, now, words)
        elif self._complete:
            self._saved = True
        else:
            self._departed(place, now, words)

    def _script_failed(self, place: Place, code: int, now: float, words: str) -> None:
        self._failures += 1
        limit = self._settings.backoff_limit
        if self._failures > limit:
            times = "once" if self._failures == 1 else f"{self._failures} times"
            what = "the training is complete, but the script" if self._complete else "the script"
            self._end("Failed", f"{what} failed {times} in a row (runPolicy.backoffLimit: {limit}){behind(words)}", now)
            return
        count = self._errors[place[1]] = self._errors.get(place[1], 0) + 1
        delay = _delay(count) if self._samples else min(_LONGEST_FIRST_DELAY_SECONDS, _delay(count))
        last_line = words.rstrip().rpartition("\n")[2]
        what = f"failed (exit code {code}{': ' + last_line if last_line else ''})"
        same, self._last_failure = what == self._last_failure and self._failures > 1, what
        self._tell(
            "warning",
            f"{process_name(*place)}: the script {'failed in the same way' if same else what}; "
            f"again in {delay:g} s (failures in a row: {self._failures}; the job fails at {limit + 1})",
        )
        self._pending[place] = now + delay

    def _departed(self, place: Place, now: float, words: str) -> None:
        """A script ended well before the job did: by a signal of somebody else's, or it never trains to the end.

        Whether it is one that never joined is known a moment later, when the master's word on all joins is here.
        """
        self._departures += 1
        if self._joins is not None and self._departures > self._settings.backoff_limit + self.wanted:
            self._end(
                "Failed",
                f"the script ended {self._departures} times in a row although the job was not complete{behind(words)}",
                now,
            )
            return
        self._left[place] = words
        self._pending[place] = now + _GRACE_SECONDS

    def _service_exited(self, place: Place, process: _Process, code: int, now: float, words: str) -> None:
        how = f"was ended by {signal_name(code)}" if code < 0 else f"ended with code {code}"
        last_line = words.rstrip().rpartition("\n")[2] if code > 0 else ""
        self._tell("warning", f"{process_name(*place)} {how}{': ' + last_line if last_line else ''}; it starts again")
        self._again(place, process, now, slowly=code >= 0)

    def _again(self, place: Place, process: _Process, now: float, *, slowly: bool = False) -> None:
        """Start it again: at once, unless that keeps going wrong."""
        count = 0
        if now - process.started > _STEADY_SECONDS:
            self._quick.pop(place, None)
        if slowly or now - process.started < _QUICK_SECONDS:
            count = self._quick[place] = self._quick.get(place, 0) + 1
        self._pending[place] = now + _delay(count - 1)
        if self._pending[place] <= now:
            self._start(place, now)

    # --- How a job ends ---

    def _became_complete(self, reason: str, now: float) -> None:
        self._complete, self._complete_reason = True, reason
        self._remind_at = now + _REMIND_SECONDS
        if self._left:
            self._saved = True

    def _end(self, state: str, reason: str, now: float, *, final: bool = False) -> None:
        if self._outcome is not None:
            return
        self._outcome = Finish(state, reason, final)
        self._stage = 0
        self._pending = {place: due for place, due in self._pending.items() if self._comes_back(place[0])}
        self._terminate(TRAINER, now)

    def _terminate(self, role: str, now: float) -> None:
        for index in sorted(index for other, index in self._alive if other == role):
            self._drain((role, index), now)

    def _drain(self, place: Place, now: float) -> None:
        process = self._alive[place]
        if process.draining:
            return
        process.draining = True
        process.kill_at = now + self._patience(place[0])
        self._out.append(Signal(*place, signal.SIGTERM))

    def _patience(self, role: str) -> float:
        """Seconds until a process that was told to end is killed: long only where it has something to bring home."""
        failed = self._outcome is not None and self._outcome.state == "Failed"
        busy = role == SERVER or (role == TRAINER and not failed)
        return self._settings.drain_seconds if busy else min(_SHORT_PATIENCE_SECONDS, self._settings.drain_seconds)

    def _settle(self, now: float) -> None:
        """Bring what runs in line with what should."""
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
        self._pending = {place: due for place, due in self._pending.items() if self._comes_back(place[0])}
        self._terminate(_ORDER[self._stage], now)

    # --- How many trainers ---

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
        for index in reversed(active[self.wanted :]):
            self._let_go((TRAINER, index), now)
        for _ in range(self.wanted - len(active)):
            self._start((TRAINER, self._lowest_free()), now)

    def _let_go(self, place: Place, now: float) -> None:
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

    # --- Words ---

    def _tell(self, level: str, text: str) -> None:
        self._out.append(PrintLine(level, text))

    def _flush(self) -> list[Action]:
        actions, self._out = self._out, []
        return actions


def _delay(count: int) -> float:
    """Seconds before the ``count``-th try in a row: 1, 2, 4... at most 10; none for a count of 0."""
    return min(_LONGEST_DELAY_SECONDS, 2.0 ** min(count - 1, 10)) if count > 0 else 0.0
