"""Parts of the page, under the names that the template uses."""

from __future__ import annotations

from dataclasses import dataclass

from refine.report.charts import Chart
from refine.report.measured import Metric
from refine.report.pictures import Embedded
from refine.report.read import Run
from refine.report.verdict import Verdict


@dataclass(frozen=True)
class Shown:
    """A picture with its caption."""

    caption: str
    picture: Embedded


@dataclass(frozen=True)
class StripRow:
    """The first images of one picture."""

    label: str
    value: str
    picture: Embedded


@dataclass(frozen=True)
class Card:
    """A chart with a heading and a sentence."""

    title: str
    text: str
    chart: Chart


@dataclass(frozen=True)
class MetricRow:
    """A metric in the table."""

    metric: Metric
    start: str
    best: str
    end: str
    change: str
    arrow: str
    yardsticks: list[str]


@dataclass(frozen=True)
class Link:
    """A file beside the page."""

    text: str
    href: str


@dataclass(frozen=True)
class Section:
    """All that the page shows of one run; the template's names."""

    run: Run
    letter: str
    title: str
    verdict: Verdict
    verdict_title: str
    warnings: list[str]
    pictures: list[Shown]
    pictures_are_wide: bool
    strip: list[StripRow]
    metrics: list[MetricRow]
    yardstick_names: list[str]
    yardstick_notes: list[str]
    metric_cards: list[Card]
    course: list[Card]
    other: list[Card]
    classes: Card | None
    preflight: list[tuple[str, ...]]
    preflight_verdict: str
    times: list[tuple[str, str]]
    command: str
    options: list[tuple[str, str]]
    facts: list[tuple[str, str]]
    links: list[Link]


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side: a column for each."""

    letters: list[str]
    names: list[str]
    rows: list[tuple[str, list[str]]]
    options: list[tuple[str, list[str]]]
    strip: list[StripRow]
    cards: list[Card]
