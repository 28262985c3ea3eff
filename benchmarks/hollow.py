"""A cluster to measure the operator on: a real control plane, hollow nodes, Shoal's etcd, and an operator process.

Times are taken from the API server's audit log, which has the changes that the operator and the benchmark request, with the
arrival of each request and the end of its response. So both are measured in the same way, and neither by its own clock. The
operator has its own user, which identifies its requests.

Hollow pods run no process, so `publish` writes the masters' records into etcd: one per job, once.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import aiohttp
import msgspec
import yaml

from benchmarks.operators import OperatorProcess, cpu_seconds, say
from shoal.api.crd import crd
from shoal.local.etcd_server import EtcdServer, find_etcd
from shoal.store import ALL_JOBS, JobKeys, Put, ReportedState, Store
from tests.cluster.certificates import make_client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.parts import CONTROL, Layout, Part
from tests.cluster.stages import Stages
from tests.operator.world import CLASSES, PRIORITIES

__all__ = ["Api", "Asked", "HollowCluster", "in_flight", "job_manifest", "published"]

OPERATOR, BENCHMARK = "shoal-operator", "shoal-benchmark"
API_SERVER = CONTROL["kube-apiserver"]
CHANGES = ["create", "update", "patch", "delete", "deletecollection"]
POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "omitManagedFields": True,
    "rules": [{"level": "Metadata", "users": [OPERATOR, BENCHMARK], "verbs": CHANGES}, {"level": "None"}],
}
AT_ONCE = 32
NODES = ((87, "18"), (46, "17"))
"""Groups of nodes: their number, and the CPUs of each."""
JOBS = "/apis/shoal.dev/v1alpha1"
REST_CORES = 0.25
"""CPU usage of all processes of a cluster, in cores, below which it is at rest; its controllers are never fully idle."""


def _command(layout: Layout) -> list[str]:
    policy = layout.folder / "audit.yaml"
    policy.write_text(yaml.safe_dump(POLICY))
    return [
        *API_SERVER.command(layout),
        f"--audit-policy-file={policy}",
        f"--audit-log-path={layout.folder / 'audit.log'}",
        # The last value of a repeated option counts. Each job's master needs an address, and the tests' range has 254.
        "--service-cluster-ip-range=10.96.0.0/16",
    ]


class _Audited(ControlPlane):
    PARTS: ClassVar[Mapping[str, Part]] = {**CONTROL, "kube-apiserver": replace(API_SERVER, command=_command)}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for a change in the API server's audit log; times are seconds since 1970.

    Attributes:
        user: User of the client.
        verb: Verb, as in RBAC.
        resource: Plural name, with the subresource after a slash.
        namespace: Namespace of the object.
        name: Name of the object.
        code: HTTP status of the response.
        dry: Whether it was a dry run.
        came: Time when the request was received.
        answered: Time when the response was complete.
    """

    user: str
    verb: str
    resource: str
    namespace: str
    name: str
    code: int
    dry: bool
    came: float
    answered: float

    @property
    def made_trainer(self) -> bool:
        """Whether the request created a trainer's pod."""
        return self.verb == "create" and self.resource == "pods" and self.code == 201 and "-trainer-" in self.name

    @classmethod
    def read(cls, line: str) -> Self:
        """Parse a line of the audit log."""
        event = json.loads(line)
        what = event.get("objectRef") or {}
        return cls(
            user=event["user"]["username"],
            verb=event["verb"],
            resource="/".join(part for part in (what.get("resource"), what.get("subresource")) if part),
            namespace=what.get("namespace", ""),
            name=what.get("name", ""),
            code=(event.get("responseStatus") or {}).get("code", 0),
            dry="dryRun=All" in event["requestURI"],
            came=datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp(),
            answered=datetime.fromisoformat(event["stageTimestamp"]).timestamp(),
        )


class AuditLog:
    """Incremental reader of the audit log."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0

    def more(self) -> list[Asked]:
        """Return the requests that were written since the last call."""
        with self._path.open("rb") as file:
            file.seek(self._at)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._at += len(whole)
        return [Asked.read(line) for line in whole.decode().splitlines()]

    async def until(self, enough: Callable[[list[Asked]], bool], what: str, *, seconds: float = 120.0) -> list[Asked]:
        """Read new requests until a condition is true, and return them.

        Raises:
            TimeoutError: The condition was not true before the timeout.
        """
        found: list[Asked] = []
        end = time.monotonic() + seconds
        while True:
            found += self.more()
            if enough(found):
                return found
            if time.monotonic() > end:
                raise TimeoutError(f"{what} did not happen within {seconds:g} s")
            await asyncio.sleep(0.02)


class Api:
    """A minimal client of the API server: one session, raw JSON, at most `AT_ONCE` concurrent requests.

    Args:
        kubeconfig: Path of a kubeconfig with certificates in files.
    """

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        context = ssl.create_default_context(cafile=cluster["certificate-authority"])
        context.load_cert_chain(user["client-certificate"], user["client-key"])
        connector = aiohttp.TCPConnector(ssl=context, limit=AT_ONCE)
        self.session = aiohttp.ClientSession(cluster["server"], connector=connector)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    async def ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, content: str = "application/json"
    ) -> dict[str, Any]:
        """Send a request and return the decoded response.

        Raises:
            RuntimeError: The API server rejected the request.
        """
        data = json.dumps(body) if body is not None else None
        async with self.session.request(method, path, data=data, headers={"Content-Type": content}) as response:
            text = await response.read()
            if response.status >= 300 and not (method == "DELETE" and response.status == 404):
                raise RuntimeError(f"{method} {path}: {response.status} {text.decode()[:500]}")
        answer: dict[str, Any] = json.loads(text)
        return answer

    async def create(self, path: str, *bodies: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Create objects at one path concurrently, and return the responses."""
        return await in_flight([partial(self.ask, "POST", path, body) for body in bodies])

    async def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Apply a merge patch."""
        return await self.ask("PATCH", path, body, content="application/merge-patch+json")

    async def list(self, path: str) -> list[dict[str, Any]]:
        """Return all items of a list."""
        return list((await self.ask("GET", path))["items"] or [])

    async def count(self, path: str) -> int:
        """Return the number of items of a list."""
        found = await self.ask("GET", f"{path}{'&' if '?' in path else '?'}limit=1")
        return len(found["items"] or []) + int(found["metadata"].get("remainingItemCount") or 0)


async def in_flight(requests: Iterable[Callable[[], Awaitable[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """Run requests, at most `AT_ONCE` at a time, and return the responses in the order of the requests."""
    waiting = enumerate(requests)
    answers: dict[int, dict[str, Any]] = {}

    async def work() -> None:
        for number, request in waiting:
            answers[number] = await request()

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
    return [answers[number] for number in sorted(answers)]


class HollowCluster:
    """A cluster on this machine's loopback interface, with Shoal's etcd and an operator; nodes have 103 GiB.

    Args:
        nodes: Groups of nodes: their number, and the CPUs of each. Default: `NODES`.
        stages: Durations of the start and termination of hollow pods. Default: None, those of the tests.
    """

    def __init__(self, nodes: Sequence[tuple[int, str]] = NODES, *, stages: Stages | None = None) -> None:
        self._stack = AsyncExitStack()
        self._nodes, self._stages = nodes, stages

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        here = self._stack.enter_context(ExitStack())
        self.folder = Path(here.enter_context(tempfile.TemporaryDirectory(prefix="bench-hollow-")))
        with say("starting a control plane"):
            self.etcd = EtcdServer(find_etcd(), self.folder / "shoal-etcd")
            here.callback(self.etcd.stop)
            self.etcd.start()
            self.plane = _Audited(self.folder / "cluster", stages=self._stages)
            here.callback(self.plane.stop)
            self.plane.start()
            self.plane.kubectl("apply", "-f", "-", input=json.dumps(crd()))
            self.plane.until(self._knows_jobs, "the definition of TrainingJobs")
            kubeconfigs = {user: self._kubeconfig(user) for user in (OPERATOR, BENCHMARK)}
        with say("adding nodes"):
            for number, cpu in self._nodes:
                self.plane.add_nodes(number, cpu=cpu, memory="103Gi", prefix=f"hollow-{cpu}")
        self.api = await self._stack.enter_async_context(Api(kubeconfigs[BENCHMARK]))
        self.audit = AuditLog(self.plane.folder / "audit.log")
        self.operator = OperatorProcess(kubeconfigs[OPERATOR], self.etcd.endpoint, self.folder / "operator.log")
        self._stack.callback(self.operator.stop)

    def rank_pods(self, *, autoscaler: bool) -> None:
        """Create the priority classes, and configure operators that are started later, with or without an autoscaler."""
        self.plane.kubectl("apply", "-f", str(PRIORITIES))
        config = self.folder / "autoscaler.yaml"
        config.write_text("{}\n")
        self.operator.options = (*CLASSES, *(("--autoscaler", str(config)) if autoscaler else ()))

    def _knows_jobs(self) -> bool:
        # `kubectl wait` fails while the object has no conditions.
        found = self.plane.get("crd", "trainingjobs.shoal.dev").get("status", {}).get("conditions") or []
        return any(each["type"] == "Established" and each["status"] == "True" for each in found)

    def _kubeconfig(self, user: str) -> Path:
        folder = self.plane.folder / "certificates"
        make_client(folder, user, user=user, group="system:masters")
        config = yaml.safe_load(self.plane.kubeconfig.read_text())
        config["users"][0]["user"] = {
            "client-certificate": str(folder / f"{user}.crt"),
            "client-key": str(folder / f"{user}.key"),
        }
        file = self.folder / f"{user}.kubeconfig"
        file.write_text(yaml.safe_dump(config))
        return file

    async def bare_client(self) -> Api:
        """Return another session without open connections, an asynchronous context manager."""
        return Api(self.folder / f"{BENCHMARK}.kubeconfig")

    async def make_namespace(self, name: str) -> None:
        """Create a namespace, and wait until pods can be created in it."""
        await self.api.create(
            "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        )
        self.plane.kubectl("wait", "-n", name, "--for=create", "serviceaccount/default", "--timeout=60s")

    async def clear(self, namespace: str) -> None:
        """Delete a namespace with all its jobs and pods, and wait until it does not exist any more."""
        with say(f"clearing {namespace}"):
            pods = f"/api/v1/namespaces/{namespace}/pods"
            await self.api.ask("DELETE", f"/api/v1/namespaces/{namespace}")
            # A terminating namespace accepts no new objects, so no controller creates the pods again.
            await self.api.ask("DELETE", pods, {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0})
            everything = "/api/v1/namespaces?fieldSelector=metadata.name%3D" + namespace
            await self.until(lambda: self._none(everything), f"{namespace} to go")

    async def _none(self, path: str) -> bool:
        return not await self.api.count(path)

    async def until(self, found: Callable[[], Awaitable[bool]], what: str, *, seconds: float = 180.0) -> None:
        """Wait for a condition, which is checked every 0.25 to 3 s.

        Raises:
            TimeoutError: The condition was not true before the timeout.
        """
        end = time.monotonic() + seconds
        while True:
            asked = time.monotonic()
            if await found():
                return
            if time.monotonic() > end:
                raise TimeoutError(f"waited {seconds:g} s for {what}")
            # An expensive check is made less often, so that it does not take CPU time from the measured processes.
            await asyncio.sleep(min(3.0, max(0.25, 10 * (time.monotonic() - asked))))

    async def all_run(self, count: int, *, namespace: str = "", seconds: float = 180.0) -> None:
        """Wait until a number of pods are running."""
        where = f"/namespaces/{namespace}" if namespace else ""
        path = f"/api/v1{where}/pods?fieldSelector=status.phase%3DRunning"

        async def run() -> bool:
            return await self._running(path) >= count

        await self.until(run, f"{count} pods to run", seconds=seconds)

    async def _running(self, path: str) -> int:
        # With a selector the API server does not report the remaining item count, so the objects' metadata is listed.
        headers = {"Accept": "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"}
        async with self.api.session.get(path, headers=headers) as response:
            return len(json.loads(await response.read())["items"] or [])

    async def rest(self, *, longest: float = 60.0) -> None:
        """Wait until the cluster's processes use less than REST_CORES for two seconds, or for ``longest`` seconds."""
        with say("waiting for rest"):
            end = time.monotonic() + longest
            calm = 0
            while calm < 2 and time.monotonic() < end:
                before, since = self._cpu(), time.monotonic()
                await asyncio.sleep(1.0)
                cores = (self._cpu() - before) / (time.monotonic() - since)
                calm = calm + 1 if cores < REST_CORES else 0

    def cpu(self) -> dict[str, float]:
        """Return the CPU time of each process up to now, in seconds."""
        pids = {**self.plane.pids, "operator": self.operator.pid, "shoal-etcd": self.etcd.pid}
        return {name: cpu_seconds(pid) for name, pid in pids.items() if pid}

    def _cpu(self) -> float:
        return sum(self.cpu().values())

    async def publish(self, namespace: str = "", *, trainers: int, servers: int) -> None:
        """Write a master's record for each job, once: all members have joined, and there is a reason for the standstill.

        With a reason the operator accepts the record without a time limit.
        """
        where = f"{JOBS}/namespaces/{namespace}" if namespace else JOBS
        jobs = await self.api.list(f"{where}/trainingjobs")
        value = msgspec.json.encode(published(trainers=trainers, servers=servers))

        def put() -> None:
            with Store.connect(self.etcd.endpoint, prefix=ALL_JOBS) as store:
                for metadata in (job["metadata"] for job in jobs):
                    keys = JobKeys(metadata["namespace"], metadata["name"], metadata["uid"])
                    store.transact([], [Put(keys.progress, value)])

        await asyncio.to_thread(put)


def published(*, trainers: int, servers: int) -> ReportedState:
    """Return the record of a master whose trainers wait for their first task."""
    return ReportedState(
        generation=1,
        state="Running",
        epoch=0,
        epochs=1,
        samples=0,
        expected=1000,
        rate=0.0,
        moved=0.0,
        trainers=list(range(trainers)),
        servers=list(range(servers)),
        served=True,
        stall_reason="a benchmark's stand-in: nothing is trained",
    )


def job_manifest(name: str, namespace: str, *, trainers: int, most: int, servers: int) -> dict[str, Any]:
    """Return the manifest of a job with a pinned number of trainers."""
    small = {"requests": {"cpu": "100m", "memory": "64Mi"}}
    return {
        "apiVersion": "shoal.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "image": "example.org/train:1",
            "command": ["python", "train.py"],
            "epochs": 1,
            "trainer": {
                "minReplicas": 1,
                "maxReplicas": most,
                "replicas": trainers,
                "resources": {"requests": {"cpu": "1", "memory": "1Gi"}},
            },
            "parameterServer": {"replicas": servers, "resources": small, "emptyDir": {}},
            "master": {"resources": small},
        },
    }
