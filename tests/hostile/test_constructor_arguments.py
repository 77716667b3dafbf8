"""Constructor arguments reach Refine's own networks: none may keep one busy forever or break it."""

from __future__ import annotations

import re

import pytest
from forge import dumped

from refine import load_generator, load_teacher, pickles
from refine.pickles.tree import named_tensors, submodules


def slow(*values):
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("num_layers", 10**9),
        ("num_layers", -1),
        ("num_layers", 2.5),
        ("num_layers", "8"),
        ("num_layers", None),
        ("num_layers", [1] * 5000),
        ("w_avg_beta", "x"),
        ("lr_multiplier", 0),
        ("lr_multiplier", float("nan")),
        ("layer_features", 10**12),
        ("layer_features", -5),
        ("embed_features", 10**8),
        ("activation", "__class__"),
        ("unknown_option", 1),
    ],
)
def test_constructor_arguments_of_a_generator(argument, value, check, fixture_path, tmp_path):
    """They reach Refine's own constructors, so they must not be able to keep one busy or break it."""
    pkl = pickles.load(fixture_path("sg2ada/d_gray16.pkl"))
    pkl["G_ema"].attributes["_init_kwargs"]["mapping_kwargs"][argument] = value
    assert check(dumped({"G_ema": pkl["G_ema"]}))  # inspect says that it is not rebuilt, and why
    assert_refused(load_generator, dumped({"G_ema": pkl["G_ema"]}), tmp_path / "gan.pkl")


@pytest.mark.parametrize("argument", ["z_dim", "w_dim", "c_dim", "img_resolution", "img_channels"])
@pytest.mark.parametrize(
    "value", [0, -1, 3, 2**40, float("nan"), "64", None, {}, *slow(1e300, float("inf"), True, [4])]
)
def test_sizes_of_a_generator(argument, value, fixture_path, tmp_path):
    pkl = pickles.load(fixture_path("sg2ada/d_gray16.pkl"))
    if value == pkl["G_ema"].init_kwargs[argument]:  # 0 classes, 1 channel (True)
        value = 2
    pkl["G_ema"].attributes["_init_kwargs"][argument] = value
    assert_refused(load_generator, dumped({"G_ema": pkl["G_ema"]}), tmp_path / "gan.pkl")


@pytest.mark.parametrize(
    "argument", ["img_resolution", "img_channels", "model_channels", "channel_mult", "num_blocks", "M"]
)
@pytest.mark.parametrize("value", [0, -1, 2**40, float("nan"), "64", None, {}, *slow(1e300, [10**9] * 3, [])])
def test_sizes_of_a_denoiser(argument, value, fixture_path, tmp_path):
    pkl = pickles.load(fixture_path("edm/s6_iddpm_adm_uncond16.pkl"))
    pkl["ema"].attributes["_init_kwargs"][argument] = value
    assert_refused(load_teacher, dumped({"ema": pkl["ema"]}), tmp_path / "ema.pkl")


def assert_refused(load, data: bytes, path) -> None:
    path.write_bytes(data)
    with pytest.raises(pickles.PickleError, match=f"^{re.escape(str(path))}: "):
        load(str(path))


def test_forged_keys_that_are_no_text(check, fixture_path):
    """Names of tensors and settings that are numbers, which json and the checkers must survive."""
    pkl = pickles.load(fixture_path("sg2ada/d_gray16.pkl"))
    mapping = submodules(pkl["G_ema"])["mapping"]
    mapping.attributes["_buffers"][7] = next(iter(named_tensors(mapping).values()))
    mapping.attributes["_init_kwargs"][None] = 1
    mapping.attributes["_modules"][3] = submodules(pkl["G"])["mapping"]
    check(dumped({"G_ema": mapping, 5: mapping}))
