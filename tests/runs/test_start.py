"""Start of a run: resuming what an earlier version wrote."""

from __future__ import annotations

import json
import shutil

import pytest

from refine.runs import start


def test_a_state_of_the_version_before_resumes(fixture_path, tmp_path):
    """State and options were written by Refine 0.1 before networks had entries of their own; so was what follows."""
    for name in ("training-state-000000.pt", "training_options.json"):
        shutil.copy(fixture_path(f"state_v3/{name}"), tmp_path)
    options = json.loads((tmp_path / "training_options.json").read_text())
    assert "weighting" in options
    files = {name: str(fixture_path(options[name])) for name in ("gan", "teacher")}
    (tmp_path / "training_options.json").write_text(json.dumps(options | files))
    state = tmp_path / "training-state-000000.pt"
    snapshot = start.run(start.resumed_config(state, {"kimg": 0.016}), resume=state)
    row = json.loads((snapshot.parent / "stats.jsonl").read_text().splitlines()[-1])
    expected = json.loads(fixture_path("state_v3/expected.json").read_text())
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-3)
