"""A stand-in for the masters of hollow jobs, whose pods run no process: it writes the master's side of the records in etcd.

Its members are the trainers whose pods are Ready. It drains the trainers that the operator lists (it marks the pod Succeeded,
as a kubelet does after the process has exited), and it makes steady progress. Nothing else in these tests is simulated: the
API server, the controllers, the scheduler and etcd are the real ones; kwok plays the kubelets.

A round costs two listings and one read of etcd, however many jobs there are.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec

from shoal.store import ALL_JOBS, DesiredState, JobKeys, Put, ReportedScore, ReportedState, Store
from tests.operator.api import Api, ApiAwayError

PAUSE_SECONDS = 0.1
STEADY_SECONDS = 1.0
"""A real master writes progress that changes nothing else once in a second."""


@dataclass
class Masters:
    """The stand-in for the masters of all jobs of a namespace.

    Args:
        api: The API server; while it is unreachable, the last known state is kept.
        etcd: Endpoint.
        namespace: Namespace of the jobs.
    """

    api: Api
    etcd: str
    namespace: str
    samples: dict[str, int] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    """Uid -> Complete or Failed: what a test wants to happen."""
    lost: set[str] = field(default_factory=set)
    """Uids of jobs whose masters find no snapshot: each says it once."""
    quiet: set[str] = field(default_factory=set)
    """Uids of jobs whose masters commit nothing from now on."""
    slow: set[str] = field(default_factory=set)
    """Uids of jobs whose trainers are not through with their batch: nobody leaves yet."""
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    """Uid -> the values that the job's script has logged last."""
    scores: dict[str, list[ReportedScore]] = field(default_factory=dict)
    """Uid -> the scores of the job's evaluations."""

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._failed: BaseException | None = None
        self._written: dict[str, tuple[ReportedState, float]] = {}
        self._jobs: list[JobKeys] = []
        self._pods: dict[str, list[Any]] = {}

    def __enter__(self) -> Self:
        self._store = Store.connect(self.etcd, prefix=ALL_JOBS)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        self._store.close()
        if self._failed is not None:
            raise self._failed

    def _run(self) -> None:
        try:
            pause = PAUSE_SECONDS
            while not self._stop.wait(pause):
                begun = time.monotonic()
                with contextlib.suppress(ApiAwayError):
                    self._round()
                # The listings of many jobs are long; the pause leaves processors to other processes.
                pause = max(PAUSE_SECONDS, time.monotonic() - begun)
        except BaseException as error:
            self._failed = error

    def _round(self) -> None:
        with contextlib.suppress(ApiAwayError):
            self._look()
        if not self._pods:
            return
        records = {pair.key: pair.value for pair in self._store.get_prefix(f"{ALL_JOBS}{self.namespace}/").pairs}
        for keys in self._jobs:
            self._serve(keys, self._pods[keys.uid], records)

    def _look(self) -> None:
        jobs = [job["metadata"] for job in self.api.list("TrainingJob", self.namespace)]
        pods: dict[str, list[Any]] = defaultdict(list)
        for pod in self.api.list("Pod", self.namespace, labels="shoal.dev/uid"):
            pods[pod["metadata"]["labels"]["shoal.dev/uid"]].append(pod)
        self._jobs, self._pods = [JobKeys(self.namespace, job["name"], job["uid"]) for job in jobs], pods

    def _serve(self, keys: JobKeys, pods: list[Any], records: dict[str, bytes]) -> None:
        running = {role: [pod for pod in pods if _runs(pod, keys, role)] for role in ("master", "pserver", "trainer")}
        if not running["master"]:
            return
        found = records.get(keys.desired)
        wanted = msgspec.json.decode(found, type=DesiredState) if found is not None else DesiredState()
        if keys.uid in self.lost and keys.outcome not in records:
            self.lost.discard(keys.uid)
            self._put(keys.outcome, {"state": "Failed", "reason": "no server has a good snapshot of slot 0 left", "files": {},
                                     "account": None})  # fmt: skip
            return
        if keys.outcome in records and not self.ended.get(keys.uid):
            return  # a master that has failed does nothing more
        end = self.ended.get(keys.uid, "")
        if end and keys.outcome not in records:
            samples = {"expected": 9, "counted": 9, "lost": 0, "twice": 0, "skipped": 0}
            account = {"state": end, "epochs": 3, "samples": samples, "joins": 4, "leaves": 2, "deaths": 0,
                       "replayed": 0, "seconds": 1.5}  # fmt: skip
            outcome = {"state": end, "reason": "as the test wants it", "files": {}, "account": account}
            self._put(keys.outcome, outcome)
        for pod in list(running["trainer"]):
            if end or (wanted.leaves(_index(pod)) and keys.uid not in self.slow):
                self._end(pod)
                running["trainer"].remove(pod)
        self._publish(keys, running, end, kept=keys.progress in records)

    def members(self, uid: str) -> list[int]:
        """Return the trainers that the job's master has reported as members."""
        found = self._written.get(uid)
        return list(found[0].trainers) if found is not None else []

    def desired_drain(self, uid: str) -> list[int]:
        """Return the trainers that the operator wants drained."""
        (keys,) = [each for each in self._jobs if each.uid == uid] or [None]
        found = self._store.get(keys.desired) if keys is not None else None
        return msgspec.json.decode(found.value, type=DesiredState).drain if found is not None else []

    def _publish(self, keys: JobKeys, running: dict[str, list[Any]], end: str, *, kept: bool) -> None:
        trainers = sorted(map(_index, running["trainer"])) if running["pserver"] else []
        before, since = self._written.get(keys.uid, (None, 0.0))
        moves = keys.uid not in self.quiet
        self.samples[keys.uid] = self.samples.get(keys.uid, 0) + 10 * len(trainers) * moves
        published = ReportedState(
            generation=1, state=end or "Running", epoch=0, epochs=3, samples=self.samples[keys.uid], expected=10**6,
            rate=100.0, moved=time.time() if moves or before is None else before.moved, trainers=trainers,
            servers=sorted(map(_index, running["pserver"])), served=bool(running["pserver"]), stall_reason="",
            values=self.values.get(keys.uid, {}), scores=self.scores.get(keys.uid, []),
        )  # fmt: skip
        same = before is not None and _only_further(before, published)
        if same and kept and time.monotonic() - since < STEADY_SECONDS:
            return
        self._put(keys.progress, published)
        self._written[keys.uid] = published, time.monotonic()

    def _put(self, key: str, value: Any) -> None:
        self._store.transact([], [Put(key, msgspec.json.encode(value))])

    def _end(self, pod: dict[str, Any]) -> None:
        """Report that the pod's process exited with code 0; a sidecar keeps running."""
        if len(pod["spec"]["containers"]) > 1:
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            over = {"exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now}
            role = pod["metadata"]["labels"]["shoal.dev/role"]
            own = {"name": role, "image": "i", "imageID": "", "restartCount": 0, "ready": False}
            condition = {"type": "Ready", "status": "False", "reason": "ContainersNotReady"}
            beside = [each for each in pod["status"].get("containerStatuses", []) if each["name"] != role]
            status = {"conditions": [condition], "containerStatuses": [own | {"state": {"terminated": over}}, *beside]}
            self.api.patch("Pod", pod["metadata"]["name"], self.namespace, {"status": status}, status=True)
            return
        status = {"phase": "Succeeded", "conditions": [{"type": "Ready", "status": "False"}]}
        self.api.patch("Pod", pod["metadata"]["name"], self.namespace, {"status": status}, status=True)


def _only_further(before: ReportedState, after: ReportedState) -> bool:
    same = {"samples": 0, "moved": 0.0}
    return msgspec.structs.replace(before, **same) == msgspec.structs.replace(after, **same)


def _runs(pod: dict[str, Any], keys: JobKeys, role: str) -> bool:
    """Check whether a pod is at work; a pod that only carries the labels is known to no master."""
    status = pod.get("status", {})
    beside = any(each.get("reason") == "ContainersNotReady" for each in status.get("conditions", []))
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions", []))
    # Readiness of the role's container does not depend on the sidecars.
    ready |= beside and any(each["name"] == role and each["ready"] for each in status.get("containerStatuses", []))
    metadata = pod["metadata"]
    ours = metadata["labels"].get("shoal.dev/role") == role and metadata["name"].startswith(f"{keys.name}-{role}-")
    return ours and ready and "deletionTimestamp" not in metadata


def _index(pod: dict[str, Any]) -> int:
    return int(pod["metadata"]["name"].rpartition("-")[2])
