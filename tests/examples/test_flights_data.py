"""The flights example's data: the right flights, the same split everywhere, and no inputs from after departure."""

import subprocess
import sys
from pathlib import Path

import data
import numpy as np
import pandas as pd
import prepare
import pytest
import torch
from columns import CATEGORIES, CATEGORY_ROWS, CROSS_ROWS, CROSSES, NUMBERS
from torch.utils.data import DataLoader

FLIGHTS = 336_776
WITH_ARRIVAL = 327_346
HELD_OUT = 32_717
KNOWN_AFTERWARDS = {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"}
HASHES = [13445651978466147803, 2024127382556607005, 13445651978466147803]
COMBINED = [14143361647448854054, 17283168414009607785, 14143361647448854054]
PREPARED = (1, [58465169788, 1715589884894, 6478591853, 190255959772])
"""The cache's version, and the sums of its integer tensors for that version."""
FOLDER = Path(data.__file__).parent


@pytest.fixture(scope="module")
def flights():
    return prepare.read_flights()


@pytest.fixture(scope="module")
def weather():
    return prepare.read_weather()


@pytest.fixture(scope="module")
def tensors(flights, weather):
    return prepare.prepare(flights, weather)


def test_every_flight_with_an_arrival_is_in_one_part(flights, tensors):
    assert len(flights) == FLIGHTS
    assert len(tensors["held_out/late"]) == HELD_OUT
    assert len(tensors["train/late"]) == WITH_ARRIVAL - HELD_OUT


def test_the_parts_share_no_flight(flights):
    known = flights[flights["arr_delay"].notna()]
    assert not known.duplicated(list(prepare.IDENTITY)).any()


def test_held_out_flights_do_not_depend_on_the_order_or_company_of_the_rows(flights):
    some = flights.sample(5_000, random_state=1)
    whole = pd.Series(prepare.is_held_out(flights), index=flights.index)
    assert (prepare.is_held_out(some) == whole[some.index].to_numpy()).all()


def test_shape_and_range_of_the_inputs(tensors):
    rows = WITH_ARRIVAL - HELD_OUT
    assert tensors["train/categories"].shape == (rows, len(CATEGORIES))
    assert tensors["train/crosses"].shape == (rows, len(CROSSES))
    assert tensors["train/numbers"].shape == (rows, len(NUMBERS))
    for name, size in (("categories", CATEGORY_ROWS), ("crosses", CROSS_ROWS)):
        assert 0 <= int(tensors[f"train/{name}"].min()) <= int(tensors[f"train/{name}"].max()) < size
    assert torch.isfinite(tensors["train/numbers"]).all()
    assert torch.isfinite(tensors["held_out/numbers"]).all()


def test_numbers_are_standardised_over_the_training_flights(tensors):
    values = tensors["train/numbers"][:, [NUMBERS.index("distance"), NUMBERS.index("departure_time")]].double()
    assert values.mean(0).abs().max() < 1e-3
    assert (values.std(0) - 1).abs().max() < 1e-3


def test_labels_mark_delays_of_more_than_fifteen_minutes(flights, tensors):
    late = (flights["arr_delay"] > 15).sum()
    assert int(tensors["train/late"].sum() + tensors["held_out/late"].sum()) == late


def test_inputs_ignore_what_is_known_only_afterwards(flights, weather):
    some = flights[flights["arr_delay"].notna()].head(3_000)
    other_day = some.assign(**{name: some[name].sample(frac=1, random_state=2).to_numpy() for name in KNOWN_AFTERWARDS})
    before, after = prepare.prepare(some, weather), prepare.prepare(other_day, weather)
    assert not torch.equal(before["train/late"], after["train/late"])
    for name in before:
        if not name.endswith("/late"):
            assert torch.equal(before[name], after[name]), name


def test_no_column_is_named_after_the_outcome():
    named = {*CATEGORIES, *NUMBERS, *(name for cross in CROSSES for name in cross)}
    assert not named & KNOWN_AFTERWARDS


def test_missing_weather_is_marked_and_neutral(flights, weather):
    some = flights[flights["arr_delay"].notna()].head(1_000)
    inputs = prepare.known_before_departure(some)
    hours = weather[(weather["origin"] != "JFK") & weather["temp"].notna()]
    values = prepare.measured(inputs, hours)
    known = pd.MultiIndex.from_frame(inputs[["origin", "time_hour"]]).isin(
        pd.MultiIndex.from_frame(hours[["origin", "time_hour"]])
    )
    assert 300 < known.sum() < 900
    assert ((values[:, NUMBERS.index("no_temp")] == 0) == known).all()
    assert (np.isnan(values[:, NUMBERS.index("temp")]) == ~known).all()
    assert (prepare.standardised(values, known)[~known, NUMBERS.index("temp")] == 0).all()


def test_hashes_are_the_same_in_every_process_and_release():
    values = pd.Series(["UA", "DL", "UA"])
    assert prepare.hashed(values).tolist() == HASHES
    assert prepare.combined([prepare.hashed(values)], salt=3).tolist() == COMBINED


def test_a_change_of_the_inputs_needs_a_new_cache_version(tensors):
    sums = [
        int(tensors[f"{part}/{name}"].long().sum())
        for part in ("train", "held_out")
        for name in ("categories", "crosses")
    ]
    assert (data.CACHE_VERSION, sums) == PREPARED, "raise CACHE_VERSION and write down the new sums"


def test_a_batch_is_cut_out_whole(tensors):
    flights = data.part(tensors, "held_out")
    loader = DataLoader(flights, batch_size=512, collate_fn=data.whole_batch)
    batch = next(iter(loader))
    assert batch.categories.dtype == batch.crosses.dtype == torch.int64
    assert batch.numbers.dtype == batch.late.dtype == torch.float32
    assert torch.equal(batch.numbers, flights.numbers[:512])
    assert torch.equal(flights[7].categories, batch.categories[7])


@pytest.mark.slow
def test_trainers_that_start_at_once_share_one_cache(tmp_path, monkeypatch, tensors):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = [sys.executable, "-c", "import data; print([len(part) for part in data.load()])"]
    processes = [subprocess.Popen(command, cwd=FOLDER, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in processes] == [
        f"[{WITH_ARRIVAL - HELD_OUT}, {HELD_OUT}]"
    ] * 2
    assert list((tmp_path / "shoal").iterdir()) == [data.cache_file()]
    for loaded, name in zip(data.load(), ("train", "held_out"), strict=True):
        assert torch.equal(loaded.crosses, tensors[f"{name}/crosses"])
        assert torch.equal(loaded.numbers, tensors[f"{name}/numbers"])


def test_a_broken_cache_is_made_anew_and_an_unwritable_one_done_without(tmp_path, monkeypatch, tensors, capsys):
    monkeypatch.setattr(prepare, "prepare", lambda *_: tensors)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data.cache_file().parent.mkdir()
    data.cache_file().write_bytes(b"half a file")
    assert len(data.load()[1]) == HELD_OUT
    assert data.cache_file().stat().st_size > 10_000_000

    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert len(data.load()[1]) == HELD_OUT
    assert "nothing cached" in capsys.readouterr().err
