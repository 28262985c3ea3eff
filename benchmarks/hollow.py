"""A cluster to measure the operator on: a real control plane, hollow nodes, Shoal's etcd, and operators started at will.

Times are those of the API server: it keeps an audit log of what the operator and the benchmark ask it to change, with the
moment at which each request came in and the one at which its answer was complete. Neither of the two is measured by its own
clock, and both are measured in the same way. The operator has a user of its own, by which its requests are known.

The masters' side of etcd is played by `publish`, as hollow pods run no process: one record per job, once.
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
"""How many nodes of how many CPUs."""
JOBS = "/apis/shoal.dev/v1alpha1"
REST_CORES = 0.25
"""A cluster of which all processes together use less is at rest: its controllers and kubelets never use nothing."""


def _command(layout: Layout) -> list[str]:
    policy = layout.folder / "audit.yaml"
    policy.write_text(yaml.safe_dump(POLICY))
    return [
        *API_SERVER.command(layout),
        f"--audit-policy-file={policy}",
        f"--audit-log-path={layout.folder / 'audit.log'}",
        # The last one counts: each job's master has an address, and that of the tests has 254 of them.
        "--service-cluster-ip-range=10.96.0.0/16",
    ]


class _Audited(ControlPlane):
    PARTS: ClassVar[Mapping[str, Part]] = {**CONTROL, "kube-apiserver": replace(API_SERVER, command=_command)}


@dataclass(frozen=True, slots=True)
class Asked:
    """A change that the API server was asked for; seconds since 1970.

    Attributes:
        user: Who asked.
        verb: As in RBAC.
        resource: Plural, with the subresource after a slash.
        namespace: Of the object.
        name: Of the object.
        code: HTTP status of the answer.
        dry: Whether nothing was to be changed.
        came: When the request came in.
        answered: When its answer was complete.
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
        """Whether a trainer's pod was made."""
        return self.verb == "create" and self.resource == "pods" and self.code == 201 and "-trainer-" in self.name

    @classmethod
    def read(cls, line: str) -> Self:
        """From a line of the audit log."""
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
    """The audit log, read on as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0

    def more(self) -> list[Asked]:
        """What was written since the last call."""
        with self._path.open("rb") as file:
            file.seek(self._at)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._at += len(whole)
        return [Asked.read(line) for line in whole.decode().splitlines()]

    async def until(self, enough: Callable[[list[Asked]], bool], what: str, *, seconds: float = 120.0) -> list[Asked]:
        """All that is written from now on until it is enough.

        Raises:
            TimeoutError: It was not.
        """
        found: list[Asked] = []
        end = time.monotonic() + seconds
        while True:
            found += self.more()
            if enough(found):
                return found
            if time.monotonic() > end:
                raise TimeoutError(f"{what} did not come within {seconds:g} s")
            await asyncio.sleep(0.02)


class Api:
    """A bare client of the API server: one session, raw JSON, `AT_ONCE` requests under way at most.

    Args:
        kubeconfig: With certificates in files.
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
        """The answer.

        Raises:
            RuntimeError: It was refused.
        """
        data = json.dumps(body) if body is not None else None
        async with self.session.request(method, path, data=data, headers={"Content-Type": content}) as response:
            text = await response.read()
            if response.status >= 300 and not (method == "DELETE" and response.status == 404):
                raise RuntimeError(f"{method} {path}: {response.status} {text.decode()[:500]}")
        answer: dict[str, Any] = json.loads(text)
        return answer

    async def create(self, path: str, *bodies: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Create objects at one path side by side; the answers."""
        return await in_flight([partial(self.ask, "POST", path, body) for body in bodies])

    async def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """A merge patch."""
        return await self.ask("PATCH", path, body, content="application/merge-patch+json")

    async def list(self, path: str) -> list[dict[str, Any]]:
        """All items at a path."""
        return list((await self.ask("GET", path))["items"] or [])

    async def count(self, path: str) -> int:
        """How many items there are at a path."""
        found = await self.ask("GET", f"{path}{'&' if '?' in path else '?'}limit=1")
        return len(found["items"] or []) + int(found["metadata"].get("remainingItemCount") or 0)


async def in_flight(requests: Iterable[Callable[[], Awaitable[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """All answers, in the order of the requests, of which `AT_ONCE` are under way at a time."""
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
    """Everything that an operator needs, on this machine's loopback; nodes of 103 GiB.

    Args:
        nodes: How many of how many CPUs.
        stages: How long hollow pods take to start and to end.
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
        """Operators that start from now on know the pods' priorities, and move jobs by plans if they are to."""
        self.plane.kubectl("apply", "-f", str(PRIORITIES))
        config = self.folder / "autoscaler.yaml"
        config.write_text("{}\n")
        self.operator.options = (*CLASSES, *(("--autoscaler", str(config)) if autoscaler else ()))

    def _knows_jobs(self) -> bool:
        # `kubectl wait` fails while there are no conditions at all.
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
        """Another session, without open connections; to be used as a context."""
        return Api(self.folder / f"{BENCHMARK}.kubeconfig")

    async def make_namespace(self, name: str) -> None:
        """A namespace in which pods can be made."""
        await self.api.create(
            "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        )
        self.plane.kubectl("wait", "-n", name, "--for=create", "serviceaccount/default", "--timeout=60s")

    async def clear(self, namespace: str) -> None:
        """Remove a namespace with all its jobs and pods; back when it is gone."""
        with say(f"clearing {namespace}"):
            pods = f"/api/v1/namespaces/{namespace}/pods"
            await self.api.ask("DELETE", f"/api/v1/namespaces/{namespace}")
            # A namespace that is being deleted takes nothing new, so nobody brings them back.
            await self.api.ask("DELETE", pods, {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0})
            everything = "/api/v1/namespaces?fieldSelector=metadata.name%3D" + namespace
            await self.until(lambda: self._none(everything), f"{namespace} to go")

    async def _none(self, path: str) -> bool:
        return not await self.api.count(path)

    async def until(self, found: Callable[[], Awaitable[bool]], what: str, *, seconds: float = 180.0) -> None:
        """Ask again and again.

        Raises:
            TimeoutError: In vain.
        """
        end = time.monotonic() + seconds
        while True:
            asked = time.monotonic()
            if await found():
                return
            if time.monotonic() > end:
                raise TimeoutError(f"waited {seconds:g} s in vain for {what}")
            # A question that is costly is asked seldom: the processors are for those who are measured.
            await asyncio.sleep(min(3.0, max(0.25, 10 * (time.monotonic() - asked))))

    async def all_run(self, count: int, *, namespace: str = "", seconds: float = 180.0) -> None:
        """Until so many pods run."""
        where = f"/namespaces/{namespace}" if namespace else ""
        path = f"/api/v1{where}/pods?fieldSelector=status.phase%3DRunning"

        async def run() -> bool:
            return await self._running(path) >= count

        await self.until(run, f"{count} pods to run", seconds=seconds)

    async def _running(self, path: str) -> int:
        # With a selector the API server does not say how many remain: the names alone are asked for.
        headers = {"Accept": "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"}
        async with self.api.session.get(path, headers=headers) as response:
            return len(json.loads(await response.read())["items"] or [])

    async def rest(self, *, longest: float = 60.0) -> None:
        """Until the processes of this cluster do nothing worth mentioning, for two seconds in a row."""
        with say("waiting for rest"):
            end = time.monotonic() + longest
            calm = 0
            while calm < 2 and time.monotonic() < end:
                before, since = self._cpu(), time.monotonic()
                await asyncio.sleep(1.0)
                cores = (self._cpu() - before) / (time.monotonic() - since)
                calm = calm + 1 if cores < REST_CORES else 0

    def cpu(self) -> dict[str, float]:
        """Seconds of CPU that each process used up to now."""
        pids = {**self.plane.pids, "operator": self.operator.pid, "shoal-etcd": self.etcd.pid}
        return {name: cpu_seconds(pid) for name, pid in pids.items() if pid}

    def _cpu(self) -> float:
        return sum(self.cpu().values())

    async def publish(self, namespace: str = "", *, trainers: int, servers: int) -> None:
        """Be the master of each job, once: all its members are here, and it says why nothing moves.

        A master that says why is believed for as long as it says nothing else.
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
    """The record of a master whose trainers wait for their first task."""
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
        why="a benchmark's stand-in: nothing is trained",
    )


def job_manifest(name: str, namespace: str, *, trainers: int, most: int, servers: int) -> dict[str, Any]:
    """A job whose size is pinned."""
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
