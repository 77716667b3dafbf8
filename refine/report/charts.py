"""Charts as inline SVG: no script, no font, no file beside the page."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 30
NUM_COLOURS = 8  # .c0 to .c7 of the page's style sheet
MAX_POINTS = 600  # of a line: more would only make the page heavy


def line_chart(series: Mapping[str, Points], unit: str = "kimg") -> str:
    """A line for each entry, over kimg; a logarithmic scale where values span more than a factor of 20.

    Args:
        series: (x, y) by what the line is called; empty ones are left out.
        unit: of x.
    """
    lines = {name: _thinned(points) for name, points in series.items() if points}
    if not lines:
        return '<p class="none">nothing recorded</p>'
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    logarithmic = min(ys) > 0 and max(ys) / min(ys) > 20
    x_low, x_high = _widened(min(xs), max(xs))
    y_low, y_high = (math.log10(min(ys)), math.log10(max(ys))) if logarithmic else (min(ys), max(ys))
    y_low, y_high = _widened(y_low, y_high, 0.05)

    def at(x: float, y: float) -> tuple[float, float]:
        height = math.log10(y) if logarithmic else y
        return (
            LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (height - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM),
        )

    parts = []
    for tick in _ticks(y_low, y_high, logarithmic):
        _, y = at(x_low, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
    for tick in _ticks(x_low, x_high, False):
        x, _ = at(tick, ys[0])
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{_short(tick)}</text>')
    parts.append(f'<text x="{LEFT - 14}" y="{HEIGHT - 10}" text-anchor="end">{html.escape(unit)}</text>')
    for index, (name, points) in enumerate(lines.items()):
        colour = f"c{index % NUM_COLOURS}"
        places = [at(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="{colour}" points="{path}"/>')
        dots = zip(points, places, strict=True) if len(points) <= 40 else [(points[-1], places[-1])]
        for (kimg, value), (x, y) in dots:
            title = html.escape(f"{name}: {value:.5g} at {kimg:g} {unit}")
            parts.append(f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{title}</title></circle>')
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
    return svg + (legend(list(lines)) if len(lines) > 1 else "")


def bar_chart(groups: Mapping[str, Sequence[float]], labels: Sequence[str]) -> str:
    """Bars from 0, a colour for each entry of `groups`, beside each other for every label."""
    values = {name: list(bars) for name, bars in groups.items() if bars}
    if not values:
        return '<p class="none">nothing recorded</p>'
    top = max(max(bars) for bars in values.values()) or 1.0
    slot = (WIDTH - LEFT - RIGHT) / len(labels)
    width = slot * 0.8 / len(values)
    parts = []
    for tick in _ticks(0, top, False):
        y = HEIGHT - BOTTOM - tick / top * (HEIGHT - TOP - BOTTOM)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
    for index, (name, bars) in enumerate(values.items()):
        for place, value in enumerate(bars[: len(labels)]):
            height = value / top * (HEIGHT - TOP - BOTTOM)
            x = LEFT + slot * (place + 0.1) + width * index
            title = html.escape(f"{name}, {labels[place]}: {value:.4g}")
            parts.append(
                f'<rect class="c{index % NUM_COLOURS}" x="{x:.1f}" y="{HEIGHT - BOTTOM - height:.1f}" '
                f'width="{width:.1f}" height="{height:.1f}"><title>{title}</title></rect>'
            )
    for place, label in enumerate(labels):
        x = LEFT + slot * (place + 0.5)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{html.escape(label)}</text>')
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
    return svg + (legend(list(values)) if len(values) > 1 else "")


def legend(names: Sequence[str]) -> str:
    """The colours' names."""
    items = "".join(
        f'<span><i class="c{i % NUM_COLOURS}"></i>{html.escape(name)}</span>' for i, name in enumerate(names)
    )
    return f'<p class="legend">{items}</p>'


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


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """About five round numbers in a range; of a logarithmic one, `low` and `high` are exponents."""
    if logarithmic:
        mantissas = (1, 2, 5) if high - low < 2.5 else (1,)
        found = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in mantissas]
        return [tick for tick in found if low <= math.log10(tick) <= high][:9]
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 5)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    text = f"{value:.4g}"
    return text.replace("e-0", "e-").replace("e+0", "e")
