"""What people read."""

import io

import msgspec
import pytest
from rich.console import Console

from shoal.local.live import picture
from shoal.local.status import Status, account_of, is_good, rows_of
from shoal.local.view import PlainView, QuietView
from shoal.local.words import account_lines, duration, progress_line, score
from shoal.wire.messages import Account, Evaluation, Member, Progress, Samples

PROGRESS = Progress(
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
    why="",
    events=[],
    account=None,
)
ROWS = rows_of(
    [("trainer", 0, 11, 4.0, False), ("trainer", 1, 12, 1.0, False), ("master", 0, 10, 5.0, False)],
    [("trainer", 2, 3.0)],
    PROGRESS.members,
)
STATUS = Status(
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
    assert progress_line(changed(why="no trainer is connected")).endswith("(no trainer is connected)")
    assert progress_line(changed(state="Saving", epoch=3)) == "epoch 3/3  saving  loss 0.41  trainers 1/3"
    assert progress_line(msgspec.structs.replace(STATUS, progress=None)) == "starting  trainers 1/3"


def test_members_say_what_they_do():
    assert [(row.name, row.pid, row.state) for row in ROWS] == [
        ("master-0", 10, "running"),
        ("trainer-0", 11, "training"),
        ("trainer-1", 12, "starting"),
        ("trainer-2", 0, "waits"),
    ]


def test_a_member_of_a_former_life_is_not_shown_as_the_present_one():
    (row,) = rows_of([("trainer", 0, 99, 1.0, False)], [], PROGRESS.members)
    assert row.state == "starting"


def test_plain_lines_come_every_two_seconds_at_most():
    now, stream = [0.0], io.StringIO()
    view = PlainView(stream, clock=lambda: now[0])
    for step in range(41):
        now[0] = step / 10
        view.show(changed(samples_done=step))
    assert len(stream.getvalue().splitlines()) == 3


def test_a_score_is_shown_once():
    stream = io.StringIO()
    view = PlainView(stream)
    for _ in range(3):
        view.show(changed(evaluations=[Evaluation(epoch=0, score='{"accuracy": 0.93333}')]))
    assert stream.getvalue().count("epoch 1 evaluated: accuracy 0.9333") == 1


def test_a_view_outlives_its_reader():
    stream = io.StringIO()
    stream.close()
    PlainView(stream).tell("info", "nobody reads this")


def test_quiet_shows_errors_only():
    stream = io.StringIO()
    view = QuietView(stream)
    view.tell("warning", "so so")
    view.show(STATUS)
    view.tell("error", "bad")
    assert stream.getvalue().endswith("error: bad\n")
    assert "so so" not in stream.getvalue()


@pytest.mark.parametrize("height", [12, 30])
def test_the_live_picture_fits_the_terminal(height):
    rows = rows_of([("trainer", index, index + 1, 1.0, False) for index in range(40)], [], [])
    console = Console(width=100, height=height, file=io.StringIO())
    console.print(picture(msgspec.structs.replace(STATUS, members=rows), height=height))
    lines = console.file.getvalue().splitlines()
    assert len(lines) < height
    assert any("epoch 1/3" in line for line in lines)
    assert any("more" in line for line in lines)


def test_durations_and_scores():
    assert [duration(seconds) for seconds in (0.2, 59.4, 60, 185, 7800)] == ["0s", "59s", "1m00s", "3m05s", "2h10m"]
    assert score("0.91234567") == "0.9123"
    assert score('{"auc": 0.5, "rows": 7}') == "auc 0.5  rows 7"


def account(*, lost=0, twice=0, state="Complete"):
    samples = Samples(expected=10, counted=10 - lost, lost=lost, twice=twice, skipped=0)
    return Account(state=state, epochs=1, samples=samples, joins=1, leaves=0, deaths=0, replayed=0, seconds=1.0)


def test_only_a_full_account_is_good():
    assert is_good(account())
    assert not is_good(account(lost=1))
    assert not is_good(account(twice=1))
    assert not is_good(account(state="Failed"))
    assert "had not begun" in "\n".join(account_lines("x", account_of("Stopped", None, seconds=1.0)))
    assert "10 of 10 counted, 0 lost, 0 twice" in "\n".join(account_lines("x", account()))


def test_an_end_that_the_master_did_not_see_has_an_account_too():
    made = account_of("Stopped", PROGRESS, seconds=2.0)
    assert (made.state, made.samples.counted, made.samples.expected, made.deaths) == ("Stopped", 410, 3000, 1)
