"""A run in a few lines of text: the verdict, and a table of its metrics before and after."""

from __future__ import annotations

from collections.abc import Sequence

from refine.report.measured import Metric, measured
from refine.report.read import Run
from refine.report.text import change_text, short
from refine.report.verdict import TITLES, judge

PLAIN = {ord("\N{NO-BREAK SPACE}"): " ", ord("→"): "->"}  # what some terminals lack


def summary(run: Run) -> str:
    """The verdict on a run in a line, and its table of metrics, for a terminal."""
    metrics = measured(run)
    verdict = judge(run, metrics)
    text = "\n".join([f"{TITLES[verdict.state]}: {verdict.sentence}", *table(metrics)])
    return text.translate(PLAIN)


def table(metrics: Sequence[Metric]) -> list[str]:
    """Lines of a table: each metric before and after, its change, and the values of teacher and real images."""
    if not metrics:
        return []
    known = list(dict.fromkeys(name for metric in metrics for name in metric.yardsticks))
    rows = [["", "before", "after", "change", *known, ""]]
    for metric in metrics:
        has_change = len(metric.points) > 1
        before = short(metric.start[1]) if has_change or metric.start[0] == 0 else ""
        after = short(metric.end[1]) if has_change or metric.start[0] > 0 else ""
        change = change_text(metric) if has_change else ""
        yardsticks = [short(metric.yardsticks[name]) if name in metric.yardsticks else "" for name in known]
        rows.append([metric.title, before, after, change, *yardsticks, metric.goal])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column in (0, len(row) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
