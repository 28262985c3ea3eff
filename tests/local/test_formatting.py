"""Formatting of status tables, progress lines and reports."""

import io
import math

import msgspec
import pytest
from rich.console import Console

from shoal.local.view.formatting import account_lines, duration, plain, progress_line, score, stall_reason
from shoal.local.view.live import render
from shoal.local.view.plain import PlainView, QuietView
from shoal.local.view.status import RunStatus, account_of, is_good, read_status, rows_of
from shoal.protocol.messages import JobAccount, JobProgress, Member, Samples

PROGRESS = JobProgress(
    state="Running",
    reason="",
    generation=1,
    etcd="",
    epoch=0,
    epochs=3,
    samples_done=410,
    samples_epoch=1000,
    samples_total=410,
    samples_expected=3000,
    rate=12345.4,
    left_seconds=12.3,
    values={"loss": 0.41},
    members=[
        Member(
            role="trainer",
            index=0,
            life=1,
            pid=11,
            host="",
            address="",
            state="training",
            task="task 3 of epoch 1",
            since=4,
        )
    ],
    evaluations=[],
    retries=0,
    skipped=2,
    replayed=0,
    not_finite=0,
    joins=2,
    leaves=0,
    deaths=1,
    saved=[],
    stall_reason="",
    events=[],
    account=None,
)
ROWS = rows_of(
    [("trainer", 0, 11, 4.0, False), ("trainer", 1, 12, 1.0, False), ("master", 0, 10, 5.0, False)],
    [("trainer", 2, 3.0)],
    PROGRESS.members,
)
STATUS = RunStatus(
    name="digits",
    state="Running",
    reason="",
    runner=1,
    trainers=3,
    least=1,
    most=4,
    members=ROWS,
    progress=PROGRESS,
    account=None,
)


def changed(**more):
    return msgspec.structs.replace(STATUS, progress=msgspec.structs.replace(PROGRESS, **more))


def test_the_progress_line():
    assert progress_line(STATUS) == "epoch 1/3   41%  12,345 samples/s  loss 0.41  trainers 1/3  left 12s"
    assert progress_line(changed(stall_reason="no trainer is connected")).endswith("(no trainer is connected)")
    assert progress_line(changed(state="Saving", epoch=3)) == "epoch 3/3  saving  loss 0.41  trainers 1/3"
    assert progress_line(msgspec.structs.replace(STATUS, state="Complete")).count("(") == 0


def test_members_show_their_activity():
    assert [(row.name, row.pid, row.state) for row in ROWS] == [
        ("master-0", 10, "running"),
        ("trainer-0", 11, "training"),
        ("trainer-1", 12, "starting"),
        ("trainer-2", 0, "waits"),
    ]


def test_a_member_of_a_former_life_is_not_shown_as_the_present_one():
    (row,) = rows_of([("trainer", 0, 99, 1.0, False)], [], PROGRESS.members)
    assert row.state == "starting"


def test_plain_lines_are_printed_every_two_seconds_at_most():
    now, stream = [0.0], io.StringIO()
    view = PlainView(stream, clock=lambda: now[0])
    for step in range(41):
        now[0] = step / 10
        view.show(changed(samples_done=step))
    assert len(stream.getvalue().splitlines()) == 3


def starting(*, servers=0, members=(), progress="", state="Starting"):
    """Return the status of a job of two parameter servers during its start."""
    places = [("pserver", 0, 21), ("pserver", 1, 22), ("trainer", 0, 23), ("master", 0, 20)]
    here = [Member("pserver", i, 1, 21 + i, "", f"unix://{i}", "starting", "0 slots", 1) for i in range(servers)]
    rows = rows_of([(role, index, pid, 1.0, False) for role, index, pid in places], [], here)
    made = msgspec.structs.replace(PROGRESS, state=state, members=[*here, *members], stall_reason=progress)
    return msgspec.structs.replace(STATUS, state=state, members=rows, progress=made)


def test_a_fresh_start_shows_what_it_waits_for_and_is_no_recovery():
    assert stall_reason(msgspec.structs.replace(starting(), progress=None)) == "the master is starting"
    assert stall_reason(starting(progress="waiting for pserver-0")).startswith("0 of 2 parameter servers up")
    assert stall_reason(starting(servers=1)).startswith("1 of 2 parameter servers up")
    assert "job.prepare()" in stall_reason(starting(servers=2, progress="waiting for the first trainer to register"))
    trainer = PROGRESS.members[0]
    late = starting(servers=2, members=[trainer], progress="16 slots are being restored")
    assert stall_reason(late) == "the servers receive the initial parameters"
    assert progress_line(late) == "starting  trainers 0/3  (the servers receive the initial parameters)"
    assert stall_reason(starting(servers=2, progress="16 slots are being restored", state="Running")).startswith(
        "16 slots"
    )


def test_an_etcd_that_is_away_is_named_without_its_address():
    long = "etcd at unix:///s/etcd/client:1: failed to connect; last error: Connection refused (UNAVAILABLE)"
    assert plain(long).startswith("etcd does not answer")
    assert stall_reason(changed(stall_reason=long)) == plain(long)


def test_a_process_that_left_a_complete_job_is_not_starting():
    (row,) = rows_of([("trainer", 0, 99, 1.0, False)], [], [], complete=True)
    assert row.state == "ending"


def test_a_view_outlives_its_reader():
    stream = io.StringIO()
    stream.close()
    PlainView(stream).print_event("info", "the output is closed")


def test_quiet_shows_errors_only():
    stream = io.StringIO()
    view = QuietView(stream)
    view.print_event("warning", "so so")
    view.show(STATUS)
    view.print_event("error", "bad")
    assert stream.getvalue().endswith("error: bad\n")
    assert "so so" not in stream.getvalue()


@pytest.mark.parametrize(("width", "height"), [(100, 12), (100, 30), (40, 12)])
def test_the_live_view_fits_the_terminal(width, height):
    rows = rows_of([("trainer", index, index + 1, 1.0, False) for index in range(40)], [], [])
    console = Console(width=width, height=height, file=io.StringIO())
    status = changed(stall_reason="a long reason " * 20, values={f"value{number}": 0.5 for number in range(9)})
    console.print(render(msgspec.structs.replace(status, members=rows), height=height))
    lines = console.file.getvalue().splitlines()
    assert len(lines) < height
    assert any("epoch 1/3" in line for line in lines)
    assert any("more" in line for line in lines)


def test_a_kept_status_is_read_again_also_with_a_loss_that_is_not_a_number():
    status = changed(values={"loss": math.nan, "accuracy": 0.5})
    read = read_status(msgspec.json.encode(status))
    assert math.isnan(read.progress.values["loss"])
    assert msgspec.structs.replace(read.progress, values={}) == changed(values={}).progress
    for damaged in (b"", b"[]", b"{}", b"{"):
        with pytest.raises(msgspec.DecodeError):
            read_status(damaged)


def test_durations_and_scores():
    assert [duration(seconds) for seconds in (0.2, 59.4, 60, 185, 7800)] == ["0s", "59s", "1m00s", "3m05s", "2h10m"]
    assert score("0.91234567") == "0.9123"
    assert score('{"auc": 0.5, "rows": 7}') == "auc 0.5  rows 7"


def account(*, lost=0, twice=0, state="Complete"):
    samples = Samples(expected=10, counted=10 - lost, lost=lost, twice=twice, skipped=0)
    return JobAccount(state=state, epochs=1, samples=samples, joins=1, leaves=0, deaths=0, replayed=0, seconds=1.0)


def test_only_a_full_account_is_good():
    assert is_good(account())
    assert not is_good(account(lost=1))
    assert not is_good(account(twice=1))
    assert not is_good(account(state="Failed"))
    assert account_lines("x", account_of("Stopped", None, seconds=1.0)) == [
        "x: Stopped, 1s",
        "  samples: none, the training had not begun",
    ]
    assert "10 of 10 counted, 0 lost, 0 twice" in "\n".join(account_lines("x", account()))


def test_an_account_fits_into_eighty_columns():
    example = msgspec.structs.replace(account(), joins=12, leaves=10, deaths=24, replayed=12345)
    assert max(map(len, account_lines("flights", example))) <= 80
    assert "  batches computed again: 12,345" in account_lines("flights", example)
    assert not any("again" in line for line in account_lines("flights", account()))


def test_many_skipped_samples_are_explained():
    example = account()
    few = msgspec.structs.replace(example, samples=msgspec.structs.replace(example.samples, skipped=1))
    many = msgspec.structs.replace(example, samples=msgspec.structs.replace(example.samples, skipped=2))
    assert "docs/scripts.md" not in "\n".join(account_lines("x", few))
    assert "  20% of the samples made no optimizer step" in "\n".join(account_lines("x", many))
    assert max(map(len, account_lines("x", many))) <= 80


def test_an_end_that_the_master_did_not_see_has_an_account_too():
    made = account_of("Stopped", PROGRESS, seconds=2.0)
    assert (made.state, made.samples.counted, made.samples.expected, made.deaths) == ("Stopped", 410, 3000, 1)
