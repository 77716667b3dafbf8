"""Charts place values on their scales, and colors have a meaning."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refine.report.charts import LARGE, SMALL, Line, band_color, band_lines, bar_chart, line_chart
from refine.report.read import Band


def places(chart, index=0):
    return [tuple(map(float, pair.split(","))) for pair in chart.lines[index].path.split()]


@pytest.mark.parametrize("values", [[2.0, 3.0, 4.0], [1.0, 10.0, 100.0]])
def test_equal_steps_are_equally_far_apart(values):
    """On a linear scale by difference, on a logarithmic one by factor."""
    chart = line_chart([Line("a", list(zip([0.0, 1.0, 2.0], values, strict=True)))], "value")
    assert chart.y_name == ("value" if values[0] == 2 else "value (log)")
    (x0, y0), (x1, y1), (x2, y2) = places(chart)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y0 > y2


@given(
    st.lists(st.tuples(st.floats(-10, 1e4), st.floats(-1e25, 1e25)), min_size=1, max_size=20),
    st.dictionaries(st.sampled_from(["teacher", "real images"]), st.floats(-1e3, 1e25), max_size=2),
    st.sampled_from([SMALL, LARGE]),
)
def test_everything_lies_within_the_chart(points, references, size):
    chart = line_chart([Line("a", sorted(points))], "value", references, size)
    xs, ys = zip(*places(chart), strict=True)
    assert all(size.left - 0.1 <= x <= size.width - size.right + 0.1 for x in xs)
    inside = [*ys, *(mark.at for mark in chart.references), *(tick.at for tick in chart.y_ticks)]
    assert all(size.top - 0.1 <= y <= size.height - size.bottom + 0.1 for y in inside)
    assert len(chart.references) == len(references)
    assert 1 <= len(chart.y_ticks) <= 7 and 1 <= len(chart.x_ticks) <= 7


def test_ticks_stand_at_their_values():
    chart = line_chart([Line("a", [(0.0, 0.0), (10.0, 100.0)])], "value")
    (x0, y0), (x1, y1) = places(chart)
    for ticks, low, high, (start, end) in ((chart.x_ticks, x0, x1, (0, 10)), (chart.y_ticks, y0, y1, (0, 100))):
        for tick in ticks:
            value = (tick.at - low) / (high - low) * (end - start) + start
            assert float(tick.label) == pytest.approx(value, abs=0.1)


def test_nothing_to_draw():
    assert line_chart([Line("a", [])], "value") is None
    assert bar_chart({"a": []}, ["0"], "class", "share") is None


def test_intervals_are_areas_around_the_line():
    chart = line_chart([Line("a", [(0.0, 3.0), (1.0, 2.0)], "c0", {0.0: (2.5, 3.5), 1.0: (1.5, 2.5)})], "value")
    corners = [tuple(map(float, pair.split(","))) for pair in chart.lines[0].area.split()]
    (x0, y0), (x1, y1) = places(chart)
    upper, lower = corners[:2], corners[2:][::-1]
    assert [x for x, _ in upper] == [x for x, _ in lower] == [x0, x1]
    for (_, high), (_, low), middle in zip(upper, lower, (y0, y1), strict=True):
        assert (high + low) / 2 == pytest.approx(middle, abs=0.2) and high < low


def test_near_references_share_a_label():
    points = [(0.0, 334.0), (1.0, 30.0)]
    chart = line_chart([Line("a", points)], "FID", {"teacher": 14.1, "real images": 14.5})
    assert sorted(mark.label for mark in chart.references) == ["", "real images, teacher"]
    chart = line_chart([Line("a", points)], "FID", {"teacher": 14.1, "real images": 200.0})
    assert [mark.label for mark in chart.references] == ["real images", "teacher"]


def test_long_lines_are_thinned_and_keep_their_end():
    points = [(float(i), float(i)) for i in range(5000)]
    chart = line_chart([Line("a", points)], "value")
    assert len(places(chart)) <= 601
    assert places(chart)[-1][0] == pytest.approx(LARGE.width - LARGE.right, abs=0.2)
    assert len(chart.lines[0].dots) == 1


def test_a_band_has_its_color_whatever_stands_beside_it():
    bounds = [(0, 0.1), (0.1, 0.4), (0.4, 1.5), (1.5, 6), (6, math.inf)]  # those that runs record
    bands = [Band(low, high, [(0.0, 1.0)]) for low, high in bounds]
    colors = [band_color(band) for band in bands]
    assert colors == ["b0", "b1", "b2", "b3", "b4"]
    assert [line.color for line in band_lines(bands[3:])] == ["b3", "b4"]
    assert [line.name for line in band_lines(bands)][::4] == ["sigma 0 to 0.1", "sigma 6 and above"]


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_higher_bands_have_no_lower_color(low, width):
    color = int(band_color(Band(low, low + width, []))[1])
    higher = int(band_color(Band(2 * low + 0.1, 2 * (low + width) + 0.1, []))[1])
    assert 0 <= color <= higher <= 6


def test_bars():
    chart = bar_chart({"0 kimg": [50, 25], "8 kimg": [30, 40]}, ["0", "1"], "class", "%")
    heights = {bar.title: bar.height for bar in chart.bars}
    assert heights["0 kimg, 0: 50"] == pytest.approx(2 * heights["0 kimg, 1: 25"])
    floor = LARGE.height - LARGE.bottom
    assert all(bar.y + bar.height == pytest.approx(floor) for bar in chart.bars)
    assert chart.legend == [("0 kimg", "c0"), ("8 kimg", "c1")]
    many = bar_chart({"a": [1.0] * 1000}, [str(i) for i in range(1000)], "class", "%")
    assert len(many.x_ticks) <= 20 and all(re.fullmatch(r"\d+", tick.label) for tick in many.x_ticks)
