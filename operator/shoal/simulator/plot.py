"""Plots of the CPU that each job requested over time.

matplotlib is imported only when a plot is written, as its import takes half a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from shoal.simulator.measures import History

__all__ = ["Bands", "PlotError", "bands_of", "draw", "require", "save"]

_COLOURS: Final = (
    *("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#44bb99", "#bbcc33", "#77aadd"),
    *("#ffaabb", "#994455", "#117733", "#332288"),
)
"""Distinguishable colours, bright ones first; further jobs share a band."""
_OTHER_JOBS: Final = "other jobs"
_FOREIGN: Final = "foreign pods"


class PlotError(RuntimeError):
    """An error that prevents a plot; the message contains the fix."""


@dataclass(frozen=True, kw_only=True)
class Bands:
    """The stacked areas of a plot.

    Attributes:
        times: Times in seconds, not falling; the time of a jump is listed twice.
        cores: Label -> requested CPU in cores at each of the times; the first label is the lowest area.
        capacity: Cores of the whole cluster.
    """

    times: tuple[float, ...]
    cores: Mapping[str, tuple[float, ...]]
    capacity: float


def bands_of(history: History, *, jobs: Sequence[str], end: float, capacity: float) -> Bands:
    """Return the bands of a history.

    Args:
        history: The requested CPU of each job over time.
        jobs: Names of the jobs, in the trace's order. Jobs beyond the number of colours share a band.
        end: Time until which the last values hold, in seconds.
        capacity: Cores of the whole cluster.
    """
    alone = jobs[: len(_COLOURS)]
    times: list[float] = []
    points: list[tuple[int, ...]] = []
    for (time, values), (after, _) in pairwise([*zip(history.times, history.cpu, strict=True), (end, ())]):
        times += (time, max(after, time))
        points += (values, values)
    cores = {name: tuple(point[index] / 1000 for point in points) for index, name in enumerate(alone)}
    if len(alone) < len(jobs):
        cores[_OTHER_JOBS] = tuple(sum(point[len(alone) : -1]) / 1000 for point in points)
    cores[_FOREIGN] = tuple(point[-1] / 1000 for point in points)
    return Bands(times=tuple(times), cores=cores, capacity=capacity)


def draw(axes: Any, bands: Bands, *, title: str) -> None:
    """Draw one panel.

    Args:
        axes: matplotlib's ``Axes``, or an object with the methods that are called here.
        bands: The bands to draw; if there are more bands than colours, colours repeat.
        title: Title of the panel.
    """
    plain = {_OTHER_JOBS: "dimgrey", _FOREIGN: "lightgrey"}
    colours = [plain.get(name) or _COLOURS[index % len(_COLOURS)] for index, name in enumerate(bands.cores)]
    axes.stackplot(bands.times, *bands.cores.values(), labels=list(bands.cores), colors=colours, linewidth=0)
    axes.axhline(bands.capacity, color="black", linewidth=0.8, linestyle="--")
    axes.set_title(title)
    axes.set_ylabel("requested cores")
    axes.set_xlim(left=0)
    axes.margins(x=0)
    axes.set_ylim(0, bands.capacity * 1.05 or 1)


def require() -> None:
    """Check that plots can be drawn.

    Raises:
        PlotError: matplotlib is missing.
    """
    try:
        import_module("matplotlib")
    except ImportError:
        raise PlotError("--plot needs matplotlib; install it: pip install 'shoal[plot]'") from None


def save(path: str | Path, panels: Mapping[str, Bands]) -> None:
    """Write a PNG with one panel below the other.

    Args:
        path: Path of the file.
        panels: Title -> bands of each panel.

    Raises:
        PlotError: matplotlib is missing, or the file cannot be written.
    """
    require()
    # Without pyplot, no display is needed and no global state is left.
    figure = import_module("matplotlib.figure").Figure(figsize=(10, 2.6 * len(panels) + 0.6), layout="constrained")
    import_module("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for each, (title, bands) in zip(axes, panels.items(), strict=True):
        draw(each, bands, title=title)
    axes[-1].set_xlabel("seconds")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise PlotError(f"{path}: cannot be written: {error.strerror}") from None
