"""Runs without a GAN: the teacher is distilled, resumed, shared by processes, killed, and its files are used."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import refine
from refine import load_generator, pickles
from refine.__main__ import main as python_m_refine
from refine.commands import dry_run
from refine.commands import run as cli
from refine.config import RunConfig
from refine.errors import OptionError, UserError
from refine.networks.one_step import recorded
from refine.presets import PRESETS
from refine.report.read import read_run
from refine.runs import start
from refine.runs.folder import RunFolder, find_state
from refine.training.state import load_weights, read_state

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(processes.__file__).with_name("distributed_worker.py")
COND, UNCOND = "edm/s4_sid_ddpmpp_cond16.pkl", "edm/s1_edm_ddpmpp_uncond16.pkl"


@pytest.fixture
def teacher(fixture_path):
    return str(fixture_path(COND))


def config(teacher, tmp_path, **changes):
    sizes = {"batch": 4, "kimg": 0.024, "warmup_kimg": 0.008, "tick_kimg": 0.008, "snap_ticks": 2}
    rates = {"glr": 1e-3, "flr": 1e-3, "ema_halflife_kimg": 0.01}
    return RunConfig(
        **{"teacher": teacher, "outdir": str(tmp_path / "runs"), "device": "cpu"} | sizes | rates | changes
    )


def tensors(path):
    return {
        (key, name): record.read()
        for key in ("ema", "net")
        for name, record in pickles.named_tensors(pickles.load(path)[key]).items()
    }


def equal(one, two):
    a, b = tensors(one), tensors(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def distilled(fixture_path, tmp_path_factory):
    """The last snapshot of a run of SiD, and the folder's first."""
    options = config(str(fixture_path(COND)), tmp_path_factory.mktemp("distilled"), objective="sid:alpha=1.2")
    return start.run(options)


def test_what_a_run_writes(distilled, teacher, caplog):
    folder = distilled.parent
    assert folder.name == "00000-s4_sid_ddpmpp_cond16-distilled-sid-batch4"
    first = folder / "network-snapshot-000000.pkl"
    start_of_it = {name: record.read() for name, record in pickles.named_tensors(pickles.load(teacher)["ema"]).items()}
    assert all(torch.equal(value, start_of_it[name]) for (_, name), value in tensors(first).items())
    last = tensors(distilled)
    moved = [name for key, name in last if key == "net" and not torch.equal(last[key, name], start_of_it[name])]
    assert len(moved) > 20 and not torch.equal(last["net", moved[0]], last["ema", moved[0]])
    assert recorded(pickles.load(distilled)) == {"sigma_init": 2.5, "objective": "sid:alpha=1.2"}
    assert not (folder / "preflight.json").exists()
    assert "distilled into one step" in (folder / "report.html").read_text(encoding="utf-8")
    stored = json.loads((folder / "training_options.json").read_text())
    assert stored["gan"] is None and RunConfig.from_dict(stored).gan is None
    assert read_run(folder).options["sigma_init"] is None
    with Image.open(folder / "fakes_init.png") as picture:
        assert picture.size[0] > 16 * 5


@pytest.mark.parametrize("objective", ["ikl", pytest.param("sid", marks=pytest.mark.slow)])
def test_stopping_and_going_on_changes_nothing(teacher, tmp_path, objective):
    whole = start.run(config(teacher, tmp_path / "a", objective=objective, sigma_init=1.0))
    part = start.run(
        config(teacher, tmp_path / "b", objective=objective, sigma_init=1.0),
        on_tick=lambda row: row["Progress/cur_nimg"] == 8,
    )
    state = find_state(str(part.parent), "")
    assert read_state(state)["digests"].keys() == {"teacher"}
    resumed = start.run(start.resumed_config(state, {}), resume=state)
    assert resumed.name == whole.name and equal(whole, resumed)
    with pytest.raises(OptionError, match="sigma_init"):
        start.resumed_config(state, {"sigma_init": 2.0})


@pytest.mark.slow
def test_killed_and_resumed(teacher, tmp_path):
    """Kill -9 in the middle: the newest state is whole, and what follows from it is what would have come."""
    options = ["--batch=4", "--warmup-kimg=0.004", "--tick-kimg=0.004", "--snap=1", "--device=cpu", "--lr-decay=none"]
    command = [sys.executable, str(ROOT / "refine.py"), f"--teacher={teacher}", *options]
    process = subprocess.Popen(
        [*command, "--kimg=1000", f"--outdir={tmp_path / 'killed'}"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("tick 4 "):
            time.sleep(0.01)
            process.kill()
            break
    process.stderr.read()
    process.wait()
    folder = RunFolder(next((tmp_path / "killed").iterdir()))
    for path in folder.path.glob("network-snapshot-*.pkl"):
        load_generator(str(path))
    state = folder.states()[-1]
    done = read_state(state)["progress"]["cur_nimg"]
    assert done >= 4
    kimg = (done + 8) / 1000
    resumed = start.run(start.resumed_config(state, {"kimg": kimg}), resume=state)
    stored = json.loads((folder.path / "training_options.json").read_text())
    whole = start.run(RunConfig.from_dict(stored | {"outdir": str(tmp_path / "whole")}))
    assert whole.name == resumed.name and equal(whole, resumed)


@pytest.mark.slow
def test_two_processes_follow_one(fixture_path, tmp_path):
    """An uneven batch of 7, in float64: what differs is the order of sums."""
    results = []
    for count in (1, 2):
        out = tmp_path / f"{count}.pt"
        processes.finish(processes.start(count, WORKER, "distill", fixture_path(COND), out))
        results.append(torch.load(out, weights_only=True))
    one, two = results
    for name, value in one.items():
        scale = value.abs().max().clamp(min=1e-3)
        assert ((two[name] - value).abs().max() / scale) < 1e-6, name


# -- what is done with the file --------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(python_m_refine, [str(argument) for argument in arguments])


def done(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, (result.output, result.stderr)
    return result


def test_generate_draws_each_seeds_class(distilled, tmp_path):
    out = tmp_path / "out"
    done("generate", f"--network={distilled}", "--seeds=0-2,85", f"--outdir={out}", "--device=cpu")
    expected = refine.generate(load_generator(str(distilled)), [0, 1, 2, 85])
    for seed, image in zip((0, 1, 2, 85), expected, strict=True):
        found = np.asarray(Image.open(out / f"seed{seed:04d}.png")).astype(int)
        wanted = (image * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy().astype(int)
        assert np.abs(found - wanted).max() <= 1
    done(
        "generate", f"--network={distilled}", "--seeds=0", "--class=all", f"--outdir={tmp_path / 'all'}", "--device=cpu"
    )
    assert len(list((tmp_path / "all").glob("*.png"))) == 5
    np.save(tmp_path / "z.npy", np.zeros((2, 3, 16, 16)))
    done(
        "generate", f"--network={distilled}", f"--latents={tmp_path / 'z.npy'}", "--class=1",
        f"--outdir={tmp_path / 'z'}", "--device=cpu",
    )  # fmt: skip
    assert len(list((tmp_path / "z").glob("*.png"))) == 2
    first = distilled.parent / "network-snapshot-000000.pkl"
    compared = done(
        "generate", f"--network={distilled}", "--seeds=0-3", f"--compare={first}", f"--outdir={tmp_path / 'two'}",
        "--device=cpu",
    )  # fmt: skip
    assert "compare.png" in compared.output
    for option, word in (("--trunc=0.7", "psi 0.7"), ("--latents=x", "--seeds"), ("--projected-w=w.npy", "--seeds")):
        refused = run("generate", f"--network={distilled}", "--seeds=0", option, f"--outdir={tmp_path / 'no'}")
        assert refused.exit_code == 2 and word in refused.stderr


def test_sids_file_with_another_level(fixture_path, tmp_path):
    sid = fixture_path("sid/s1_sid_ddpmpp_uncond16.pkl")
    for level in (2.5, 1.0):
        done("generate", f"--network={sid}", "--seeds=3", f"--sigma-init={level}", f"--outdir={tmp_path / str(level)}")
    images = [Image.open(tmp_path / str(level) / "seed0003.png").tobytes() for level in (2.5, 1.0)]
    assert images[0] != images[1]


def test_metrics_report_inspect(distilled, fixture_path, tmp_path):
    detector, data = fixture_path("metrics/tiny_inception_s.pt"), fixture_path("metrics/dataset_s32.zip")
    result = done(
        "metrics", f"--network={distilled}", "--metrics=is40", f"--detector={detector}", "--device=cpu",
    )  # fmt: skip
    assert json.loads(result.stdout)["snapshot_pkl"] == distilled.name
    del data
    row = refine.evaluate(load_generator(str(distilled)), "is40", detector=str(detector), device="cpu")[0]
    assert row["results"] == json.loads(result.stdout)["results"]
    refused = run("metrics", f"--network={distilled}", "--metrics=ppl2_wend10", f"--detector={detector}",
                  f"--vgg={fixture_path('metrics/tiny_vgg_s.pt')}", "--device=cpu")  # fmt: skip
    assert refused.exit_code == 2 and "mapping" in refused.stderr
    assert "one_step" in done("inspect", str(distilled)).stdout
    done("report", str(distilled.parent))


def test_blend(distilled, tmp_path):
    first, out = distilled.parent / "network-snapshot-000000.pkl", tmp_path / "half.pkl"
    done("blend", f"--from={first}", f"--to={distilled}", "--alpha=0.5", f"--out={out}", "--seeds=0-1", "--device=cpu")
    start_of_it, end, found = (tensors(path) for path in (first, distilled, out))
    assert found.keys() == end.keys()
    assert all(torch.allclose(value, start_of_it[key].lerp(end[key], 0.5)) for key, value in found.items())
    assert recorded(pickles.load(out)) == recorded(pickles.load(distilled))
    network = load_generator(str(first), sigma_init=1.0)
    refine.save(network, tmp_path / "one.pkl")
    refused = run("blend", f"--from={tmp_path / 'one.pkl'}", f"--to={distilled}", "--seeds=0", "--device=cpu")
    assert refused.exit_code == 2 and "2.5" in refused.stderr


@pytest.mark.parametrize(("kind", "suffix"), [("safetensors", ".safetensors"), ("pkl-ema", ".pkl")])
def test_export(distilled, tmp_path, kind, suffix):
    out = tmp_path / f"out{suffix}"
    done("export", f"--network={distilled}", f"--format={kind}", f"--out={out}")
    if kind == "pkl-ema":
        assert set(pickles.load(out)) == {"ema", "one_step"} and load_generator(str(out)).network.sigma_init == 2.5
        return
    first, back = distilled.parent / "network-snapshot-000000.pkl", tmp_path / "back.pkl"
    done("export", f"--network={out}", "--format=pkl", f"--like={first}", f"--out={back}")
    found, expected = tensors(back), tensors(distilled)
    assert all(torch.equal(value, expected["ema", name]) for (_, name), value in found.items())


@pytest.mark.slow
@pytest.mark.parametrize("conditional", [True, False])
def test_export_onnx(fixture_path, distilled, tmp_path, conditional):
    network = distilled if conditional else fixture_path("sid/s1_sid_ddpmpp_uncond16.pkl")
    done("export", f"--network={network}", "--format=onnx", f"--out={tmp_path / 'out.onnx'}")
    refused = run("export", f"--network={network}", "--format=rosinality", f"--out={tmp_path / 'out.pt'}")
    assert refused.exit_code == 2 and "StyleGAN2" in refused.stderr


def test_refined_like_a_gan(distilled, fixture_path, tmp_path):
    """--gan takes the file, and what comes out tells the same sigma_init; --init takes its weights."""
    again = start.run(config(str(fixture_path(COND)), tmp_path, gan=str(distilled), preflight=False, batch=2))
    assert again.parent.name.startswith("00000-network-snapshot-000000_024-s4_sid_ddpmpp_cond16-ikl")
    assert recorded(pickles.load(again)) == {"sigma_init": 2.5, "objective": "ikl"}
    first, before = tensors(again.parent / "network-snapshot-000000.pkl"), tensors(distilled)
    assert all(torch.equal(value, before["ema", name]) for (_, name), value in first.items())
    unlike = config(str(fixture_path(COND)), tmp_path, sigma_init=1.0)
    pair = start.pair_for(unlike)
    from trainers import trainer_of

    with pytest.raises(OptionError, match=r"sigma_init=2\.5"):
        load_weights(trainer_of(pair), distilled)
    trainer = trainer_of(start.pair_for(config(str(fixture_path(COND)), tmp_path)))
    load_weights(trainer, distilled)
    live = trainer.generator.module.state_dict()
    assert all(torch.equal(live[name], value) for (key, name), value in before.items() if key == "net")


# -- wrong use -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--teacher=sg2ada/b_cond16.pkl"], r"b_cond16\.pkl.*StyleGAN generator.*--gan"),
        ([f"--teacher={COND}", "--train-layers=4,8"], r"--train-layers=4,8"),
        ([f"--teacher={COND}", f"--gan={COND}", "--train-layers=8"], r"--train-layers=8"),
        ([f"--teacher={COND}", "--sigma-init=100"], r"--sigma-init=100 .*0\.002 to 80"),
        ([f"--teacher={COND}", "--sigma-init=0"], r"--sigma-init"),
        ([f"--teacher={COND}", "--class-map=0,1,2,3,4"], r"--class-map"),
        ([f"--teacher={COND}", "--anchor=1"], r"--anchor=1"),
        ([f"--teacher={COND}", "--gan=sg2ada/b_cond16.pkl", "--sigma-init=2.5"], r"--sigma-init=2\.5 .*b_cond16\.pkl"),
        ([f"--teacher={COND}", f"--gan={UNCOND}"], r"s1_edm_ddpmpp_uncond16\.pkl.*--teacher"),
    ],
)  # fmt: skip
def test_wrong_use_gets_its_sentence(fixture_path, tmp_path, options, words):
    named = [re.sub(r"=(\w+/.*)", lambda m: f"={fixture_path(m[1])}", option) for option in options]
    result = CliRunner().invoke(cli.main, [*named, f"--outdir={tmp_path / 'runs'}", "--device=cpu", "--preset=tiny"])
    assert result.exit_code == 2 and re.search(words, result.stderr, re.DOTALL), result.stderr
    assert "Traceback" not in result.stderr and not (tmp_path / "runs").exists()


def test_dry_run(teacher, tmp_path):
    text = dry_run.describe_run(config(teacher, tmp_path, objective="sid", sigma_init=1.5, batch_gpu=2))
    assert re.search(r"Distilled .*sigma_init 1\.5", text) and "11 U-Net units" in text and "of 2 images" in text
    assert not (tmp_path / "runs").exists()


def test_presets(teacher):
    chosen = RunConfig.from_preset(teacher=teacher)
    assert chosen.preset == "distill-tiny" and chosen.gan is None
    sid = RunConfig(teacher="t", **PRESETS["sid-cifar10"].options_for(True))
    assert (str(sid.objective), sid.glr, sid.flr, sid.batch) == ("sid:alpha=1.2", 1e-5, 1e-5, 256)
    released = RunConfig(teacher="t", **PRESETS["diff-instruct"].options_for(True))
    assert (released.sigma_init, str(released.objective), released.batch) == (1.0, "ikl", 128)
    dmd2 = RunConfig(teacher="t", **PRESETS["dmd2"].options_for(True))
    assert (dmd2.sigma_init, str(dmd2.objective), dmd2.fake_steps) == (80.0, "ikl:weighting=dmd", 5)
    with pytest.raises(UserError, match="teacher"):
        RunConfig.from_preset()
