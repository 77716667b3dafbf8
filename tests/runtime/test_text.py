"""Times, sizes and counts as text."""

from __future__ import annotations

import pytest

from refine.runtime.text import counted, format_bytes, format_time


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (61, "1m 01s"), (5901, "1h 38m 21s"), (90061, "1d 01h 01m")],
)
def test_times(seconds, text):
    assert format_time(seconds) == text


@pytest.mark.parametrize(("size", "text"), [(12, "12 B"), (3210, "3.21 kB"), (3.2e9, "3.2 GB"), (4.5e12, "4.5e+03 GB")])
def test_sizes(size, text):
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("count", "nouns", "text"),
    [
        (0, ("image",), "0 images"),
        (1, ("channel",), "1 channel"),
        (2000, ("image",), "2,000 images"),
        (1, ("class", "classes"), "1 class"),
        (3, ("class", "classes"), "3 classes"),
    ],
)
def test_counts(count, nouns, text):
    assert counted(count, *nouns) == text
