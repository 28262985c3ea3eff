"""A stand-in for the masters of hollow jobs, whose pods run no process: it speaks the master's side of the records in etcd.

It has the trainers whose pods are Ready, sends away whom the operator wants to leave (such a trainer's process ends: its
pod is marked Succeeded, which a kubelet would do), and makes steady progress. Nothing else in these tests is made up: the
API server, the controllers, the scheduler and etcd are the real ones; kwok plays the kubelets.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec

from shoal.store import JobKeys, Published, Put, Store, Wanted

PAUSE_SECONDS = 0.1


@dataclass
class Masters:
    """One for all jobs of a namespace.

    Args:
        kubectl: Runs kubectl.
        get: Gets objects as JSON.
        etcd: Endpoint.
        namespace: Whose jobs.
    """

    kubectl: Callable[..., str]
    get: Callable[..., Any]
    etcd: str
    namespace: str
    samples: dict[str, int] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    """Uid -> Complete or Failed: what a test wants to happen."""

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._failed: BaseException | None = None

    def __enter__(self) -> Self:
        self._store = Store.connect(self.etcd, prefix="/shoal/v1/jobs/")
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
            while not self._stop.wait(PAUSE_SECONDS):
                for job in self.get("trainingjobs", "-n", self.namespace)["items"]:
                    self._serve(job["metadata"])
        except BaseException as error:
            self._failed = error

    def _serve(self, job: dict[str, Any]) -> None:
        keys = JobKeys(self.namespace, job["name"], job["uid"])
        pods = self.get("pods", "-n", self.namespace, "-l", f"shoal.dev/uid={job['uid']}")["items"]
        running = {role: [pod for pod in pods if _runs(pod, role)] for role in ("master", "pserver", "trainer")}
        if not running["master"]:
            return
        found = self._store.get(keys.wanted)
        wanted = msgspec.json.decode(found.value, type=Wanted) if found is not None else Wanted()
        end = self.ended.get(job["uid"], "")
        if end and self._store.get(keys.outcome) is None:
            samples = {"expected": 9, "counted": 9, "lost": 0, "twice": 0, "skipped": 0}
            account = {"state": end, "epochs": 3, "samples": samples, "joins": 4, "leaves": 2, "deaths": 0,
                       "replayed": 0, "seconds": 1.5}  # fmt: skip
            outcome = {"state": end, "reason": "as the test wants it", "files": {}, "account": account}
            self._put(keys.outcome, outcome)
        for pod in list(running["trainer"]):
            if end or wanted.leaves(_index(pod)):
                self._end(pod)
                running["trainer"].remove(pod)
        self._publish(keys, job["uid"], running, end)

    def _publish(self, keys: JobKeys, uid: str, running: dict[str, list[Any]], end: str) -> None:
        trainers = sorted(map(_index, running["trainer"])) if running["pserver"] else []
        self.samples[uid] = self.samples.get(uid, 0) + 10 * len(trainers)
        published = Published(
            generation=1, state=end or "Running", epoch=0, epochs=3, samples=self.samples[uid], expected=10**6,
            rate=100.0, moved=time.time(), trainers=trainers, servers=list(range(len(running["pserver"]))),
            served=bool(running["pserver"]), why="",
        )  # fmt: skip
        self._put(keys.progress, published)

    def _put(self, key: str, value: Any) -> None:
        self._store.transact([], [Put(key, msgspec.json.encode(value))])

    def _end(self, pod: dict[str, Any]) -> None:
        """Its process has ended well."""
        status = {"status": {"phase": "Succeeded", "conditions": [{"type": "Ready", "status": "False"}]}}
        name = pod["metadata"]["name"]
        self.kubectl("patch", "pod", name, "-n", self.namespace, "--subresource=status", "-p", json.dumps(status))


def _runs(pod: dict[str, Any], role: str) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    return pod["metadata"]["labels"]["shoal.dev/role"] == role and ready and "deletionTimestamp" not in pod["metadata"]


def _index(pod: dict[str, Any]) -> int:
    return int(pod["metadata"]["labels"]["shoal.dev/index"])
