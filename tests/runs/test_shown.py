"""Reports of a run in progress: its page, TensorBoard, and Weights & Biases."""

from __future__ import annotations

import json
import sys

import pytest
from PIL import Image

from refine.config import RunConfig
from refine.errors import UserError
from refine.files.image_grid import layout_of
from refine.runs import start
from refine.runs.tracker import Tracker


def config(pair, tmp_path, **changes):
    sizes = {"batch": 8, "kimg": 0.048, "warmup_kimg": 0.016, "tick_kimg": 0.016, "snap_ticks": 2}
    return RunConfig(**pair, outdir=str(tmp_path / "runs"), device="cpu", **(sizes | changes))


def test_the_report_is_written_at_each_snapshot(pair, tmp_path):
    seen = []
    folder = start.run(
        config(pair, tmp_path), on_snapshot=lambda path: seen.append((path.parent / "report.html").read_text())
    ).parent
    assert len(seen) >= 2 and "of 0.048 kimg so far" in seen[0]
    page = (folder / "report.html").read_text()
    assert "of 0.048 kimg so far" not in page and "network-snapshot-000000_048.pkl" in page
    (session,) = [json.loads(line) for line in (folder / "sessions.jsonl").read_text().splitlines()]
    assert session["cpu"] in page.replace("&#39;", "'") and set(session["sha256"]) == {"gan", "teacher"}
    sigmas = json.loads((folder / "preflight.json").read_text())["sigmas"]
    assert f"<td>{sigmas[0]:g}</td>" in page
    with Image.open(folder / "fakes_init.png") as picture:
        layout = layout_of(picture)
    assert layout is not None and layout.columns % 5 == 0  # five classes take turns


def test_a_report_that_fails_does_not_end_the_run(pair, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("refine.report.page", lambda *args: 1 / 0)
    snapshot = start.run(config(pair, tmp_path, preflight=False))
    assert snapshot.exists() and not (snapshot.parent / "report.html").exists()
    assert "ZeroDivisionError" in caplog.text


def test_trackers_are_told_numbers_pictures_and_options(pair, tmp_path, monkeypatch):
    class Kept(Tracker):
        title = "Kept"

        def __init__(self, *args):
            super().__init__()
            self.seen = []
            trackers.append(self)

        def _start(self):
            pass

        def _numbers(self, values, cur_nimg, timestamp):
            self.seen.append(("numbers", cur_nimg, "Score/gap" in values))

        def _picture(self, name, path, cur_nimg, timestamp):
            assert path.is_file()
            self.seen.append((name, path.name))

        def _options(self, options):
            self.seen.append(("options", options["batch"], options["wandb"]))

        def _close(self):
            self.seen.append("closed")

    trackers: list[Kept] = []
    for name in ("TensorBoard", "WeightsAndBiases"):
        monkeypatch.setattr(f"refine.runs.run.{name}", Kept)
    monkeypatch.setattr("refine.runs.start.require_wandb", lambda: None)
    start.run(config(pair, tmp_path, wandb=True, preflight=False))
    assert len(trackers) == 2
    for tracker in trackers:
        assert tracker.seen[0] == ("options", 8, True) and tracker.seen[-1] == "closed"
        assert ("fakes", "fakes_init.png") in tracker.seen and ("fakes", "fakes000000_048.png") in tracker.seen
        assert ("numbers", 48, True) in tracker.seen


def test_weights_and_biases_has_to_be_there(pair, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="wandb"):
        start.run(config(pair, tmp_path, wandb=True))
    assert not list(tmp_path.iterdir())
