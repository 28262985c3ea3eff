"""Inputs of both models: names and sizes. They are apart from the code that computes them, which imports pandas."""

__all__ = ["CATEGORIES", "CATEGORY_ROWS", "CROSSES", "CROSS_ROWS", "NUMBERS", "WEATHER"]

CATEGORIES = (
    "month", "day", "weekday", "hour", "minute", "arrival_hour", "carrier", "flight", "tailnum", "origin", "dest", "route",
)  # fmt: skip
"""Categorical inputs, each embedded by both models. All of them are known before departure."""

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
"""Crosses: combinations of two or more categories, for the linear half of the wide-and-deep model."""

WEATHER = ("temp", "dewp", "humid", "wind_speed", "wind_gust", "precip", "pressure", "visib")
NUMBERS = (
    "distance", "departure_time", "arrival_time", "year_day",
    *WEATHER, "wind_north", "wind_east", *(f"no_{name}" for name in WEATHER), "no_wind_dir",
)  # fmt: skip
"""Numeric inputs. Missing weather is 0 (the mean), and the matching `no_...` is 1."""

CATEGORY_ROWS = 1 << 15
CROSS_ROWS = 1 << 20
