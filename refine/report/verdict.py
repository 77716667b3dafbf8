"""The answer to "did it work?": a verdict on a run, and what to know before believing it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from refine.report.measured import Metric, main_metric
from refine.report.read import Points, Run, mapping, number, snapshot_kimg
from refine.report.text import change_text, duration, short

State = Literal["better", "worse", "same", "unknown"]

TITLES: dict[State, str] = {"better": "Better", "worse": "Worse", "same": "About the same", "unknown": "Not measured"}
RARE = 0.25  # a class is rare below this part of an even share
PAST_BEST = 0.01  # the end is called worse than the best snapshot beyond this relative difference
RISE, FALL = 1.5, 0.5  # factors beyond which a statistic of the course gets a remark
FEWEST_MEDIANS = 4  # of a statistic, below which it gets no remark


@dataclass(frozen=True)
class Verdict:
    """Judgment of a run.

    Attributes:
        state: Change of the generator by the main metric.
        metric: That metric; None: None was measured.
        change: Its start, end and change, such as "FID 334 → 29.2 (-91 %)".
        facts: Facts to go with it, such as "teacher 14.1" and "no class lost".
        cost: Time and machine, such as "6m 02s on a CPU".
    """

    state: State
    metric: Metric | None
    change: str
    facts: tuple[str, ...]
    cost: str

    @property
    def sentence(self) -> str:
        """All of it in a line."""
        return "; ".join(part for part in (self.change, *self.facts, self.cost) if part)


def judge(run: Run, metrics: Sequence[Metric]) -> Verdict:
    """The verdict on a run so far."""
    main = main_metric(list(metrics))
    cost = " on ".join(part for part in (duration(run.seconds()) if run.seconds() else "", machine(run)) if part)
    facts = []
    if not run.is_finished:
        facts.append(f"{run.kimg:g} of {run.kimg_wanted:g} kimg so far")
    if main is None:
        return Verdict("unknown", None, "no metric: the pictures are all there is to judge by", tuple(facts), cost)
    facts = [*(f"{name} {short(value)}" for name, value in main.yardsticks.items()), *facts]
    facts += [class_fact(run)] if class_fact(run) else []
    recall = next((m for m in metrics if m.title == "Recall" and len(m.points) > 1), None)
    if recall is not None and recall is not main:
        facts.append(f"recall {short(recall.start[1])} → {short(recall.end[1])}")
    if len(main.points) < 2:
        where = "before refinement" if main.start[0] == 0 else f"at {main.start[0]:g} kimg"
        return Verdict("unknown", main, f"{main.title} {short(main.start[1])} {where}", tuple(facts), cost)
    change = f"{main.title} {short(main.start[1])} → {short(main.end[1])} ({change_text(main)})"
    return Verdict(main.direction or "unknown", main, change, tuple(facts), cost)


def machine(run: Run) -> str:
    """The last session's machine: the GPUs, or the processor."""
    if not run.sessions:
        return ""
    session = run.sessions[-1]
    count = int(number(session.get("num_processes")) or 1)
    if session.get("gpu"):
        return f"{f'{count} x ' if count > 1 else ''}{session['gpu']}"
    cores = number(session.get("cores"))
    return f"{session.get('cpu') or 'a CPU'}{f', {cores:g} cores' if cores else ''}"


def class_fact(run: Run) -> str:
    """Classes that were lost or are rare, in a few words; empty if nothing tells."""
    shares = run.class_shares()
    if len(shares) < 2:
        return ""
    before, after = shares[0][1], shares[-1][1]
    threshold = RARE / len(after)
    rare = [number for number, share in enumerate(after) if share < threshold]
    lost = [number for number in rare if number < len(before) and before[number] >= threshold]
    if lost:
        return f"{_classes(lost)} lost: {before[lost[0]]:.1%} → {after[lost[0]]:.1%} of the images"
    return f"{_classes(rare)} still rare" if rare else "no class lost"


def warnings(run: Run, metrics: Sequence[Metric]) -> list[str]:
    """Warnings that a reader should know before believing the numbers, a sentence each."""
    found = []
    nonfinite = [value for _, value in run.series("Progress/num_nonfinite")]
    if nonfinite and max(nonfinite) > 0:
        found.append(f"{max(nonfinite):g} updates were left out because a gradient was not finite.")
    found += [sentence for metric in metrics if (sentence := _past_best(run, metric))]
    found += _unmeasured(run)
    found += _course(run)
    found += run.logged_warnings()
    logged = set(found)
    recorded = run.preflight.get("warnings")
    for sentence in recorded if isinstance(recorded, list) else ():
        plain = str(sentence).removeprefix("Warning: ")
        found += [plain] if plain not in logged else []
    if run.num_damaged:
        found.append(f"{run.num_damaged} lines or files could not be read and are left out.")
    return found


def _past_best(run: Run, metric: Metric) -> str:
    """A sentence if a distance rose again after its best snapshot, else nothing."""
    (best_kimg, best), (kimg, last) = metric.best, metric.end
    if not metric.is_distance or last <= best * (1 + PAST_BEST):
        return ""
    snapshot = run.snapshots.get(best_kimg)
    advice = f" Take {snapshot}." if snapshot else ""
    return f"{metric.name} rose from {short(best)} at {best_kimg:g} kimg to {short(last)} at {kimg:g} kimg.{advice}"


def _unmeasured(run: Run) -> list[str]:
    if not run.metrics:
        return ["No metric was measured: pictures alone do not tell whether a generator got better."]
    found = []
    for name, rows in run.metrics.items():
        kimgs = [snapshot_kimg(row) for row in rows]
        if run.is_finished and run.snapshots and max(run.snapshots) not in kimgs:
            found.append(f"{name} was not measured for the last snapshot, at {max(run.snapshots):g} kimg.")
        if None in kimgs:
            found.append(f"{name} has rows that do not name their snapshot: they are left out.")
        for note in dict.fromkeys(str(mapping(row.get("provenance")).get("warning") or "") for row in rows):
            found += [f"{name}: {note}."] if note else []
    return found


def _course(run: Run) -> list[str]:
    """Remarks on statistics that have gone where they should not."""
    found = []
    gap = _smoothed(run.series("Score/gap"))
    if len(gap) >= FEWEST_MEDIANS:
        lowest = min(gap, key=lambda point: point[1])
        if gap[-1][1] > RISE * lowest[1]:
            found.append(
                f"The score gap rose from {short(lowest[1])} at {lowest[0]:g} kimg to {short(gap[-1][1])}: the "
                "generator may be running away from the fake score. Lower --glr, or raise --fake-steps."
            )
    spread = run.series("W/std")
    if len(spread) >= 2 and spread[-1][1] < FALL * spread[0][1]:
        found.append(
            f"W/std fell from {short(spread[0][1])} to {short(spread[-1][1])}: variety is being lost. Raise the noise "
            "levels with --sigma."
        )
    return found


def _smoothed(points: Points, width: int = 5) -> Points:
    """Running medians, so that one or two ticks do not count."""
    return [
        (points[i + width - 1][0], statistics.median(y for _, y in points[i : i + width]))
        for i in range(len(points) - width + 1)
    ]


def _classes(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
    return f"class{'es' if len(numbers) > 1 else ''} {shown}"
