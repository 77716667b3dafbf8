"""The page: a run as HTML, with style, pictures and charts inside it."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refine.report.charts import Points, bar_chart, line_chart
from refine.report.read import LOWER_IS_BETTER, Run, command, warnings

# Statistics that have a place of their own, with what they mean.
BY_BAND = {
    "Score/gap": (
        "Score gap",
        "Root mean square difference between the teacher's and the fake score's denoised images: the signal that the "
        "generator follows. It falls as the two distributions approach each other.",
    ),
    "Loss/fake": (
        "Loss of the fake score",
        "How well the fake score denoises the generator's images, before 0 kimg those of the generator as it came. It "
        "should neither grow nor jump.",
    ),
}
SHOWN_ELSEWHERE = ("Progress/", "Timing/", "timestamp", *BY_BAND)

STYLE = """
:root { --fg: #1b1f24; --bg: #fff; --soft: #6a737d; --line: #d8dee4; --card: #f6f8fa; --warn: #9a5b00;
  --warnbg: #fff6e0; --c0: #0969da; --c1: #d1242f; --c2: #1a7f37; --c3: #8250df; --c4: #bf8700; --c5: #0a7ea4;
  --c6: #bf3989; --c7: #57606a }
@media (prefers-color-scheme: dark) { :root { --fg: #e6edf3; --bg: #0d1117; --soft: #8d96a0; --line: #30363d;
  --card: #161b22; --warn: #e3b341; --warnbg: #2b2310; --c0: #58a6ff; --c1: #ff7b72; --c2: #3fb950; --c3: #bc8cff;
  --c4: #d29922; --c5: #39c5cf; --c6: #f778ba; --c7: #8b949e } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; max-width: 64rem; font: 16px/1.5 system-ui, sans-serif; color: var(--fg);
  background: var(--bg); overflow-wrap: anywhere }
h1 { font-size: 1.5rem; line-height: 1.25 } h2 { margin-top: 2.2rem; font-size: 1.25rem }
h3 { margin: 0 0 .3rem; font-size: 1rem }
.soft, .none, figcaption, .card p { color: var(--soft); font-size: .875rem; margin: .2rem 0 }
.warnings { margin: 1rem 0; padding: .6rem 1rem .6rem 2rem; color: var(--warn); background: var(--warnbg);
  border-radius: .5rem }
.grid2 { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1rem;
  margin: 1rem 0 }
.card { padding: .8rem; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; min-width: 0 }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
pre { padding: .8rem; background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  white-space: pre-wrap; font-size: .8rem }
svg { display: block; width: 100%; height: auto } svg text { font-size: 11px; fill: var(--soft) }
svg .grid { stroke: var(--line) } svg polyline { fill: none; stroke-width: 2 }
.legend { display: flex; flex-wrap: wrap; gap: .2rem .9rem } .legend i { display: inline-block; width: .8em;
  height: .8em; margin-right: .35em; border-radius: .2em }
.slider { position: relative; --cut: 50%; max-width: 44rem } .slider img { display: block; width: 100%;
  image-rendering: pixelated } .slider img + img { position: absolute; inset: 0;
  clip-path: inset(0 calc(100% - var(--cut)) 0 0) }
.slider::after { content: ""; position: absolute; top: 0; bottom: 0; left: var(--cut); width: 2px; margin-left: -1px;
  background: var(--c1) }
input[type=range] { display: block; width: 100%; max-width: 44rem; height: 2.5rem; margin: 0 }
.ends { display: flex; justify-content: space-between; max-width: 44rem }
summary { cursor: pointer; padding: .4rem 0 }
""" + "".join(
    f"svg polyline.c{i} {{ stroke: var(--c{i}) }} svg circle.c{i}, svg rect.c{i} {{ fill: var(--c{i}) }} "
    f"i.c{i} {{ background: var(--c{i}) }}\n"
    for i in range(8)
)

SCRIPT = """
for (const slider of document.querySelectorAll(".slider")) {
  const range = slider.parentElement.querySelector("input");
  const move = () => slider.style.setProperty("--cut", range.value + "%");
  range.addEventListener("input", move);
  move();
}
"""


def page(runs: Sequence[Run]) -> str:
    """The whole document."""
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs side by side"
    body = [f"<h1>{escape(title)}</h1>"]
    if len(runs) > 1:
        body.append(comparison(runs))
    for run in runs:
        body.append(section(run, heading=len(runs) > 1))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} - Refine</title><style>{STYLE}</style></head>\n"
        f"<body>{''.join(body)}<script>{SCRIPT}</script></body></html>\n"
    )


def section(run: Run, heading: bool) -> str:
    """Everything about one run."""
    parts = [f"<h2>{escape(run.name)}</h2>" if heading else "", summary(run), warning_list(run)]
    parts += [before_after(run), results(run), progress(run), classes(run), timing(run), repeat(run)]
    return "".join(parts)


def summary(run: Run) -> str:
    """What was run, in a sentence."""
    options = run.options
    what = [f"<b>{escape(options.get('gan', '?'))}</b> refined with <b>{escape(options.get('teacher', '?'))}</b>"]
    what += [f"{run.kimg:g} kimg" + (f" of {run.kimg_wanted:g}" if run.kimg < run.kimg_wanted else "")]
    named = (("objective", ""), ("batch", "batch "), ("seed", "seed "), ("preset", "preset "))
    what += [f"{before}{escape(options[key])}" for key, before in named if options.get(key) is not None]
    return f"<p>{', '.join(what)}.</p>"


def warning_list(run: Run) -> str:
    """What to know before believing the numbers."""
    found = warnings(run)
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in found)
    return f'<ul class="warnings">{items}</ul>' if found else ""


def before_after(run: Run) -> str:
    """Both pictures on top of each other, with a slider."""
    if run.before is None or run.after is None:
        return ""
    kimg, after = run.after
    return (
        "<h2>Before and after</h2><p class='soft'>The same latents, from the moving average of the weights.</p>"
        f'<div><div class="slider"><img alt="after" src="{data_uri(after)}">'
        f'<img alt="before" src="{data_uri(run.before)}"></div>'
        '<input type="range" min="0" max="100" value="50" aria-label="before and after">'
        f"<p class='ends soft'><span>before</span><span>after {kimg:g} kimg</span></p></div>"
    )


def results(run: Run) -> str:
    """The metrics: a table, and a chart for each."""
    values = run.results()
    if not values:
        return ""
    rows: list[tuple[str, ...]] = [("", "start", "best", "end", "snapshots")]
    for name, points in values.items():
        best = best_of(name, points)
        rows.append((name, *(f"{value:.4g}" for value in (points[0][1], best[1], points[-1][1])), str(len(points))))
    cards = [card(name, "", line_chart({name: points})) for name, points in values.items() if len(points) > 1]
    return f"<h2>Metrics</h2>{table(rows)}{detectors(run)}{grid(cards)}"


def detectors(run: Run) -> str:
    """With which features and against what the metrics were measured, where their rows say so."""
    keys = ("detector", "reference", "data", "num_images", "note")
    found = []
    for name, rows in run.metrics.items():
        details: dict[str, Any] = {}
        for row in rows[-1:]:
            for part in (row, *(value for value in row.values() if isinstance(value, dict))):
                details |= {key: named(part[key]) for key in keys if named(part.get(key)) is not None}
        if details:
            found.append(f"{name}: {', '.join(f'{key} {details[key]}' for key in keys if key in details)}")
    return "".join(f'<p class="soft">{escape(line)}</p>' for line in found)


def named(value: Any) -> str | int | float | None:
    """A plain value, or the name of what a row describes at length."""
    value = value.get("name") if isinstance(value, dict) else value
    return value if isinstance(value, (str, int, float)) else None


def progress(run: Run) -> str:
    """Score gap and losses by band of noise levels; then everything else that was recorded."""
    cards = []
    for key, (title, meaning) in BY_BAND.items():
        lines = {"all": run.series(key), **run.bands(key)}
        if any(lines.values()):
            cards.append(card(title, meaning, line_chart(lines)))
    other = [key for key in run.statistics() if not key.startswith(SHOWN_ELSEWHERE)]
    rest = grid([card(key, "", line_chart({key: run.series(key)})) for key in other])
    more = f"<details><summary>Everything else that was recorded</summary>{rest}</details>" if other else ""
    return f"<h2>Course</h2>{grid(cards)}{more}" if cards or more else ""


def classes(run: Run) -> str:
    """The class histogram at the start and at the end."""
    found = run.class_shares()
    if not found:
        return ""
    first, last = found[0], found[-1]
    groups = {f"{first[0]:g} kimg": first[1]} | {f"{last[0]:g} kimg": last[1]}
    chart = bar_chart(groups, [str(index) for index in range(len(first[1]))])
    return f"<h2>Classes</h2>{grid([card('What the images are taken for', 'Share of the images.', chart)])}"


def timing(run: Run) -> str:
    """Where the time went."""
    seconds = {
        "steps": sum(value for _, value in run.series("Timing/sec_per_tick")),
        "metrics": run.seconds_measuring(),
    }
    if not seconds["steps"]:  # runs that record no seconds per tick
        per_kimg = run.series("Timing/sec_per_kimg")
        kimgs = [0.0, *(x for x, _ in per_kimg)]
        seconds["steps"] = sum((x - kimgs[i]) * y for i, (x, y) in enumerate(per_kimg))
    total = max((value for _, value in run.series("Timing/total_sec")), default=0.0)
    seconds["warm-up, saving and the rest"] = max(total - sum(seconds.values()), 0.0)
    if not sum(seconds.values()):
        return ""
    whole = sum(seconds.values())
    rows = [("", "time", "share")]
    rows += [(name, duration(value), f"{value / whole:.0%}") for name, value in seconds.items() if value]
    speed = run.series("Timing/sec_per_kimg")
    cards = [card("Seconds per kimg", "", line_chart({"sec/kimg": speed}))] if len(speed) > 1 else []
    return f"<h2>Time</h2>{table(rows)}{grid(cards)}"


def repeat(run: Run) -> str:
    """The command, and the options as they are stored."""
    rows = [("option", "value"), *((name, escape_none(value)) for name, value in run.options.items())]
    return (
        f"<h2>Repeat it</h2><pre>{escape(command(run))}</pre>"
        f"<details><summary>All options</summary>{table(rows)}</details>"
    )


def comparison(runs: Sequence[Run]) -> str:
    """Several runs: the ends of their metrics in one table, and each metric in one chart."""
    names = list(dict.fromkeys(name for run in runs for name in run.results()))
    rows = [("run", "kimg", *names)]
    for run in runs:
        values = run.results()
        ends = (f"{values[name][0][1]:.4g} → {values[name][-1][1]:.4g}" if name in values else "-" for name in names)
        rows.append((run.name, f"{run.kimg:g}", *ends))
    labels = unique([run.name for run in runs])
    cards = [
        card(
            name, "", line_chart({label: run.results().get(name, []) for label, run in zip(labels, runs, strict=True)})
        )
        for name in names
    ]
    for key, (title, meaning) in BY_BAND.items():
        lines = {label: run.series(key) for label, run in zip(labels, runs, strict=True)}
        cards.append(card(title, meaning, line_chart(lines)))
    different = sorted({key for run in runs for key in run.options if differs(runs, key)})
    options = [("option", *labels)]
    options += [(key, *(escape_none(run.options.get(key)) for run in runs)) for key in different]
    what = f"<h3>Options that differ</h3>{table(options)}" if different else ""
    return f"{table(rows)}{what}{grid(cards)}"


def differs(runs: Sequence[Run], key: str) -> bool:
    """Whether an option has not the same value in all runs."""
    return any(run.options.get(key) != runs[0].options.get(key) for run in runs)


def best_of(name: str, points: Points) -> tuple[float, float]:
    """The best point of a metric."""
    choose = min if name.startswith(LOWER_IS_BETTER) else max
    return choose(points, key=lambda point: point[1])


def unique(names: Sequence[str]) -> list[str]:
    """Names, with a number where one occurs again."""
    return [name if name not in names[:i] else f"{name} ({i + 1})" for i, name in enumerate(names)]


def table(rows: Sequence[Sequence[str]]) -> str:
    """The first row as heading."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows[1:])
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def card(title: str, text: str, chart: str) -> str:
    """A chart with a heading."""
    return f'<div class="card"><h3>{escape(title)}</h3>{f"<p>{escape(text)}</p>" if text else ""}{chart}</div>'


def grid(cards: Sequence[str]) -> str:
    """Cards beside each other where there is room."""
    return f'<div class="grid2">{"".join(cards)}</div>' if cards else ""


def data_uri(path: Path) -> str:
    """A PNG as part of the page."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def duration(seconds: float) -> str:
    """`1h 02m 03s`."""
    total = round(seconds)
    hours, minutes = total // 3600, total // 60 % 60
    if hours:
        return f"{hours}h {minutes:02d}m {total % 60:02d}s"
    return f"{minutes}m {total % 60:02d}s" if minutes else f"{total % 60}s"


def escape(value: Any) -> str:
    """Text for HTML: names come from files."""
    return html.escape(str(value))


def escape_none(value: Any) -> str:
    """A stored value as text."""
    return "-" if value is None else str(value)
