"""Presets: which one is taken, what wins, and that all of them are possible settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from refine.commands import run as cli
from refine.config import RunConfig
from refine.diffusion.noise_levels import parse_schedule
from refine.digits.digits import read_dataset
from refine.errors import UserError
from refine.presets import PRESETS, choose_preset


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
    """Median noise levels, as the evidence has them: 1 with labels, more without."""
    import torch

    def median(text):
        return float(parse_schedule(text).at(0.0).quantile(torch.tensor([0.5], dtype=torch.float64)))

    for name in ("tiny", "small", "medium"):
        with_labels, without = (median(PRESETS[name].options_for(c)["sigma"]) for c in (True, False))
        assert 0.9 < with_labels < 1.1 and without > 2.4
    assert median(PRESETS["released"].options["sigma"]) == pytest.approx(0.301, abs=1e-3)


def test_choice_by_resolution():
    assert [choose_preset(r) for r in (8, 16, 32, 64, 512)] == ["tiny", "tiny", "small", "medium", "medium"]


def test_the_built_in_pair_has_its_own():
    assert choose_preset(16, "digits", "edm-digits.pkl") == "digits"
    assert choose_preset(16, "digits", "other.pkl") == choose_preset(16, "my/digits.pkl", "edm-digits") == "tiny"
    config = cli.make_config({"gan": "digits", "teacher": "edm-digits"})
    assert config.preset == "digits"
    assert read_dataset(Path(config.data)).pixels.shape == (400, 1, 16, 16)


def test_what_is_given_wins(pair, capsys):
    config = cli.make_config(pair | {"batch": 6, "batch_gpu": 3, "sigma": "lognormal"})
    assert (config.preset, config.batch, config.batch_gpu, str(config.sigma)) == ("tiny", 6, 3, "lognormal:-1.2,1.2")
    assert config.glr == PRESETS["tiny"].options["glr"] and str(config.fake_sigma) == "lognormal:0,1.2"
    said = capsys.readouterr().out
    assert said.startswith("Preset tiny (") and "glr=0.003" in said and " batch=" not in said
    assert cli.make_config(pair | {"preset": "released", "fake_augment": 0.0}).fake_augment == 0


def test_unconditional_pairs_differ(fixture_path):
    files = {"gan": "sg2ada/a_uncond32.pkl", "teacher": "edm/s1_edm_ddpmpp_uncond16.pkl"}
    config = cli.make_config({name: str(fixture_path(path)) for name, path in files.items()})
    assert str(config.sigma) == PRESETS["tiny"].unconditional["sigma"] != PRESETS["tiny"].options["sigma"]


def test_nonsense_is_refused_before_anything_is_loaded():
    nowhere = {"gan": "/nowhere/gan.pkl", "teacher": "/nowhere/teacher.pkl"}
    for changes, words in (
        ({"batch": 0}, "batch must be"),
        ({"preset": "smal"}, "preset must be one of digits, tiny, small"),
        ({"preset": "small", "batch_gpu": 3}, "divide the batch of 128"),
        ({"sigma": "normal"}, "no distribution of noise levels"),
    ):
        with pytest.raises(UserError, match=words):
            cli.make_config(nowhere | changes)
    with pytest.raises(UserError, match=r"/nowhere/gan\.pkl"):
        cli.make_config(nowhere | {"batch_gpu": 3})
