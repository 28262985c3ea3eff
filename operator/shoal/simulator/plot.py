"""Pictures of who held what when. matplotlib is imported only where one is drawn to a file.

It is found by its name at that moment: half a second of imports that only a picture is worth.
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
"""Those that eyes tell apart, bright ones first; jobs beyond them share a band."""
_OTHER_JOBS: Final = "other jobs"
_FOREIGN: Final = "foreign pods"


class PlotError(RuntimeError):
    """Nothing can be drawn; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Bands:
    """Stacked areas.

    Attributes:
        times: Seconds, not falling; where a value jumps, its time stands twice.
        cores: By label, from below: requested CPU in cores at each of the times.
        capacity: Cores of the whole cluster.
    """

    times: tuple[float, ...]
    cores: Mapping[str, tuple[float, ...]]
    capacity: float


def bands_of(history: History, *, jobs: Sequence[str], end: float, capacity: float) -> Bands:
    """What is drawn of a history.

    Args:
        history: Who held what from when on.
        jobs: Their names, in the trace's order. The last ones share a band where there are many.
        end: Seconds to which the last values hold.
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
        axes: matplotlib's ``Axes``, or anything with the few methods that are called here.
        bands: What to draw; where there are more bands than colours, colours come again.
        title: Above it.
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
    """Find out early whether anything can be drawn.

    Raises:
        PlotError: matplotlib is missing.
    """
    try:
        import_module("matplotlib")
    except ImportError:
        raise PlotError("--plot needs matplotlib; install it: pip install 'shoal[plot]'") from None


def save(path: str | Path, panels: Mapping[str, Bands]) -> None:
    """Write a PNG, one panel by title below the other.

    Raises:
        PlotError: matplotlib is missing, or the file cannot be written.
    """
    require()
    # No display is needed, and no state of pyplot's is left behind.
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
