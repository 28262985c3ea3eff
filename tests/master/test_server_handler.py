"""Messages between the master and parameter servers, and the state that the master derives from them."""

from __future__ import annotations

import msgspec

from shoal.master.state.job import Send
from shoal.protocol import messages as m
from tests.master.harness import SERVER, SERVER_CONNECTION, MasterHarness

EMPTY = m.ReportState(held=[], waiting=[], files=[], question=0, addresses=["unix:///s"], pid=1, host="")


def take_messages(harness):
    """Take the messages from the master's outbox, each with its connection."""
    outbox, harness.job.outbox = harness.job.outbox, []
    return [(each.connection, each.message) for each in outbox if isinstance(each, Send)]


def served_harness():
    """Return a master whose only server holds fresh grants of all slots, and these grants."""
    harness = MasterHarness(server=False)
    harness.joins(0)
    harness.master.connected(SERVER_CONNECTION, SERVER, 0.0)
    harness.from_server(EMPTY)
    grants: list[m.Grant] = []
    for _ in range(3):
        for _, message in take_messages(harness):
            if isinstance(message, m.Grant):
                grants.append(message)
            elif isinstance(message, m.RequestState):
                harness.from_server(msgspec.structs.replace(EMPTY, question=message.question))
        if harness.master.servers.confirm_requested:
            harness.master.servers.confirmed(harness.job.slots.question)
    return harness, grants


def test_a_trainer_is_asked_for_the_values_of_all_fresh_slots_at_once():
    harness, grants = served_harness()
    assert len(grants) == harness.job.settings.slots

    def waiting_slots(some):
        harness.from_server(m.AwaitingInitialValues(slots=[g.slot for g in some], grants=[g.grant for g in some]))
        harness.master.tick(5.0)
        return [
            message for to, message in take_messages(harness) if to == 0 and isinstance(message, m.ProvideInitialValues)
        ]

    assert waiting_slots(grants[:5]) == []
    assert waiting_slots(grants[5:-1]) == []
    (request,) = waiting_slots(grants[-1:])
    assert sorted(request.slots) == sorted(grant.slot for grant in grants)


def test_messages_of_a_server_after_its_leave_are_ignored():
    harness, grants = served_harness()
    harness.from_server(m.Leave(leases=[]))
    for late in (
        EMPTY,
        m.AwaitingInitialValues(slots=[grants[0].slot], grants=[grants[0].grant]),
        m.GrantReport(reports=[]),
        m.GrantFailed(slot=0, grant=1, file="", reason="late"),
        m.MissingTasks(reports=[]),
    ):
        harness.from_server(late)
    assert SERVER.life not in harness.job.servers
    assert harness.events("warning") == []


def test_snapshots_of_weeks_take_no_memory_of_the_master():
    harness = MasterHarness()
    slots = list(harness.served)
    for number in range(3000):
        harness.from_server(m.SnapshotWritten(file=f"snapshot-{number}", slots=slots, grants=list(harness.served.values()),
                                   counts=[number] * len(slots)))  # fmt: skip
    (view,) = harness.job.slots.views.values()
    assert len(view.files) == 1000
    assert list(view.files)[-1] == "snapshot-2999"
