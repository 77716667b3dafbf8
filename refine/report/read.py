"""A run's folder as plain values, however incomplete the run is."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from refine.errors import UserError
from refine.files.jsonl import read_rows

Row = dict[str, Any]
Points = list[tuple[float, float]]  # (kimg, value), finite, ascending in kimg

LATEST = 32_503_680_000.0  # seconds since the epoch: the year 3000
LARGEST = 1e30  # larger values are those of a run that has diverged
MAX_STATS = 4000  # rows of `stats.jsonl` that are parsed; of more, evenly many
OPTIONS, STATS, LOG, SESSIONS = "training_options.json", "stats.jsonl", "log.txt", "sessions.jsonl"
PREFLIGHT, YARDSTICKS, REALS, FIRST_FAKES = "preflight.json", "yardsticks.json", "reals.png", "fakes_init.png"

_SNAPSHOT = re.compile(r"network-snapshot-(\d{6,}(?:_\d{3})?)\.(?:pkl|safetensors)")
_FAKES = re.compile(r"fakes(\d{6,}(?:_\d{3})?)\.png")
_BAND = re.compile(r"(?P<base>.+)/sigma_(?P<low>[^_]+)_(?P<high>[^_]+)")
_WARNING, _ERROR = "Warning: ", "Error: "


@dataclass(frozen=True)
class Picture:
    """A picture of fakes.

    Attributes:
        kimg: Moment of the run.
        path: PNG file.
    """

    kimg: float
    path: Path


@dataclass(frozen=True)
class Band:
    """A band of noise levels, `low <= sigma < high`, with a statistic's values in it.

    Attributes:
        low, high: Bounds of sigma; `high` may be infinite.
        points: Values over kimg.
    """

    low: float
    high: float
    points: Points


@dataclass(frozen=True)
class Run:
    """A run's folder.

    Attributes:
        path: The folder.
        options: `training_options.json`.
        stats: Rows of `stats.jsonl`.
        metrics: Rows of every `metric-<name>.jsonl`, by name.
        sessions: Rows of `sessions.jsonl`: one for each start and resume.
        preflight: `preflight.json`; empty if there is none.
        yardsticks: Results of the same metrics for the teacher and for real images, as `yardsticks.json` lists them:
            rows with `name`, `results` and maybe `note`.
        log: Lines of `log.txt`.
        snapshots: Snapshots in the folder: Their kimg and file names, ascending.
        pictures: Pictures of fakes, ascending; the first one is of the generator before refinement.
        reals: Picture of real images; None: There is none.
        num_damaged: Number of lines and files that could not be read.
    """

    path: Path
    options: Row = field(default_factory=dict)
    stats: list[Row] = field(default_factory=list)
    metrics: dict[str, list[Row]] = field(default_factory=dict)
    sessions: list[Row] = field(default_factory=list)
    preflight: Row = field(default_factory=dict)
    yardsticks: list[Row] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    snapshots: dict[float, str] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)
    reals: Path | None = None
    num_damaged: int = 0

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.resolve().name

    @property
    def kimg(self) -> float:
        """Thousands of images of generator updates so far."""
        return max((kimg for kimg, _ in self.series("Progress/kimg")), default=0.0)

    @property
    def kimg_wanted(self) -> float:
        """Thousands of images that the run is to take; 0: The options do not tell."""
        return number(self.options.get("kimg")) or 0.0

    @property
    def is_finished(self) -> bool:
        """True if the run is complete."""
        return self.kimg >= self.kimg_wanted * (1 - 1e-9)

    @cached_property
    def statistics(self) -> list[str]:
        """Names of all numbers in `stats.jsonl`, in the order of their appearance."""
        return list(dict.fromkeys(key for row in self.stats for key, value in row.items() if number(value) is not None))

    def series(self, key: str) -> Points:
        """Values of a statistic over kimg."""
        pairs = ((number(row.get("Progress/kimg")), number(row.get(key))) for row in self.stats)
        return [(x, y) for x, y in pairs if x is not None and y is not None]

    def bands(self, base: str) -> list[Band]:
        """Values of a statistic by band of noise levels, from low to high."""
        found = []
        for key in self.statistics:
            match = _BAND.fullmatch(key)
            if match and match["base"] == base:
                bounds = [_as_float(match[name]) for name in ("low", "high")]
                if None not in bounds:
                    found.append(Band(bounds[0] or 0.0, bounds[1] or 0.0, self.series(key)))
        return sorted(found, key=lambda band: band.low)

    def class_shares(self) -> list[tuple[float, list[float]]]:
        """Share of the images that a classifier took for each class, over kimg, where a metric's row tells."""
        found = []
        for rows in self.metrics.values():
            for row in rows:
                kimg = snapshot_kimg(row)
                for shares in _find(row, "class_shares"):
                    values = [number(share) for share in shares] if isinstance(shares, list) else []
                    if kimg is not None and values and None not in values:
                        found.append((kimg, [value or 0.0 for value in values]))
        return sorted(found)

    def logged_warnings(self) -> list[str]:
        """Warnings that the run itself gave, each once."""
        found = [line.removeprefix(_WARNING) for line in self.log if line.startswith(_WARNING)]
        if self.log and self.log[-1].startswith(_ERROR):
            found.append(f"The run ended with an error: {self.log[-1].removeprefix(_ERROR)}")
        return list(dict.fromkeys(found))

    def times(self) -> list[float]:
        """Times of everything that was recorded, in seconds since the epoch, ascending."""
        rows = [*self.sessions, *self.stats, *(row for rows in self.metrics.values() for row in rows)]
        found = (number(row.get("timestamp")) for row in rows)
        return sorted(time for time in found if time is not None and 0 <= time < LATEST)

    def seconds(self) -> float:
        """Time that the run took, without pauses between its sessions; 0: Nothing tells."""
        times = self.times()
        found = (number(row.get("timestamp")) for row in self.sessions)
        starts = sorted(start for start in found if start is not None and start in times)
        if not starts:
            return max((value for _, value in self.series("Timing/total_sec")), default=0.0)
        total = 0.0
        for start, end in zip(starts, [*starts[1:], math.inf], strict=True):
            total += max(time for time in times if start <= time < end or time == start) - start
        return total

    def seconds_measuring(self) -> float:
        """Time that metrics took, as their rows tell."""
        times = [number(row.get("total_time")) for rows in self.metrics.values() for row in rows]
        return sum(time for time in times if time is not None)

    def seconds_stepping(self) -> float:
        """Time that steps took, without the warm-up."""
        per_kimg = self.series("Timing/sec_per_kimg")
        starts = [0.0, *(x for x, _ in per_kimg)]
        return sum(max(x - start, 0.0) * y for start, (x, y) in zip(starts, per_kimg, strict=False))


def read_run(path: Path) -> Run:
    """Reads a run's folder, whatever state it is in; lines that cannot be read are counted.

    Raises:
        UserError: It is not a folder, it cannot be read, or it holds neither options nor statistics.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder: give the folder of a run, such as training-runs/00000-...")
    if not (path / OPTIONS).is_file() and not (path / STATS).is_file():
        raise UserError(f"{path} holds neither {OPTIONS} nor {STATS}: give the folder of a run.")
    damage: list[int] = []
    try:
        names = sorted(file.name for file in path.iterdir())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a folder that you may read.") from error
    fakes = sorted((_kimg(m[1]), name) for name in names if (m := _FAKES.fullmatch(name)))
    pictures = [Picture(0.0, path / FIRST_FAKES)] if (path / FIRST_FAKES).is_file() else []
    return Run(
        path=path,
        options=_object(path / OPTIONS, damage),
        stats=_rows(path / STATS, damage, most=MAX_STATS),
        metrics={
            name.removeprefix("metric-").removesuffix(".jsonl"): _rows(path / name, damage)
            for name in names
            if name.startswith("metric-") and name.endswith(".jsonl")
        },
        sessions=_rows(path / SESSIONS, damage),
        preflight=_object(path / PREFLIGHT, damage) if PREFLIGHT in names else {},
        yardsticks=_objects(path / YARDSTICKS, damage) if YARDSTICKS in names else [],
        log=_text(path / LOG, damage).splitlines() if LOG in names else [],
        snapshots={_kimg(m[1]): name for name in names if (m := _SNAPSHOT.fullmatch(name))},
        pictures=[*pictures, *(Picture(kimg, path / name) for kimg, name in fakes)],
        reals=path / REALS if (path / REALS).is_file() else None,
        num_damaged=len(damage),
    )


def snapshot_kimg(row: Mapping[str, Any]) -> float | None:
    """Moment of the snapshot that a metric's row is about; None: The row does not name one."""
    match = _SNAPSHOT.fullmatch(str(row.get("snapshot_pkl")).replace("\\", "/").rpartition("/")[2])
    return _kimg(match[1]) if match else None


def number(value: Any) -> float | None:
    """A number of a size that charts and dates can show, else None."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST
    return float(value) if is_number else None


def mapping(value: Any) -> Row:
    """A JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def _kimg(tag: str) -> float:
    """`000003` -> 3, `000003_520` -> 3.52."""
    kimg, _, images = tag.partition("_")
    return int(kimg) + int(images or 0) / 1000


def _text(path: Path, damage: list[int]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        damage.append(1)
        return ""


def _json(text: str, damage: list[int]) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        damage.append(1)
        return None


def _object(path: Path, damage: list[int]) -> Row:
    return mapping(_json(_text(path, damage), damage)) if path.is_file() else {}


def _objects(path: Path, damage: list[int]) -> list[Row]:
    value = _json(_text(path, damage), damage)
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _rows(path: Path, damage: list[int], most: int | None = None) -> list[Row]:
    """The objects of a file of JSON lines; of more than `most`, evenly many and the last one."""
    try:
        rows, num_damaged = read_rows(path, most)
    except UserError:
        rows, num_damaged = [], 1
    damage += [1] * num_damaged
    return rows


def _find(value: Any, key: str) -> Iterator[Any]:
    """Everything under that key, at any depth."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name == key:
                yield item
            else:
                yield from _find(item, key)


def _as_float(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return None if math.isnan(value) else value
