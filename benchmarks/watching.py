"""Observers of a cluster with a real node, with exact times: its pods, its containers, and the masters' records."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple, Self

import msgspec
import yaml

from shoal.master.state.records import RANGE, MemberRecord
from shoal.store import ALL_JOBS, Event, JobKeys, Listing, Store
from tests.node.world import World

__all__ = ["Commit", "ContainerEvent", "Containers", "PodSeen", "Pods", "Records"]


class PodSeen(NamedTuple):
    """A pod from the API server's watch, and the time of the event."""

    when: float
    pod: dict[str, Any]


class Pods:
    """Watch of all pods in the world's namespace; keeps every version."""

    def __init__(self, world: World) -> None:
        config = yaml.safe_load(world.cluster.kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        context = ssl.create_default_context(cafile=cluster["certificate-authority"])
        context.load_cert_chain(user["client-certificate"], user["client-key"])
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        self._answer = opener.open(f"{cluster['server']}/api/v1/namespaces/{world.namespace}/pods?watch=true")
        self.seen: list[PodSeen] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        # The watch ends with the cluster.
        with suppress(OSError, ValueError, AttributeError):
            for line in self._answer:
                self.seen.append(PodSeen(time.time(), json.loads(line)["object"]))

    def first(self, uid: str, true: Callable[[dict[str, Any]], bool]) -> dict[str, float]:
        """Return, by pod name, the time when each pod of a job first met a condition."""
        found: dict[str, float] = {}
        for when, pod in list(self.seen):
            if pod["metadata"]["labels"].get("shoal.dev/uid") == uid and true(pod):
                found.setdefault(pod["metadata"]["name"], when)
        return found


class ContainerEvent(NamedTuple):
    """An event of containerd about a container."""

    when: float
    topic: str
    container: str


class Containers:
    """All events of containerd."""

    def __init__(self, world: World) -> None:
        socket = world.cluster._layout.settled.run / "containerd.sock"
        self._events = subprocess.Popen(
            ["ctr", "--address", str(socket), "--namespace", "k8s.io", "events"], stdout=subprocess.PIPE, text=True
        )
        self.seen: list[ContainerEvent] = []
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._events.terminate()
        self._events.wait()

    def _read(self) -> None:
        assert self._events.stdout is not None
        for line in self._events.stdout:
            # 2026-01-31 12:00:00.123456789 +0000 UTC k8s.io /tasks/exit {"container_id":"..."}
            day, clock, _, _, _, topic, *rest = line.split(maxsplit=6)
            when = datetime.fromisoformat(f"{day}T{clock[:15].ljust(15, '0')}+00:00").timestamp()
            details = json.loads(rest[0]) if rest else {}
            self.seen.append(ContainerEvent(when, topic, details.get("container_id") or details.get("id", "")))

    def after(self, when: float, topic: str, container: str = "") -> ContainerEvent:
        """Return the first event of a topic (and of a container) since a time."""
        return next(
            each
            for each in list(self.seen)
            if each.when >= when and each.topic == topic and container in {"", each.container}
        )


class Commit(NamedTuple):
    """A task of a trainer was recorded as committed."""

    when: float
    uid: str
    trainer: int
    life: str


class Records:
    """Watch of the records of all jobs' masters in etcd.

    A task's record does not name the trainer; it is known from the lease in the member's earlier record.
    """

    def __init__(self, world: World) -> None:
        self._store = Store.connect(world.etcd.endpoint, prefix=ALL_JOBS)
        self.commits: list[Commit] = []
        self.first: dict[tuple[str, str], float] = {}
        """Time of the first write of each record, by the job's uid and the relative key."""
        self._holders: dict[tuple[str, int, int], tuple[int, str]] = {}
        self._done: dict[tuple[str, str], int] = {}
        self._store.watch(ALL_JOBS, from_revision=None, on_events=self._events, on_reset=self._reset)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    def _reset(self, listing: Listing, _: str) -> None:
        """Ignore the listing: earlier records are not measured."""

    def _events(self, events: list[Event]) -> None:
        now = time.time()
        for event in events:
            parsed = JobKeys.parse(event.key)
            if parsed is None or event.value is None:
                continue
            keys, record = parsed
            self.first.setdefault((keys.uid, record), now)
            kind, _, rest = record.partition("/")
            if kind == "members":
                member = msgspec.json.decode(event.value, type=MemberRecord)
                if member.role == "trainer":
                    for lease in member.leases:
                        self._holders[keys.uid, lease.epoch, lease.task] = member.index, rest
            elif kind == "tasks":
                for epoch, task in self._new(keys.uid, rest, int.from_bytes(event.value, "little")):
                    index, life = self._holders.get((keys.uid, epoch, task), (-1, ""))
                    self.commits.append(Commit(now, keys.uid, index, life))

    def _new(self, uid: str, place: str, bits: int) -> Iterator[tuple[int, int]]:
        added = bits & ~self._done.get((uid, place), 0)
        self._done[uid, place] = bits
        epoch, number = place.split("/")
        while added:
            lowest = (added & -added).bit_length() - 1
            added &= added - 1
            yield int(epoch), int(number) * RANGE + lowest

    def of(self, uid: str, trainer: int) -> list[Commit]:
        """Return the commits of a trainer, in order."""
        return [each for each in list(self.commits) if (each.uid, each.trainer) == (uid, trainer)]
