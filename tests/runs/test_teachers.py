"""Runs with teachers of every family: warm-up, steps, snapshot, and a resumed run that equals one without a stop."""

from __future__ import annotations

import json

import pytest
import torch
from adm_reference import Form, random_state_dict

from refine import load_generator
from refine.config import RunConfig
from refine.errors import UserError
from refine.runs import start
from refine.runs.folder import find_state

ADM = "image_size=16,num_heads=2,attention_order=old,noise_schedule=linear,dropout=0.1"


@pytest.fixture(scope="module")
def adm(tmp_path_factory):
    """Options of a conditional ADM teacher of five classes."""
    path = tmp_path_factory.mktemp("teacher") / "ema.pt"
    torch.save(random_state_dict(Form(classes=5, num_blocks=0)), path)
    return {"teacher": str(path), "teacher_settings": ADM}


def config(fixture_path, tmp_path, name, **options):
    sizes = {"batch": 8, "kimg": 0.024, "warmup_kimg": 0.008, "tick_kimg": 0.008, "snap_ticks": 1}
    gan = str(fixture_path("sg2ada/b_cond16.pkl"))
    given = sizes | {"gan": gan, "preflight": False, "outdir": str(tmp_path / name), "device": "cpu"} | options
    return RunConfig(**given)


def run_and_resume(fixture_path, tmp_path, **options):
    """Weights of a run without a stop, after checking that a stopped and resumed one ends with the same."""
    whole = start.run(config(fixture_path, tmp_path, "whole", **options))
    part = start.run(config(fixture_path, tmp_path, "part", **options | {"kimg": 0.016}))
    state = find_state(str(part.parent), "")
    resumed = start.run(start.resumed_config(state, {"kimg": 0.024}), resume=state)
    weights = load_generator(str(whole)).network.state_dict()
    for name, value in load_generator(str(resumed)).network.state_dict().items():
        assert torch.equal(value, weights[name]), name
    before = load_generator(str(fixture_path("sg2ada/b_cond16.pkl"))).network.state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in weights.items())
    assert all(value.isfinite().all() for value in weights.values())
    return whole


def test_adm(fixture_path, tmp_path, adm):
    whole = run_and_resume(fixture_path, tmp_path, **adm)
    options = json.loads((whole.parent / "training_options.json").read_text())
    assert "num_heads=2" in options["teacher_settings"] and "attention_order=old" in options["teacher_settings"]


def test_adm_with_gradients_through_the_teacher_and_a_ratio(fixture_path, tmp_path, adm):
    options = {"kimg": 0.008, "objective": "sid", "gan_weight": 0.01, "ratio_samples": 8, "checkpoint": True}
    snapshot = start.run(config(fixture_path, tmp_path, "sid", **adm, **options))
    assert snapshot.is_file()


def test_preset_and_preflight_know_the_settings(fixture_path, tmp_path, adm):
    gan = str(fixture_path("sg2ada/b_cond16.pkl"))
    sizes = {"batch": 8, "kimg": 0.008, "warmup_kimg": 0.008, "tick_kimg": 0.008, "outdir": str(tmp_path)}
    with pytest.raises(UserError, match="attention_order"):
        RunConfig.from_preset(gan=gan, teacher=adm["teacher"], **sizes)
    chosen = RunConfig.from_preset(gan=gan, device="cpu", metrics="none", **adm, **sizes)
    assert start.run(chosen).is_file()


def test_settings_do_not_change_in_a_resumed_run(fixture_path, tmp_path, adm):
    snapshot = start.run(config(fixture_path, tmp_path, "run", **adm, kimg=0.008))
    state = find_state(str(snapshot.parent), "")
    with pytest.raises(UserError, match="teacher_settings"):
        start.resumed_config(state, {"teacher_settings": ADM.replace("old", "new")})
