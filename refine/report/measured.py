"""Metrics of a run: what their names say, where better lies, and how values changed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from refine.report.read import Points, Run, mapping, number, snapshot_kimg

Better = Literal["lower", "higher"] | None

REAL = "real images"  # the yardstick of that name
NOTICEABLE = 0.02  # a relative change below it is not called one, unless intervals say so

# Kinds of metrics, by how their results' names begin or end: title, and where better lies.
_BEGINNINGS: dict[str, tuple[str, Better]] = {
    "fid": ("FID", "lower"),
    "fdd": ("Fréchet distance", "lower"),
    "fd_dinov2": ("DINOv2 distance", "lower"),
    "clip_fid": ("CLIP distance", "lower"),
    "sfid": ("Spatial FID", "lower"),
    "cmmd": ("CMMD", "lower"),
    "copies_dinov2": ("Near copies by DINOv2", "lower"),
    "copies": ("Near copies", "lower"),
    "kid": ("KID", "lower"),
    "ppl": ("Path length", "lower"),
    "is": ("Inception score", "higher"),
}
_ENDINGS: dict[str, tuple[str, Better]] = {
    "precision": ("Precision", "higher"),
    "recall": ("Recall", "higher"),
    "density": ("Density", "higher"),
    "coverage": ("Coverage", "higher"),
    "ratio": ("Distance to the nearest image over that to the second", None),
    "agreement": ("Class agreement", "higher"),
    "variance": ("Variance within classes", None),
    "rarest": ("Share of the rarest class", None),
}
_DISTANCES = ("fid", "fdd", "kid", "fd_dinov2", "clip_fid", "sfid", "cmmd")
_SEEDS = re.compile(r"(?P<base>.+)_seeds\d+-\d+")
_OF_SEEDS = re.compile(r"(?P<base>.+)_(min|mean|std)_of_\d+")
_SPREAD = re.compile(r"(?P<base>is\d+k?)_(?P<which>mean|std)")
_KEYS = ("detector", "reference", "data", "num_images", "note", "warning")


@dataclass(frozen=True)
class Metric:
    """One result of a metric over a run.

    Attributes:
        name: Name among the results, such as `fid50k_full`.
        title: Name of the quantity, such as "FID".
        better: Direction of improvement; None: Neither.
        points: Values over kimg.
        intervals: Lowest and highest plausible value by kimg, where the metric gives them.
        yardsticks: Values of the teacher and of real images, by that name.
        details: Features, reference and number of images.
    """

    name: str
    title: str
    better: Better
    points: Points
    intervals: Mapping[float, tuple[float, float]] = field(default_factory=dict)
    yardsticks: Mapping[str, float] = field(default_factory=dict)
    details: str = ""

    @property
    def is_distance(self) -> bool:
        """True for a distance between distributions, the first criterion of a run."""
        return self.name.startswith(_DISTANCES)

    @property
    def is_share(self) -> bool:
        """True if all values lie between 0 and 1, so that a change is a difference rather than a ratio."""
        return self.title in {title for title, _ in _ENDINGS.values()} and all(0 <= y <= 1 for _, y in self.points)

    @property
    def goal(self) -> str:
        """Direction of improvement in words; empty if nothing is known of it."""
        if self.better is not None:
            return f"{self.better} is better"
        return f"as near to that of {REAL} as possible" if REAL in self.yardsticks else ""

    @property
    def start(self) -> tuple[float, float]:
        """The first point."""
        return self.points[0]

    @property
    def end(self) -> tuple[float, float]:
        """The last point."""
        return self.points[-1]

    @property
    def best(self) -> tuple[float, float]:
        """The best point; the last one if no direction is better."""
        if self.better is None:
            return self.end
        return (min if self.better == "lower" else max)(self.points, key=lambda point: point[1])

    @property
    def change(self) -> float:
        """Relative change from start to end; the difference of a share, or where the start is 0."""
        (_, first), (_, last) = self.start, self.end
        return last - first if self.is_share or not first else (last - first) / abs(first)

    @property
    def direction(self) -> Literal["better", "worse", "same"] | None:
        """Verdict on the change; None: There is a single point, or no direction is better."""
        if len(self.points) < 2 or self.better is None:
            return None
        intervals = [self.intervals.get(kimg) for kimg, _ in (self.start, self.end)]
        if intervals[0] and intervals[1]:
            (low, high), (other_low, other_high) = intervals[0], intervals[1]
            is_noticeable = high < other_low or other_high < low
        else:
            is_noticeable = abs(self.change) >= NOTICEABLE
        if not is_noticeable:
            return "same"
        return "better" if (self.change < 0) == (self.better == "lower") else "worse"


def kind_of(name: str) -> tuple[str, Better]:
    """Title and direction of a result, by its name; an unknown one is its own title."""
    if match := _SPREAD.fullmatch(name):
        name = match["base"]
    ending = name.rpartition("_")[2]
    if ending in _ENDINGS:
        return _ENDINGS[ending]
    for beginning, (title, better) in _BEGINNINGS.items():
        if re.match(rf"{beginning}(?:\d|_|$)", name) or (beginning == "ppl" and name.startswith("ppl2_")):
            suffix = " to the teacher's images" if name.endswith("_teacher") else ""
            at = re.search(r"_at(\d+)", name)
            return f"{title}{f' at {at[1]} pixels' if at else ''}{suffix}", better
    return name, None


def measured(run: Run) -> list[Metric]:
    """The metrics of a run: distances, precision and recall, then the others."""
    points: dict[str, dict[float, float]] = {}
    intervals: dict[str, dict[float, tuple[float, float]]] = {}
    details: dict[str, str] = {}
    for rows in run.metrics.values():
        for row in rows:
            kimg = snapshot_kimg(row)
            if kimg is None:
                continue
            results = {str(name): y for name, x in mapping(row.get("results")).items() if (y := number(x)) is not None}
            for name, value in _values(results).items():
                points.setdefault(name, {})[kimg] = value
                details[name] = _details(row)
            intervals_of_row = _intervals(results) | _given_intervals(row)
            for name, interval in intervals_of_row.items():
                intervals.setdefault(name, {})[kimg] = interval
    found = [
        Metric(
            name,
            *kind_of(name),
            points=sorted(values.items()),
            intervals=intervals.get(name, {}),
            yardsticks=_yardsticks(run, name),
            details=details[name],
        )
        for name, values in points.items()
    ]
    return sorted(found, key=lambda metric: (not metric.is_distance, metric.title not in ("Precision", "Recall")))


def main_metric(metrics: list[Metric]) -> Metric | None:
    """The metric that a run is judged by: the first distance, else the first with a direction and two points."""
    candidates = [m for m in metrics if m.is_distance] or [m for m in metrics if m.better]
    return next((m for m in candidates if len(m.points) > 1), candidates[0] if candidates else None)


def _values(results: Mapping[str, float]) -> dict[str, float]:
    """The results that are values of their own, and not a part of another one."""
    skipped = {name for name in results if _SEEDS.fullmatch(name) or _OF_SEEDS.fullmatch(name)}
    skipped |= {name for name in results if (match := _SPREAD.fullmatch(name)) and match["which"] == "std"}
    return {name: value for name, value in results.items() if name not in skipped}


def _intervals(results: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Intervals that the results imply: the range over seeds, or a standard deviation to both sides."""
    found = {}
    for base in {match["base"] for name in results if (match := _SEEDS.fullmatch(name))}:
        values = [
            value for name, value in results.items() if (match := _SEEDS.fullmatch(name)) and match["base"] == base
        ]
        found[base] = (min(values), max(values))
    for name, value in results.items():
        match = _SPREAD.fullmatch(name)
        if match and match["which"] == "mean" and (std := results.get(f"{match['base']}_std")) is not None:
            found[name] = (value - std, value + std)
    return found


def _given_intervals(row: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Intervals that a row states: `intervals`, a pair by the name of the result."""
    found = {}
    for part in (row, mapping(row.get("provenance"))):
        for name, pair in mapping(part.get("intervals")).items():
            ends = [number(end) for end in pair] if isinstance(pair, list) else []
            if len(ends) == 2 and ends[0] is not None and ends[1] is not None:
                found[str(name)] = (ends[0], ends[1])
    return found


def _yardsticks(run: Run, name: str) -> dict[str, float]:
    found = {}
    for row in run.yardsticks:
        value = number(mapping(row.get("results")).get(name))
        if value is not None:
            found[str(row.get("name"))] = value
    return found


def _details(row: Mapping[str, Any]) -> str:
    """With which features and against what a row was measured, where it says so."""
    values: dict[str, Any] = {}
    for part in (row, mapping(row.get("provenance"))):
        values |= {key: shown for key in _KEYS if (shown := _named(part.get(key))) is not None}
    titles = {"num_images": "images", "note": "", "warning": ""}
    return "; ".join(f"{titles.get(key, key)} {values[key]}".strip() for key in _KEYS if key in values)


def _named(value: Any) -> str | int | float | None:
    """A plain value, or the name of what a row describes at length."""
    if isinstance(value, dict):
        count = number(value.get("num_images"))
        value = f"{value.get('name')}{f' ({count:g} images)' if count else ''}" if "name" in value else None
    return value if isinstance(value, (str, int, float)) else None
