"""Numbers and times as text."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refine.report.measured import Metric


def short(value: float) -> str:
    """Three significant digits, without an exponent where that is readable: `334`, `0.0123`, `1230`."""
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2e}"
    text = f"{value:.3g}"
    return f"{value:.0f}" if "e" in text else text


def change_text(metric: Metric) -> str:
    """The change from start to end: `-91 %`, and of a share `+0.34`."""
    change = metric.change
    sign = "+" if change > 0 else "-" if change < 0 else "±"
    if metric.is_share or not metric.start[1]:
        return f"{sign}{short(abs(change))}"
    percent = abs(change) * 100
    return (
        f"{sign}{percent:.0f}\N{NO-BREAK SPACE}%"
        if percent >= 10 or not percent
        else f"{sign}{percent:.1f}\N{NO-BREAK SPACE}%"
    )


def duration(seconds: float) -> str:
    """`1h 02m`, `6m 02s`, `12s`."""
    total = round(seconds)
    days, hours, minutes = total // 86400, total // 3600 % 24, total // 60 % 60
    if days:
        return f"{days}d {hours:02d}h"
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {total % 60:02d}s" if minutes else f"{total}s"


def date(timestamp: float) -> str:
    """`2026-11-27 09:12 UTC`."""
    return datetime.fromtimestamp(timestamp, tz=timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def plural(count: int, singular: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{count:,} {singular}{'' if count == 1 else 's'}"
