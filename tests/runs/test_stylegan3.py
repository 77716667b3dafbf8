"""A run with a StyleGAN3 generator: refined, resumed, written back, exported."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from refine import load_generator, pickles
from refine.commands import export
from refine.config import RunConfig
from refine.networks.style_based import as_generator
from refine.runs import start
from refine.runs.folder import find_state
from refine.training.acceleration import compile_blocks

NAMES = ["s2_stylegan3t_uncond32", "s3_stylegan3r_uncond16", "s4_stylegan3t_cond16"]


def config(fixture_path, tmp_path, name, **changes):
    sizes = {"batch": 4, "kimg": 0.012, "warmup_kimg": 0.004, "tick_kimg": 0.004, "snap_ticks": 1, "preflight": False}
    changes = {"train_layers": "all", **changes}
    files = {"gan": f"sg3/{name}.pkl", "teacher": "edm/s1_edm_ddpmpp_uncond16.pkl"}
    files = {option: str(fixture_path(file)) for option, file in files.items()}
    rates = {"glr": 1e-3, "flr": 1e-3, "ema_halflife_kimg": 0.004}
    return RunConfig(**files, outdir=str(tmp_path / "runs"), device="cpu", **(sizes | rates | changes))


def tensors(path, key):
    return {name: record.read() for name, record in pickles.named_tensors(pickles.load(path)[key]).items()}


@pytest.mark.parametrize("name", [NAMES[1], *(pytest.param(NAMES[i], marks=pytest.mark.slow) for i in (0, 2))])
def test_refined_resumed_and_written_back(name, fixture_path, tmp_path):
    snapshot = start.run(config(fixture_path, tmp_path, name))
    before = fixture_path(f"sg3/{name}.pkl")
    for key in ("G", "G_ema"):
        old, new = tensors(before, "G_ema"), tensors(snapshot, key)
        assert old.keys() == new.keys()
        changed = {name for name in old if not torch.equal(old[name], new[name])}
        constants = ("filter", "transform", "freqs", "phases")
        trained = {name for name in old if not name.endswith(constants)}
        assert changed == trained  # weights, averages of w and magnitudes; no constant
        assert all(tensor.isfinite().all() for tensor in new.values())
    assert all(torch.equal(tensor, tensors(snapshot, "D")[n]) for n, tensor in tensors(before, "D").items())
    assert list(pickles.load(snapshot)) == list(pickles.load(before))
    G = load_generator(str(snapshot)).network
    assert G(torch.randn(2, G.z_dim), torch.eye(2, G.c_dim)).isfinite().all()
    # A shorter run, resumed, is the same run.
    first = start.run(config(fixture_path, tmp_path, name, kimg=0.008))
    state = find_state(str(first.parent), "")
    again = start.run(start.resumed_config(state, {"kimg": 0.012}), resume=state)
    for key in ("G", "G_ema"):
        expected = tensors(snapshot, key)
        assert all(torch.equal(tensor, expected[n]) for n, tensor in tensors(again, key).items())


def test_averages_do_not_depend_on_micro_batches(fixture_path, tmp_path):
    whole, parts = (start.run(config(fixture_path, tmp_path, NAMES[1], kimg=0.004, batch_gpu=size)) for size in (4, 1))
    averages = {name: value for name, value in tensors(whole, "G").items() if name.endswith(("magnitude_ema", "w_avg"))}
    assert len(averages) == 9
    for name, value in averages.items():
        torch.testing.assert_close(tensors(parts, "G")[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.slow
def test_checkpointing_changes_nothing(fixture_path, tmp_path):
    plain, saving = (
        start.run(config(fixture_path, tmp_path, NAMES[1], kimg=0.004, checkpoint=value)) for value in (False, True)
    )
    for name, tensor in tensors(plain, "G").items():
        torch.testing.assert_close(tensors(saving, "G")[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(("kind", "suffix"), [("safetensors", ".safetensors"), ("pkl-ema", ".pkl")])
def test_exported(kind, suffix, fixture_path, tmp_path):
    path, out = fixture_path(f"sg3/{NAMES[1]}.pkl"), tmp_path / f"g{suffix}"
    done = CliRunner().invoke(export.main, [f"--network={path}", f"--format={kind}", f"--out={out}"])
    assert done.exit_code == 0, done.output
    assert "the same within" in done.stdout
    if kind == "pkl-ema":
        found, expected = tensors(out, "G_ema"), tensors(path, "G_ema")
        assert found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in found)
        return
    content = out.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["synthesis.L0_32_24.down_filter"]["shape"] == [12, 12]


def test_rosinality_has_no_place_for_it(fixture_path, tmp_path):
    path = fixture_path(f"sg3/{NAMES[1]}.pkl")
    done = CliRunner().invoke(export.main, [f"--network={path}", "--format=rosinality", f"--out={tmp_path / 'g.pt'}"])
    assert done.exit_code == 2 and "StyleGAN2" in done.output and not (tmp_path / "g.pt").exists()


@pytest.mark.slow
def test_onnx(fixture_path, tmp_path):
    path, out = fixture_path(f"sg3/{NAMES[1]}.pkl"), tmp_path / "g.onnx"
    done = CliRunner().invoke(export.main, [f"--network={path}", "--format=onnx", f"--out={out}"])
    assert done.exit_code == 0, done.output
    assert "the same within" in done.stdout


@pytest.mark.slow
def test_compiled_layers(fixture_path):
    G = load_generator(str(fixture_path(f"sg3/{NAMES[1]}.pkl"))).network.requires_grad_(True)
    z = torch.randn(2, G.z_dim)
    results = []
    for _ in range(2):
        image = G(z)
        results.append([image.detach(), *torch.autograd.grad(image.square().sum(), list(G.synthesis.parameters()))])
        compile_blocks(as_generator(G).blocks(), backend="aot_eager")
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-4)
