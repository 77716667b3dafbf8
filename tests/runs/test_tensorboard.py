"""TensorBoard's own reader finds what a run wrote; a run without TensorBoard is none the worse."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from refine.runs.tensorboard import EventWriter


def test_scalars_over_kimg(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = EventWriter(tmp_path)
    for kimg in (4, 8):
        events.add({"Loss/fake": kimg / 2, "timestamp": 5.0}, kimg * 1000 + 32, 1000.0 + kimg)
    events.close()
    accumulator = reader.EventAccumulator(str(tmp_path))
    accumulator.Reload()
    assert accumulator.Tags()["scalars"] == ["Loss/fake"]
    found = [(event.step, event.value, event.wall_time) for event in accumulator.Scalars("Loss/fake")]
    assert found == [(4, 2.0, 1004.0), (8, 4.0, 1008.0)]


def test_the_warm_up_lies_before_zero(tmp_path):
    """Stopped in it and resumed from an older state, what is written again is hidden."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first_kimg, kimgs in ((-4, (-3, -2, -1)), (-2, (-2, -1, 0, 1))):
        events = EventWriter(tmp_path, first_kimg)
        for kimg in kimgs:
            events.add({"Loss/fake": float(first_kimg)}, kimg * 1000, 1000.0 + kimg)
        events.close()
    accumulator = reader.EventAccumulator(str(tmp_path))
    accumulator.Reload()
    found = [(event.step, event.value) for event in accumulator.Scalars("Loss/fake")]
    assert found == [(-3, -4.0), (-2, -2.0), (-1, -2.0), (0, -2.0), (1, -2.0)]


def test_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    events = EventWriter(tmp_path)
    events.add({"Loss/fake": 1.0}, 1000, 1.0)
    events.close()
    assert not list(tmp_path.iterdir())


def test_what_a_resumed_run_writes_again_is_hidden(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first_kimg, kimgs in ((0, (1, 2, 3)), (2, (2, 3, 4))):
        events = EventWriter(tmp_path, first_kimg)
        for kimg in kimgs:
            events.add({"Loss/fake": float(first_kimg)}, kimg * 1000, 1000.0 + kimg)
        events.close()
    accumulator = reader.EventAccumulator(str(tmp_path))
    accumulator.Reload()
    assert [(e.step, e.value) for e in accumulator.Scalars("Loss/fake")] == [(1, 0.0), (2, 2.0), (3, 2.0), (4, 2.0)]


def test_a_broken_tensorboard_ends_the_events_and_not_the_run(tmp_path, monkeypatch, caplog):
    class Broken:
        def __init__(self, *args, **options):
            raise TypeError("Descriptors cannot be created directly.")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Broken))
    events = EventWriter(tmp_path)
    for _ in range(2):
        events.add({"Loss/fake": 1.0}, 1000, 1.0)
    assert [record.getMessage() for record in caplog.records] == [
        "No more TensorBoard events are written (Descriptors cannot be created directly.); stats.jsonl goes on."
    ]
