"""What both models read of a flight: names and sizes, apart from the code that fills them (which needs pandas)."""

__all__ = ["CATEGORIES", "CATEGORY_ROWS", "CROSSES", "CROSS_ROWS", "NUMBERS", "WEATHER"]

CATEGORIES = (
    "month", "day", "weekday", "hour", "minute", "arrival_hour", "carrier", "flight", "tailnum", "origin", "dest", "route",
)  # fmt: skip
"""Each is embedded by both models. All of it is known before the flight leaves."""

CROSSES = (
    ("month", "day"),
    ("month", "day", "hour"),
    ("month", "day", "origin"),
    ("month", "day", "origin", "hour"),
    ("month", "day", "carrier"),
    ("month", "day", "dest"),
    ("month", "day", "tailnum"),
    ("carrier", "route"),
    ("origin", "hour", "weekday"),
    ("carrier", "flight"),
    ("carrier", "origin", "hour"),
)
"""Pairs and more of the categories: the wide model's memory."""

WEATHER = ("temp", "dewp", "humid", "wind_speed", "wind_gust", "precip", "pressure", "visib")
NUMBERS = (
    "distance", "departure_time", "arrival_time", "year_day",
    *WEATHER, "wind_north", "wind_east", *(f"no_{name}" for name in WEATHER), "no_wind_dir",
)  # fmt: skip
"""Numeric inputs: missing weather is 0 (the mean), and `no_...` is 1 there."""

CATEGORY_ROWS = 1 << 15
CROSS_ROWS = 1 << 20
