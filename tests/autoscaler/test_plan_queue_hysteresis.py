"""The hysteresis of the queue: stories, and properties of any sequence of plans."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.autoscaler.planner.model import AllocationReason, JobAllocation, PlannerJob, QueueState
from shoal.autoscaler.planner.queue_hysteresis import QUEUED_AFTER_SECONDS, held_back

ROOM = JobAllocation(trainers=2, kept={}, added={0: 2}, now={0: 2}, reason=AllocationReason.FULL, message="")
SHORT = JobAllocation(trainers=0, kept={}, added={}, now={}, reason=AllocationReason.QUEUED, message="needs 2")


class Job:
    """A job whose pods follow each plan at once."""

    def __init__(self) -> None:
        self.state: dict[str, QueueState] = {}
        self.held: dict[int, int] = {}

    def plan(self, now: float, *, room: bool) -> JobAllocation:
        job = PlannerJob(
            uid="a",
            name="n/a",
            shape=0,
            priority=0,
            min=2,
            max=2,
            held=self.held,
            since=0.0,
        )
        result = held_back([job], {"a": ROOM if room else SHORT}, self.state, now=now)
        self.state, made = result.queue, result.allocations["a"]
        if not made.keeps_pods:
            self.held = {0: made.trainers} if made.trainers else {}
        return made


def test_a_short_shortage_costs_no_pods():
    job = Job()
    assert job.plan(0, room=True).trainers == 2
    assert job.plan(5, room=False).keeps_pods
    assert job.plan(14.9, room=False).keeps_pods
    assert not job.plan(16, room=True).keeps_pods
    assert job.plan(17, room=False).keeps_pods, "the time counts anew"


def test_a_job_that_lost_its_pods_is_admitted_after_growing_pauses():
    job = Job()
    now, pauses = 0.0, []
    for _ in range(7):
        assert job.plan(now, room=True).trainers == 2
        job.plan(now + 1, room=False)
        lost = now + 1 + QUEUED_AFTER_SECONDS
        assert job.plan(lost, room=False).reason is AllocationReason.QUEUED
        now = lost
        while job.plan(now, room=True).reason is AllocationReason.QUEUED:
            now += 1
        pauses.append(now - lost)
    assert pauses == [30, 60, 120, 240, 480, 600, 600]
    job.plan(now, room=True)
    job.plan(now + 600, room=True)
    job.plan(now + 601, room=False)
    job.plan(now + 611, room=False)
    assert job.plan(now + 640, room=True).reason is AllocationReason.QUEUED
    assert job.plan(now + 641, room=True).trainers == 2, "after 600 s of work the first pause counts again"


def test_a_job_that_never_had_pods_waits_for_room_alone():
    job = Job()
    assert not job.plan(0, room=False).keeps_pods
    assert job.plan(1, room=True).trainers == 2


@given(st.lists(st.tuples(st.floats(0.1, 40), st.booleans()), min_size=1, max_size=60))
def test_pods_are_deleted_after_ten_seconds_without_room_and_created_only_into_room(plans):
    job, now, short_since = Job(), 0.0, None
    for pause, room in plans:
        now += pause
        had = bool(job.held)
        short_since = None if room else now if short_since is None else short_since
        made = job.plan(now, room=room)
        if had and not job.held:
            assert short_since is not None
            assert now - short_since >= QUEUED_AFTER_SECONDS
        if not had and job.held:
            assert room
        assert not (made.keeps_pods and room)
        assert made.trainers in {0, 2}
