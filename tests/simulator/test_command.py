"""The command line: its output, its plots, its errors, and how it ends."""

import io
import json
from pathlib import Path

import pytest

from shoal.simulator import POLICIES, loads, simulate
from shoal.simulator import command as commands
from shoal.simulator import plot as plots
from shoal.simulator.command import ProgressLine, main
from shoal.simulator.measures import History
from shoal.simulator.plot import Bands, PlotError, bands_of, draw
from shoal.simulator.report import rows

TRACES = Path(__file__).parents[2] / "examples" / "traces"
SMALL = """
nodes: [{count: 2, resources: {cpu: 5}}]
jobs:
  - {name: a, work: 100, min: 1, max: 4, request: {cpu: 1}}
  - {name: b, arrival: 3, work: 50, min: 2, max: 4, request: {cpu: 2}, priority: -2}
pods: [{name: web, arrival: 5, request: {cpu: 1}}]
"""
KEYS = [
    "policy",
    "simulated",
    "jobs",
    "ended",
    "unfinished",
    "never_started",
    "fits_no_node",
    "makespan",
    "pending_mean",
    "pending_p50",
    "pending_p99",
    "completion_mean",
    "requested",
    "jain_index",
    "jain_index_by_priority",
    "trainers_started",
    "trainers_stopped",
    "trainers_evicted",
    "foreign",
    "foreign_bound_5s",
    "foreign_bound_30s",
    "foreign_wait_p50",
    "foreign_wait_p99",
    "foreign_unbound",
]


@pytest.fixture
def small(tmp_path) -> str:
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    return str(file)


def test_policies_are_compared_in_columns(small, capsys):
    assert main(["--trace", small, "--policy", "fixed", "ancestor", "--policy", "gang-fifo", "fixed"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["fixed", "ancestor", "gang-fifo"]
    assert lines[0].split() == ["jobs", "ended", *(["2", "of", "2"] * 3)]


def test_all_policies_are_compared_unless_some_are_named(small, capsys):
    assert main(["--trace", small, "--output", "json"]) == 0
    reported = json.loads(capsys.readouterr().out)
    assert reported["trace"] == small
    assert [each["policy"] for each in reported["policies"]] == list(POLICIES)


def test_the_keys_of_the_json_are_stable(small, capsys):
    assert main(["--trace", small, "--policy", "fixed", "--output", "json"]) == 0
    (reported,) = json.loads(capsys.readouterr().out)["policies"]
    assert list(reported) == KEYS
    assert list(reported["requested"]) == ["cpu"]
    assert list(reported["jain_index_by_priority"]) == ["-2", "-5"]


def test_jobs_that_do_not_end_are_named_below_the_table(tmp_path, capsys):
    file = tmp_path / "huge.yaml"
    file.write_text(SMALL.replace("cpu: 2}, priority", "cpu: 6}, priority"))
    assert main(["--trace", str(file), "--policy", "fixed"]) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "fixed: larger than any node: b",
        "fixed: never started: b",
        "fixed: not ended: b",
    ]


def test_until_ends_it_early(small, capsys):
    assert main(["--trace", small, "--policy", "fixed", "--until", "8", "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["policies"][0]["simulated"] == 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: --trace"),
        (["--trace", "t", "--policy", "best"], "invalid choice: 'best' (choose from"),
        (["--trace", "t", "--until", "-3"], "argument --until: '-3' is no time; write seconds above 0"),
        (["--trace", "t", "--until", "inf"], "argument --until: 'inf' is no time; write seconds above 0"),
        (["--trace", "t", "--output", "xml"], "invalid choice: 'xml'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert words in capsys.readouterr().err


def test_an_invalid_or_missing_trace_is_reported_in_a_line(tmp_path, capsys):
    assert main(["--trace", str(tmp_path / "none.yaml")]) == 2
    assert capsys.readouterr().err == f"{tmp_path}/none.yaml: there is no such file\n"
    (tmp_path / "t.yaml").write_text(SMALL.replace("min: 2", "min: 5"))
    assert main(["--trace", str(tmp_path / "t.yaml")]) == 2
    assert (
        capsys.readouterr().err == f"{tmp_path}/t.yaml: line 5: jobs[1].min: 5 is above max 4; lower it, or raise max\n"
    )


def test_an_interrupt_ends_it_cleanly(small, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "simulate", interrupted)
    assert main(["--trace", small]) == 130
    assert capsys.readouterr().err == "interrupted\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def watched(stream) -> str:
    progress = ProgressLine("fixed", jobs=2, stream=stream, delay_seconds=0)
    with progress:
        simulate(loads(SMALL), POLICIES["fixed"](), watch=progress.update)
    return stream.getvalue()


def test_progress_is_shown_on_a_terminal_only_and_erased_at_the_end():
    reported = watched(Terminal())
    assert reported.startswith("\rfixed: 0 s, 0 of 2 jobs ended\r")
    assert reported.endswith(" \r")
    assert watched(io.StringIO()) == ""


def test_no_progress_of_a_fast_simulation():
    stream = Terminal()
    with (progress := ProgressLine("fixed", jobs=2, stream=stream)):
        simulate(loads(SMALL), POLICIES["fixed"](), watch=progress.update)
    assert stream.getvalue() == ""


@pytest.mark.parametrize("trace", sorted(TRACES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_can_be_compared(trace, capsys):
    assert main(["--trace", str(trace)]) == 0
    assert not capsys.readouterr().err


def test_every_measure_has_a_value_for_each_policy():
    reports = [simulate(loads(SMALL), POLICIES[name]()).report for name in ("fixed", "gang-fifo")]
    table = rows(reports)
    assert {len(row) for row in table} == {3}
    names = [name for name, *_ in table]
    assert names.index("requested cpu") + 1 == names.index("Jain index") == names.index("... of priority -2") - 1


class TestPlot:
    def test_bands_are_steps_that_add_up(self):
        history = History(times=[0.0, 4.0, 4.0, 9.0], cpu=[(0, 0), (1000, 0), (2000, 500), (0, 500)])
        bands = bands_of(history, jobs=["a"], end=12.0, capacity=4.0)
        assert bands.times == (0, 4, 4, 4, 4, 9, 9, 12)
        assert bands.cores == {"a": (0, 0, 1, 1, 2, 2, 0, 0), "foreign pods": (0, 0, 0, 0, 0.5, 0.5, 0.5, 0.5)}

    def test_of_many_jobs_the_last_ones_share_a_band(self):
        history = History(times=[0.0], cpu=[(*([1000] * 20), 3000)])
        bands = bands_of(history, jobs=[f"j{number}" for number in range(20)], end=1.0, capacity=30.0)
        assert list(bands.cores)[-2:] == ["other jobs", "foreign pods"]
        assert len(bands.cores) == 16
        assert bands.cores["other jobs"] == (6, 6)

    def test_what_is_drawn_is_what_the_trace_gave(self):
        calls = {}

        class Axes:
            def __getattr__(self, name):
                return lambda *values, **options: calls.__setitem__(name, (values, options))

        result = simulate(loads(SMALL), POLICIES["fixed"](), history=True)
        bands = bands_of(result.history, jobs=["a", "b"], end=result.report.simulated, capacity=10.0)
        draw(Axes(), bands, title="fixed")
        (times, a, b, foreign), options = calls["stackplot"]
        assert options["labels"] == ["a", "b", "foreign pods"]
        assert len(options["colors"]) == 3
        assert (max(a), max(foreign)) == (4, 1)
        assert max(b) > 0
        assert all(sum(now) <= 10 for now in zip(a, b, foreign, strict=True))
        assert list(times) == sorted(times)
        assert calls["set_title"] == (("fixed",), {})

    def test_more_bands_than_colours_can_be_drawn(self):
        calls = {}

        class Axes:
            def __getattr__(self, name):
                return lambda *values, **options: calls.__setitem__(name, (values, options))

        draw(
            Axes(), Bands(times=(0.0, 1.0), cores={str(n): (1.0, 1.0) for n in range(30)}, capacity=30.0), title="many"
        )
        _, options = calls["stackplot"]
        assert len(options["colors"]) == 30
        assert None not in options["colors"]

    def test_without_matplotlib_the_error_names_what_to_install_before_the_work(self, small, capsys, monkeypatch):
        def missing(name):
            raise ImportError(name)

        monkeypatch.setattr(plots, "import_module", missing)
        monkeypatch.setattr(commands, "simulate", None)
        assert main(["--trace", small, "--plot", "x.png"]) == 1
        assert capsys.readouterr().err == "--plot needs matplotlib; install it: pip install 'shoal[plot]'\n"

    def test_a_plot_without_a_folder_is_reported_before_the_work(self, small, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(commands, "require", lambda: None)
        monkeypatch.setattr(commands, "simulate", None)
        assert main(["--trace", small, "--plot", str(tmp_path / "none" / "x.png")]) == 1
        assert "x.png: cannot be written: there is no such folder" in capsys.readouterr().err

    def test_panels_are_saved_one_below_the_other(self, small, tmp_path, monkeypatch):
        saved = {}
        monkeypatch.setattr(commands, "require", lambda: None)
        monkeypatch.setattr(commands, "save", lambda path, panels: saved.update({path: panels}))
        path = str(tmp_path / "x.png")
        assert main(["--trace", small, "--policy", "fixed", "ancestor", "--plot", path]) == 0
        assert list(saved[path]) == ["fixed", "ancestor"]
        assert all(isinstance(bands, Bands) and bands.capacity == 10 for bands in saved[path].values())

    def test_an_unwritable_file_is_reported(self, monkeypatch):
        class Module:
            """Stand-in for every module of matplotlib."""

            def __getattr__(self, name):
                return self

            def __call__(self, *_, **__):
                return self

            def __getitem__(self, _):
                return [self]

            def __iter__(self):
                return iter(("handles", "labels"))

            def savefig(self, *_, **__):
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(plots, "import_module", lambda _: Module())
        bands = Bands(times=(0.0,), cores={"foreign pods": (0.0,)}, capacity=1.0)
        with pytest.raises(PlotError, match=r"x\.png: cannot be written: No space left on device"):
            plots.save("x.png", {"fixed": bands})


def test_matplotlib_is_not_imported_without_need(small, monkeypatch):
    monkeypatch.setattr(plots, "import_module", None)
    assert main(["--trace", small, "--policy", "fixed"]) == 0
