"""Ordinary pickles of modules by the name of their class, as R3GAN's are: a bare object and its state, nothing else."""

from __future__ import annotations

import pickle

import pytest
from forge import as_entry, as_root, small_bases, text, without_frames
from gadgets import named

MODULES = [
    ("training.networks", "Generator"),
    ("training.networks_baseline", "Discriminator"),
    ("R3GAN.Networks", "ResidualBlock"),
    ("BaselineGAN.FusedOperators", "BiasedActivationCUDA"),
]
STATE = pickle.EMPTY_DICT + text("_modules") + pickle.EMPTY_DICT + pickle.SETITEM
BARE = pickle.EMPTY_TUPLE + pickle.NEWOBJ


@pytest.fixture(scope="module")
def base(fixture_path) -> bytes:
    return without_frames(small_bases(fixture_path)[0])


@pytest.mark.parametrize("stack", [False, True])
@pytest.mark.parametrize(("module", "name"), MODULES)
def test_forms(module, name, stack, check, base):
    target = named(module, name, stack=stack)
    assert check(as_entry(target + BARE + STATE + pickle.BUILD, base))
    for body in (
        target + pickle.EMPTY_TUPLE + pickle.REDUCE,
        target + pickle.EMPTY_TUPLE + pickle.REDUCE + STATE + pickle.BUILD,
        target + text("x") + pickle.TUPLE1 + pickle.NEWOBJ,
        target + BARE + text("a") + text("b") + pickle.SETITEM,
        target + BARE + text("a") + pickle.APPEND,
        target + BARE + STATE + pickle.BUILD + STATE + pickle.BUILD,
    ):
        assert not check(as_entry(body, base)), body


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("training.networks", "os"),
        ("training.networks", "Generator.__init__"),
        ("training.dataset", "Generator"),
        ("training", "networks"),
        ("R3GAN.Networks", "nn.Module"),
        ("R3GAN", "Networks"),
        ("R3GAN.Trainer", "Generator"),
    ],
)
def test_other_names_of_these_repositories(module, name, check, base):
    assert not check(as_entry(named(module, name, stack=True) + BARE, base))


def test_a_bare_generator_without_layers(check):
    target = named("training.networks", "Generator", stack=True)
    fields = b"".join(text(f) + pickle.EMPTY_DICT + pickle.SETITEM for f in ("_parameters", "_buffers", "_modules"))
    whole = (
        pickle.EMPTY_DICT + text("G_ema") + target + BARE + pickle.EMPTY_DICT + fields + pickle.BUILD + pickle.SETITEM
    )
    assert check(as_root(whole))  # described as a network of an unknown architecture
