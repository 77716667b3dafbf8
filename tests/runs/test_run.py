"""Runs on the golden pair: what they write, and that stopping and going on changes nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from refine import load_generator, pickles
from refine.commands import run as cli
from refine.config import RunConfig
from refine.errors import OptionError, UserError
from refine.files.image_grid import layout_of
from refine.pair.pair import load_pair
from refine.report.measured import measured
from refine.report.read import read_run
from refine.report.verdict import warnings
from refine.runs import evaluation, run, start
from refine.runs.folder import RunFolder, find_state
from refine.runs.writer import Writer
from refine.runtime import device, text
from refine.training import memory
from refine.training import state as run_state
from refine.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]


def config(pair, tmp_path, **changes):
    sizes = {"batch": 8, "kimg": 0.048, "warmup_kimg": 0.016, "tick_kimg": 0.016, "snap_ticks": 2, "preflight": False}
    rates = {"glr": 1e-3, "flr": 1e-3, "ema_halflife_kimg": 0.02}
    return RunConfig(**pair, outdir=str(tmp_path / "runs"), device="cpu", **(sizes | rates | changes))


def weights(path):
    return {
        key: {n: t.read() for n, t in pickles.named_tensors(pickles.load(path)[key]).items()} for key in ("G", "G_ema")
    }


def equal(a, b):
    return all(torch.equal(a[key][name], b[key][name]) for key in a for name in a[key])


def test_what_a_run_writes(pair, tmp_path):
    snapshot = start.run(config(pair, tmp_path))
    folder = snapshot.parent
    assert folder.name == "00000-b_cond16-s4_sid_ddpmpp_cond16-ikl-batch8"
    names = {"training_options.json", "log.txt", "stats.jsonl", "training-state-000000.pt", "fakes_init.png"}
    names |= {"fakes000000_032.png", "fakes000000_048.png", "report.html", "sessions.jsonl", "network-best.pkl"}
    moments = ("000000", "000000_032", "000000_048")
    written = {p.name for p in folder.iterdir() if "tfevents" not in p.name}
    assert written == names | {f"network-snapshot-{moment}.pkl" for moment in moments}
    assert snapshot.name == "network-snapshot-000000_048.pkl"
    first = weights(folder / "network-snapshot-000000.pkl")
    assert torch.equal(first["G"]["synthesis.b8.conv0.weight"], first["G_ema"]["synthesis.b8.conv0.weight"])
    stored = RunConfig.from_dict(json.loads((folder / "training_options.json").read_text()))
    assert stored == config(pair, tmp_path, precision="fp32")  # what `auto` meant
    rows = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    assert [row["Progress/cur_nimg"] for row in rows] == [16, 32, 48]
    assert all(row["Score/gap"] > 0 and row["Gradient/generator_norm"] > 0 for row in rows)
    line = next(line for line in (folder / "log.txt").read_text().splitlines() if line.startswith("tick"))
    stylegans = [
        "tick",
        "kimg",
        "time",
        "sec/tick",
        "sec/kimg",
        "maintenance",
        "cpumem",
        "gpumem",
        "reserved",
        "augment",
    ]
    words = [*stylegans, "gap", "fake", "nats", "drift", "nonfinite", "eta"]
    assert [word for word in line.split() if word in words] == words
    for name in ("fakes_init.png", "fakes000000_048.png"):
        layout = layout_of(Image.open(folder / name))
        assert layout.columns % 5 == 0 and layout.columns * layout.rows <= 240 and layout.tile == 64
    before, after = (np.asarray(Image.open(folder / name)) for name in ("fakes_init.png", "fakes000000_048.png"))
    assert (before != after).any()


def test_best_by_divergence_where_no_fid_is_measured(pair, tmp_path):
    """The snapshot whose stretch of the run has the least estimate; a new one each tick here."""
    snapshot = start.run(config(pair, tmp_path, snap_ticks=1))
    folder = RunFolder(snapshot.parent)
    nats = {row["Progress/cur_nimg"]: row["Divergence/nats"] for row in folder.stats_rows()}
    best = min(nats, key=nats.__getitem__)
    assert (folder.path / "network-best.pkl").resolve().name == f"network-snapshot-000000_{best:03d}.pkl"
    assert all(row["Divergence/nats_stderr"] > 0 for row in folder.stats_rows())


def test_further_averages_are_saved_measured_and_chosen_from(pair, tmp_path):
    """The best file is that of the lowest FID, whichever average it is of."""
    fids = {"network-snapshot-000000.pkl": 9.0, "network-average-000000_048-0.01.pkl": 3.0}

    def evaluate(network, name):
        return [{"metric": "fid5k_full", "results": {"fid5k_full": fids.get(name, 5.0)}, "snapshot_pkl": name}]

    snapshot = start.run(config(pair, tmp_path, ema_more="0.01,power:0.1"), evaluate=evaluate)
    folder = snapshot.parent
    files = [folder / f"network-average-000000_048-{name}.pkl" for name in ("0.01", "power_0.1")]
    tensors = [weights(path) for path in (snapshot, *files)]
    name = "synthesis.b8.conv0.weight"
    assert all(torch.equal(tensors[0]["G"][name], each["G"][name]) for each in tensors)
    assert len({each["G_ema"][name].double().sum().item() for each in tensors}) == 3
    assert (folder / "network-best.pkl").resolve() == files[0]
    rows = RunFolder(folder).average_rows()
    assert [(row["decay"], row["snapshot_pkl"]) for row in rows] == [
        ("0.01", files[0].name),
        ("power:0.1", files[1].name),
    ]
    measured = [row["snapshot_pkl"] for row in RunFolder(folder).metric_rows("fid5k_full")]
    assert measured[-1] == snapshot.name and not any("average" in each for each in measured)


def test_a_run_ends_when_it_is_flat(pair, tmp_path):
    """Rates of nearly nothing leave the divergence as it is."""
    snapshot = start.run(config(pair, tmp_path, kimg=1.6, stop_if_flat=3, glr=1e-9, flr=1e-9))
    rows = RunFolder(snapshot.parent).stats_rows()
    assert 3 <= len(rows) < 20 and "has not fallen over 3 status lines" in (snapshot.parent / "log.txt").read_text()


def test_an_objective_with_a_caution_says_so(pair, tmp_path, caplog):
    start.run(config(pair, tmp_path, objective="sid:alpha=1.2", kimg=0.016, warmup_kimg=0.008))
    assert any("sid:alpha=1.2" in message and "3.5" in message for message in caplog.messages)


@pytest.mark.slow
def test_a_run_with_a_density_ratio_resumes(pair, tmp_path, monkeypatch):
    """Interrupted in the middle, it ends with the snapshot of a run that never stopped."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    options = {"objective": "f:js", "gan_weight": 0.1, "ratio_samples": 8}
    whole = start.run(config(pair, tmp_path, **options))

    def stop(row):
        return row["Progress/cur_nimg"] == 32

    part = start.run(config(pair, tmp_path, **options), on_tick=stop)
    state = find_state(str(part.parent), tmp_path)
    resumed = start.run(start.resumed_config(state, {}), resume=state)
    assert equal(weights(whole), weights(resumed)) and whole.name == resumed.name
    rows = RunFolder(resumed.parent).stats_rows()
    assert all({"Ratio/accuracy", "Loss/ratio", "Loss/gan"} <= row.keys() for row in rows)


def test_nothing_is_saved_twice(pair, tmp_path, monkeypatch):
    """The last tick may be one that saves."""
    saved = []
    original = pickles.save
    monkeypatch.setattr(pickles, "save", lambda *args: (saved.append(1), original(*args)))
    start.run(config(pair, tmp_path, snap_ticks=1))
    assert len(saved) == 1 + 3  # before the first step, and three ticks


def test_warm_up_says_how_far_it_is(pair, tmp_path):
    snapshot = start.run(config(pair, tmp_path, warmup_kimg=0.040, tick_kimg=0.016, kimg=0.008))
    lines = (snapshot.parent / "log.txt").read_text().splitlines()
    said = [line.split(" fake")[0] for line in lines if line.startswith("warm-up")]
    assert said == ["warm-up kimg 0.0 of 0.0", "warm-up kimg 0.0 of 0.0"]
    assert all(" eta " in line for line in lines if line.startswith("warm-up"))
    rows = [json.loads(line) for line in (snapshot.parent / "stats.jsonl").read_text().splitlines()]
    assert [row["Progress/cur_nimg"] for row in rows] == [-24, -8, 8]  # before 0 the generator has not moved
    assert all(row["Loss/fake"] > 0 and ("Score/gap" in row) == (row["Progress/kimg"] > 0) for row in rows)
    losses = read_run(snapshot.parent).series("Loss/fake")
    assert losses == [(row["Progress/kimg"], row["Loss/fake"]) for row in rows]


def test_the_last_tick_may_be_short(pair, tmp_path):
    """It has a number and, beside that of the kimg before it, a snapshot of its own."""
    snapshot = start.run(config(pair, tmp_path, kimg=0.040))
    rows = [json.loads(line) for line in (snapshot.parent / "stats.jsonl").read_text().splitlines()]
    assert [(row["Progress/tick"], row["Progress/cur_nimg"]) for row in rows] == [(1, 16), (2, 32), (3, 40)]
    assert snapshot.name == "network-snapshot-000000_040.pkl"


def test_a_shorter_last_stretch_keeps_the_best_snapshot(pair, tmp_path, quick_steps):
    """The snapshot at 2.5 kimg must not take the place of that at 2."""
    options = config(pair, tmp_path, kimg=2.5, **(LARGE | {"batch": 500, "batch_gpu": 4}))
    snapshot = start.run(options, evaluate=scripted([5.0, 4.0, 3.0, 6.0]))
    assert snapshot.name == "network-snapshot-000002_500.pkl"
    assert (snapshot.parent / "network-best.pkl").resolve().name == "network-snapshot-000002.pkl"
    found = read_run(snapshot.parent)
    (fid,) = measured(found)
    assert fid.end == (2.5, 6.0) and fid.best == (2.0, 3.0)
    sentences = " ".join(warnings(found, [fid]))
    assert "network-snapshot-000002.pkl" in sentences and "not measured" not in sentences
    # Resumed from the state at 2 kimg, the row at 2.5 is measured again.
    RunFolder(snapshot.parent).cut_rows(2000)
    assert len(RunFolder(snapshot.parent).metric_rows("fid50k_full")) == 3


def test_snapshot_is_the_pickle_that_came_in(pair, tmp_path):
    """All but tensors is as it was; live and averaged generator differ; D travels through."""
    snapshot = start.run(config(pair, tmp_path))
    old, new = pickles.load(pair["gan"]), pickles.load(snapshot)
    assert list(old) == list(new) and snapshot.stat().st_size == Path(pair["gan"]).stat().st_size
    for key in ("G", "G_ema"):
        assert old[key].init_kwargs == new[key].init_kwargs and old[key].module_src == new[key].module_src
    assert all(
        torch.equal(a.read(), b.read())
        for a, b in zip(*(pickles.named_tensors(p["D"]).values() for p in (old, new)), strict=True)
    )
    both = weights(snapshot)
    assert not torch.equal(both["G"]["synthesis.b8.conv0.weight"], both["G_ema"]["synthesis.b8.conv0.weight"])
    assert load_generator(str(snapshot)).network.img_resolution == 16


def test_stopping_and_going_on_changes_nothing(pair, tmp_path):
    whole = start.run(config(pair, tmp_path / "a"))
    first = start.run(config(pair, tmp_path / "b", kimg=0.032))
    state = find_state(str(first.parent), "")
    continued = start.run(start.resumed_config(state, {"kimg": 0.048}), resume=state)
    assert continued.parent == first.parent
    assert equal(weights(whole), weights(continued))
    rows = [
        [{k: v for k, v in json.loads(line).items() if "/" in k and not k.startswith(("Timing", "Resources"))}
         for line in (path.parent / "stats.jsonl").read_text().splitlines()]
        for path in (whole, continued)
    ]  # fmt: skip
    assert rows[0] == rows[1]


def test_interrupted_in_the_warm_up_and_in_the_run(pair, tmp_path):
    """A signal ends the loop after the step in hand, with a state from which the rest follows bit for bit."""
    whole = start.run(config(pair, tmp_path / "a"))

    class Stopping(run.Run):
        def __init__(self, *args):
            super().__init__(*args)
            self.countdown = self.allowed
            for name in ("step", "warm_up_step"):
                setattr(self.trainer, name, self.counted(getattr(self.trainer, name)))

        def counted(self, function):
            def call():
                function()
                self.countdown -= 1
                if self.countdown == 0:
                    signal.raise_signal(signal.SIGTERM)

            return call

    original, options, state = start.Run, config(pair, tmp_path / "b"), None
    try:
        start.Run = Stopping
        for Stopping.allowed in (1, 2, 3):  # 1 of 2 warm-up steps; the other one and a step; three more
            with pytest.raises(KeyboardInterrupt):
                start.run(options, resume=state)
            state = find_state("latest", options.outdir)
            assert "--resume=" in (state.parent / "log.txt").read_text()
    finally:
        start.Run = original
    assert equal(weights(whole), weights(start.run(options, resume=state)))


def test_signal_to_a_real_process(pair, tmp_path):
    options = ["--batch=8", "--kimg=1000", "--warmup-kimg=0.008", "--tick-kimg=0.008", "--device=cpu"]
    command = [
        sys.executable,
        str(ROOT / "refine.py"),
        f"--gan={pair['gan']}",
        f"--teacher={pair['teacher']}",
        *options,
    ]
    process = subprocess.Popen([*command, f"--outdir={tmp_path}"], stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("tick 2 "):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read()
    assert process.wait() == 130 and "SIGINT" in rest and "--resume=" in rest and "Traceback" not in rest
    state = find_state("latest", tmp_path)
    kimg = run_state.read_state(state)["progress"]["cur_nimg"] / 1000
    result = CliRunner().invoke(cli.main, [f"--resume={state}", f"--kimg={kimg}"])
    assert result.exit_code == 0, result.output
    assert f"Resuming from {state}" in result.stdout


def scripted(values):
    """A metric whose values are given: one for each snapshot, or a function to call."""
    remaining = list(values)

    def measure(network, snapshot_name):
        value = remaining.pop(0)
        value = value() if callable(value) else value
        return [{"results": {"fid50k_full": value}, "metric": "fid50k_full", "snapshot_pkl": snapshot_name}]

    return measure


LARGE = {"batch": 1000, "batch_gpu": 8, "warmup_kimg": 0.0, "tick_kimg": 1.0, "snap_ticks": 1}  # one step a kimg


@pytest.fixture
def quick_steps(monkeypatch):
    """Steps that only count."""

    def step(self):
        self.progress.step += 1
        self.progress.cur_nimg += self.options.batch

    monkeypatch.setattr(Trainer, "step", step)


def test_metrics_best_snapshot_and_stopping(pair, tmp_path, quick_steps):
    values = [5.0, 4.0, 3.0, 3.5, 3.2, 3.3, 3.4, 2.0]
    options = config(pair, tmp_path, kimg=20, stop_if_worse=2, **LARGE)
    snapshot = start.run(options, evaluate=scripted(values))
    assert snapshot.name == "network-snapshot-000006.pkl"
    rows = RunFolder(snapshot.parent).metric_rows("fid50k_full")
    assert [row["results"]["fid50k_full"] for row in rows] == values[:7]
    assert [row["snapshot_pkl"] for row in rows] == [f"network-snapshot-{kimg:06d}.pkl" for kimg in range(7)]
    link = snapshot.parent / "network-best.pkl"
    assert link.resolve().name == "network-snapshot-000002.pkl"
    assert "2 snapshots in a row" in (snapshot.parent / "log.txt").read_text()


def test_interrupted_metric_is_the_only_loss(pair, tmp_path, quick_steps):
    """Ctrl-C while a metric is computed: the snapshot and its state are there, and the run goes on from them."""
    interrupt = lambda: signal.raise_signal(signal.SIGINT)  # noqa: E731
    options = config(pair, tmp_path, kimg=4, **LARGE)
    with pytest.raises(KeyboardInterrupt):
        start.run(options, evaluate=scripted([5.0, 4.0, interrupt]))
    state = find_state("latest", options.outdir)
    assert state.name == "training-state-000002.pt" and (state.parent / "network-snapshot-000002.pkl").exists()
    assert "metrics of network-snapshot-000002.pkl; they are not recorded" in (state.parent / "log.txt").read_text()
    start.run(options, resume=state, evaluate=scripted([3.0, 2.0]))
    rows = RunFolder(state.parent).metric_rows("fid50k_full")
    assert [row["results"]["fid50k_full"] for row in rows] == [5, 4, 3, 2]


def test_a_finished_run_is_not_measured_again(pair, tmp_path, quick_steps):
    options = config(pair, tmp_path, kimg=2, **LARGE)
    snapshot = start.run(options, evaluate=scripted([5.0, 4.0, 3.0]))
    state = find_state("latest", options.outdir)
    assert start.run(options, resume=state, evaluate=scripted([])) == snapshot
    longer = start.resumed_config(state, {"kimg": 3.0})
    start.run(longer, resume=state, evaluate=scripted([6.0]))
    rows = RunFolder(snapshot.parent).metric_rows("fid50k_full")
    assert [row["results"]["fid50k_full"] for row in rows] == [5, 4, 3, 6]
    stored = RunConfig.from_dict(RunFolder(snapshot.parent).read_options())
    assert stored.kimg == 3.0  # so that an interruption goes on to there


def test_going_on_from_an_older_state(pair, tmp_path, quick_steps):
    """Newer rows, states and the best snapshot are set aside."""
    options = config(pair, tmp_path, kimg=3, **LARGE)
    folder = start.run(options, evaluate=scripted([5.0, 4.0, 3.0, 2.0])).parent
    (folder / "training-state-000003.pt").write_bytes(b"damaged")
    (folder / ".refine-0.tmp").write_bytes(b"left by a killed process")
    start.run(options, resume=folder / "training-state-000002.pt", evaluate=scripted([9.0]))
    assert (folder / "network-best.pkl").resolve().name == "network-snapshot-000002.pkl"
    assert (folder / "training-state-000003.pt.superseded").read_bytes() == b"damaged"
    assert not list(folder.glob(".*.tmp"))
    assert run_state.read_state(find_state("latest", options.outdir))["progress"]["cur_nimg"] == 3000


def test_a_state_from_the_warm_up_on_and_then_by_time(pair, tmp_path, quick_steps, monkeypatch):
    written = []
    original = Writer.save

    def save(self, *, snapshot=False, state=False):
        if state:
            written.append(self.trainer.progress.cur_nimg)
        original(self, snapshot=snapshot, state=state)

    monkeypatch.setattr(Writer, "save", save)
    start.run(config(pair, tmp_path, kimg=3, **(LARGE | {"snap_ticks": 3})))
    assert written == [0, 3000]
    monkeypatch.setattr(run, "STATE_SECONDS", -1.0)
    start.run(config(pair, tmp_path, kimg=3, **(LARGE | {"snap_ticks": 3})))
    assert written == [0, 3000, 0, 1000, 2000, 3000]


def test_statistics_survive_an_interruption(pair, tmp_path):
    """Stopped between two ticks, the row of the tick is that of an uninterrupted run."""
    rows = []
    for name, stop_at in (("whole", None), ("parts", 24)):
        options = config(pair, tmp_path / name)
        original = Trainer.step

        def step(self, original=original, stop_at=stop_at):
            original(self)
            if self.progress.cur_nimg == stop_at:
                signal.raise_signal(signal.SIGTERM)

        Trainer.step = step
        try:
            start.run(options)
        except KeyboardInterrupt:
            Trainer.step = original
            start.run(options, resume=find_state("latest", options.outdir))
        finally:
            Trainer.step = original
        (folder,) = Path(options.outdir).iterdir()
        lines = (folder / "stats.jsonl").read_text().splitlines()
        rows.append([{k: v for k, v in json.loads(line).items() if "Loss" in k or "Score" in k} for line in lines])
    assert rows[0] == [pytest.approx(row, rel=1e-6) for row in rows[1]] and len(rows[0]) == 3


def test_metrics_newer_than_the_state_are_measured_again(pair, tmp_path, quick_steps):
    options = config(pair, tmp_path, kimg=3, **LARGE)
    snapshot = start.run(options, evaluate=scripted([5.0, 4.0, 3.0, 2.0]))
    (snapshot.parent / "training-state-000003.pt").unlink()
    state = find_state(str(snapshot.parent), "")
    start.run(options, resume=state, evaluate=scripted([1.0]))
    assert [row["results"]["fid50k_full"] for row in RunFolder(snapshot.parent).metric_rows("fid50k_full")] == [
        5,
        4,
        3,
        1,
    ]


def test_rising():
    assert evaluation.rising([1, 2, 3], 2) and not evaluation.rising([1, 2, 3], 3)
    assert not evaluation.rising([1, 3, 2], 1) and not evaluation.rising([3, 3, 3], 2) and not evaluation.rising([], 1)


def test_best_without_links(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError("no privilege")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    folder = RunFolder(tmp_path)
    for content in (b"one", b"two"):
        (tmp_path / "network-snapshot-000001.pkl").write_bytes(content)
        folder.link_best(tmp_path / "network-snapshot-000001.pkl")
        assert (tmp_path / "network-best.pkl").read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 2


def test_ticks_lie_on_a_grid_that_no_interruption_shifts(pair, tmp_path, quick_steps):
    """Stopped between two ticks, a run still saves where it would have saved."""
    options = config(pair, tmp_path, kimg=6, **(LARGE | {"tick_kimg": 2.0}))
    step = Trainer.step

    def stop_at_3(self):
        step(self)
        if self.progress.cur_nimg == 3000:
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", stop_at_3)
        with pytest.raises(KeyboardInterrupt):
            start.run(options)
    state = find_state("latest", options.outdir)
    assert state.name == "training-state-000003.pt"
    start.run(options, resume=state)
    snapshots = sorted(p.name for p in state.parent.glob("network-snapshot-*.pkl"))
    assert snapshots == [f"network-snapshot-{kimg:06d}.pkl" for kimg in (0, 2, 4, 6)]


@pytest.mark.slow
def test_full_disk(pair, tmp_path):
    """One sentence, and what was saved before is still good."""
    script = (
        "import resource, sys; sys.argv[0] = 'refine.py'\n"
        "from refine.runs import run\n"
        "original = run.Run.save\n"
        "def save(self):\n"
        "    original(self)\n"
        "    self.writer.wait()\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "run.Run.save = save\n"
        "from refine.commands.run import main; main()\n"
    )
    options = ["--batch=8", "--kimg=0.1", "--warmup-kimg=0.008", "--tick-kimg=0.016", "--snap-ticks=1", "--device=cpu"]
    files = [f"--gan={pair['gan']}", f"--teacher={pair['teacher']}", f"--outdir={tmp_path}"]
    result = subprocess.run([sys.executable, "-c", script, *files, *options], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "Cannot write" in result.stderr and "choose a disk" in result.stderr
    state = find_state("latest", tmp_path)
    assert run_state.read_state(state)["progress"]["cur_nimg"] == 16
    pickles.load(state.parent / "network-snapshot-000000.pkl")
    assert not list(state.parent.glob(".refine-*"))


def test_started_from_the_weights_of_another_run(pair, tmp_path):
    first = start.run(config(pair, tmp_path))
    state = find_state(str(first.parent), "")
    second = start.run(config(pair, tmp_path, init=str(state), kimg=0.008, glr=1e-9))
    assert second.parent != first.parent
    moved, before = weights(second), weights(first)
    assert torch.allclose(moved["G"]["synthesis.b8.conv0.weight"], before["G"]["synthesis.b8.conv0.weight"], atol=1e-6)
    continued = find_state(str(second.parent), "")
    assert start.run(start.resumed_config(continued, {"kimg": 0.016}), resume=continued).parent == second.parent
    state.unlink()  # the run has its beginning in its own states
    start.run(start.resumed_config(continued, {"kimg": 0.024}), resume=continued)
    drift = [json.loads(line)["Drift/parameters"] for line in (second.parent / "stats.jsonl").read_text().splitlines()]
    assert drift[-1] < 1e-5  # from the weights it began with, not from those of the pickle


@pytest.mark.parametrize(("batch", "batch_gpu", "remedy"), [
    (8, 4, "batch_gpu=2"), (9, None, "batch_gpu=3"), (15, 3, "batch_gpu=1"), (7, 1, "precision=bf16"),
])  # fmt: skip
def test_memory_that_does_not_suffice(pair, batch, batch_gpu, remedy):
    options = config(pair, Path("."), batch=batch, batch_gpu=batch_gpu)
    with (
        pytest.raises(UserError, match=rf"\b{batch_gpu or batch} images? per pass: .*\b{remedy}\b"),
        memory.memory_advice(options.batch, options.batch_gpu),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.slow
@pytest.mark.parametrize("attempt", [0, 1, 2])
def test_killed_at_any_moment(attempt, pair, tmp_path):
    """The newest state under its final name is complete, and no half-written snapshot has one."""
    options = ["--batch=8", "--kimg=1000", "--warmup-kimg=0.008", "--tick-kimg=0.008", "--snap-ticks=1", "--device=cpu"]
    command = [
        sys.executable,
        str(ROOT / "refine.py"),
        f"--gan={pair['gan']}",
        f"--teacher={pair['teacher']}",
        *options,
    ]
    process = subprocess.Popen([*command, f"--outdir={tmp_path}"], stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith(f"tick {3 + attempt} "):  # the first one's files are written by now
            time.sleep(0.013 * attempt)
            process.kill()
            break
    process.stderr.read()
    process.wait()
    folder = RunFolder(next(tmp_path.glob("*-batch8")))
    state = run_state.read_state(folder.states()[-1])
    assert state["progress"]["step"] >= 1
    for path in folder.path.glob("network-snapshot-*.pkl"):
        pickles.load(path)


def test_wrong_states(pair, tmp_path):
    first = start.run(config(pair, tmp_path, kimg=0.016))
    state = find_state(str(first.parent), "")
    with pytest.raises(UserError, match=r"\bbatch\b"):
        start.resumed_config(state, {"batch": 16})
    assert start.resumed_config(state, {"batch": 8, "kimg": 2.0}).kimg == 2.0
    content = run_state.read_state(state)
    trainer_of = lambda: Trainer(load_pair(**pair), config(pair, tmp_path), torch.device("cpu"))  # noqa: E731
    with pytest.raises(OptionError, match=r"\bteacher\b"):
        run_state.load_state(trainer_of(), content, content["digests"] | {"teacher": "0"})
    torch.save(content | {"version": 0}, tmp_path / "training-state-000000.pt")
    with pytest.raises(UserError, match="another version"):
        run_state.read_state(tmp_path / "training-state-000000.pt")
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"training-state-\d+\.pt .*corrupted"):
        run_state.read_state(state)
    (state.parent / "training_options.json").write_text('{"gan": "g", "teacher": "t", "new": 1}')
    with pytest.raises(UserError, match="entry 'new'"):
        start.resumed_config(state, {})
    (state.parent / "training_options.json").write_text('{"gan": "g"}')
    with pytest.raises(UserError, match="incomplete"):
        start.resumed_config(state, {})
    (state.parent / "training_options.json").write_text("[]")
    with pytest.raises(UserError, match=r"training_options\.json"):
        start.resumed_config(state, {})


def test_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device=cuda"):
        device.choose_device("cuda")
    assert device.choose_device("cpu").type == "cpu"


def test_times():
    seconds = {0: "0s", 59.6: "1m 00s", 3601: "1h 00m 01s", 5901: "1h 38m 21s", 90061: "1d 01h 01m"}
    assert {s: text.format_time(s) for s in seconds} == seconds
