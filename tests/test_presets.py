"""Presets: which one is taken, what wins, and that all of them are possible settings."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from refine import zoo
from refine.commands import run as cli
from refine.config import RunConfig
from refine.diffusion.noise_levels import parse_schedule
from refine.digits.digits import read_dataset
from refine.errors import UserError
from refine.presets import BUILT_IN_TEACHER, PRESETS, choose_preset
from refine.runs import start


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("conditional", [True, False])
def test_presets_are_possible(name, conditional):
    options = PRESETS[name].options_for(conditional)
    assert options.keys() <= {field.name for field in dataclasses.fields(RunConfig)}
    RunConfig(gan="g", teacher="t", **options)


def test_released_is_the_published_setting():
    """The facts of the published code, not of ours."""
    config = RunConfig(gan="g", teacher="t", **PRESETS["released"].options_for(False))
    assert (config.glr, config.flr, config.batch, config.beta1, config.beta2) == (1e-5, 1e-5, 128, 0.0, 0.999)
    assert (str(config.sigma), str(config.fake_sigma)) == ("lognormal:-1.2,1.2", "lognormal:-1.2,1.2")
    assert config.fake_augment == 0.12 and config.fake_dropout and config.paired_dropout and not config.share_forward
    assert (config.ema_halflife_kimg, config.ema_rampup, str(config.objective)) == (500.0, 0.05, "ikl")


def test_the_others_look_at_higher_noise():
    """Median noise levels, as the evidence has them: 1 or somewhat more with labels, more still without."""
    import torch

    def median(text):
        return float(parse_schedule(text).at(0.0).quantile(torch.tensor([0.5], dtype=torch.float64)))

    for name in ("tiny", "small", "medium"):
        with_labels, without = (median(PRESETS[name].options_for(c)["sigma"]) for c in (True, False))
        assert 0.9 < with_labels < 2 and without > 2.4
    assert median(PRESETS["released"].options["sigma"]) == pytest.approx(0.301, abs=1e-3)


def test_choice_by_resolution():
    assert [choose_preset(r) for r in (8, 16, 32, 64, 512)] == ["tiny", "tiny", "small", "medium", "medium"]


def test_the_content_of_the_teachers_file_decides_and_not_its_spelling(tmp_path, monkeypatch):
    """A copy, a link, a path, and a generator that a run made of the built-in one."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(BUILT_IN_TEACHER, "copy.pkl")
    shutil.copy(BUILT_IN_TEACHER.with_name("digits.pkl"), "network-best.pkl")
    expected = RunConfig.from_preset(gan="digits", teacher="edm-digits")
    assert expected.preset == "digits" and read_dataset(zoo.resolve(expected.data).path).pixels.shape == (
        400,
        1,
        16,
        16,
    )
    for gan, teacher in (
        ("digits.pkl", "edm-digits.pkl"),
        ("network-best.pkl", "copy.pkl"),
        ("network-best.pkl", str(BUILT_IN_TEACHER)),
        (Path("network-best.pkl"), Path("copy.pkl")),
    ):
        config = RunConfig.from_preset(gan=gan, teacher=teacher)
        assert replace(config, gan="digits", teacher="edm-digits") == expected
    other = bytearray(BUILT_IN_TEACHER.read_bytes())
    other[len(other) // 2] ^= 1  # a weight
    Path("edm-digits").write_bytes(other)
    assert choose_preset(16, Path("edm-digits")) == "tiny"


def test_shell_and_python_run_the_same(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(start, "run", lambda config, **given: made.append(config) or tmp_path / "x.pkl")
    for options in ({}, {"preset": "digits"}, {"preset": "released", "kimg": 3.0}, {"sigma": "lognormal", "seed": 4}):
        given = {"gan": "digits", "teacher": "edm-digits"} | options
        done = CliRunner().invoke(cli.main, [f"--{name}={value}" for name, value in given.items()])
        assert done.exit_code == 0, done.output
        name = given.pop("preset", None)
        assert made.pop() == RunConfig.from_preset(name, **given) == RunConfig.from_preset(**given, preset=name)


def test_what_is_given_wins(pair):
    config = RunConfig.from_preset(**pair, batch=6, batch_gpu=3, sigma="lognormal")
    assert (config.preset, config.batch, config.batch_gpu, str(config.sigma)) == ("tiny", 6, 3, "lognormal:-1.2,1.2")
    assert (
        config.glr == PRESETS["tiny"].options["glr"] and str(config.fake_sigma) == PRESETS["tiny"].options["fake_sigma"]
    )
    assert RunConfig.from_preset("released", **pair, fake_augment=0.0).fake_augment == 0


def test_another_reference_takes_the_place_of_the_presets_data():
    config = RunConfig.from_preset(gan="digits", teacher="edm-digits", ref="teacher")
    assert (config.ref, config.data) == ("teacher", None)


def test_a_preset_is_not_a_mere_name(pair):
    """A record with the preset's name and the defaults' values would say something false."""
    with pytest.raises(UserError, match=r"from_preset\('digits'"):
        RunConfig(**pair, preset="digits")
    config = RunConfig.from_preset("digits", **pair)
    assert replace(config, seed=3).preset == "digits"
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config


def test_unconditional_pairs_differ(fixture_path):
    files = {"gan": "sg2ada/a_uncond32.pkl", "teacher": "edm/s1_edm_ddpmpp_uncond16.pkl"}
    config = RunConfig.from_preset(**{name: fixture_path(path) for name, path in files.items()})
    assert str(config.sigma) == PRESETS["tiny"].unconditional["sigma"] != PRESETS["tiny"].options["sigma"]


def test_nonsense_is_refused_before_anything_is_loaded():
    nowhere = {"gan": "/nowhere/gan.pkl", "teacher": "/nowhere/teacher.pkl"}
    for changes, words in (
        ({"batch": 0}, "batch must be"),
        ({"preset": "smal"}, "preset must be one of digits, tiny, small"),
        ({"preset": "small", "batch_gpu": 3}, "divide the batch of 128"),
        ({"sigma": "normal"}, "'normal'"),
        ({"bach": 3}, "bach: did you mean batch"),
        ({"preset": "digits", "stop_if_worse": 2, "metrics": "none"}, "stop_if_worse"),
    ):
        with pytest.raises(UserError, match=words):
            RunConfig.from_preset(**(nowhere | changes))
    with pytest.raises(UserError, match=r"teacher"):
        RunConfig.from_preset(gan="digits")
    with pytest.raises(UserError, match=r"/nowhere/gan\.pkl.*/nowhere/teacher\.pkl"):
        RunConfig.from_preset(**nowhere, batch_gpu=3)
