"""TensorBoard's own reader finds what a run wrote, Weights & Biases records it, and neither can end a run."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from PIL import Image
from wandb_file import records

from refine.errors import UserError
from refine.runs.tensorboard import TensorBoard
from refine.runs.tracker import Trackers
from refine.runs.wandb import WeightsAndBiases, require_wandb

SECRET = "https://me:hunter2@host/a.pkl?token=abc123"


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.new("L", (6, 4), 77).save(path)
    return path


def accumulated(folder):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = reader.EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def test_scalars_over_images(tmp_path):
    tracker = TensorBoard(tmp_path)
    for nimg in (32, 4000):
        values = {"Loss/fake": nimg / 2, "Loss/broken": None, "timestamp": 5.0}
        tracker.add_numbers(values, nimg, 1000.0 + nimg)
    tracker.close()
    accumulator = accumulated(tmp_path)
    assert accumulator.Tags()["scalars"] == ["Loss/fake"]
    found = [(event.step, event.value, event.wall_time) for event in accumulator.Scalars("Loss/fake")]
    assert found == [(32, 16.0, 1032.0), (4000, 2000.0, 5000.0)]


def test_the_warm_up_lies_before_zero(tmp_path):
    """A run that is stopped in its warm-up and resumed from an older state hides what it writes again."""
    for cur_nimg, nimgs in ((-4000, (-3000, -2000, -1000)), (-2000, (-1000, 0, 1000))):
        tracker = TensorBoard(tmp_path, cur_nimg)
        for nimg in nimgs:
            tracker.add_numbers({"Loss/fake": float(cur_nimg)}, nimg, 1000.0 + nimg)
        tracker.close()
    found = [(event.step, event.value) for event in accumulated(tmp_path).Scalars("Loss/fake")]
    assert found == [(-3000, -4000.0), (-2000, -4000.0), (-1000, -2000.0), (0, -2000.0), (1000, -2000.0)]


def test_what_a_resumed_run_writes_again_is_hidden(tmp_path):
    for cur_nimg, nimgs in ((0, (1000, 2000, 3000)), (2000, (3000, 4000))):
        tracker = TensorBoard(tmp_path, cur_nimg)
        for nimg in nimgs:
            tracker.add_numbers({"Loss/fake": float(cur_nimg)}, nimg, 1000.0 + nimg)
        tracker.close()
    found = [(event.step, event.value) for event in accumulated(tmp_path).Scalars("Loss/fake")]
    assert found == [(1000, 0.0), (2000, 0.0), (3000, 2000.0), (4000, 2000.0)]


def test_a_picture_and_the_options(tmp_path, picture):
    folder = tmp_path / "run"
    tracker = TensorBoard(folder)
    tracker.add_options({"gan": SECRET, "batch": 32, "desc": None, "class_map": [0, 1]})
    tracker.add_picture("fakes", picture, 4000, 1000.0)
    tracker.close()
    accumulator = accumulated(folder)
    (event,) = accumulator.Images("fakes")
    assert (event.step, event.width, event.height, event.wall_time) == (4000, 6, 4, 1000.0)
    assert event.encoded_image_string == picture.read_bytes()
    (text,) = accumulator.Tensors("options/text_summary")
    options = json.loads(text.tensor_proto.string_val[0])
    assert options["batch"] == 32 and options["desc"] is None
    written = b"".join(path.read_bytes() for path in folder.iterdir())
    assert b"hunter2" not in written and b"abc123" not in written
    assert "_hparams_/session_start_info" in accumulator.summary_metadata


def test_without_tensorboard(tmp_path, monkeypatch, caplog, picture):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    tracker = TensorBoard(tmp_path / "run")
    tracker.add_numbers({"Loss/fake": 1.0}, 1000, 1.0)
    tracker.add_picture("fakes", picture, 1000, 1.0)
    tracker.close()
    assert not (tmp_path / "run").exists() and not caplog.records


def test_a_broken_tensorboard_ends_the_events_and_not_the_run(tmp_path, monkeypatch, caplog):
    class Broken:
        def __init__(self, *args, **options):
            raise TypeError("Descriptors cannot be created directly.")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Broken))
    tracker = TensorBoard(tmp_path)
    for _ in range(2):
        tracker.add_numbers({"Loss/fake": 1.0}, 1000, 1.0)
    tracker.close()
    (record,) = caplog.records
    assert "TensorBoard" in record.getMessage() and "Descriptors cannot be created directly." in record.getMessage()


def test_a_missing_picture_ends_one_tracker_and_not_the_others(tmp_path, caplog):
    class Kept(TensorBoard):
        title = "Kept"

        def _picture(self, *args):
            pass

    trackers = Trackers([TensorBoard(tmp_path / "a"), Kept(tmp_path / "b")])
    trackers.add_picture("fakes", tmp_path / "missing.png", 1, 1.0)
    trackers.add_numbers({"Loss/fake": 1.0}, 1000, 1.0)
    trackers.add_options({"batch": 1})
    trackers.close()
    (record,) = caplog.records
    assert "TensorBoard" in record.getMessage() and "missing.png" in record.getMessage()
    assert accumulated(tmp_path / "b").Tags()["scalars"] == ["Loss/fake"]


WANDB = """
import sys
from pathlib import Path
from refine.runs.wandb import WeightsAndBiases
folder, picture, nimg = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
tracker = WeightsAndBiases(folder)
tracker.add_options({"gan": sys.argv[4], "batch": 32, "desc": None, "kimg": float(nimg)})
tracker.add_numbers({"Loss/fake": 1.5, "timestamp": 5.0}, -nimg, 1000.0)
tracker.add_numbers({"Loss/fake": 2.5}, nimg, 2000.0)
tracker.add_picture("fakes", picture, nimg, 2000.0)
tracker.close()
"""


def test_weights_and_biases_offline(tmp_path, picture, monkeypatch):
    """Files kept for a later `wandb sync`; a resumed run goes on under the same id."""
    pytest.importorskip("wandb", reason="wandb is not installed (pip install wandb)")
    folder = tmp_path / "00000-digits"
    folder.mkdir()
    monkeypatch.setenv("WANDB_MODE", "offline")
    for nimg in ("4000", "8000"):
        command = [sys.executable, "-c", WANDB, folder, picture, nimg, SECRET]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and not done.stdout, (done.stdout, done.stderr)
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    found = [list(records(file)) for file in files]
    (first, second) = ([record.run for record in part if record.WhichOneof("record_type") == "run"] for part in found)
    assert first[0].run_id == second[0].run_id == (folder / "wandb-id.txt").read_text()
    assert first[0].project == "refine" and first[0].display_name == "00000-digits"
    rows = [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in found[0]
        if record.WhichOneof("record_type") == "history"
    ]
    numbers = [(row["cur_nimg"], row["Loss/fake"], row["_timestamp"]) for row in rows if "Loss/fake" in row]
    assert numbers == [(-4000, 1.5, 1000.0), (4000, 2.5, 2000.0)]
    assert not any("timestamp" in row for row in rows)
    assert [row["fakes.width"] for row in rows if "fakes.width" in row] == [6]
    everything = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"hunter2" not in everything and b"abc123" not in everything
    assert b"https://***@host/a.pkl" in everything


def test_weights_and_biases_where_it_is_not_installed(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = WeightsAndBiases(tmp_path)
    for _ in range(2):
        tracker.add_numbers({"Loss/fake": 1.0}, 1000, 1.0)
    (record,) = caplog.records
    assert "Weights & Biases" in record.getMessage()
    with pytest.raises(UserError, match="pip install wandb"):
        require_wandb()
