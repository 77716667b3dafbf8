"""TensorBoard's own reader finds what a run wrote; a run without TensorBoard is none the worse."""

from __future__ import annotations

import sys

import pytest

from refine.events import EventWriter


def test_scalars_over_kimg(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = EventWriter(tmp_path, start_time=1000.0)
    for kimg in (4, 8):
        events.add({"Loss/fake": kimg / 2, "timestamp": 5.0}, kimg * 1000 + 32, 1000.0 + kimg)
    events.close()
    accumulator = reader.EventAccumulator(str(tmp_path))
    accumulator.Reload()
    assert accumulator.Tags()["scalars"] == ["Loss/fake"]
    found = [(event.step, event.value, event.wall_time) for event in accumulator.Scalars("Loss/fake")]
    assert found == [(4, 2.0, 4.0), (8, 4.0, 8.0)]


def test_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    events = EventWriter(tmp_path, 0.0)
    events.add({"Loss/fake": 1.0}, 1000, 1.0)
    events.close()
    assert not list(tmp_path.iterdir())
