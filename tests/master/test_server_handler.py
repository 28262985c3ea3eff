"""Messages between the master and parameter servers, and the state that the master derives from them."""

from __future__ import annotations

import msgspec

from shoal.master.state.job import Send
from shoal.protocol import messages as m
from tests.master.desk import SERVER, SERVER_CONNECTION, Desk

EMPTY = m.ReportState(held=[], waiting=[], files=[], question=0, addresses=["unix:///s"], pid=1, host="")


def told(desk):
    """Take the messages from the master's outbox, each with its connection."""
    said, desk.job.outbox = desk.job.outbox, []
    return [(each.connection, each.message) for each in said if isinstance(each, Send)]


def served_desk():
    """Return a master whose only server holds fresh grants of all slots, and these grants."""
    desk = Desk(server=False)
    desk.joins(0)
    desk.master.connected(SERVER_CONNECTION, SERVER, 0.0)
    desk.from_server(EMPTY)
    grants: list[m.Grant] = []
    for _ in range(3):
        for _, message in told(desk):
            if isinstance(message, m.Grant):
                grants.append(message)
            elif isinstance(message, m.RequestState):
                desk.from_server(msgspec.structs.replace(EMPTY, question=message.question))
        if desk.master.servers.confirm_requested:
            desk.master.servers.confirmed(desk.job.slots.question)
    return desk, grants


def test_a_trainer_is_asked_for_the_values_of_all_fresh_slots_at_once():
    desk, grants = served_desk()
    assert len(grants) == desk.job.settings.slots

    def waiting_slots(some):
        desk.from_server(m.AwaitingInitialValues(slots=[g.slot for g in some], grants=[g.grant for g in some]))
        desk.master.tick(5.0)
        return [message for to, message in told(desk) if to == 0 and isinstance(message, m.ProvideInitialValues)]

    assert waiting_slots(grants[:5]) == []
    assert waiting_slots(grants[5:-1]) == []
    (asked,) = waiting_slots(grants[-1:])
    assert sorted(asked.slots) == sorted(grant.slot for grant in grants)


def test_messages_of_a_server_after_its_leave_are_ignored():
    desk, grants = served_desk()
    desk.from_server(m.Leave(leases=[]))
    for late in (
        EMPTY,
        m.AwaitingInitialValues(slots=[grants[0].slot], grants=[grants[0].grant]),
        m.GrantReport(reports=[]),
        m.GrantFailed(slot=0, grant=1, file="", reason="late"),
        m.MissingTasks(reports=[]),
    ):
        desk.from_server(late)
    assert SERVER.life not in desk.job.servers
    assert desk.events("warning") == []


def test_snapshots_of_weeks_take_no_memory_of_the_master():
    desk = Desk()
    slots = list(desk.served)
    for number in range(3000):
        desk.from_server(m.SnapshotWritten(file=f"snapshot-{number}", slots=slots, grants=list(desk.served.values()),
                                   counts=[number] * len(slots)))  # fmt: skip
    (view,) = desk.job.slots.views.values()
    assert len(view.files) == 1000
    assert list(view.files)[-1] == "snapshot-2999"
