"""Observations of a job, for the tests of its status."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from shoal.api.status import AccountStatus, State, Status
from shoal.operator.core.reconcile import Observed, ServerPod
from shoal.operator.core.scaling import TrainerPod
from shoal.operator.status.conditions import status_of
from shoal.operator.status.facts import Facts
from shoal.store import ReportedState
from tests.operator.jobs import job

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
SECOND = timedelta(seconds=1)
ACCOUNT = AccountStatus(epochs=3, expected=3000, counted=3000)
NAMES = frozenset(["flights-master-a", *(f"flights-pserver-{n}" for n in (0, 1)), *(f"flights-trainer-{n}" for n in range(4))])  # fmt: skip


def published(**more):
    said = {
        "generation": 1, "state": "Running", "epoch": 1, "epochs": 3, "samples": 1500, "expected": 3000, "rate": 10.0,
        "moved": NOW.timestamp() - 1, "trainers": [0, 1, 2], "servers": [0, 1], "served": True, "stall_reason": "",
    }  # fmt: skip
    return ReportedState(**said | more)


def trainers(count, **more):
    return tuple(TrainerPod(**{"index": n, "uid": f"t{n}", "ready": True, "works": True} | more) for n in range(count))


def servers(count=2, **more):
    return tuple(ServerPod(name=f"flights-pserver-{n}", uid=f"s{n}", **more) for n in range(count))


MASTERS = (ServerPod(name="flights-master-a", uid="m"),)
WELL = Observed(trainers=trainers(3), servers=servers(), masters=MASTERS, published=published())
KNOWN = Facts(placed=NAMES, ready=NAMES, generation=1, reported_at=NOW)
RAN = Status(start_time=NOW - 60 * SECOND, state=State.RUNNING)


def compute_status(
    seen=WELL, *, of=None, generation=1, desired=3, problems=(), refused="", now=NOW, before=None, facts=KNOWN
):
    """Compute a status; a refused spec has no job in force unless one is given, and the master's reports are observed at once."""
    if facts.moved is None and seen.published is not None and seen.published.moved:
        facts = replace(facts, moved=datetime.fromtimestamp(seen.published.moved, UTC))
    return status_of(
        of if of is not None or refused else job(), generation=generation, seen=seen, desired=desired, problems=problems,
        refused=refused, now=now, before=before if before is not None else Status(), facts=facts,
    )  # fmt: skip


def said(status):
    assert len({each.type for each in status.conditions}) == len(status.conditions)
    return {each.type: each for each in status.conditions}


def in_short(status):
    return {of: (each.status, each.reason) for of, each in said(status).items()}
