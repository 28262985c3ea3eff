"""How many requests the executor sends at a time, and where it delivers the answers."""

from __future__ import annotations

import asyncio
import dataclasses

from shoal.operator.controller.executor import Executor
from shoal.operator.core.reconcile import Apply, CreatePod
from tests.operator.jobs import IDENTITY, job


class Slow:
    """A slow gateway that counts the requests in flight."""

    def __init__(self):
        self.now = {"apply": 0, "create": 0}
        self.most = dict(self.now)

    async def _asked(self, what, manifest):
        self.now[what] += 1
        self.most[what] = max(self.most[what], self.now[what])
        await asyncio.sleep(0.001)
        self.now[what] -= 1
        return {**manifest, "answered": what}

    async def apply(self, manifest):
        return await self._asked("apply", manifest)

    async def create(self, manifest):
        return await self._asked("create", manifest)


def test_many_jobs_at_once_leave_the_api_server_room_for_others():
    kube, answers = Slow(), []
    actions = [
        Apply({"kind": "Service", "metadata": {"name": "s"}}),
        *(CreatePod({"kind": "Pod", "metadata": {"name": f"p{n}"}}) for n in range(4)),
    ]

    async def work():
        executor = Executor(kube, secrets=None, publish_desired=None, on_response=answers.append)
        await asyncio.gather(*(executor.carry_out(job(), IDENTITY, actions) for _ in range(60)))

    asyncio.run(work())
    assert kube.most == {"apply": 8, "create": 32}
    assert len(answers) == 60 * 5
    assert {(each["kind"], each["answered"]) for each in answers} == {("Service", "apply"), ("Pod", "create")}


def test_jobs_that_grow_together_get_their_trainers_alternately():
    """Jobs take turns creating trainers: equal ones are evicted in order of their start, so one job's would all be the last."""
    kube, order = Slow(), []

    async def work():
        executor = Executor(
            kube, secrets=None, publish_desired=None, on_response=lambda made: order.append(made["metadata"]["name"])
        )
        await asyncio.gather(
            *(
                executor.carry_out(
                    job(),
                    dataclasses.replace(IDENTITY, uid=uid),
                    [CreatePod({"kind": "Pod", "metadata": {"name": uid}}) for _ in range(100)],
                )
                for uid in "abc"
            )
        )

    asyncio.run(work())
    # The first 32 belong to the job that is first; after them the jobs take turns, until one has all of its pods.
    middle = "".join(order[40:220])
    assert {middle.count(uid) for uid in "abc"} <= set(range(55, 66)), middle
