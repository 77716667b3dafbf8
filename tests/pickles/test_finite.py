"""Weights that are NaN or infinite are named, by everything that opens the file."""

from __future__ import annotations

import json
import math

import pytest
import torch
from click.testing import CliRunner

from refine import load_generator, load_teacher, pickles
from refine.commands import blend, export, generate, inspect
from refine.pickles import NonFiniteError, named_tensors
from refine.pickles.finite import non_finite


@pytest.fixture
def spoiled(fixture_path, tmp_path):
    """`spoiled(file, key, tensor name, value)` -> path of the pickle with two such values in that tensor."""

    def make(file, key, name, value, out="bad.pkl"):
        pkl = pickles.load(fixture_path(file))
        state = {n: t.read() for n, t in named_tensors(pkl[key]).items()}
        state[name].view(-1)[:2] = value
        pickles.save(pkl, tmp_path / out, {key: state})
        return tmp_path / out

    return make


GAN, TEACHER = "sg2ada/b_cond16.pkl", "edm/s4_sid_ddpmpp_cond16.pkl"
NAMES = ("synthesis.b8.conv0.weight", "mapping.w_avg", "synthesis.b16.conv1.noise_const", "mapping.fc0.bias")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", NAMES)
def test_generator(spoiled, fixture_path, name, value):
    path = spoiled(GAN, "G_ema", name, value)
    with pytest.raises(NonFiniteError) as caught:
        load_generator(str(path))
    size = named_tensors(pickles.load(path)["G_ema"])[name].num_elements
    assert all(part in str(caught.value) for part in (str(path), name, " 2 ", f"{size:,}"))
    load_generator(str(spoiled(GAN, "G", name, value)))  # G is not used where there is a G_ema


def test_teacher(spoiled):
    path = spoiled(TEACHER, "ema", "model.map_layer0.weight", math.nan)
    with pytest.raises(NonFiniteError, match=r"model\.map_layer0\.weight") as caught:
        load_teacher(str(path))
    assert str(path) in str(caught.value)
    with pytest.raises(NonFiniteError):
        load_teacher(str(path), trust=True)


@pytest.mark.parametrize(
    "command",
    [
        (generate, "--network={bad}", "--seeds=0", "--class=1", "--outdir={out}"),
        (generate, "--network={good}", "--compare={bad}", "--seeds=0", "--class=1", "--outdir={out}"),
        (export, "--network={bad}", "--format=safetensors", "--out={out}.safetensors"),
        (export, "--network={bad}", "--format=pkl-ema", "--out={out}.pkl"),
        (export, "--network={weights}", "--format=pkl", "--like={bad}", "--out={out}.pkl"),
        (export, "--network={bad_weights}", "--format=pkl", "--like={good}", "--out={out}.pkl"),
        (blend, "--from={bad}", "--to={good}"),
        (blend, "--from={good}", "--to={bad}", "--out={out}.pkl"),
    ],
)
def test_commands(command, spoiled, fixture_path, tmp_path):
    from safetensors.torch import load_file, save_file

    module, *arguments = command
    good, bad = fixture_path(GAN), spoiled(GAN, "G_ema", NAMES[0], math.nan)
    done = CliRunner().invoke(
        export.main, [f"--network={good}", "--format=safetensors", f"--out={tmp_path / 'w.safetensors'}"]
    )
    assert done.exit_code == 0, done.output
    weights = load_file(tmp_path / "w.safetensors")
    weights[NAMES[0]][0] = math.nan
    save_file(weights, tmp_path / "bad.safetensors")
    places = {
        "good": good,
        "bad": bad,
        "out": tmp_path / "out",
        "weights": tmp_path / "w.safetensors",
        "bad_weights": tmp_path / "bad.safetensors",
    }
    before = set(tmp_path.iterdir())
    done = CliRunner().invoke(module.main, [argument.format(**places) for argument in arguments])
    assert done.exit_code == 2 and NAMES[0] in done.stderr and "bad." in done.stderr, done.output
    assert set(tmp_path.iterdir()) == before


def test_inspect_counts_them_in_every_network(spoiled):
    path = spoiled(GAN, "D", "b4.fc.weight", math.nan)
    shown = CliRunner().invoke(inspect.main, [str(path)])
    assert shown.exit_code == 0 and "b4.fc.weight" in shown.stdout
    entries = json.loads(CliRunner().invoke(inspect.main, [str(path), "--json"]).stdout)["entries"]
    assert entries["D"]["not_finite"] == {"b4.fc.weight": 2} and "not_finite" not in entries["G_ema"]
    path = spoiled(GAN, "G_ema", NAMES[0], math.inf)
    entries = json.loads(CliRunner().invoke(inspect.main, [str(path), "--json"]).stdout)["entries"]
    assert entries["G_ema"]["not_finite"] == {NAMES[0]: 2} and NAMES[0] in entries["G_ema"]["why_not"]
    assert not entries["G_ema"]["rebuilt_by_refine"] and entries["G"]["rebuilt_by_refine"]


def test_counts():
    tensors = {
        "float": torch.tensor([1, math.nan, math.inf, -math.inf]),
        "half": torch.tensor([65504.0, math.inf]).half(),
        "bfloat16": torch.tensor([1.0, math.nan]).bfloat16(),
        "fine": torch.tensor([3e38, -3e38, 1e-45]),
        "int": torch.tensor([1, 2**62]),
        "bool": torch.tensor([True]),
        "empty": torch.zeros(0),
    }
    assert non_finite(tensors) == {"float": 3, "half": 1, "bfloat16": 1}
