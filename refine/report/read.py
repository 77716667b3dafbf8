"""What a run directory holds, as plain values, however incomplete the run is."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refine.errors import UserError

Row = dict[str, Any]
Points = list[tuple[float, float]]  # (kimg, value), finite, in the order of the file

_SNAPSHOT = re.compile(r"network-snapshot-(\d{6,}(?:_\d{3})?)\.pkl")
_FAKES = re.compile(r"fakes(\d{6,}(?:_\d{3})?)\.png")
_BAND = re.compile(r"(?P<base>.+)/sigma_(?P<low>[^_]+)_(?P<high>[^_]+)")
LOWER_IS_BETTER = ("fid", "fdd", "kid", "ppl")


@dataclass(frozen=True)
class Run:
    """A run directory.

    Attributes:
        path: the folder.
        options: `training_options.json`.
        stats: the rows of `stats.jsonl`.
        metrics: the rows of every `metric-<name>.jsonl`, by name.
        snapshots: kimg of the snapshots in the folder, ascending.
        before: the picture of the generator as it came, None if there is none.
        after: the newest picture, with its kimg.
        num_damaged: lines that could not be read.
    """

    path: Path
    options: Row
    stats: list[Row]
    metrics: dict[str, list[Row]]
    snapshots: list[float]
    before: Path | None
    after: tuple[float, Path] | None
    num_damaged: int

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def kimg(self) -> float:
        """How far the run came, as its statistics tell."""
        return max((kimg for kimg, _ in self.series("Progress/kimg")), default=0.0)

    @property
    def kimg_wanted(self) -> float:
        """How far it was to come; 0 if the options do not tell."""
        return number(self.options.get("kimg")) or 0.0

    def statistics(self) -> list[str]:
        """The names of everything in `stats.jsonl` that is a number, in the order of appearance."""
        return list(dict.fromkeys(key for row in self.stats for key, value in row.items() if number(value) is not None))

    def series(self, key: str) -> Points:
        """The values of a statistic over kimg."""
        pairs = ((number(row.get("Progress/kimg")), number(row.get(key))) for row in self.stats)
        return [(x, y) for x, y in pairs if x is not None and y is not None]

    def bands(self, base: str) -> dict[str, Points]:
        """The values of a statistic by band of noise levels, from low to high."""
        found = [(m, key) for key in self.statistics() if (m := _BAND.fullmatch(key)) and m["base"] == base]
        found.sort(key=lambda pair: _as_float(pair[0]["low"]))
        return {f"sigma {m['low']} to {m['high']}": self.series(key) for m, key in found}

    def results(self) -> dict[str, Points]:
        """The values of every metric over kimg, by the names in `results`."""
        found: dict[str, Points] = {}
        for rows in self.metrics.values():
            for row in rows:
                kimg = snapshot_kimg(row)
                for name, value in _mapping(row.get("results")).items():
                    if kimg is not None and (y := number(value)) is not None:
                        found.setdefault(str(name), []).append((kimg, y))
        distances_first = sorted(found, key=lambda name: not name.startswith(LOWER_IS_BETTER))
        return {name: sorted(found[name]) for name in distances_first}

    def class_shares(self) -> list[tuple[float, list[float]]]:
        """Which share of the images a classifier took for each class, over kimg, where a metric's row tells."""
        found = []
        for rows in self.metrics.values():
            for row in rows:
                kimg = snapshot_kimg(row)
                for shares in _find(row, "class_shares"):
                    values = [number(share) for share in shares] if isinstance(shares, list) else []
                    if kimg is not None and values and None not in values:
                        found.append((kimg, [value or 0.0 for value in values]))
        return sorted(found)

    def seconds_measuring(self) -> float:
        """Seconds that the metrics took, as their rows tell."""
        times = [number(row.get("total_time")) for rows in self.metrics.values() for row in rows]
        return sum(time for time in times if time is not None)


def read_run(path: Path) -> Run:
    """Reads a run directory, whatever state it is in; lines that cannot be read are counted.

    Raises:
        UserError: it is no folder, or holds neither options nor statistics.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder: give the folder of a run, in training-runs.")
    options_path, stats_path = path / "training_options.json", path / "stats.jsonl"
    if not options_path.is_file() and not stats_path.is_file():
        raise UserError(f"{path} holds neither training_options.json nor stats.jsonl: give the folder of a run.")
    num_damaged = 0
    options: Row = {}
    try:
        options = _mapping(json.loads(options_path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        num_damaged += 1
    stats, bad = _rows(stats_path)
    num_damaged += bad
    metrics = {}
    for file in sorted(path.glob("metric-*.jsonl")):
        rows, bad = _rows(file)
        metrics[file.stem.removeprefix("metric-")] = rows
        num_damaged += bad
    names = sorted(file.name for file in path.iterdir())
    fakes = sorted((_kimg(m[1]), path / name) for name in names if (m := _FAKES.fullmatch(name)))
    before = path / "fakes_init.png"
    return Run(
        path=path,
        options=options,
        stats=stats,
        metrics=metrics,
        snapshots=sorted(_kimg(m[1]) for name in names if (m := _SNAPSHOT.fullmatch(name))),
        before=before if before.is_file() else None,
        after=fakes[-1] if fakes else None,
        num_damaged=num_damaged,
    )


def warnings(run: Run) -> list[str]:
    """What a reader should know before believing the numbers, a sentence each."""
    found = []
    if run.kimg < run.kimg_wanted * (1 - 1e-9):
        found.append(f"Not finished: {run.kimg:g} of {run.kimg_wanted:g} kimg are done.")
    for name, points in run.results().items():
        if not name.startswith(LOWER_IS_BETTER):
            continue
        best, last = min(points, key=lambda point: point[1]), points[-1]
        if last[1] > best[1] * 1.01:
            found.append(
                f"{name} rose from {best[1]:.4g} at {best[0]:g} kimg to {last[1]:.4g} at {last[0]:g} kimg: "
                f"take network-snapshot-{_moment(best[0])}.pkl."
            )
    nonfinite = [value for _, value in run.series("Progress/num_nonfinite")]
    if nonfinite and max(nonfinite) > 0:
        found.append(f"{max(nonfinite):g} updates were left out because a gradient was not finite.")
    for name, rows in run.metrics.items():
        measured = {snapshot_kimg(row) for row in rows}
        missing = [kimg for kimg in run.snapshots if kimg not in measured]
        if missing:
            kimgs = ", ".join(f"{kimg:g}" for kimg in missing[:8]) + (", ..." if len(missing) > 8 else "")
            found.append(f"{name} was not measured for the snapshot at {kimgs} kimg.")
    if not run.metrics:
        found.append("No metric was measured: pictures alone do not tell whether a generator got better.")
    if run.num_damaged:
        found.append(f"{run.num_damaged} lines or files could not be read and are left out.")
    return found


# Options that presets give a value, so that having none has to be said.
_MAY_BE_NONE = ("batch_gpu", "clip_grad", "ema_rampup", "stop_if_worse")


def command(run: Run) -> str:
    """The command that repeats the run: every option that it had, the default ones too."""
    words = ["python", "refine.py"]
    for name, value in run.options.items():
        if value is None and name in _MAY_BE_NONE:
            value = "none"
        if value is None:
            continue
        if isinstance(value, bool):
            value = int(value)
        elif isinstance(value, list):
            value = ",".join(str(item) for item in value)
        words.append(f"--{name.replace('_', '-')}={value}")
    return " ".join(_quoted(word) for word in words)


def snapshot_kimg(row: Mapping[str, Any]) -> float | None:
    """Which snapshot a metric's row is about."""
    match = _SNAPSHOT.search(str(row.get("snapshot_pkl")))
    return _kimg(match[1]) if match else None


def _kimg(moment: str) -> float:
    """`000003` -> 3, `000003_520` -> 3.52: the names of `run_dir.moment`."""
    kimg, _, images = moment.partition("_")
    return int(kimg) + int(images or 0) / 1000


def _moment(kimg: float) -> str:
    """The inverse."""
    whole, images = divmod(round(kimg * 1000), 1000)
    return f"{whole:06d}" + (f"_{images:03d}" if images else "")


def number(value: Any) -> float | None:
    """A finite number, else None."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def _rows(path: Path) -> tuple[list[Row], int]:
    """The objects of a file of JSON lines, and how many lines were none."""
    rows, num_damaged = [], 0
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif line.strip():
            num_damaged += 1
    return rows, num_damaged


def _find(value: Any, key: str) -> Iterator[Any]:
    """Everything under that key, at any depth."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name == key:
                yield item
            else:
                yield from _find(item, key)


def _mapping(value: Any) -> Row:
    return value if isinstance(value, dict) else {}


def _as_float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.inf


def _quoted(word: str) -> str:
    """For a POSIX shell; what needs no quotes has none."""
    return word if re.fullmatch(r"[\w@%+=:,./-]+", word, re.ASCII) else "'" + word.replace("'", "'\"'\"'") + "'"
