"""Two processes do what one does, and say what they waited for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import processes
import pytest
import torch

from refine.errors import UserError
from refine.runs.folder import find_state
from refine.runtime import distributed
from refine.training.state import read_state

WORKER = Path(processes.__file__).with_name("distributed_worker.py")


@pytest.mark.parametrize("objective", [[], pytest.param(["fisher:js", "0.1"], marks=pytest.mark.slow)])
def test_two_processes_follow_one(fixture_path, tmp_path, monkeypatch, objective):
    """An uneven batch of 7, in float64: what differs is the order of sums."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / str(len(objective))))
    pair = fixture_path("sg2ada/b_cond16.pkl"), fixture_path("edm/s4_sid_ddpmpp_cond16.pkl")
    results = []
    for count in (1, 2):
        out = tmp_path / f"{count}.pt"
        processes.finish(processes.start(count, WORKER, "train", *pair, out, *objective))
        results.append(torch.load(out, weights_only=True))
    one, two = results
    assert one["means"].keys() == two["means"].keys()
    for name, value in one["means"].items():
        assert two["means"][name] == pytest.approx(value, rel=1e-6), name
    for name, value in one["weights"].items():
        scale = value.abs().max().clamp(min=1e-3)
        assert ((two["weights"][name] - value).abs().max() / scale) < 1e-6, name


def test_two_processes_stop_together_and_save_first(fixture_path, tmp_path):
    """Only one is told to stop; the first one saves slowly, and signals come again meanwhile."""
    pair = fixture_path("sg2ada/b_cond16.pkl"), fixture_path("edm/s4_sid_ddpmpp_cond16.pkl")
    outputs = processes.finish(processes.start(2, WORKER, "interrupted", *pair, tmp_path))
    assert all("interrupted" in output for output in outputs)
    state = read_state(find_state("latest", tmp_path))
    assert state["progress"]["step"] == 3


def test_collectives():
    processes.finish(processes.start(2, WORKER, "collectives"))


@pytest.mark.slow
def test_only_rank_0_logs():
    first, second = processes.finish(processes.start(2, WORKER, "logs"))
    assert first.split("\n")[:5] == ["info 0", "warning 0", "flagged 0", "error 0", "after 0"]
    assert second.split("\n")[:3] == ["flagged 1", "error 1", "after 1"]


@pytest.mark.slow
def test_a_lost_process_is_reported_with_the_phase():
    workers = processes.start(2, WORKER, "lost")
    said = workers[0].communicate(timeout=120)[0]
    workers[1].kill()
    workers[1].communicate()
    assert "Process 0 of 2 lost the others during the drill" in said and "--resume=latest" in said


def test_one_process_needs_no_launcher():
    with distributed.processes() as place:
        assert place == distributed.Place(0, 1, 0)
    tensor = torch.tensor(3.0)
    distributed.all_reduce_sum_([tensor])
    assert tensor == 3 and distributed.gather(1) == [1] and distributed.broadcast("x") == "x"
    assert distributed.share(5) == slice(0, 5) and distributed.any_process(True)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 .*WORLD_SIZE=2 "),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK.*'x'"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "-1"}, "LOCAL_RANK=-1 "),
    ],
)
def test_nonsense_of_a_launcher(monkeypatch, variables, words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words):
        distributed.place_from_environment()


def test_local_rank_is_the_gpu_on_several_machines(monkeypatch):
    for name, value in {"RANK": "11", "WORLD_SIZE": "16", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    assert distributed.place_from_environment() == distributed.Place(11, 16, 3)


def torchrun(fixture_path, outdir, *options):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
        str(processes.ROOT / "refine.py"), f"--gan={fixture_path('sg2ada/b_cond16.pkl')}",
        f"--teacher={fixture_path('edm/s4_sid_ddpmpp_cond16.pkl')}", f"--outdir={outdir}", "--device=cpu", *options,
    ]  # fmt: skip
    if any(option.startswith("--resume") for option in options):
        command = [part for part in command if not part.startswith(("--gan", "--teacher", "--outdir", "--device"))]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=outdir.parent)
    assert result.returncode == 0, result.stderr
    return result


@pytest.mark.slow
@pytest.mark.parametrize("form", [["--objective=ikl"], ["--objective=sid", "--batch-gpu=2", "--checkpoint=1"]])
def test_resumed_on_two_processes_bit_for_bit(fixture_path, tmp_path, form):
    """Through torchrun: stopped and gone on equals never stopped, and one folder is written."""
    options = ["--batch=8", "--warmup-kimg=0.016", "--tick-kimg=0.016", "--glr=1e-3", "--flr=1e-3", *form]
    options.append("--lr-decay=none")  # which would depend on --kimg
    torchrun(fixture_path, tmp_path / "whole", *options, "--kimg=0.048")
    torchrun(fixture_path, tmp_path / "parts", *options, "--kimg=0.032")
    (folder,) = (tmp_path / "parts").iterdir()
    torchrun(fixture_path, tmp_path / "parts", f"--resume={folder}", "--kimg=0.048")
    states = []
    for name in ("whole", "parts"):
        (folder,) = (tmp_path / name).iterdir()
        states.append(torch.load(folder / "training-state-000000.pt", weights_only=True))
        assert len((folder / "stats.jsonl").read_text().splitlines()) == 3
    assert states[0]["progress"] == states[1]["progress"] and states[0]["progress"]["cur_nimg"] == 48
    one, two = (state["networks"] for state in states)
    assert one.keys() == two.keys() == {"generator", "fake_score"}
    for name, parts in one.items():
        for part in parts.keys() - {"optimizer"}:
            assert all(torch.equal(value, two[name][part][key]) for key, value in parts[part].items()), (name, part)
