"""Leader election among several operators, by a Lease: its holder leads, the others stand by.

The leader election of the Kubernetes client (``kubernetes.aio.leaderelection``) is not sufficient here. It ends at the first
refused connection. It counts its deadline from its own last attempt instead of the last successful renewal, so a leader that was
stopped, or whose API server hangs, continues to act while another one leads. It cannot release the Lease, and it writes local
time as if it were UTC.

**Time.** Clocks of different machines are not compared. A candidate takes the Lease when it has observed the same record for the
record's lease duration, by its own clock. The holder may act until ``act_seconds`` after the *start* of its last successful
renewal. So it stops before another candidate can start, as long as the speeds of the two clocks differ by less than a third. The
clock includes the time that a machine is suspended.

**Acting.** ``left`` is checked immediately before each write, and a timer ends the process when no time is left. A process that
was stopped and continues meets both before it can write.
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
    """Durations and intervals of the election.

    Attributes:
        lease_seconds: How long a holder that does not renew keeps the Lease. A failover after a crash takes this long; an
            outage of the API server that is shorter has no effect.
        act_seconds: How long a holder acts after its last renewal. The rest of the lease is for requests under way.
        renew_seconds: Interval of renewals, so that four may fail in a row. A renewal is two small requests.
        retry_seconds: Interval at which a candidate reads the Lease; within it a released Lease is taken.
        try_seconds: Longest wait for one response.
    """

    lease_seconds: int = 15
    act_seconds: float = 10.0
    renew_seconds: float = 2.0
    retry_seconds: float = 0.5
    try_seconds: float = 3.0


def new_identity() -> str:
    """Return the host name (the pod's name) and a random part: a restarted container is another candidate."""
    return f"{socket.gethostname()}_{secrets.token_hex(4)}"


def _clock() -> float:
    """Return seconds of a clock that includes the time that the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Candidate:
    """Decides from Leases that were read. No I/O; ``now`` is always of the same clock, ``stamp`` is for people.

    Args:
        identity: Unique identity of this candidate.
        times: Durations and intervals.
    """

    def __init__(self, identity: str, times: Times) -> None:
        self._identity = identity
        self._times = times
        self._record: tuple[Any, ...] = ("", None, None, None)
        self._since = 0.0
        self._is_deleted = False
        self._duration_seconds = float(times.lease_seconds)
        self._until = self._acts_from = -math.inf
        self._recreates = False

    def left(self, now: float) -> float:
        """Return for how many more seconds this candidate may act; 0 or less: it may not act."""
        return self._until - now

    def end(self) -> None:
        """Stop acting, whatever the Lease is."""
        self._until = -math.inf

    @property
    def holder(self) -> str:
        """Holder of the Lease when it was last read; empty: none."""
        return str(self._record[0])

    def next_lease(self, lease: Mapping[str, Any] | None, *, now: float, stamp: datetime) -> Manifest | None:
        """Return the Lease to write; None: another candidate holds it.

        A deleted Lease counts as renewed when its deletion is observed: its holder does not know of it yet, and will create
        it again.
        """
        self._observe(lease, now)
        self._recreates = lease is None and bool(self.holder) and self.left(now) <= 0
        if self.holder not in {"", self._identity} and now - self._since < self._duration_seconds:
            return None
        spec = (lease or {}).get("spec") or {}
        timestamp = stamp.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        is_holder = spec.get("holderIdentity") == self._identity
        transitions = spec.get("leaseTransitions") or 0
        after = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._times.lease_seconds,
            "acquireTime": spec.get("acquireTime") if is_holder else timestamp,
            "renewTime": timestamp,
            "leaseTransitions": transitions if is_holder or lease is None else transitions + 1,
        }
        return {**(lease or {}), "spec": {**spec, **after}}

    def lease_written(self, lease: Mapping[str, Any], *, began: float, now: float) -> None:
        """Record that the Lease of `next_lease` was written, after a read that started at ``began``.

        If it replaces a Lease that was deleted, this candidate may act only after the duration of a lease: the former holder
        may have created the Lease again, unobserved, before it was deleted once more. From now on it cannot.
        """
        if self._recreates:
            self._acts_from = now + self._duration_seconds
        if now >= self._acts_from:
            self._until = max(self._until, began + self._times.act_seconds)
        self._observe(lease, now)

    def _observe(self, lease: Mapping[str, Any] | None, now: float) -> None:
        """Record the holder of the Lease, and since when the record is unchanged."""
        if lease is not None:
            spec = lease.get("spec") or {}
            names = ("renewTime", "acquireTime", "leaseTransitions")
            record = (spec.get("holderIdentity") or "", *map(spec.get, names))
            if record != self._record:
                self._record, self._since = record, now
                self._duration_seconds = float(spec.get("leaseDurationSeconds") or self._times.lease_seconds)
        elif not self._is_deleted:
            self._since = now
        self._is_deleted = lease is None


class Election:
    """Takes part in the election for one Lease.

    Args:
        kube: A client of its own with short timeouts: no other request may delay a renewal.
        namespace: Namespace of the Lease.
        name: Name of the Lease.
        on_lost: Called with the reason when the Lease is lost; it does not return.
        identity: Unique identity of this candidate. Default: host name and a random part.
        times: Durations and intervals. Default: those of `Times`.
        clock: Clock in seconds, for tests.
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
        self._logged: dict[str, float] = {}

    @property
    def leads(self) -> bool:
        """Whether this candidate may act."""
        return self.left() > 0

    def left(self) -> float:
        """Return for how many more seconds this candidate may act; 0 or less: it may not act."""
        return self._candidate.left(self._clock())

    async def acquire(self) -> None:
        """Wait until this candidate holds the Lease."""
        leader = ""
        while not await self._acquire_or_renew():
            holder = self._candidate.holder
            if holder not in {leader, self.identity}:
                leader = holder
                log.info("standing by as %s: %s leads (Lease %s)", self.identity, holder, self._lease)
            # The jitter separates candidates that were started at the same time.
            await asyncio.sleep(self._times.retry_seconds * random.uniform(0.8, 1.2))  # noqa: S311 - no secret
        log.info("leading as %s (Lease %s)", self.identity, self._lease)
        self._check_deadline()

    async def renew(self) -> None:
        """Renew the Lease until cancelled; a lost Lease ends the process by ``on_lost``."""
        while True:
            await asyncio.sleep(self._times.renew_seconds)
            await self._acquire_or_renew()
            if self._candidate.holder not in {"", self.identity}:
                self._end_process(f"{self._candidate.holder} holds it")

    async def release(self) -> None:
        """Release the Lease, so that another candidate leads at once. No write may be under way any more."""
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
            log.warning("the Lease %s is not released: %s; it expires in %d s", self._lease, error, seconds)
        else:
            log.info("the Lease %s is released", self._lease)

    # --- Helpers ---

    @property
    def _lease(self) -> str:
        return f"{self._namespace}/{self._name}"

    async def _acquire_or_renew(self) -> bool:
        """Take or renew the Lease if possible; return whether this candidate may act."""
        began = self._clock()
        try:
            async with asyncio.timeout(2 * self._times.try_seconds):
                lease = await self._kube.get("Lease", self._name, namespace=self._namespace)
                after = self._candidate.next_lease(lease, now=self._clock(), stamp=datetime.now(UTC))
                if after is None:
                    return False
                written = await self._write(after)
        except (KubeError, TimeoutError) as error:
            self._log_warning(str(error) or "no answer")
            return False
        self._candidate.lease_written(written, began=began, now=self._clock())
        return self.leads

    async def _write(self, after: Manifest) -> Manifest:
        manifest = {"apiVersion": _VERSION, "kind": "Lease", **after}
        if (after.get("metadata") or {}).get("resourceVersion"):
            return await self._kube.replace(manifest)
        metadata = {"name": self._name, "namespace": self._namespace}
        return await self._kube.create(manifest | {"metadata": metadata})

    def _check_deadline(self) -> None:
        """End the process when no time is left, whatever a renewal waits for."""
        left = self.left()
        if left <= 0:
            self._end_process(f"it could not be renewed for {self._times.act_seconds:.0f} s")
        self._timer = asyncio.get_running_loop().call_later(max(left, 0.01), self._check_deadline)

    def _end_process(self, reason: str) -> None:
        self._candidate.end()
        self._on_lost(f"the Lease {self._lease} is lost: {reason}")

    def _log_warning(self, message: str) -> None:
        now = self._clock()
        if now - self._logged.get(message, -_REMIND_SECONDS) >= _REMIND_SECONDS:
            self._logged = {message: now}
            log.warning("the Lease %s: %s", self._lease, message)
