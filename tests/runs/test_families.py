"""Each family of generators: refined for some steps, resumed, exported and measured."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

import refine
from refine.commands import export
from refine.config import RunConfig
from refine.networks.loading import generator_of
from refine.pickles import named_tensors
from refine.runs import start

FAMILIES = ["sgxl/s1_sgxl_stem_cond16.pkl", "r3gan/s1_r3gan_uncond32.pkl"]


def config(gan, fixture_path, outdir, **changes):
    teacher = str(fixture_path("edm/s1_edm_ddpmpp_uncond16.pkl"))
    sizes = {"batch": 4, "kimg": 0.012, "warmup_kimg": 0.004, "tick_kimg": 0.004, "snap_ticks": 1, "preflight": False}
    rates = {"glr": 1e-3, "flr": 1e-3, "ema_halflife_kimg": 0.01, "train_layers": "all"}
    return RunConfig(gan=gan, teacher=teacher, outdir=str(outdir), device="cpu", **(sizes | rates | changes))


def states(path):
    pkl = refine.load_generator(path).pickle
    return {key: {n: t.read() for n, t in named_tensors(pkl[key]).items()} for key in ("G", "G_ema")}


def equal(one, other):
    return all(torch.equal(one[key][name], other[key][name]) for key in one for name in one[key])


@pytest.mark.parametrize("name", [FAMILIES[0], pytest.param(FAMILIES[1], marks=pytest.mark.slow)])
def test_refined_resumed_exported_measured(name, fixture_path, tmp_path):
    gan = str(fixture_path(name))
    snapshot = refine.run(config(gan, fixture_path, tmp_path / "whole"))
    source, written = fixture_path(name).read_bytes(), snapshot.read_bytes()
    assert len(source) == len(written) and source != written
    before, after = states(gan), states(snapshot)
    moved = {n for n, tensor in after["G"].items() if not torch.equal(tensor, before["G_ema"][n])}
    kept = {
        n
        for n in after["G"]
        if "embed.weight" in n or n.endswith(("_filter", ".Kernel", ".transform", "freqs", "phases"))
    }
    assert moved | kept == set(after["G"]) and not moved & kept
    assert not equal({"G": after["G"]}, {"G": after["G_ema"]})

    stopped = refine.run(config(gan, fixture_path, tmp_path / "part"), on_tick=lambda row: row["Progress/tick"] == 1)
    (state,) = stopped.parent.glob("training-state-*.pt")
    resumed = refine.run(start.resumed_config(state, {}), resume=state)
    assert resumed.name == snapshot.name and equal(states(resumed), after)

    for kind, suffix in (("safetensors", "safetensors"), ("pkl-ema", "pkl")):
        out = tmp_path / f"exported.{suffix}"
        result = CliRunner().invoke(export.main, [f"--network={snapshot}", f"--format={kind}", f"--out={out}"])
        assert result.exit_code == 0, (kind, result.output, result.exception)
        assert out.is_file()
    compact = refine.load_generator(tmp_path / "exported.pkl")
    assert equal({"G_ema": generator_of(compact.pickle).network.state_dict()}, {"G_ema": after["G_ema"]})
    # Which is refined in turn: G and G_ema are one object there.
    again = refine.run(config(str(tmp_path / "exported.pkl"), fixture_path, tmp_path / "again", kimg=0.004))
    assert not equal(states(again), states(tmp_path / "exported.pkl"))

    detector = str(fixture_path("metrics/tiny_inception_s.pt"))
    rows = refine.evaluate(snapshot, "is200", detector=detector, trust_detector=True, device="cpu")
    assert rows[0]["snapshot_pkl"] == snapshot.name and rows[0]["results"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_onnx(name, fixture_path, tmp_path):
    """ONNX Runtime's images are compared with PyTorch's before the file gets its name."""
    result = CliRunner().invoke(
        export.main, [f"--network={fixture_path(name)}", "--format=onnx", f"--out={tmp_path / 'g.onnx'}"]
    )
    assert result.exit_code == 0, result.output
    assert "the same within" in result.stdout and (tmp_path / "g.onnx").is_file()
