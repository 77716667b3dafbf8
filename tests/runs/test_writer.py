"""Files written beside the run are those that would have been written at once, complete or not there."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from trainers import modules

from refine import pickles
from refine.config import RunConfig
from refine.errors import UserError
from refine.pair.pair import load_pair
from refine.runs import start, writer
from refine.runs.folder import RunFolder, find_state
from refine.runs.writer import Origin, Writer
from refine.training.state import read_state, state_of
from refine.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]


def options(pair, tmp_path, **changes):
    sizes = {"batch": 8, "kimg": 0.032, "warmup_kimg": 0.008, "tick_kimg": 0.008, "snap_ticks": 1, "preflight": False}
    return RunConfig(**pair, outdir=str(tmp_path / "runs"), device="cpu", **(sizes | changes))


@pytest.fixture
def trainer(pair, tmp_path):
    trainer = Trainer(load_pair(**pair), options(pair, tmp_path), torch.device("cpu"))
    trainer.step()
    return trainer


def test_files_are_those_of_their_moment(trainer, pair, tmp_path, monkeypatch):
    """Bit for bit, although everything changes while they are written."""
    pickle, gate = pickles.load(pair["gan"]), threading.Event()
    networks = {
        "G": modules(trainer)["generator"].state_dict(),
        "G_ema": modules(trainer)["generator_ema"].state_dict(),
    }
    pickles.save(pickle, tmp_path / "at_once.pkl", networks)
    at_once = io.BytesIO()
    torch.save(state_of(trainer, {"gan": "1"}), at_once)
    original = pickles.save
    monkeypatch.setattr(pickles, "save", lambda *args: (gate.wait(), original(*args)))
    files = Writer(trainer, load_pair(**pair), RunFolder(tmp_path), Origin({"gan": "1"}))
    with files:
        files.save(snapshot=True, state=True)
        with torch.no_grad():
            for network in modules(trainer).values():
                for tensor in (*network.parameters(), *network.buffers()):
                    tensor.zero_()
        trainer.fake_score.optimizer.adam.param_groups[0]["lr"] = 7.0
        trainer.progress.cur_nimg = 5000
        assert not (tmp_path / "network-snapshot-000000_008.pkl").exists()
        gate.set()
    assert (tmp_path / "network-snapshot-000000_008.pkl").read_bytes() == (tmp_path / "at_once.pkl").read_bytes()
    assert (tmp_path / "training-state-000000.pt").read_bytes() == at_once.getvalue()


def test_one_copy_serves_both_files(trainer, pair, tmp_path, monkeypatch):
    """And there is none while an earlier one is still being written."""
    files, under_way = Writer(trainer, load_pair(**pair), RunFolder(tmp_path), Origin({})), []
    original = writer.host_copy

    def counted(*args, **kwargs):
        under_way.append(files._thread is not None)
        return original(*args, **kwargs)

    monkeypatch.setattr(writer, "host_copy", counted)
    with files:
        for _ in range(3):
            files.save(snapshot=True, state=True)
    assert under_way == [False, False, False]


def test_a_disk_that_is_full_ends_the_run_with_the_sentence(pair, tmp_path, monkeypatch):
    """Within the step after it failed, not only when something is saved again."""
    steps, original, state_path = [], Trainer.step, RunFolder.state_path

    def step(self):
        original(self)
        steps.append(self.progress.step)
        if len(steps) > 1:
            time.sleep(0.1)  # longer than it takes to fail

    def full(self, nimg):
        if nimg:
            raise UserError("Cannot write training-state-000000.pt (No space left on device): free some space.")
        return state_path(self, nimg)

    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(RunFolder, "state_path", full)
    with pytest.raises(UserError, match="No space left on device"):
        start.run(options(pair, tmp_path, kimg=1.0, snap_ticks=1, tick_kimg=0.016))
    assert 2 <= len(steps) <= 4


SLOW = """
import os, signal, sys, threading, time
sys.argv[0] = "refine.py"
from refine.files import atomic as files
from refine.runs import interrupts
flush, written, requests = os.fsync, [], []
class Kept(interrupts.StopRequest):
    def __init__(self):
        super().__init__()
        requests.append(self)
def slow(number):
    flush(number)
    if threading.current_thread() is threading.main_thread():
        return
    written.append(number)
    if len(written) == 5:  # after the first snapshot, the state after the warm-up, and a file of the first tick
        os.kill(os.getpid(), signal.SIGINT)
        while requests[-1].number is None:
            time.sleep(0.01)
        if sys.argv.pop() == "2":
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait()  # never written
files.os.fsync = slow
interrupts.StopRequest, interrupts.ECHO_SECONDS = Kept, -1.0
from refine.commands.run import main
main(sys.argv[1:-1])
"""


@pytest.mark.parametrize("signals", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_ctrl_c_during_a_slow_write(pair, tmp_path, signals):
    """Once: the file is finished, then the state of the current step. Twice: the end, and no half file."""
    arguments = ["--batch=8", "--kimg=1000", "--warmup-kimg=0", "--tick=0.016", "--snap=1", "--preflight=0"]
    files = [f"--gan={pair['gan']}", f"--teacher={pair['teacher']}", f"--outdir={tmp_path}", "--device=cpu"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *files, *arguments, str(signals)], stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    rest = process.stderr.read()
    assert process.wait() == 130 and "Traceback" not in rest
    folder = next(tmp_path.iterdir())
    for path in folder.glob("network-snapshot-*.pkl"):
        pickles.load(path)
    state = find_state("latest", tmp_path)
    assert read_state(state)["progress"]["step"] >= 2
    if signals == 1:
        assert "SIGINT" in rest and "--resume=" in rest and not list(folder.glob(".*.tmp"))
