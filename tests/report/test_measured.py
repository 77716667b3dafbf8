"""Metrics of a run: names, directions, intervals, and what counts as a change."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folder import metric_row, write_lines

from refine.report.measured import Metric, kind_of, main_metric, measured
from refine.report.read import read_run
from refine.report.summary import summary, table
from refine.report.text import change_text, short


@pytest.mark.parametrize(
    ("name", "title", "better"),
    [
        ("fid50k_full", "FID", "lower"),
        ("fid5k_full_at64_teacher", "FID at 64 pixels to the teacher's images", "lower"),
        ("fdd50k_full", "Fréchet distance", "lower"),
        ("kid50k_full", "KID", "lower"),
        ("fd_dinov2_50k_full", "DINOv2 distance", "lower"),
        ("clip_fid50k_full_at64", "CLIP distance at 64 pixels", "lower"),
        ("sfid50k_full", "Spatial FID", "lower"),
        ("cmmd50k", "CMMD", "lower"),
        ("copies50k_full", "Near copies", "lower"),
        ("copies_dinov2_50k_full", "Near copies by DINOv2", "lower"),
        ("dc50k3_full_coverage", "Coverage", "higher"),
        ("pr50k3_full_precision", "Precision", "higher"),
        ("pr50k3_full_recall", "Recall", "higher"),
        ("is50k_mean", "Inception score", "higher"),
        ("ppl2_wend", "Path length", "lower"),
        ("ppl_zfull", "Path length", "lower"),
        ("digits5k_test_agreement", "Class agreement", "higher"),
        ("digits5k_test_variance", "Variance within classes", None),
        ("isolation", "isolation", None),
        ("fiducial", "fiducial", None),
        ("", "", None),
    ],
)
def test_what_a_name_says(name, title, better):
    assert kind_of(name) == (title, better)


@pytest.mark.parametrize(
    ("name", "values", "direction", "text"),
    [
        ("fid50k_full", (334, 29), "better", "-91 %"),
        ("fid50k_full", (29, 29.4), "same", "+1.4 %"),
        ("fid50k_full", (29, 35), "worse", "+21 %"),
        ("is50k_mean", (2, 8), "better", "+300 %"),
        ("pr50k3_full_recall", (0.6, 0.5), "worse", "-0.1"),
        ("pr50k3_full_precision", (0.5, 0.51), "same", "+0.01"),
        ("digits5k_test_variance", (31.4, 27.7), None, "-12 %"),
        ("kid50k_full", (0.0, 0.01), "same", "+0.01"),
        ("kid50k_full", (0.01, 0.0), "better", "-100 %"),
        ("fid50k_full", (29,), None, "±0 %"),
    ],
)
def test_changes(name, values, direction, text):
    title, better = kind_of(name)
    metric = Metric(name, title, better, list(enumerate(map(float, values))))
    assert metric.direction == direction
    assert change_text(metric).replace("\N{NO-BREAK SPACE}", " ") == text


def test_intervals_decide_where_there_are_some():
    def direction(first, second):
        points = [(0.0, sum(first) / 2), (8.0, sum(second) / 2)]
        return Metric("fid50k_full", "FID", "lower", points, {0.0: first, 8.0: second}).direction

    assert direction((29.0, 31.0), (20.0, 30.0)) == "same"  # they overlap
    assert direction((30.0, 30.1), (29.8, 29.9)) == "better"  # less than 2 %, and certain


def test_several_seeds_are_one_metric_with_an_interval(rundir):
    seeds = {f"fid5k_full_seeds{i * 5000}-{i * 5000 + 4999}": value for i, value in enumerate((30.0, 29.0, 31.0))}
    spread = {f"fid5k_full_{name}_of_3": 29.0 for name in ("min", "mean", "std")}
    rows = [metric_row("fid5k_full", kimg, fid5k_full=30.0, **seeds, **spread) for kimg in (0, 20)]
    write_lines(rundir / "metric-fid5k_full.jsonl", rows)
    scores = [metric_row("is5k", kimg, is5k_mean=8.0, is5k_std=0.25) for kimg in (0, 20)]
    write_lines(rundir / "metric-is5k.jsonl", scores)
    kid = metric_row("kid5k_full", 20, kid5k_full=0.02) | {"intervals": {"kid5k_full": [0.01, 0.03]}}
    write_lines(rundir / "metric-kid5k_full.jsonl", [kid])
    found = {metric.name: metric for metric in measured(read_run(rundir))}
    assert set(found) == {"fid5k_full", "is5k_mean", "kid5k_full", "digits5k_agreement"}
    assert found["fid5k_full"].intervals == {0.0: (29.0, 31.0), 20.0: (29.0, 31.0)}
    assert found["is5k_mean"].intervals[20.0] == (7.75, 8.25)
    assert found["kid5k_full"].intervals == {20.0: (0.01, 0.03)}


def test_values_lie_at_the_snapshot_that_their_row_names(rundir):
    """Rows may come late, twice, with folders before the name, and of shares of a kimg."""
    rows = [
        metric_row("fid5k_full", 20, fid5k_full=34.0),
        metric_row("fid5k_full", 0, fid5k_full=345.0) | {"snapshot_pkl": "runs\\a\\network-snapshot-000000.pkl"},
        metric_row("fid5k_full", 8, fid5k_full=99.0) | {"snapshot_pkl": "network-snapshot-000003_520.pkl"},
        metric_row("fid5k_full", 20, fid5k_full=35.0),
        metric_row("fid5k_full", 0, fid5k_full=1.0) | {"snapshot_pkl": "network-best.pkl"},
    ]
    write_lines(rundir / "metric-fid5k_full.jsonl", rows)
    found = measured(read_run(rundir))[0]
    assert found.points == [(0.0, 345.0), (3.52, 99.0), (20.0, 35.0)]
    assert found.best == (20.0, 35.0)
    assert found.yardsticks == {"teacher": 14.125, "real images": 14.375}


def test_the_main_metric_is_a_distance():
    def metric(name, count=2):
        return Metric(name, *kind_of(name), points=[(float(i), 1.0 + i) for i in range(count)])

    pr, kid, fid, odd = metric("pr5k3_full_recall"), metric("kid5k_full"), metric("fid5k_full", 1), metric("odd")
    assert main_metric([odd, pr, fid, kid]) is kid  # of two points
    assert main_metric([odd, pr, fid]) is fid
    assert main_metric([odd, pr]) is pr
    assert main_metric([odd]) is main_metric([]) is None


@given(st.floats(1e-20, 1e20))
def test_numbers_keep_three_digits(value):
    assert float(short(value)) == pytest.approx(value, rel=5.1e-3)
    assert short(-value) == f"-{short(value)}"


def test_short_numbers():
    assert [short(x) for x in (0, 333.8, 29.25, 0.01234, 12345, 1e-7)] == [
        "0",
        "334",
        "29.2",
        "0.0123",
        "12345",
        "1.00e-07",
    ]


def test_the_table_in_a_terminal(rundir):
    lines = summary(read_run(rundir)).splitlines()
    assert lines[0].startswith("Better: FID 346 -> 34.6 (-90 %")
    assert lines[1].split() == ["before", "after", "change", "teacher", "real", "images"]
    assert lines[2].split() == ["FID", "346", "34.6", "-90", "%", "14.1", "14.4", "lower", "is", "better"]
    assert lines[3].split() == ["Class", "agreement", "0.4", "0.9", "+0.5", "higher", "is", "better"]
    ends = {line.index(word) + len(word) for line, word in ((lines[1], "after"), (lines[2], "34.6"), (lines[3], "0.9"))}
    assert len(ends) == 1  # columns are aligned
    assert table([]) == []


def test_the_table_before_refinement(rundir):
    write_lines(rundir / "metric-fid5k_full.jsonl", [metric_row("fid5k_full", 0, fid5k_full=345.0)])
    (rundir / "metric-digits5k.jsonl").unlink()
    lines = summary(read_run(rundir)).splitlines()
    assert lines[0].startswith("Not measured: FID 345 before refinement")
    assert lines[2].split()[:2] == ["FID", "345"]


def test_results_of_the_run_stay_as_they_are_written(rundir):
    """A name with a suffix that only looks like a seed range is a result of its own."""
    rows = [metric_row("own", kimg, own_seeds=1.0, own_min_of=2.0) for kimg in (0, 20)]
    write_lines(rundir / "metric-own.jsonl", rows)
    names = {metric.name for metric in measured(read_run(rundir))}
    assert {"own_seeds", "own_min_of"} <= names
    assert json.loads((rundir / "metric-own.jsonl").read_text().splitlines()[0])["results"] == {
        "own_seeds": 1.0,
        "own_min_of": 2.0,
    }
