"""Start of a run: resuming, callbacks, and runs that come to nothing."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from refine import pickles
from refine.config import RunConfig
from refine.errors import UserError
from refine.runs import start
from refine.runs.folder import find_state
from refine.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]


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


def config(pair, tmp_path, **changes):
    sizes = {"batch": 8, "kimg": 0.016, "warmup_kimg": 0.008, "tick_kimg": 0.008, "snap_ticks": 1, "preflight": False}
    return RunConfig(**pair, outdir=str(tmp_path / "runs"), device="cpu", **(sizes | changes))


def test_files_may_lie_elsewhere(pair, tmp_path):
    """Their content is what counts: the state knows it."""
    moved = {name: tmp_path / f"{name}.pkl" for name in pair}
    for name, path in moved.items():
        shutil.copy(pair[name], path)
    snapshot = start.run(config({name: str(path) for name, path in moved.items()}, tmp_path))
    for path in moved.values():
        path.unlink()
    state = find_state(str(snapshot.parent), "")
    with pytest.raises(UserError, match=r"gan\.pkl"):
        start.run(start.resumed_config(state, {"kimg": 0.024}), resume=state)
    longer = start.resumed_config(state, {"kimg": 0.024, **pair})
    assert start.run(longer, resume=state).name == "network-snapshot-000000_024.pkl"
    other = {"gan": pair["gan"].replace("b_cond16", "d_gray16")}
    with pytest.raises(UserError):
        start.run(start.resumed_config(state, {"kimg": 0.032, **other}), resume=state)


def test_a_built_in_file_that_has_moved_is_found_by_its_name(pair, tmp_path):
    snapshot = start.run(config(pair, tmp_path))
    path = snapshot.parent / "training_options.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data": "/elsewhere/refine/assets/digits-test.zip"}))
    assert start.resumed_config(find_state(str(snapshot.parent), ""), {}).data == "digits-test.zip"


def test_what_is_resumed(pair, tmp_path):
    snapshot = start.run(config(pair, tmp_path))
    with pytest.raises(UserError, match="--init="):
        find_state(str(snapshot), "")
    with pytest.raises(UserError, match="--resume=latest --outdir="):
        find_state(str(tmp_path / "runs"), "")
    second = start.run(config(pair, tmp_path))
    assert find_state("latest", tmp_path / "runs").parent == second.parent
    os.utime(find_state(str(snapshot.parent), ""), ns=(2**62, 2**62))  # that run was resumed since
    assert find_state("latest", tmp_path / "runs").parent == snapshot.parent


def test_a_finished_run_is_not_shortened(pair, tmp_path, caplog):
    snapshot = start.run(config(pair, tmp_path, kimg=0.024, lr_decay="cosine"))
    state = find_state(str(snapshot.parent), "")
    with pytest.raises(UserError, match=r"kimg=0\.008"):
        start.run(start.resumed_config(state, {"kimg": 0.008}), resume=state)
    with caplog.at_level(logging.INFO, logger="refine"):
        assert start.run(start.resumed_config(state, {}), resume=state) == snapshot
        assert "0.024" in caplog.text
        start.resumed_config(state, {"kimg": 0.032})
    assert "cosine" in caplog.text


def test_callbacks(pair, tmp_path):
    """The row of each status line, each snapshot when it is there, and an early end with a snapshot."""
    rows, snapshots = [], []

    def on_tick(row):
        rows.append(row)
        return len(rows) == 2

    last = start.run(
        config(pair, tmp_path, kimg=1.0, snap_ticks=3), on_tick=on_tick, on_snapshot=lambda path: snapshots.append(path)
    )
    assert [row["Progress/cur_nimg"] for row in rows] == [8, 16] and "Score/gap" in rows[0]
    assert snapshots == [last] and last.name == "network-snapshot-000000_016.pkl"
    pickles.load(last)


def test_the_log_is_shown_where_nobody_shows_it(pair, tmp_path):
    code = f"""
import logging, sys
import refine
config = refine.RunConfig.from_dict({config(pair, tmp_path).to_dict()!r})
handler = logging.NullHandler()
logging.getLogger("refine").addHandler(handler)
refine.run(config)
print("now shown", file=sys.stderr, flush=True)
logging.getLogger("refine").removeHandler(handler)
refine.run(config)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    quiet, shown = done.stderr.split("now shown\n")
    assert not quiet and "tick 1 " in shown and "Run directory" in shown


def spoil(path, target, key, value=float("nan")):
    """A pickle with one weight that is not finite."""
    pickle = pickles.load(path)
    weights = {name: record.read() for name, record in pickles.named_tensors(pickle[key]).items()}
    name = next(name for name in weights if name.endswith("weight"))
    weights[name].view(-1)[0] = value
    pickles.save(pickle, target, {key: weights})
    return str(target)


def test_a_generator_that_is_not_finite_begins_nothing(pair, tmp_path):
    gan = spoil(pair["gan"], tmp_path / "nan.pkl", "G_ema")
    with pytest.raises(UserError, match=r"nan\.pkl"):
        start.run(config(pair | {"gan": gan}, tmp_path))
    assert not (tmp_path / "runs").exists()


def test_a_run_that_diverges_ends_with_the_last_good_snapshot(pair, tmp_path):
    """Weights so large that images overflow: nothing of that is saved as a snapshot."""
    options = config(pair, tmp_path, kimg=1.0, glr=1e30, flr=1e-3, ema_halflife_kimg=0.001, ema_rampup=None)
    with pytest.raises(UserError, match=r"not finite.*network-snapshot-000000\.pkl"):
        start.run(options)
    (folder,) = (tmp_path / "runs").iterdir()
    assert [path.name for path in folder.glob("network-snapshot-*")] == ["network-snapshot-000000.pkl"]


def test_gradients_that_are_never_finite_end_the_run(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "anchor", lambda self, images, inputs: images.sum() * float("inf"))
    with pytest.raises(UserError, match=r"gradient.*network-snapshot-000000\.pkl"):
        start.run(config(pair, tmp_path))
