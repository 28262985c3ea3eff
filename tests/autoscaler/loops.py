"""An autoscaler without a cluster, its callbacks and its input events, for the tests of its loop."""

from __future__ import annotations

import asyncio

from shoal.autoscaler.config.hot_reload import ConfigFile
from shoal.autoscaler.job_demand import JobDemand
from shoal.autoscaler.loop import Autoscaler


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class Loop:
    """An autoscaler that records the arguments of its callbacks."""

    def __init__(self, folder, text="debounce: 10ms\n"):
        self.file = folder / "autoscaler.yaml"
        self.file.write_text(text)
        self.clock = Clock()
        self.enqueued: list[str] = []
        self.failures = 0
        self.valid = self.acts = None
        self.made = self.again()

    def again(self):
        """Create the autoscaler as a newly started operator does."""
        return Autoscaler(
            ConfigFile(self.file),
            changed=self.enqueued.extend,
            planned=self.planned,
            configured=self.configured,
            failed=self.failed,
            clock=self.clock,
        )

    def planned(self, plan):
        self.last_plan = plan
        self.made_one.set()

    def configured(self, valid, acts):
        self.valid, self.acts = valid, acts
        self.looked.set()

    def failed(self):
        self.failures += 1
        self.made_one.set()

    def plan(self):
        """Run the loop until it has made a plan or failed to make one."""
        self._run_until(lambda: self.made_one)

    def look(self):
        """Run the loop until it has read its configuration, whether or not it makes a plan."""
        self._run_until(lambda: self.looked)

    def _run_until(self, what):
        async def once():
            self.made_one, self.looked = asyncio.Event(), asyncio.Event()
            running = asyncio.create_task(self.made.run())
            await what().wait()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

        asyncio.run(asyncio.wait_for(once(), 10))

    def trainers(self, uid):
        found = self.made.decision(uid)
        return found.trainers if found is not None else None


def node(name, cpu="4", revision=1):
    status = {"allocatable": {"cpu": cpu, "memory": "16Gi", "pods": "110"}, "conditions": [{"type": "Ready", "status": "True"}]}  # fmt: skip
    return {"metadata": {"name": name, "resourceVersion": str(revision), "labels": {}}, "spec": {}, "status": status}


def trainer(uid, index, where, revision=1):
    owner = {"kind": "TrainingJob", "uid": uid, "controller": True, "name": uid}
    labels = {"shoal.dev/uid": uid, "shoal.dev/job": uid, "shoal.dev/role": "trainer", "shoal.dev/index": str(index)}
    return {
        "metadata": {"name": f"{uid}-trainer-{index}", "namespace": "d", "uid": f"{uid}-{index}", "labels": labels,
                     "resourceVersion": str(revision), "ownerReferences": [owner]},
        "spec": {"nodeName": where, **pod()["spec"]},
        "status": {"phase": "Running"},
    }  # fmt: skip


def pod(cpu="1"):
    return {"spec": {"containers": [{"name": "trainer", "resources": {"requests": {"cpu": cpu}}}]}}


def demand(uid, low, high, **more):
    made = {"uid": uid, "name": uid, "namespace": "d", "trainer": pod(), "priority": 0, "min": low, "max": high}
    return JobDemand(**made | more)
