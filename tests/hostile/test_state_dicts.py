"""State dicts that were forged or damaged: nothing runs, nothing is exhausted, one sentence is said."""

from __future__ import annotations

import io
import pickle
import pickletools
import random

import pytest
import torch
from adm_reference import Form, random_state_dict
from click.testing import CliRunner
from forge import members_of, text, zip_of
from gadgets import TARGETS, gadgets, mutated

from refine.commands import inspect

FORM = Form(mult=(1,), num_blocks=0, attention=(False,), out_channels=3)


def saved(value, **options) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def good() -> dict[str, torch.Tensor]:
    return dict(random_state_dict(FORM))


@pytest.fixture(scope="module")
def members(good) -> dict[str, bytes]:
    return members_of(saved(good))


@pytest.fixture(scope="module", autouse=True)
def imported(good, tmp_path_factory):
    """Whatever is imported on the ordinary way is imported before anything is watched."""
    path = tmp_path_factory.mktemp("state") / "net.pt"
    path.write_bytes(saved(good))
    assert CliRunner().invoke(inspect.main, [str(path)]).exit_code == 0


def name_of_object(members: dict[str, bytes]) -> str:
    return next(name for name in members if name.endswith("/data.pkl"))


def test_good_files_are_accepted(check, good, members):
    assert check(saved(good)) and check(zip_of(members))
    assert check(saved(good, _use_new_zipfile_serialization=False))


def test_gadgets_in_the_object(check, members):
    name = name_of_object(members)
    for module, attribute in TARGETS[::5]:
        for body in gadgets(module, attribute)[::2]:
            entry = members[name][:-1] + text("x") + body + pickle.SETITEM + pickle.STOP
            assert not check(zip_of(members | {name: entry}), memory=False)


def test_tensors_beyond_their_storages(check, good):
    small = torch.zeros(4)
    views = {name: small[:1].expand(value.shape) for name, value in good.items()}
    assert not check(saved(views | {"time_embed.2.weight": small[:1].expand(1 << 12, 1 << 12)}))


def test_more_names_than_a_network_has(check, good):
    many = good | {f"input_blocks.{index}.0.weight": torch.zeros(1) for index in range(1500)}
    check(saved(many))
    check(saved(good | {f"output_blocks.{index}.0.in_layers.0.weight": torch.zeros(1) for index in range(2500)}))


def fuzz(check, good, members, cases: range) -> int:
    """Changes bytes of the object in the file, of the whole file, and of a file before PyTorch 1.6; counts the good."""
    name, whole, legacy = name_of_object(members), zip_of(members), saved(good, _use_new_zipfile_serialization=False)
    positions = [position for _, _, position in pickletools.genops(members[name])]
    object_end = legacy.index(b"output_blocks") + 2000
    accepted = 0
    for case in cases:
        rng = random.Random(f"adm:{case}")
        if case % 4 < 2:
            data = zip_of(members | {name: mutated(members[name], rng, positions)})
        elif case % 4 == 2:
            data = mutated(whole, rng, [rng.randrange(len(whole)) for _ in range(20)])
        else:
            data = mutated(legacy, rng, [rng.randrange(object_end) for _ in range(20)])
        accepted += check(data, memory=case % 7 == 0)
    return accepted


def test_mutated_files(check, good, members):
    assert 0 < fuzz(check, good, members, range(400)) < 300


@pytest.mark.slow
def test_long_fuzzing(check, good, members):
    assert 0 < fuzz(check, good, members, range(400, 2400)) < 1500
