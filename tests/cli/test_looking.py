"""The output of `shoal status` and `shoal run`, formatted without a process."""

import io

import msgspec
import pytest

from shoal.cli.local.run import Options, _view
from shoal.cli.local.status import show_all, status_lines
from shoal.local.state.state_folder import Origin, RunEnd, StateFolder
from shoal.local.view.live import LiveView
from shoal.local.view.plain import PlainView
from shoal.local.view.status import account_of
from shoal.protocol.messages import Evaluation
from tests.local.test_formatting import STATUS, changed

OPTIONS = Options(
    target="job.yaml", arguments=[], trainers=None, servers=None, epochs=None, seed=None, name=None, state=None,
    etcd=None, fresh=False, output="text", quiet=False,
)  # fmt: skip


def test_a_status_names_the_latest_scores_and_the_model():
    scores = [Evaluation(epoch=epoch, number=0, score=str(epoch / 100)) for epoch in range(40)]
    lines = status_lines(changed(evaluations=scores, epochs=40, saved=["/here/model.safetensors"]))
    assert [line for line in lines if "evaluated" in line] == [
        "  epoch 38 evaluated: 0.37",
        "  epoch 39 evaluated: 0.38",
        "  epoch 40 evaluated: 0.39",
    ]
    assert "  model: /here/model.safetensors" in lines


def test_a_status_fits_into_eighty_columns():
    member = msgspec.structs.replace(STATUS.members[0], address="unix:///a/very/deep/folder/of/some/user" * 3)
    assert max(map(len, status_lines(msgspec.structs.replace(STATUS, members=[member])))) <= 80


def test_the_list_of_jobs_gives_the_last_line_of_a_failure(tmp_path, capsys, job):
    state = StateFolder(tmp_path, job.metadata.name)
    state.lock()
    state.prepare(job, Origin(folder=str(tmp_path), source=""))
    reason = "the script failed 7 times in a row; its last output:\nTraceback\nKeyError: 'x'"
    state.write_end(RunEnd("Failed", reason, final=False, account=account_of("Failed", None, seconds=1.0)))
    state.unlock()
    show_all(tmp_path, output="text")
    assert capsys.readouterr().out == "NAME    STATE   PROGRESS\ndigits  Failed  KeyError: 'x'\n"


@pytest.fixture
def job():
    from shoal.api import for_script

    return for_script("digits.py")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("term", "view"), [("xterm", LiveView), ("dumb", PlainView), (None, PlainView)])
def test_only_a_terminal_that_can_move_its_cursor_gets_a_picture(monkeypatch, term, view):
    monkeypatch.setattr("sys.stdout", Terminal())
    if term is None:
        monkeypatch.delenv("TERM", raising=False)
    else:
        monkeypatch.setenv("TERM", term)
    made = _view(OPTIONS)
    made.close()
    assert type(made) is view
