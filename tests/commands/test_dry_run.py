"""A dry run refuses what a run would refuse, and says what a run would need."""

from __future__ import annotations

import shutil

import pytest
import torch

from refine.commands import dry_run
from refine.config import RunConfig
from refine.errors import UserError
from refine.runs import start
from refine.runs.folder import find_state

CPU = torch.device("cpu")


@pytest.fixture
def describe(pair, tmp_path):
    def describe(resume=None, **options):
        sizes = {"outdir": str(tmp_path / "runs"), "device": "cpu", "batch": 8, "kimg": 1.0, "warmup_kimg": 1.0}
        return dry_run.describe_run(RunConfig(**(pair | sizes | options)), resume=resume)

    return describe


def test_what_is_there(describe, tmp_path):
    text = describe()
    for word in ("Generator", "Teacher", "Memory", "1 kimg in 125 steps of 8 images", "Time ", "sec/kimg", "Disk "):
        assert word in text
    assert "Warning: the run needs" not in text and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"metrics": "fid60_full", "data": "nowhere.zip"}, "nowhere.zip"),
        ({"metrics": "fid60_full", "detector": "nowhere.pt"}, "nowhere.pt"),
        ({"metrics": "fid60_full", "ref": "nowhere.npz"}, "nowhere.npz"),
        ({"init": "nowhere.pkl"}, "nowhere.pkl"),
        ({"init": "README.md"}, "README.md"),
    ],
)
def test_files_that_a_run_would_miss(describe, fixture_path, options, name):
    if "detector" not in options and "metrics" in options:
        options = options | {"detector": str(fixture_path("metrics/tiny_inception_s.pt"))}
    with pytest.raises(UserError, match=name):
        describe(**options)


def test_a_folder_that_cannot_be(describe, tmp_path):
    (tmp_path / "file").write_text("")
    for outdir in (tmp_path / "file", tmp_path / "file" / "below", "/proc/x"):
        with pytest.raises(UserError, match=str(outdir)):
            describe(outdir=str(outdir))


def test_more_than_the_machine_has(describe, monkeypatch):
    monkeypatch.setattr(dry_run, "seconds_per_image", lambda *args: (1.0, 2.0))  # steps of so many images take long
    text = describe(batch=2**20)
    assert "Warning: the run needs" in text and "--batch-gpu" in text
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    assert "--outdir" in describe()


def test_classes_that_are_never_asked_for(describe):
    assert "class 1, 2, 3, 4 of the teacher" in describe(class_map=(0, 0, 0, 0, 0))


def test_time_is_that_of_the_steps(describe, pair, monkeypatch):
    monkeypatch.setattr(dry_run, "seconds_per_image", lambda *args: (1.0, 2.0))
    assert "about 50m 00s without metrics: 2e+03 sec/kimg" in describe()
    monkeypatch.undo()
    options = RunConfig(**pair, batch=8)
    assert all(second > 0 for second in dry_run.seconds_per_image(options, start.pair_for(options), CPU))


def test_short_steps_are_timed_with_more_images(pair, monkeypatch):
    """Up to the images of a pass, and until a step is long enough or memory ends."""
    tried = []

    def seconds(config, pair, device, images):
        tried.append(images)
        if images == 64:
            raise torch.OutOfMemoryError
        return 0.0, 0.001

    monkeypatch.setattr(dry_run, "_seconds_per_image", seconds)
    for batch, images in ((2, [2]), (40, [4, 16, 40]), (512, [4, 16, 64])):
        tried.clear()
        assert dry_run.seconds_per_image(RunConfig(**pair, batch=batch), None, CPU) == (0.0, 0.001)
        assert tried == images
    monkeypatch.setattr(dry_run, "ENOUGH_SECONDS", 0.004)
    tried.clear()
    dry_run.seconds_per_image(RunConfig(**pair, batch=512), None, CPU)
    assert tried == [4]


def test_what_is_left_of_a_run(describe, pair, tmp_path, monkeypatch):
    options = RunConfig(
        **pair, outdir=str(tmp_path / "runs"), device="cpu", batch=8, kimg=0.016, warmup_kimg=0.008, preflight=False
    )
    snapshot = start.run(options)
    monkeypatch.setattr(dry_run, "seconds_per_image", lambda *args: (1.0, 1.0))
    state = find_state(str(snapshot.parent), "")
    text = dry_run.describe_run(start.resumed_config(state, {"kimg": 0.116}), resume=state)
    assert "of which 2 are done" in text and "about 1m 40s" in text and str(snapshot.parent) in text


def test_everything_that_is_missing_is_told_at_once(describe, tmp_path):
    (tmp_path / "file").write_text("")
    options = {"init": "nowhere.pt", "outdir": str(tmp_path / "file"), "metrics": "fid60_full", "data": "nothere.zip"}
    with pytest.raises(UserError) as error:
        describe(**options)
    assert all(name in str(error.value) for name in ("nowhere.pt", "file", "nothere.zip"))
