"""Options of a run: values and types that are refused, sections, JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refine import config as options
from refine.config import (
    EvaluationOptions,
    PairOptions,
    RunConfig,
    RunOptions,
    TrainingOptions,
)
from refine.diffusion.noise_levels import LogNormal, parse_schedule
from refine.errors import OptionError, UserError
from refine.objectives import OBJECTIVES
from refine.pair import bridge

PAIR = {"gan": "g", "teacher": "t"}
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("batch", 0), ("batch", 2.5), ("batch", True), ("batch", "32"), ("batch", None), ("batch", 2**31),
        ("batch_gpu", 3), ("batch_gpu", 2.0), ("batch_gpu", 0), ("seed", -1), ("seed", 2**31), ("metric_seed", 2**31),
        ("fake_steps", 0), ("snap_ticks", 2**31), ("fid_seeds", 10**6), ("metric_every", 0), ("stop_if_worse", 0),
        ("glr", 0), ("glr", NAN), ("glr", INF), ("glr", True), ("glr", 10**400), ("flr", -INF),
        ("kimg", -1), ("kimg", INF), ("kimg", None), ("kimg", 1e30), ("warmup_kimg", -1), ("warmup_kimg", NAN),
        ("tick_kimg", 0), ("tick_kimg", INF), ("lr_rampup_kimg", INF), ("ema_halflife_kimg", NAN), ("anchor", INF),
        ("beta1", 1.0), ("beta2", NAN), ("beta2", -0.1), ("clip_grad", 0), ("clip_grad", INF), ("clip_grad", "1"),
        ("ema_rampup", -1), ("ema_rampup", NAN), ("fake_augment", 1.1), ("fake_augment", NAN),
        ("device", "tpu"), ("noise_mode", "x"), ("objective", "ikl:x"), ("objective", "x"), ("resample", "nearest"),
        ("precision", "fp8"), ("lr_decay", "linear"), ("preset", "smal"), ("preset", ""),
        ("sigma", "x"), ("sigma", 3), ("sigma", None), ("sigma", "lognormal:nan"), ("fake_sigma", "karras:0,1"),
        ("fake_sigma", "lognormal:0,inf"), ("metrics", "fid9x"), ("metrics", 3), ("train_layers", "top"),
        ("gan", 3), ("preflight", 1), ("desc", 3), ("desc", Path("x")), ("data", 3),
        ("class_map", 3), ("class_map", (1, "0")), ("class_map", (True, False)), ("class_map", "1,0"),
    ],
)  # fmt: skip
def test_nonsense_is_refused_in_one_sentence_with_option_and_value(option, value):
    with pytest.raises(OptionError) as error:
        RunConfig(**(PAIR | {option: value}))
    shown = f"--{option.replace('_', '-')}"
    assert str(error.value).startswith(option) and error.value.as_typed().startswith(shown)
    assert "\n" not in str(error.value)
    inside = value.split(":")[-1] if isinstance(value, str) and ":" in value else value
    assert str(inside) in str(error.value)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"ref": "data"}, ("ref", "data")),
        ({"ref": "teacher", "data": "a.zip"}, ("ref", "data")),
        ({"ref": "teacher", "data": "{ref}/{x=1}.zip"}, ("ref", "data={ref}/{x=1}.zip")),
        ({"stop_if_worse": 2, "metrics": "none"}, ("stop_if_worse", "metrics")),
        ({"stop_if_flat": 5, "objective": "sds"}, ("stop_if_flat", "objective=sds")),
        ({"stop_if_worse": 2, "metrics": "is50k,pr50k3_full"}, ("stop_if_worse", "metrics")),
        ({"share_unet": True, "fake_augment": 0.1}, ("share_unet", "fake_augment")),
        ({"share_unet": True, "objective": "sds"}, ("share_unet", "objective")),
        ({"share_unet": True, "sigma": "lognormal:0"}, ("share_unet", "sigma", "fake_sigma")),
        ({"share_unet": True, "paired_dropout": True, "fake_dropout": False}, ("share_unet", "paired_dropout")),
    ],
)
def test_contradictions_name_both_options_as_python_and_as_the_command_line_spell_them(given, named):
    with pytest.raises(OptionError) as error:
        RunConfig(**PAIR, **given)
    for name in named:
        assert name in str(error.value) and f"--{name.replace('_', '-')}" in error.value.as_typed()
    assert "--" not in str(error.value)
    assert "True" not in error.value.as_typed()


def test_no_contradiction():
    RunConfig(**PAIR, ref="data", data="a.zip")
    RunConfig(**PAIR, stop_if_worse=2, metrics="fid5k_full,is50k")
    RunConfig(**PAIR, stop_if_worse=2)  # the device decides what is measured
    RunConfig(**PAIR, share_unet=True, sigma="lognormal", fake_sigma="lognormal:-1.2,1.2")


def test_values_take_the_type_of_their_option():
    config = RunConfig(
        gan=Path("a") / "g.pkl", teacher="t", kimg=3, batch=np.int64(8), glr=np.float32(0.5), class_map=[1, np.int32(0)]
    )
    assert (config.gan, config.kimg, config.batch, config.glr) == (str(Path("a/g.pkl")), 3.0, 8, 0.5)
    assert (type(config.kimg), type(config.batch), type(config.glr)) == (float, int, float)
    assert config.class_map == (1, 0) and hash(config.class_map)


def test_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    names = ("gan", "teacher", "init", "outdir", "data", "detector", "vgg")
    config = RunConfig(**dict.fromkeys(names, "~/x"))
    assert all(Path(config[name]) == tmp_path / "x" for name in names)
    assert Path(RunConfig(gan=Path("~/x"), teacher="t", ref="~/y.npz").ref) == tmp_path / "y.npz"
    assert RunConfig(**PAIR, desc="~/x").desc == "~/x"


def test_text_becomes_objects_and_comes_back_as_text():
    config = RunConfig(
        **PAIR, sigma="lognormal", fake_sigma="karras:0.002,80->karras:0.1,1,7", metrics="fid5k_full, is50k"
    )
    assert config.sigma.at(0.5) == LogNormal(-1.2, 1.2) and str(config.sigma) == "lognormal:-1.2,1.2"
    assert str(config.fake_sigma) == "karras:0.002,80,7->karras:0.1,1,7"
    assert config.metrics.names == ("fid5k_full", "is50k") and str(config.metrics) == "fid5k_full,is50k"
    assert str(RunConfig(**PAIR).metrics) == "auto" and str(RunConfig(**PAIR, metrics="none").metrics) == "none"
    stored = json.loads(config.to_json())
    assert (stored["sigma"], stored["metrics"]) == ("lognormal:-1.2,1.2", "fid5k_full,is50k")
    assert RunConfig.from_dict(stored) == config == replace(config)


@pytest.mark.parametrize(
    "text", ["lognormal:0.1,0.30000000000000004", "karras:1e-05,1e+20,7", "lognormal:1->lognormal:-0,2"]
)
def test_the_text_of_a_schedule_is_exact(text):
    assert parse_schedule(str(parse_schedule(text))) == parse_schedule(text)


def test_json_is_flat_and_has_every_option_with_the_pair_first():
    stored = json.loads(RunConfig(**PAIR, class_map=(1, 0)).to_json())
    assert list(stored)[:2] == ["gan", "teacher"] and stored["class_map"] == [1, 0]
    assert stored.keys() == {each.name for each in RunConfig.options()}
    assert not any(isinstance(value, dict) for value in stored.values())
    assert RunConfig.from_dict(stored) == RunConfig(**PAIR, class_map=(1, 0))


def test_stored_options_that_cannot_be():
    with pytest.raises(UserError, match="'new'"):
        RunConfig.from_dict({**PAIR, "new": 1})
    with pytest.raises(UserError, match="'teacher'"):
        RunConfig.from_dict({"gan": "g"})


def test_options_of_earlier_versions():
    """They took a reference besides the data set, and ignored the data set."""
    config = RunConfig.from_dict({**PAIR, "data": "a.zip", "ref": "teacher"})
    assert (config.data, config.ref) == (None, "teacher")


@pytest.mark.parametrize("kind", [PairOptions, TrainingOptions, RunOptions, EvaluationOptions])
def test_sections(kind):
    config = RunConfig(**PAIR, batch=8, batch_gpu=4, class_map=(1, 0), sigma="lognormal:1", seed=3)
    section = config.section(kind)
    assert type(section) is kind
    for each in kind.options():
        assert section[each.name] == config[each.name]
    with pytest.raises(OptionError):
        kind(**{**section.to_dict(), kind.options()[0].name: {}})


def test_every_option_belongs_to_a_section():
    sections = (PairOptions, TrainingOptions, RunOptions, EvaluationOptions)
    assert {e.name for kind in sections for e in kind.options()} == {e.name for e in RunConfig.options()}


def test_choices_are_those_of_the_code_that_knows_them():
    assert set(options.FILTERS) == set(bridge.FILTERS)
    (objective,) = [each for each in RunConfig.options() if each.name == "objective"]
    listed = objective.help.partition(", with")[0].partition(": ")[2].replace(" or ", ", ")
    assert sorted(listed.split(", ")) == sorted(OBJECTIVES)


def test_options_do_not_wait_for_torch():
    code = "import sys, refine.config; refine.config.RunConfig.options(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
