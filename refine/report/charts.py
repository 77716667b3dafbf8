"""Charts as geometry, which the page's template draws as inline SVG: no script, no font, no file beside the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from refine.report.read import Band, Points
from refine.report.text import short

NUM_COLORS = 8  # .c0 to .c7 of the style sheet, for things without an order
NUM_BAND_COLORS = 7  # .b0 to .b6, from low to high noise levels
MAX_POINTS = 600  # of a line: more would only make the page heavy
MANY_DOTS = 40  # points beyond which only the last one is marked
LABEL_HEIGHT = 11  # units that a label of a line takes
LOGARITHMIC = 20  # ratio of the largest to the smallest value beyond which the scale is logarithmic


@dataclass(frozen=True)
class Size:
    """Measures of a chart in its own units; the letters keep their size relative to it.

    Attributes:
        width, height: Of the whole.
        left, right, top, bottom: Margins of the plot.
    """

    width: int = 420
    height: int = 240
    left: int = 52
    right: int = 12
    top: int = 20
    bottom: int = 34


LARGE = Size()
SMALL = Size(width=230, height=164, left=40, right=8, top=30, bottom=30)  # the top has room for a reference's label


@dataclass(frozen=True)
class Line:
    """Values over kimg.

    Attributes:
        name: Its name in the legend.
        points: (x, y).
        color: Class of the style sheet.
        intervals: Lowest and highest plausible value by x, drawn as a band.
    """

    name: str
    points: Points
    color: str = "c0"
    intervals: Mapping[float, tuple[float, float]] | None = None


@dataclass(frozen=True)
class Dot:
    """A marked point, with what it says when it is pointed at."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Drawn:
    """A line in the chart's units."""

    name: str
    color: str
    path: str
    dots: list[Dot]
    area: str


@dataclass(frozen=True)
class Mark:
    """A tick or a horizontal line: where it is and what stands beside it."""

    at: float
    label: str


@dataclass(frozen=True)
class Bar:
    """A bar, with what it says when it is pointed at."""

    x: float
    y: float
    width: float
    height: float
    color: str
    title: str


@dataclass(frozen=True)
class Chart:
    """Everything to draw.

    Attributes:
        size: Measures.
        x_name, y_name: Names of the axes.
        x_ticks, y_ticks: Ticks, in units of the chart.
        lines: Lines.
        references: Horizontal lines of known values.
        bars: Bars.
        legend: Name and color of what is drawn, where there is more than one.
    """

    size: Size
    x_name: str
    y_name: str
    x_ticks: list[Mark]
    y_ticks: list[Mark]
    lines: list[Drawn]
    references: list[Mark]
    bars: list[Bar]
    legend: list[tuple[str, str]]


def line_chart(
    lines: Sequence[Line],
    y_name: str,
    references: Mapping[str, float] | None = None,
    size: Size = LARGE,
    x_name: str = "kimg",
    always_legend: bool = False,
) -> Chart | None:
    """Lines over kimg, on a logarithmic scale where values span more than a factor of 20; None: There are no values.

    Args:
        lines: Lines; empty ones are left out.
        y_name: Name of the vertical axis.
        references: Known values, by name.
        size: Measures.
        x_name: Name of the horizontal axis.
        always_legend: Name the lines even if there is only one.
    """
    shown = [line for line in lines if line.points]
    if not shown:
        return None
    known = dict(references or {})
    xs = [x for line in shown for x, _ in line.points]
    ys = [y for line in shown for _, y in line.points] + list(known.values())
    ys += [end for line in shown for interval in (line.intervals or {}).values() for end in interval]
    logarithmic = min(ys) > 0 and max(ys) / min(ys) > LOGARITHMIC
    x_low, x_high = _widened(min(xs), max(xs))
    y_low, y_high = (math.log10(min(ys)), math.log10(max(ys))) if logarithmic else (min(ys), max(ys))
    y_low, y_high = _widened(y_low, y_high, 0.05)

    def x_of(x: float) -> float:
        return size.left + (x - x_low) / (x_high - x_low) * (size.width - size.left - size.right)

    def y_of(y: float) -> float:
        part = ((math.log10(y) if logarithmic else y) - y_low) / (y_high - y_low)
        return size.height - size.bottom - part * (size.height - size.top - size.bottom)

    drawn = []
    for line in shown:
        points = _thinned(line.points)
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
        marked = points if len(points) <= MANY_DOTS else [points[-1]]
        dots = [Dot(x_of(x), y_of(y), f"{line.name}: {y:.5g} at {x:g} {x_name}") for x, y in marked]
        ends = sorted((line.intervals or {}).items())
        around = [*((x, high) for x, (_, high) in ends), *((x, low) for x, (low, _) in reversed(ends))]
        area = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in around) if len(ends) > 1 else ""
        drawn.append(Drawn(line.name, line.color, path, dots, area))
    return Chart(
        size=size,
        x_name=x_name,
        y_name=f"{y_name} (log)" if logarithmic else y_name,
        x_ticks=[Mark(x_of(tick), _tick(tick)) for tick in _ticks(x_low, x_high, False, 4 if size is SMALL else 6)],
        y_ticks=[
            Mark(y_of(tick), _tick(tick)) for tick in _ticks(y_low, y_high, logarithmic, 4 if size is SMALL else 6)
        ],
        lines=drawn,
        references=_spaced([Mark(y_of(y), name) for name, y in known.items()]),
        bars=[],
        legend=[(line.name, line.color) for line in shown] if len(shown) > 1 or always_legend else [],
    )


def band_lines(bands: Sequence[Band]) -> list[Line]:
    """A line for each band of noise levels; the color of a band depends on the band alone."""
    return [Line(_name(band), band.points, band_color(band)) for band in bands]


def band_color(band: Band) -> str:
    """A step on the way from low to high noise levels, by the middle of the band on a logarithmic scale."""
    middle = math.log10(math.sqrt(max(band.low, 0.03) * min(max(band.high, 0.03), 20.0)))
    step = round((middle + 1.26) / 0.575)  # Refine's own bands, 0, 0.1, 0.4, 1.5, 6 and up, get 0 to 4
    return f"b{min(max(step, 0), NUM_BAND_COLORS - 1)}"


def bar_chart(groups: Mapping[str, Sequence[float]], labels: Sequence[str], x_name: str, y_name: str) -> Chart | None:
    """Bars from 0, a color for each group, beside each other for every label; None: There are no values."""
    size = LARGE
    values = {name: list(bars) for name, bars in groups.items() if bars}
    if not values or not labels:
        return None
    top = max(max(bars) for bars in values.values()) or 1.0
    slot = (size.width - size.left - size.right) / len(labels)
    width = slot * 0.8 / len(values)
    unit = (size.height - size.top - size.bottom) / top
    floor = size.height - size.bottom
    bars = []
    for index, (name, heights) in enumerate(values.items()):
        for place, value in enumerate(heights[: len(labels)]):
            x = size.left + slot * (place + 0.1) + width * index
            title = f"{name}, {labels[place]}: {value:.4g}"
            bars.append(Bar(x, floor - value * unit, width, value * unit, f"c{index % NUM_COLORS}", title))
    every = -(-len(labels) // 20)
    return Chart(
        size=size,
        x_name=x_name,
        y_name=y_name,
        x_ticks=[
            Mark(size.left + slot * (place + 0.5), label) for place, label in enumerate(labels) if place % every == 0
        ],
        y_ticks=[Mark(floor - tick * unit, _tick(tick)) for tick in _ticks(0, top, False, 5)],
        lines=[],
        references=[],
        bars=bars,
        legend=[(name, f"c{index % NUM_COLORS}") for index, name in enumerate(values)] if len(values) > 1 else [],
    )


def _spaced(marks: Sequence[Mark]) -> list[Mark]:
    """Horizontal lines from the top down; those that lie close together share one label."""
    found: list[Mark] = []
    for mark in sorted(marks, key=lambda mark: mark.at):
        labeled = next((i for i in reversed(range(len(found))) if found[i].label), None)
        if labeled is not None and mark.at - found[labeled].at < LABEL_HEIGHT:
            found[labeled] = Mark(found[labeled].at, f"{found[labeled].label}, {mark.label}")
            found.append(Mark(mark.at, ""))
        else:
            found.append(mark)
    return found


def _name(band: Band) -> str:
    return f"sigma {band.low:g} to {band.high:g}" if math.isfinite(band.high) else f"sigma {band.low:g} and above"


def _thinned(points: Points) -> Points:
    step = -(-len(points) // MAX_POINTS)
    return points if step == 1 else [*points[:-1:step], points[-1]]


def _widened(low: float, high: float, share: float = 0.0) -> tuple[float, float]:
    """A range that is not empty, larger by a share on both sides."""
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-12):
        margin = abs(low) * 0.1 or 1.0
    else:
        margin = (high - low) * share
    return low - margin, high + margin


def _ticks(low: float, high: float, logarithmic: bool, most: int) -> list[float]:
    """Up to so many round numbers in a range; of a logarithmic one, `low` and `high` are exponents."""
    if logarithmic:
        exponents = range(math.floor(low), math.ceil(high) + 1)
        for mantissas in ((1, 2, 5), (1, 3), (1,)):
            found = [m * 10.0**e for e in exponents for m in mantissas]
            found = [tick for tick in found if tick > 0 and low <= math.log10(tick) <= high]
            if len(found) <= most:
                return found
        return found[:: -(-len(found) // most)]
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= most)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _tick(value: float) -> str:
    return "0" if abs(value) < 1e-12 else short(value)
