"""The page: values of runs that the template lays out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from refine.files.addresses import without_secrets
from refine.report.charts import NUM_COLORS, SMALL, Line, band_lines, bar_chart, line_chart
from refine.report.command import command
from refine.report.measured import REAL, Metric, measured
from refine.report.pictures import STRIP_ROWS, embedded, evenly, first_row
from refine.report.read import Run, number
from refine.report.section import Card, Comparison, Link, MetricRow, Section, Shown, StripRow
from refine.report.text import change_text, date, duration, plural, short
from refine.report.verdict import TITLES, judge, machine, warnings

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Statistic:
    """A statistic with a place of its own.

    Attributes:
        key: Name in `stats.jsonl`.
        title: Heading of its chart.
        unit: Name of its axis.
        meaning: Explanation of the value.
    """

    key: str
    title: str
    unit: str
    meaning: str


COURSE = (
    Statistic(
        "Score/gap",
        "Score gap",
        "RMS difference",
        "Difference between the images that the teacher and the fake score denoise: the signal that moves the "
        "generator. It falls as the two distributions approach each other.",
    ),
    Statistic(
        "Divergence/nats",
        "Divergence",
        "nats",
        "Estimate of KL(generator, teacher) over the run's noise levels. It is true as far as the fake score follows: "
        "read it beside the loss of the fake score, and trust its course before its value.",
    ),
    Statistic(
        "Loss/fake",
        "Loss of the fake score",
        "denoising loss",
        "How well the fake score denoises the generator's images; before 0 kimg, those of the unrefined generator. It "
        "jumps when the generator starts to move and should then fall and level off.",
    ),
    Statistic(
        "W/std",
        "Spread of w",
        "standard deviation",
        "Standard deviation of the latents w: falls where variety is lost. Constant if the mapping network is frozen.",
    ),
    Statistic(
        "Drift/image",
        "Drift of the images",
        "RMS change",
        "Change of the images since the start at fixed latents: rises, and levels off as the generator converges.",
    ),
)
SHOWN_ELSEWHERE = (
    "Progress/",
    "Timing/",
    "timestamp",
    "Score/gap/",
    "Loss/fake/",
    "Divergence/",
    *(s.key for s in COURSE),
)


@cache
def environment() -> Environment:
    """Jinja's, which escapes all that comes from files."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def page(runs: Sequence[Run], folder: Path) -> str:
    """The whole document.

    Args:
        runs: Runs, at least one.
        folder: Folder that the page is written to, for links.
    """
    sections = [section(run, folder, letter(index) if len(runs) > 1 else "") for index, run in enumerate(runs)]
    title = sections[0].title if len(runs) == 1 else f"{len(runs)} runs side by side"
    return (
        environment()
        .get_template("page.html")
        .render(title=title, sections=sections, comparison=comparison(sections) if len(runs) > 1 else None)
    )


def _title(gan: Any, teacher: Any) -> str:
    if gan is None:
        return f"{_file_name(teacher)} distilled into one step"
    return f"{_file_name(gan)} refined with {_file_name(teacher)}"


def section(run: Run, folder: Path, letter: str = "") -> Section:
    """Section of the page about one run."""
    metrics = measured(run)
    verdict = judge(run, metrics)
    names = list(dict.fromkeys(name for metric in metrics for name in metric.yardsticks))
    shown = pictures(run)
    return Section(
        run=run,
        letter=letter,
        title=_title(run.options.get("gan"), run.options.get("teacher")),
        verdict=verdict,
        verdict_title=TITLES[verdict.state],
        warnings=[without_secrets(sentence) for sentence in warnings(run, metrics)],
        pictures=shown,
        pictures_are_wide=any(item.picture.width > 2 * item.picture.height for item in shown),
        strip=strip(run, verdict.metric),
        metrics=[metric_row(metric, names) for metric in metrics],
        yardstick_names=names,
        yardstick_notes=[
            f"{row['name']}: {row['note']}" for row in run.yardsticks if row.get("note") and row.get("name")
        ],
        metric_cards=[card for metric in metrics if len(metric.points) > 1 and (card := metric_card(metric))],
        course=course(run),
        other=other(run),
        classes=classes(run),
        preflight=preflight(run),
        preflight_verdict=str(run.preflight.get("verdict") or "").removeprefix("Warning: "),
        times=times(run),
        command=command(run.options),
        options=[(name, _option_text(value)) for name, value in run.options.items()],
        facts=facts(run),
        links=links(run, folder),
    )


def pictures(run: Run) -> list[Shown]:
    """Before, after, and real images, whole."""
    chosen = [("before", run.pictures[0].path)] if run.pictures and run.pictures[0].kimg == 0 else []
    if run.pictures and run.pictures[-1].kimg > 0:
        chosen.append((f"after {run.pictures[-1].kimg:g} kimg", run.pictures[-1].path))
    if run.reals is not None:
        chosen.append(("real images", run.reals))
    return [Shown(caption, picture) for caption, path in chosen if (picture := embedded(path))]


def strip(run: Run, metric: Metric | None) -> list[StripRow]:
    """The first images of the pictures of the run, evenly many of them, and of the real ones."""
    values = dict(metric.points) if metric else {}
    rows = []
    for index in evenly(len(run.pictures), STRIP_ROWS):
        taken = run.pictures[index]
        value = f"{metric.title} {short(values[taken.kimg])}" if metric and taken.kimg in values else ""
        if row := first_row(taken.path):
            rows.append(StripRow(f"{taken.kimg:g} kimg", value, row))
    if len(rows) < 2:
        return []
    real = first_row(run.reals) if run.reals is not None else None
    known = metric.yardsticks.get(REAL) if metric else None
    value = f"{metric.title} {short(known)}" if metric and known is not None else ""
    return [*rows, *([StripRow("real", value, real)] if real else [])]


def metric_row(metric: Metric, yardstick_names: Sequence[str]) -> MetricRow:
    """A row of the table of metrics."""
    arrows = {"lower": "↓", "higher": "↑", None: ""}
    best = "" if metric.better is None else f"{short(metric.best[1])} ({metric.best[0]:g})"
    known = [short(metric.yardsticks[name]) if name in metric.yardsticks else "" for name in yardstick_names]
    change = change_text(metric) if len(metric.points) > 1 else ""
    return MetricRow(
        metric, _with_interval(metric, 0), best, _with_interval(metric, -1), change, arrows[metric.better], known
    )


def metric_card(metric: Metric) -> Card | None:
    """A small chart of one metric."""
    line = Line(metric.title, metric.points, "c0", metric.intervals)
    chart = line_chart([line], metric.title, metric.yardsticks, SMALL)
    return Card(metric.title, metric.goal, chart) if chart else None


def course(run: Run) -> list[Card]:
    """Statistics with a place of their own, by band of noise levels where there are bands."""
    cards = []
    for statistic in COURSE:
        bands = band_lines(run.bands(statistic.key))
        lines = [Line("all" if bands else statistic.title, run.series(statistic.key), "all" if bands else "c0"), *bands]
        if chart := line_chart(lines, statistic.unit):
            cards.append(Card(statistic.title, statistic.meaning, chart))
    return cards


def other(run: Run) -> list[Card]:
    """Everything else that was recorded."""
    keys = [key for key in run.statistics if not key.startswith(SHOWN_ELSEWHERE)]
    keys += [key for key in run.statistics if key == "Timing/sec_per_kimg"]
    charts = ((key, line_chart([Line(key, run.series(key))], key.rpartition("/")[2], size=SMALL)) for key in keys)
    return [Card(key, "", chart) for key, chart in charts if chart]


def classes(run: Run) -> Card | None:
    """Classes of the images at the start and at the end, as a classifier recognizes them."""
    found = run.class_shares()
    if not found:
        return None
    groups = {f"{kimg:g} kimg": [100 * share for share in shares] for kimg, shares in (found[0], found[-1])}
    labels = [str(index) for index in range(len(found[0][1]))]
    chart = bar_chart(groups, labels, "class", "% of the images")
    return (
        Card("Recognized classes", "Share of the images that a classifier takes for each class.", chart)
        if chart
        else None
    )


def preflight(run: Run) -> list[tuple[str, ...]]:
    """Denoising losses of the trial of the pair by noise level, the first row being the heading."""
    keys = ("sigmas", "generator_loss", "teacher_loss")
    columns = [run.preflight.get(key) for key in keys]
    if not all(isinstance(column, list) and column for column in columns):
        return []
    rows = []
    for sigma, generator, teacher in zip(*columns, strict=False):
        values = [number(value) for value in (sigma, generator, teacher)]
        if None not in values and values[2]:
            ratio = (values[1] or 0.0) / values[2]
            rows.append((short(values[0] or 0.0), short(values[1] or 0.0), short(values[2]), short(ratio)))
    return [("sigma", "generator's images", "teacher's samples", "ratio"), *rows] if rows else []


def times(run: Run) -> list[tuple[str, str]]:
    """Times by their use."""
    total = run.seconds()
    parts = {"steps": run.seconds_stepping(), "metrics": run.seconds_measuring()}
    parts["warm-up, saving and the rest"] = max(total - sum(parts.values()), 0.0)
    whole = sum(parts.values())
    return (
        [(name, f"{duration(value)} ({value / whole:.0%})") for name, value in parts.items() if value] if whole else []
    )


def facts(run: Run) -> list[tuple[str, str]]:
    """Version, machine and date, as far as the run recorded them."""
    recorded = run.sessions[-1] if run.sessions else {}
    refine = " ".join(str(part) for part in (recorded.get("refine"), _in_brackets(recorded.get("commit"))) if part)
    moments = run.times()
    found = [
        ("Refine", refine),
        ("PyTorch", str(recorded.get("torch") or "")),
        ("Python", f"{recorded.get('python') or ''} {_in_brackets(recorded.get('platform'))}".strip()),
        ("Machine", machine(run)),
        ("Started", date(moments[0]) if moments else ""),
        ("Last entry", date(moments[-1]) if moments else ""),
        ("Time", duration(run.seconds()) if run.seconds() else ""),
        ("Sessions", plural(len(run.sessions), "session") if len(run.sessions) > 1 else ""),
        *((f"SHA-256, {key}", str(value)) for key, value in _hashes(recorded).items()),
    ]
    return [(name, value) for name, value in found if value]


def links(run: Run, folder: Path) -> list[Link]:
    """The run's files, as seen from the page's folder."""
    best = [f"network-best{suffix}" for suffix in (".pkl", ".safetensors")]
    wanted = [*best, *list(run.snapshots.values())[-1:], "log.txt", "stats.jsonl", "training_options.json"]
    found = []
    for name in wanted:
        path = run.path / name
        if path.exists():
            try:
                relative = os.path.relpath(path.absolute(), folder.absolute())
            except ValueError:  # on another drive of Windows
                continue
            found.append(Link(name, quote(Path(relative).as_posix())))
    return found


def comparison(sections: Sequence[Section]) -> Comparison:
    """Several runs: their ends in one table, their options where they differ, each metric in one chart."""
    runs = [item.run for item in sections]
    metrics = [{metric.name: metric for metric in measured(run)} for run in runs]
    names = list(dict.fromkeys(name for found in metrics for name in found))
    rows = [
        ("verdict", [item.verdict_title for item in sections]),
        ("kimg", [f"{run.kimg:g}" for run in runs]),
        ("time", [duration(run.seconds()) if run.seconds() else "" for run in runs]),
    ]
    for name in names:
        title = next(found[name].title for found in metrics if name in found)
        rows.append((title, [_ends(found[name]) if name in found else "" for found in metrics]))
    different = [key for key in dict.fromkeys(key for run in runs for key in run.options) if _differs(runs, key)]
    cards = []
    for name in names:
        lines = [
            Line(item.letter, found[name].points, _color(index), found[name].intervals)
            for index, (item, found) in enumerate(zip(sections, metrics, strict=True))
            if name in found
        ]
        first = next(found[name] for found in metrics if name in found)
        if chart := line_chart(lines, first.title, first.yardsticks, always_legend=True):
            cards.append(Card(first.title, name, chart))
    for statistic in COURSE:
        lines = [Line(item.letter, item.run.series(statistic.key), _color(i)) for i, item in enumerate(sections)]
        if chart := line_chart(lines, statistic.unit, always_legend=True):
            cards.append(Card(statistic.title, statistic.meaning, chart))
    latest = [(item, item.strip[-1 if item.run.reals is None else -2]) for item in sections if item.strip]
    return Comparison(
        letters=[item.letter for item in sections],
        names=[run.name for run in runs],
        rows=rows,
        options=[(key, [_option_text(run.options.get(key)) for run in runs]) for key in different],
        strip=[StripRow(item.letter, row.value, row.picture) for item, row in latest],
        cards=cards,
    )


def letter(index: int) -> str:
    """`A`, `B`, ... `Z`, `A1`, ..."""
    return chr(ord("A") + index % 26) + (str(index // 26) if index >= 26 else "")


def _color(index: int) -> str:
    return f"c{index % NUM_COLORS}"


def _ends(metric: Metric) -> str:
    (_, first), (_, last) = metric.start, metric.end
    return short(last) if len(metric.points) < 2 else f"{short(first)} → {short(last)}"


def _differs(runs: Sequence[Run], key: str) -> bool:
    return any(run.options.get(key) != runs[0].options.get(key) for run in runs)


def _with_interval(metric: Metric, index: int) -> str:
    kimg, value = metric.points[index]
    interval = metric.intervals.get(kimg)
    return short(value) + (f" [{short(interval[0])}, {short(interval[1])}]" if interval else "")


def _file_name(spec: Any) -> str:
    """The last part of a path or an address, without its query: what a person would call it."""
    text = without_secrets(str(spec or "?")).split("?")[0] or "?"
    return text.replace("\\", "/").rstrip("/").rpartition("/")[2] or text


def _option_text(value: Any) -> str:
    return "-" if value is None else without_secrets(str(value))


def _in_brackets(value: Any) -> str:
    return f"({value})" if value else ""


def _hashes(recorded: dict[str, Any]) -> dict[str, Any]:
    found = recorded.get("sha256")
    return found if isinstance(found, dict) else {}
