"""One leader among several operators, by a Lease: who holds it acts, the others stand by.

The Kubernetes client brings an election of its own (``kubernetes.aio.leaderelection``), which cannot do what is needed here.
It ends at the first refused connection. It counts its deadline from its own last turn instead of the last renewal that
came through, so one that was stopped or whose API server hangs goes on acting while another one leads. It cannot give
the Lease up, and it writes local time as if it were UTC.

**Time.** Nobody's clock is compared with another's. A candidate takes the Lease when it has seen the same record for as
long as the record's holder has a right to it, by its own clock. The holder may act until ``renew_seconds`` after the
*beginning* of the last renewal that came through, so it stops before anybody else can have begun, as long as the two
clocks do not differ by a third in speed. The clock counts while a machine sleeps.

**Acting.** ``left`` is asked right before each write, and the process ends from a timer as soon as nothing is left: a
process that was stopped for long and goes on finds both before it finds anything to write.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from shoal.kube import Kube, KubeError

__all__ = ["Candidate", "Election", "Times", "new_identity"]

Manifest = dict[str, Any]

_VERSION: Final = "coordination.k8s.io/v1"
_REMIND_SECONDS: Final = 30.0

log = logging.getLogger("shoal.operator")


@dataclass(frozen=True, kw_only=True)
class Times:
    """How long what lasts.

    Attributes:
        lease_seconds: How long a holder that says nothing keeps the Lease. A dead leader costs this long; an API server
            that is away for less costs nothing.
        act_seconds: How long a holder acts after its last renewal. What lies between the two is for writes under way.
        renew_seconds: Between two renewals: four may fail in a row. Two small requests each.
        look_seconds: Between two looks of one that stands by: how soon it finds a Lease that was given up.
        try_seconds: The longest wait for one answer.
    """

    lease_seconds: int = 15
    act_seconds: float = 10.0
    renew_seconds: float = 2.0
    look_seconds: float = 0.5
    try_seconds: float = 3.0


def new_identity() -> str:
    """The pod's name (its host name), and something random: a container that is started again is another one."""
    return f"{socket.gethostname()}_{secrets.token_hex(4)}"


def _clock() -> float:
    """Seconds that go on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Candidate:
    """Judges what is read. No I/O; ``now`` is by one and the same clock, ``stamp`` is for people.

    Args:
        identity: Nobody else's.
        times: How long what lasts.
    """

    def __init__(self, identity: str, times: Times) -> None:
        self._identity = identity
        self._times = times
        self._record: tuple[Any, ...] = ("", None, None, None)
        self._since = 0.0
        self._vanished = False
        self._lasts = float(times.lease_seconds)
        self._until = self._acts_from = -math.inf
        self._anew = False

    def left(self, now: float) -> float:
        """For how many seconds more it may act; 0 or less: not at all."""
        return self._until - now

    def end(self) -> None:
        """It acts no more, whatever it holds."""
        self._until = -math.inf

    @property
    def holder(self) -> str:
        """Who held it when it was last read; empty: nobody."""
        return str(self._record[0])

    def judge(self, lease: Mapping[str, Any] | None, *, now: float, stamp: datetime) -> Manifest | None:
        """What to put in the Lease's place; None: it is somebody else's.

        A Lease that has vanished counts as renewed at that moment: its holder does not know of it yet, and makes it anew.
        """
        self._learn(lease, now)
        self._anew = lease is None and bool(self.holder) and self.left(now) <= 0
        if self.holder not in {"", self._identity} and now - self._since < self._lasts:
            return None
        spec = (lease or {}).get("spec") or {}
        moment = stamp.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        mine = spec.get("holderIdentity") == self._identity
        transitions = spec.get("leaseTransitions") or 0
        after = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._times.lease_seconds,
            "acquireTime": spec.get("acquireTime") if mine else moment,
            "renewTime": moment,
            "leaseTransitions": transitions if mine or lease is None else transitions + 1,
        }
        return {**(lease or {}), "spec": {**spec, **after}}

    def wrote(self, lease: Mapping[str, Any], *, began: float, now: float) -> None:
        """What `judge` gave stands in the Lease, which was read after ``began`` and is this now.

        In the place of one that has vanished it gives no right to act for as long as a Lease lasts: its holder may have
        made it anew, unseen, before it vanished once more. From now on he cannot.
        """
        if self._anew:
            self._acts_from = now + self._lasts
        if now >= self._acts_from:
            self._until = max(self._until, began + self._times.act_seconds)
        self._learn(lease, now)

    def _learn(self, lease: Mapping[str, Any] | None, now: float) -> None:
        """Whose record it is, and since when it has stood there."""
        if lease is not None:
            spec = lease.get("spec") or {}
            names = ("renewTime", "acquireTime", "leaseTransitions")
            record = (spec.get("holderIdentity") or "", *map(spec.get, names))
            if record != self._record:
                self._record, self._since = record, now
                self._lasts = float(spec.get("leaseDurationSeconds") or self._times.lease_seconds)
        elif not self._vanished:
            self._since = now
        self._vanished = lease is None


class Election:
    """Stands for one Lease.

    Args:
        kube: A gateway of its own with little patience: nothing else may hold up a renewal.
        namespace: The Lease's.
        name: Its name.
        on_lost: Called when the Lease is lost, with the reason; it does not return.
        identity: Nobody else's.
        times: How long what lasts.
        clock: For tests.
    """

    def __init__(
        self,
        kube: Kube,
        *,
        namespace: str,
        name: str,
        on_lost: Callable[[str], None],
        identity: str = "",
        times: Times | None = None,
        clock: Callable[[], float] = _clock,
    ) -> None:
        self._kube = kube
        self._namespace, self._name = namespace, name
        self._on_lost = on_lost
        self.identity = identity or new_identity()
        self._times = times or Times()
        self._clock = clock
        self._candidate = Candidate(self.identity, self._times)
        self._timer: asyncio.TimerHandle | None = None
        self._said: dict[str, float] = {}

    @property
    def leads(self) -> bool:
        """Whether this one may act."""
        return self.left() > 0

    def left(self) -> float:
        """For how many seconds more it may act; 0 or less: not at all."""
        return self._candidate.left(self._clock())

    async def win(self) -> None:
        """Wait until the Lease is ours."""
        follows = ""
        while not await self._turn():
            holder = self._candidate.holder
            if holder not in {follows, self.identity}:
                follows = holder
                log.info("standing by as %s: %s leads (Lease %s)", self.identity, holder, self._lease)
            # Two that were started together need not go on in step.
            await asyncio.sleep(self._times.look_seconds * random.uniform(0.8, 1.2))  # noqa: S311 - no secret
        log.info("leading as %s (Lease %s)", self.identity, self._lease)
        self._watch()

    async def hold(self) -> None:
        """Renew until cancelled; ends by ``on_lost`` only."""
        while True:
            await asyncio.sleep(self._times.renew_seconds)
            await self._turn()
            if self._candidate.holder not in {"", self.identity}:
                self._lose(f"{self._candidate.holder} holds it")

    async def give_up(self) -> None:
        """Let another one lead at once. Nothing may be under way any more."""
        self._candidate.end()
        if self._timer is not None:
            self._timer.cancel()
        try:
            async with asyncio.timeout(self._times.try_seconds):
                lease = await self._kube.get("Lease", self._name, namespace=self._namespace)
                if lease is None or (lease.get("spec") or {}).get("holderIdentity") != self.identity:
                    return
                spec = {key: value for key, value in lease["spec"].items() if key != "holderIdentity"}
                await self._kube.replace({"apiVersion": _VERSION, "kind": "Lease", **lease, "spec": spec})
        except (KubeError, TimeoutError) as error:
            seconds = self._times.lease_seconds
            log.warning("the Lease %s is not given up: %s; it runs out in %d s", self._lease, error, seconds)
        else:
            log.info("the Lease %s is given up", self._lease)

    # --- Parts ---

    @property
    def _lease(self) -> str:
        return f"{self._namespace}/{self._name}"

    async def _turn(self) -> bool:
        """Take or renew the Lease if that can be; whether it gives the right to act."""
        began = self._clock()
        try:
            async with asyncio.timeout(2 * self._times.try_seconds):
                lease = await self._kube.get("Lease", self._name, namespace=self._namespace)
                after = self._candidate.judge(lease, now=self._clock(), stamp=datetime.now(UTC))
                if after is None:
                    return False
                written = await self._write(after)
        except (KubeError, TimeoutError) as error:
            self._complain(str(error) or "no answer")
            return False
        self._candidate.wrote(written, began=began, now=self._clock())
        return self.leads

    async def _write(self, after: Manifest) -> Manifest:
        manifest = {"apiVersion": _VERSION, "kind": "Lease", **after}
        if (after.get("metadata") or {}).get("resourceVersion"):
            return await self._kube.replace(manifest)
        metadata = {"name": self._name, "namespace": self._namespace}
        return await self._kube.create(manifest | {"metadata": metadata})

    def _watch(self) -> None:
        """End when nothing is left, whatever a renewal waits for."""
        left = self.left()
        if left <= 0:
            self._lose(f"it could not be renewed for {self._times.act_seconds:.0f} s")
        self._timer = asyncio.get_running_loop().call_later(max(left, 0.01), self._watch)

    def _lose(self, why: str) -> None:
        self._candidate.end()
        self._on_lost(f"the Lease {self._lease} is lost: {why}")

    def _complain(self, words: str) -> None:
        now = self._clock()
        if now - self._said.get(words, -_REMIND_SECONDS) >= _REMIND_SECONDS:
            self._said = {words: now}
            log.warning("the Lease %s: %s", self._lease, words)
