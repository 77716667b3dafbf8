"""The judgment of a run on the digits pair."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from refine.config import RunConfig
from refine.digits import judge as module
from refine.digits.digits import FOLDER, shipped_split
from refine.digits.judge import (
    TeacherAsGenerator,
    compare_reals,
    digits_measure,
    draw_before_and_after,
    main,
    metric_name,
)
from refine.errors import UserError
from refine.files.image_grid import save_grid
from refine.networks.loading import load_generator, load_teacher
from refine.runs.start import run

SIZES = {"batch": 4, "kimg": 0.004, "warmup_kimg": 0.004, "tick_kimg": 0.004, "preflight": False}
SUITE = {"metrics": "fid100_full", "data": str(FOLDER / "digits-test.zip"), "detector": "digits-detector.pt"}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run that measured nothing."""
    outdir = tmp_path_factory.mktemp("runs")
    return run(RunConfig(gan="digits", teacher="edm-digits", outdir=str(outdir), **SIZES)).parent


def test_a_run_is_judged_and_reported(run_folder):
    for _ in range(2):  # a second time leaves no second row
        result = CliRunner().invoke(main, [str(run_folder.parent / "latest"), "--samples=100"])
        assert result.exit_code == 0, result.output
    rows = {
        name: [json.loads(line) for line in (run_folder / f"metric-{name}.jsonl").read_text().splitlines()]
        for name in ("digits100_test", "fid100_full")
    }
    snapshots = sorted(path.name for path in run_folder.glob("network-snapshot-*.pkl"))
    assert all([row["snapshot_pkl"] for row in found] == snapshots for found in rows.values())
    assert sum(rows["digits100_test"][0]["provenance"]["class_shares"]) == pytest.approx(1)
    # The table has what the rows have, before and after.
    for title, name, result_name in (
        ("FID", "fid100_full", "fid100_full"),
        ("Class agreement", "digits100_test", "digits100_test_agreement"),
    ):
        line = re.search(rf"^{title} +(\S+) +(\S+) ", result.output, re.MULTILINE)
        assert line, result.output
        shown = [float(cell) for cell in line.groups()]
        assert shown == pytest.approx([row["results"][result_name] for row in rows[name]], rel=6e-3)
    assert "not Inception" in result.output and str(run_folder / "report.html") in result.output
    assert "Recognized classes" in (run_folder / "report.html").read_text()
    before = np.asarray(module.first_images(run_folder / "fakes_init.png"))
    pixels = np.asarray(Image.open(run_folder / "before-after.png"))
    assert (pixels[-before.shape[0] :, : before.shape[1]] == before).all()


def test_what_the_run_measured_is_not_measured_again(tmp_path):
    """One FID in a run, the run's own; the built-in values of teacher and real images stand beside the same metrics."""
    folder = run(RunConfig(gan="digits", teacher="edm-digits", outdir=str(tmp_path), **SIZES, **SUITE)).parent
    before = (folder / "metric-fid100_full.jsonl").read_bytes()
    result = CliRunner().invoke(main, [str(folder), "--samples=100"])
    assert result.exit_code == 0, result.output
    assert (folder / "metric-fid100_full.jsonl").read_bytes() == before
    assert {path.name for path in folder.glob("metric-*")} == {
        "metric-fid100_full.jsonl",
        "metric-digits100_test.jsonl",
    }
    assert not any(
        "fid" in key
        for key in json.loads((folder / "metric-digits100_test.jsonl").read_text().splitlines()[0])["results"]
    )


def yardsticks_of(folder, options, rows):
    (folder / "training_options.json").write_text(json.dumps(options))
    for row in rows:
        (folder / f"metric-{row['metric']}.jsonl").write_text(json.dumps(row) + "\n")
    module.write_yardsticks(folder)
    return {row["name"]: row["results"] for row in json.loads((folder / "yardsticks.json").read_text())}


def test_yardsticks_stand_beside_the_same_metrics_only(tmp_path):
    record = json.loads((FOLDER / "yardsticks.json").read_text())
    known = record["sha256"]
    row = {
        "metric": "fid5k_full",
        "results": {"fid5k_full": 30.0},
        "snapshot_pkl": "network-snapshot-000000.pkl",
        "provenance": {"detector": {"sha256": known["detector"]}, "reference": {"sha256": known["data"]}},
    }
    shipped = {entry["name"]: entry["results"] for entry in record["yardsticks"]}
    found = yardsticks_of(tmp_path, {"teacher": "edm-digits"}, [row])
    assert found == {name: {"fid5k_full": values["fid5k_full"]} for name, values in shipped.items()}
    assert found["real images"]["fid5k_full"] < 2 * found["teacher"]["fid5k_full"]
    # Another teacher, or another reference, is not what was measured.
    assert set(yardsticks_of(tmp_path, {"teacher": "elsewhere.pkl"}, [row])) == {"real images"}
    other = row | {"provenance": {"detector": {"sha256": known["detector"]}, "reference": {"sha256": "0"}}}
    assert yardsticks_of(tmp_path, {"teacher": "edm-digits"}, [other]) == {}


def test_the_shipped_values_are_those_of_the_shipped_files():
    """Real images exactly; the teacher by fewer samples, so only roughly."""
    record = json.loads((FOLDER / "yardsticks.json").read_text())
    assert record["sha256"] == {name: module.pickles.file_sha256(path) for name, path in module._compared().items()}
    values = {entry["name"]: entry["results"] for entry in record["yardsticks"]}
    assert compare_reals(shipped_split("train"), 5000) == pytest.approx(values["real images"], rel=1e-3)
    teacher = TeacherAsGenerator(load_teacher("edm-digits").network)
    (row,) = digits_measure("test", 100)(teacher, "")
    assert row["results"]["digits100_test_agreement"] == pytest.approx(
        values["teacher"]["digits5k_test_agreement"], abs=0.06
    )
    assert row["results"]["digits100_test_variance"] == pytest.approx(
        values["teacher"]["digits5k_test_variance"], rel=0.2
    )


def test_yardsticks_are_measured_by_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "measure_yardsticks", lambda count: {"count": count})
    result = CliRunner().invoke(main, [f"--yardsticks={tmp_path / 'y.json'}", "--samples=2500"])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "y.json").read_text()) == {"count": 2000}


@pytest.mark.slow
def test_yardsticks_of_a_thousand_samples():
    found = {row["name"]: row["results"] for row in module.measure_yardsticks(1000)["yardsticks"]}
    shipped = {
        row["name"]: row["results"] for row in json.loads((FOLDER / "yardsticks.json").read_text())["yardsticks"]
    }
    assert found["teacher"]["fid1k_full"] == pytest.approx(shipped["teacher"]["fid5k_full"], rel=0.5)
    assert (
        {name.replace("1k", "5k") for name in found["teacher"]}
        == set(shipped["teacher"])
        == set(shipped["real images"])
    )


def test_the_teacher_is_judged_better_than_the_generator():
    measure = digits_measure("selection", 100)
    teacher = TeacherAsGenerator(load_teacher("edm-digits").network)
    bad, good = (
        measure(n, "network-snapshot-000000.pkl")[0]["results"] for n in (load_generator("digits").network, teacher)
    )
    assert good["digits100_selection_agreement"] > 0.9 > 0.5 > bad["digits100_selection_agreement"]
    assert good["digits100_selection_rarest"] > bad["digits100_selection_rarest"]


def test_measuring_leaves_the_random_numbers_alone():
    measure, G = digits_measure("selection", 100), load_generator("digits").network
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    first = measure(G, "network-snapshot-000000.pkl")[0]["results"]
    assert torch.equal(torch.randn(3), expected)
    assert measure(G, "network-snapshot-000000.pkl")[0]["results"] == first


def test_names_of_rows():
    assert [metric_name("test", count) for count in (100, 2000, 2500)] == [
        "digits100_test",
        "digits2k_test",
        "digits2500_test",
    ]


def test_the_picture_of_before_and_after_shows_the_first_images(tmp_path):
    assert draw_before_and_after(tmp_path) is None
    images = np.random.RandomState(0).randint(0, 256, [60 * 8, 1, 16, 16], dtype=np.uint8)
    for name, pixels in (
        ("fakes_init.png", images),
        ("fakes000008.png", 255 - images),
        ("fakes000016.png", images // 2),
    ):
        save_grid(tmp_path / name, pixels, 30, name)
    path = draw_before_and_after(tmp_path)
    pixels = np.asarray(Image.open(path))
    side = 64 * 10 + 2 * 9
    assert pixels.shape[1] == 2 * side + 16
    top = pixels.shape[0] - (64 * 6 + 2 * 5)
    last = slice(-64, None)  # the tenth image of the sixth row
    expected = images[5 * 30 + 9, 0].repeat(4, 0).repeat(4, 1)
    assert (pixels[last, side - 64 : side] == expected).all() and (pixels[last, -64:] == expected // 2).all()
    assert (pixels[:top] < 128).any()  # captions


def test_what_cannot_be_judged(tmp_path, fixture_path):
    for arguments, word in (
        ([], "RUNDIR"),
        ([str(tmp_path / "latest")], str(tmp_path)),
        ([str(tmp_path)], str(tmp_path)),
    ):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2 and word in result.output
    (tmp_path / "network-snapshot-000000.pkl").write_bytes(fixture_path("sg2ada/b_cond16.pkl").read_bytes())
    (tmp_path / "training_options.json").write_text("{}")
    with pytest.raises(UserError, match=re.escape("network-snapshot-000000.pkl")):
        module.judge(tmp_path)
