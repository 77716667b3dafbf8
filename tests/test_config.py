"""The options of a run: values and types that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from refine.config import RunConfig
from refine.errors import UserError


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("batch", 0), ("batch", 2.5), ("batch", True), ("batch_gpu", 3), ("seed", -1), ("glr", 0), ("kimg", -1),
        ("glr", float("nan")), ("warmup_kimg", -1), ("beta1", 1.0), ("clip_grad", 0), ("ema_rampup", -1),
        ("device", "tpu"), ("noise_mode", "x"), ("objective", "ikl:x"), ("resample", "nearest"), ("sigma", "x"),
        ("fake_sigma", "x"), ("train_layers", "top"), ("fake_steps", 0), ("kimg", float("inf")),
    ],
)  # fmt: skip
def test_nonsense_is_refused(option, value):
    with pytest.raises(UserError) as error:
        RunConfig(gan="g", teacher="t", **{option: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("option", "value", "kind"),
    [
        ("batch", "32", "a whole number"), ("kimg", None, "a number"), ("gan", Path("g.pkl"), "text"),
        ("preflight", 1, "True or False"), ("glr", True, "a number"), ("desc", 3, "text or None"),
        ("clip_grad", "1", "a number or None"), ("batch_gpu", 2.0, "a whole number or None"),
        ("class_map", [1, 0], "a tuple of whole numbers or None"),
        ("class_map", (1, "0"), "a tuple of whole numbers or None"),
    ],
)  # fmt: skip
def test_types_are_checked(option, value, kind):
    name = option.replace("_", "-")
    with pytest.raises(UserError) as error:
        RunConfig(**({"gan": "g", "teacher": "t"} | {option: value}))
    assert str(error.value) == f"--{name} must be {kind}, not {value!r}."


def test_every_type_of_an_option_has_words():
    """A whole number will do for a number, and every default is of its type."""
    options = RunConfig(gan="g", teacher="t", kimg=3, class_map=(1, 0))
    assert RunConfig.from_dict(json.loads(options.to_json())) == options
