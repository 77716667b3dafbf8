"""What the metrics of a run say of its snapshots: which one is the best, and whether it has been getting worse."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from refine.runs.folder import RunDir


def is_measured(run_dir: RunDir, snapshot_pkl: str) -> bool:
    """Whether there is a row of that snapshot already: a run that was resumed comes by it again."""
    return any(
        row["snapshot_pkl"] == snapshot_pkl for name in run_dir.metric_names() for row in run_dir.metric_rows(name)
    )


def record(run_dir: RunDir, rows: Sequence[dict[str, Any]], patience: int | None) -> str | None:
    """Writes the rows of one snapshot and lets `network-best.pkl` mean the best one by the first FID among them.

    Args:
        run_dir: of the run.
        rows: of `metric-<name>.jsonl`.
        patience: how often in a row the FID may rise; None: ever.

    Returns:
        Why the run should end; None: it should not.
    """
    for row in rows:
        run_dir.add_metric(row)
    name = next((row["metric"] for row in rows if row["metric"].startswith(("fid", "fdd"))), None)
    if name is None:
        return None
    history = run_dir.metric_rows(name)
    values = [value_of(row) for row in history]
    best = history[values.index(min(values))]
    run_dir.link_best(run_dir.path / best["snapshot_pkl"])
    if patience is None or not rising(values, patience):
        return None
    return f"{name} rose for {patience} snapshots in a row, {best['snapshot_pkl']} is the best one: the run ends here"


def value_of(row: dict[str, Any]) -> float:
    """The first of a row's results, which is the metric itself."""
    return float(next(iter(row["results"].values())))


def rising(values: Sequence[float], patience: int) -> bool:
    """Whether each of the last `patience` values is above the one before it."""
    last = list(values)[-patience - 1 :]
    return len(last) == patience + 1 and all(a < b for a, b in itertools.pairwise(last))
