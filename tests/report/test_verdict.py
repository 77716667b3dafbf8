"""The answer to "did it work?"."""

from __future__ import annotations

import json

import pytest
from run_folder import START, metric_row, write_lines

from refine.report.measured import measured
from refine.report.read import read_run
from refine.report.verdict import judge, warnings


def verdict(rundir):
    run = read_run(rundir)
    return judge(run, measured(run))


def sentences(rundir):
    run = read_run(rundir)
    return warnings(run, measured(run))


def stats_of(rundir):
    return [json.loads(line) for line in (rundir / "stats.jsonl").read_text().splitlines()]


def test_a_good_run(rundir):
    found = verdict(rundir)
    assert found.state == "better"
    assert found.facts == ("teacher 14.1", "real images 14.4", "no class lost")
    assert found.cost == "2m 10s on Some CPU, 2 cores"
    assert sentences(rundir) == []


@pytest.mark.parametrize(("last", "state"), [(34.0, "better"), (345.0, "same"), (400.0, "worse")])
def test_states(rundir, last, state):
    rows = [metric_row("fid5k_full", 0, fid5k_full=345.678), metric_row("fid5k_full", 20, fid5k_full=last)]
    write_lines(rundir / "metric-fid5k_full.jsonl", rows)
    assert verdict(rundir).state == state


def test_nothing_measured(rundir):
    for file in rundir.glob("metric-*"):
        file.unlink()
    assert verdict(rundir).state == "unknown" and verdict(rundir).metric is None
    assert sentences(rundir) == ["No metric was measured: pictures alone do not tell whether a generator got better."]


def test_a_run_that_goes_on(rundir):
    write_lines(rundir / "stats.jsonl", stats_of(rundir)[:-1])
    assert "16 of 20 kimg so far" in verdict(rundir).facts


def test_recall_is_named_beside_the_distance(rundir):
    rows = [
        metric_row("pr5k3_full", k, pr5k3_full_recall=v, pr5k3_full_precision=0.5) for k, v in ((0, 0.2), (20, 0.6))
    ]
    write_lines(rundir / "metric-pr5k3_full.jsonl", rows)
    assert "recall 0.2 → 0.6" in verdict(rundir).facts


@pytest.mark.parametrize(
    ("before", "after", "fact"),
    [
        ([0.4, 0.3, 0.3], [0.35, 0.33, 0.32], "no class lost"),
        ([0.4, 0.3, 0.3], [0.6, 0.38, 0.02], "class 2 lost: 30.0% → 2.0% of the images"),
        ([0.5, 0.49, 0.01], [0.5, 0.48, 0.02], "class 2 still rare"),
        ([0.98, 0.01, 0.01], [0.97, 0.01, 0.02], "classes 1, 2 still rare"),
    ],
)
def test_classes(rundir, before, after, fact):
    rows = [
        metric_row("digits5k", kimg, digits5k_agreement=0.5) | {"provenance": {"class_shares": shares}}
        for kimg, shares in ((0, before), (20, after))
    ]
    write_lines(rundir / "metric-digits5k.jsonl", rows)
    assert fact in verdict(rundir).facts


@pytest.mark.parametrize(
    ("session", "machine"),
    [
        ({"gpu": "H100", "device": "cuda", "num_processes": 1}, "H100"),
        ({"gpu": "H100", "device": "cuda", "num_processes": 8}, "8 x H100"),
        ({"cpu": "Some CPU"}, "Some CPU"),
        ({}, "a CPU"),
    ],
)
def test_machines(rundir, session, machine):
    write_lines(rundir / "sessions.jsonl", [{"timestamp": START} | session])
    assert verdict(rundir).cost == f"2m 10s on {machine}"


def test_time_without_pauses(rundir):
    """A first session of 60 s, and one that begins a day later and takes 10 s."""
    day = 86400
    write_lines(rundir / "sessions.jsonl", [{"timestamp": START}, {"timestamp": START + day}])
    rows = stats_of(rundir)
    for row, seconds in zip(rows, (15, 30, 60, day, day + 10), strict=True):
        row["timestamp"] = START + seconds
    write_lines(rundir / "stats.jsonl", rows)
    for file in rundir.glob("metric-*"):
        file.unlink()
    assert read_run(rundir).seconds() == 70


def test_time_of_a_run_without_sessions(rundir):
    (rundir / "sessions.jsonl").unlink()
    assert read_run(rundir).seconds() == 130  # what its last row tells
    assert verdict(rundir).cost == "2m 10s"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("metric", "fid5k_full rose from 34.6 at 20 kimg to 99 at 24 kimg. Take network-snapshot-000020.pkl."),
        ("nonfinite", "3 updates were left out because a gradient was not finite."),
        ("snapshot", "fid5k_full was not measured for the last snapshot, at 24 kimg."),
        ("best", "fid5k_full has rows that do not name their snapshot: they are left out."),
        ("few", "fid5k_full: 30 images for 64 dimensions: the distance is too large."),
        ("log", "The teacher fits these images poorly."),
        ("preflight", "The colors do not match."),
        ("damaged", "1 lines or files could not be read and are left out."),
    ],
)
def test_warnings(rundir, change, sentence):
    if change == "metric":
        with open(rundir / "metric-fid5k_full.jsonl", "a") as file:
            file.write(json.dumps(metric_row("fid5k_full", 24, fid5k_full=99.0)) + "\n")
    elif change == "nonfinite":
        write_lines(rundir / "stats.jsonl", [row | {"Progress/num_nonfinite": 3} for row in stats_of(rundir)])
    elif change == "snapshot":
        (rundir / "network-snapshot-000024.pkl").touch()
    elif change == "best":
        with open(rundir / "metric-fid5k_full.jsonl", "a") as file:
            row = metric_row("fid5k_full", 20, fid5k_full=1.0) | {"snapshot_pkl": "network-best.pkl"}
            file.write(json.dumps(row) + "\n")
    elif change == "few":
        note = {"provenance": {"warning": "30 images for 64 dimensions: the distance is too large"}}
        rows = [metric_row("fid5k_full", k, fid5k_full=30.0 - k) | note for k in (0, 20)]
        write_lines(rundir / "metric-fid5k_full.jsonl", rows)
    elif change == "log":
        line = "Warning: The teacher fits these images poorly.\n"
        (rundir / "log.txt").write_text(f"Run directory: here\n{line}tick 1\n{line}")
    elif change == "preflight":
        text = json.dumps({"warnings": ["Warning: The colors do not match."]})
        (rundir / "preflight.json").write_text(text)
        (rundir / "log.txt").write_text("Warning: The colors do not match.\n")  # said twice, shown once
    else:
        with open(rundir / "stats.jsonl", "a") as file:
            file.write('{"Progress/kimg": 2')
    assert sentences(rundir).count(sentence) == 1


def course(rundir, key, values):
    rows = [{"Progress/kimg": float(i), key: value, "timestamp": START + i} for i, value in enumerate(values, 1)]
    write_lines(rundir / "stats.jsonl", rows)
    return [sentence for sentence in sentences(rundir) if "kimg to" in sentence or "W/std" in sentence]


def test_remarks_on_the_course(rundir):
    falling = [1 / i for i in range(1, 21)]
    assert course(rundir, "Score/gap", falling) == []
    assert course(rundir, "Score/gap", [*falling, 0.9]) == []  # a single tick
    (remark,) = course(rundir, "Score/gap", [*falling, 0.2, 0.4, 0.8, 0.9, 1.0])
    assert "--glr" in remark
    assert course(rundir, "W/std", [0.6, 0.5, 0.4]) == []
    (remark,) = course(rundir, "W/std", [0.6, 0.5, 0.2])
    assert "--sigma" in remark
