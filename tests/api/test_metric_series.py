"""The series of logged values: what it keeps of the reports, and its bounds."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.api.metric_series import (
    LONGEST_NAME,
    MOST_BYTES,
    MOST_POINTS,
    MOST_VALUES,
    EpochScore,
    MetricSeries,
    finite_values,
    metrics_name,
    score_values,
)
from tests.soak import examples

NOW = datetime(2026, 3, 4, 5, 6, 7, 89_000, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def logged(
    series: MetricSeries, seconds: float, samples: int = 0, *, epoch: int = 1, scores=(), **values: float
) -> bool:
    return series.add(time=at(seconds), epoch=epoch, samples=samples, values=values, scores=scores)


def scored(epoch: int, score: float) -> EpochScore:
    return EpochScore(epoch, {"score": score})


# --- Records ---


def test_a_record_has_time_epoch_samples_and_the_values():
    series = MetricSeries()
    assert logged(series, 0, 640, epoch=2, loss=0.25, accuracy=0.5)
    assert series.records == [
        {"time": "2026-03-04T05:06:07.089Z", "epoch": 2, "samples": 640, "loss": 0.25, "accuracy": 0.5}
    ]
    assert json.loads(series.to_json()) == series.records


def test_a_report_that_repeats_the_previous_one_adds_nothing():
    series = MetricSeries()
    assert logged(series, 0, 10, loss=0.5)
    assert not logged(series, 1, 10, loss=0.5)
    assert logged(series, 2, 20, loss=0.5)
    assert not logged(series, 3, 20)
    assert len(series.records) == 2


def test_a_score_has_a_record_of_its_own_and_is_added_once():
    series = MetricSeries()
    logged(series, 0, 10, loss=0.5, scores=[scored(1, 0.7)])
    logged(series, 1, 20, epoch=2, loss=0.4, scores=[scored(1, 0.7)])
    logged(series, 2, 30, epoch=3, loss=0.3, scores=[scored(1, 0.7), scored(2, 0.8)])
    logged(series, 3, 30, epoch=3, loss=0.3, scores=[scored(2, 0.8), scored(2, 0.9)])
    assert [(each["epoch"], each["score"]) for each in series.records if "score" in each] == [
        (1, 0.7),
        (2, 0.8),
        (2, 0.9),
    ]
    assert [each["loss"] for each in series.records if "loss" in each] == [0.5, 0.4, 0.3]


def test_pandas_takes_the_records():
    import pandas as pd

    series = MetricSeries()
    logged(series, 0, 10, loss=0.5)
    logged(series, 1, 20, loss=0.25, scores=[scored(1, 0.75)])
    frame = pd.DataFrame(series.records)
    assert list(frame.columns) == ["time", "epoch", "samples", "loss", "score"]
    assert frame["loss"].dropna().tolist() == [0.5, 0.25]
    assert frame["score"].dropna().tolist() == [0.75]
    assert pd.to_datetime(frame["time"]).is_monotonic_increasing


def test_the_config_map_is_named_after_the_job():
    assert metrics_name("flights") == "flights-metrics"


@pytest.mark.parametrize(
    ("score", "values"),
    [
        ("0.75", {"score": 0.75}),
        ("3", {"score": 3.0}),
        ('{"auc": 0.9, "note": "good", "f1": 0.5}', {"score.auc": 0.9, "score.f1": 0.5}),
        ("true", {}),
        ("null", {}),
        ('"0.5"', {}),
        ("[1, 2]", {}),
        ("NaN", {}),
        ("1e999", {}),
        ("no JSON", {}),
        ("[" * 3000, {}),
        ('{"a": 1' + " " * 5000 + "}", {}),
    ],
)  # fmt: skip
def test_the_numbers_of_a_score_are_values(score, values):
    assert score_values(score) == values


def test_values_that_are_no_finite_numbers_and_names_of_the_records_own_fields_are_left_out():
    odd = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": True, "e": "1", "f": None, "g": 10**400, "": 1.0}
    assert finite_values({**odd, "time": 1.0, "epoch": 2.0, "samples": 3.0, "loss": 4, "x" * 999: 5.0}) == {
        "loss": 4.0,
        "x" * LONGEST_NAME: 5.0,
    }
    assert list(finite_values({f"v{number}": 1.0 for number in range(50)})) == [f"v{n}" for n in range(MOST_VALUES)]


# --- Bounds ---


@pytest.mark.parametrize("pause", [0.2, 1.0, 1.3])
@pytest.mark.parametrize("resumed", [False, True])
def test_a_long_series_spans_the_whole_training_evenly(pause, resumed):
    """Half a day of reports: neither the first nor the last hour is lost, also if each report is added to a stored series."""
    series, reports = MetricSeries(), 4000
    for number in range(reports):
        if resumed and number % 25 == 0:
            series = MetricSeries.from_json(series.to_json())
        logged(series, pause * number, number, loss=1.0 / (1 + number))
    records = series.records
    assert MOST_POINTS // 3 <= len(records) <= MOST_POINTS
    samples = [each["samples"] for each in records]
    assert samples[0] == 0
    assert samples[-1] == reports - 1
    widest = max(after - before for before, after in pairwise(samples))
    assert widest <= 6 * reports / MOST_POINTS


def test_a_suspension_does_not_make_later_records_rare():
    series = MetricSeries()
    for number in range(400):
        logged(series, number, number, loss=0.5)
    for number in range(400, 800):
        logged(series, 86_400 + number, number, loss=0.5)
    assert sum(each["samples"] >= 400 for each in series.records) > 100


def test_the_newest_values_are_always_in_the_series():
    series = MetricSeries()
    for number in range(2000):
        logged(series, number, number, loss=number / 2000)
        assert series.records[-1]["samples"] == number


def test_scores_outlast_the_values_between_them():
    series = MetricSeries()
    for number in range(5000):
        epoch = 1 + number // 100
        logged(
            series, number, number, epoch=epoch, loss=0.5, scores=[scored(epoch - 1, epoch / 100)] if epoch > 1 else []
        )
    assert [each["epoch"] for each in series.records if "score" in each] == list(range(1, 50))


NAMES = st.text(max_size=120)
VALUES = st.dictionaries(NAMES, st.floats() | st.integers(-(2**70), 2**70), max_size=25)
SCORES = st.lists(st.builds(EpochScore, st.integers(1, 9), VALUES), max_size=4)
REPORTS = st.tuples(
    st.floats(-1e6, 1e6), st.integers(1, 9), st.integers(0, 2**62), VALUES, SCORES, st.sampled_from([1, 1, 5, 300])
)


@examples(60)
@given(st.lists(REPORTS, max_size=12), st.booleans())
def test_the_series_is_bounded_and_reads_the_same_whatever_is_reported(reports, resumed):
    series = MetricSeries()
    for seconds, epoch, samples, values, scores, times in reports:
        for number in range(times):
            series.add(time=at(seconds + number), epoch=epoch, samples=samples + number, values=values, scores=scores)
        if resumed:
            series = MetricSeries.from_json(series.to_json())
        text = series.to_json()
        assert len(series.records) <= MOST_POINTS
        assert len(text.encode()) <= MOST_BYTES
        assert MetricSeries.from_json(text).to_json() == text
        for each in series.records:
            assert {"time", "epoch", "samples"} < each.keys()
            assert len(each) <= 3 + MOST_VALUES
            assert datetime.fromisoformat(each["time"]).utcoffset() == timedelta(0)
            assert all(math.isfinite(value) for name, value in each.items() if name != "time")


@examples(60)
@given(st.lists(st.floats(0.0, 100.0, exclude_min=True), min_size=1, max_size=1200))
def test_records_keep_the_order_of_the_reports(pauses):
    series, seconds = MetricSeries(), 0.0
    for number, pause in enumerate(pauses):
        seconds += pause
        logged(series, seconds, number, loss=float(number))
    samples = [each["samples"] for each in series.records]
    assert samples == sorted(set(samples))
    assert (samples[0], samples[-1]) == (0, len(pauses) - 1)


def test_a_full_series_of_large_records_is_thinned_to_its_bytes():
    series = MetricSeries()
    for number in range(600):
        values = {f"{each:02}\u0001" + "\u0000" * 120: number + each / 7 for each in range(MOST_VALUES)}
        series.add(time=at(number), epoch=1, samples=number, values=values)
    assert 4 < len(series.records) < MOST_POINTS
    assert len(series.to_json().encode()) <= MOST_BYTES


# --- Reading ---


ODD = [
    1, "x", None, [], {}, {"time": "2026-01-01T00:00:00Z"}, {"time": "soon", "epoch": 1, "samples": 1, "loss": 1.0},
    {"time": "2026-01-01T00:00:00", "epoch": 1, "samples": 1, "loss": 1.0},
    {"time": "0001-01-01T00:00:00+14:00", "epoch": 1, "samples": 1, "loss": 1.0},
    {"time": "2026-01-01T00:00:00Z", "epoch": "1", "samples": 1, "loss": 1.0},
    {"time": "2026-01-01T00:00:00Z", "epoch": 1, "samples": True, "loss": 1.0},
    {"time": "2026-01-01T00:00:00Z", "epoch": 2**80, "samples": 1, "loss": 1.0},
    {"time": "2026-01-01T00:00:00Z", "epoch": 1, "samples": 1, "loss": "low"},
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_what_is_no_record_is_left_out(odd):
    good = {"time": "2026-01-01T00:00:00.000Z", "epoch": 1, "samples": 1, "loss": 0.5}
    assert MetricSeries.from_json(json.dumps([odd, good])).records == [good]


@pytest.mark.parametrize("text", ["", "no JSON", "{}", "3", "null", "[" * 100_000, '"x"'])
def test_a_text_that_is_no_list_is_an_empty_series(text):
    series = MetricSeries.from_json(text)
    assert series.records == []
    assert series.to_json() == "[]"
    assert logged(series, 0, 1, loss=0.5)


@examples(100)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda below: st.lists(below) | st.dictionaries(st.text(), below), max_leaves=20))  # fmt: skip
def test_no_text_stops_a_reader(value):
    assert (
        MetricSeries.from_json(json.dumps(value)).records
        == MetricSeries([] if not isinstance(value, list) else value).records
    )


def test_a_series_that_was_read_knows_its_scores():
    series = MetricSeries()
    logged(series, 0, 10, epoch=2, loss=0.5, scores=[scored(1, 0.7), scored(2, 0.8)])
    read = MetricSeries.from_json(series.to_json())
    assert not logged(read, 1, 10, epoch=2, loss=0.5, scores=[scored(1, 0.7), scored(2, 0.8)])
    assert logged(read, 1, 10, epoch=2, loss=0.5, scores=[scored(2, 0.8), scored(3, 0.9)])
    assert [each["score"] for each in read.records if "score" in each] == [0.7, 0.8, 0.9]


def test_a_script_that_logs_nothing_but_a_value_called_score_repeats_nothing():
    series = MetricSeries()
    assert logged(series, 0, 10, score=0.5)
    read = MetricSeries.from_json(series.to_json())
    assert not logged(read, 1, 10, score=0.5)
    assert logged(read, 2, 20, score=0.5)
