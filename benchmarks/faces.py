"""Measures what users of the command line and the SDK wait for, on a real API server without an operator.

| figure | how it is measured |
|---|---|
| `shoal --help`, `from shoal.sdk import Client` | processes, with the start of Python |
| a command about a job on a cluster | a process, less the API server's answer to the same GET of a warm client |
| a list of 1,000 jobs | `Client.list`, less the API server's answer to the same listing, decoded |
| a watch | from the return of the request that writes a status to the arrival of the state in `job.watch()` |

Each figure is the median of 9 runs. The control plane runs on the same cores.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.common import Row, at_most, main, plain
from shoal.api.crd import crd
from shoal.kube import Kube
from shoal.sdk import Client
from tests.cluster.control_plane import ControlPlane

RUNS = 9
JOBS = 1000
NAMESPACE = "faces"
AT_ONCE = 32


def _job(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "shoal.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "image": "example.org/train:1",
            "command": ["python", "train.py"],
            "trainer": {"minReplicas": 2, "maxReplicas": 8},
            "parameterServer": {"replicas": 1},
        },
    }


def _status(samples: int) -> dict[str, Any]:
    return {
        "state": "Running",
        "reason": "TrainersReady",
        "trainers": {"desired": 2, "ready": 2, "min": 2, "max": 8},
        "progress": {"epoch": 1, "epochs": 3, "samples": samples, "expected": 1_000_000, "rate": 1000.0},
    }


async def _fill(kube: Kube) -> str:
    """Create the jobs with their status; return the uid of the first one."""
    await kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    limit = asyncio.Semaphore(AT_ONCE)

    async def create(number: int) -> str:
        async with limit:
            made = await kube.create(_job(f"job-{number}"))
            uid = str(made["metadata"]["uid"])
            await kube.set_status("TrainingJob", f"job-{number}", _status(number), uid=uid, namespace=NAMESPACE)
            return uid

    return (await asyncio.gather(*map(create, range(JOBS))))[0]


def _seconds(command: list[str], **variables: str) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **variables})
    return time.perf_counter() - began


async def _answers(cluster: ControlPlane) -> tuple[list[float], list[float]]:
    """Return the seconds of the API server's answers: to the GET of a job, and to the listing of all."""
    one, everything = [], []
    async with await Kube.connect(kubeconfig=str(cluster.kubeconfig)) as kube:
        for _ in range(RUNS + 1):
            began = time.perf_counter()
            await kube.get("TrainingJob", "job-1", namespace=NAMESPACE)
            one.append(time.perf_counter() - began)
            began = time.perf_counter()
            await kube.listing("TrainingJob", namespace=NAMESPACE)
            everything.append(time.perf_counter() - began)
    return one[1:], everything[1:]


def _watched(cluster: ControlPlane, client: Client, uid: str) -> list[float]:
    """Return the seconds between the return of a status' write and its arrival in a watch."""
    arrived: dict[int, float] = {}
    ready = threading.Event()

    def watch() -> None:
        with suppress(RuntimeError):  # the client is closed at the end
            for status in client.get("job-0").watch(bar=False):
                arrived.setdefault(status.progress.samples, time.perf_counter())
                ready.set()

    threading.Thread(target=watch, daemon=True).start()
    ready.wait(60)

    async def write() -> dict[int, float]:
        written = {}
        async with await Kube.connect(kubeconfig=str(cluster.kubeconfig)) as kube:
            for number in range(10_000, 10_000 + RUNS):
                await kube.set_status("TrainingJob", "job-0", _status(number), uid=uid, namespace=NAMESPACE)
                written[number] = time.perf_counter()
                await asyncio.sleep(0.3)
        return written

    written = asyncio.run(write())
    return [max(0.0, arrived[number] - at) for number, at in written.items()]


def measure() -> tuple[list[Row], Any]:
    """Return the rows and the raw measurements."""
    python = sys.executable
    helps = [_seconds([python, "-m", "shoal.cli", "--help"]) for _ in range(RUNS)]
    imports = [_seconds([python, "-c", "from shoal.sdk import Client"]) for _ in range(RUNS)]
    bare = [_seconds([python, "-c", "pass"]) for _ in range(RUNS)]
    with tempfile.TemporaryDirectory() as folder, ControlPlane(Path(folder)) as cluster:
        cluster.kubectl("apply", "-f", "-", input=json.dumps(crd()))
        cluster.until(lambda: _established(cluster), "the definition")

        async def fill() -> str:
            async with await Kube.connect(kubeconfig=str(cluster.kubeconfig)) as kube:
                return await _fill(kube)

        uid = asyncio.run(fill())
        place = ["--kubeconfig", str(cluster.kubeconfig), "-n", NAMESPACE]
        commands = [_seconds([python, "-m", "shoal.cli", "status", "job-1", *place]) for _ in range(RUNS)]
        one, everything = asyncio.run(_answers(cluster))
        with Client(kubeconfig=cluster.kubeconfig, namespace=NAMESPACE) as client:
            client.list()
            lists = []
            for _ in range(RUNS):
                began = time.perf_counter()
                assert len(client.list()) == JOBS
                lists.append(time.perf_counter() - began)
            watched = _watched(cluster, client, uid)
    beyond = [command - answer for command, answer in zip(commands, itertools.cycle(one), strict=False)]
    after = [listed - answer for listed, answer in zip(lists, everything, strict=True)]
    rows = [
        at_most("shoal --help", helps, "s", goal=0.3),
        at_most("from shoal.sdk import Client, with the start of Python", imports, "s", goal=0.4),
        plain("python -c pass", bare, "s"),
        at_most("shoal status NAME on a cluster, beyond the answer", beyond, "s", goal=0.7),
        at_most(f"listing {JOBS} jobs, after the answer", after, "s", goal=1.0),
        at_most("watch, after the status was written", watched, "s", goal=0.1),
    ]
    return rows, {"help": helps, "import": imports, "command": commands, "list": lists, "watch": watched}


def _established(cluster: ControlPlane) -> bool:
    found = cluster.get("crd/trainingjobs.shoal.dev").get("status", {}).get("conditions") or []
    return any((each["type"], each["status"]) == ("Established", "True") for each in found)


if __name__ == "__main__":
    main("faces", measure)
