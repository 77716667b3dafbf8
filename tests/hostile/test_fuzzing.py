"""Golden pickles with bytes and opcodes changed at random: refused in a sentence, or still good."""

from __future__ import annotations

import pickletools
import random

import pytest
from forge import small_bases
from gadgets import mutated


def fuzz(check, bases: list[bytes], num_cases: int, seed: int) -> int:
    """Runs `num_cases` mutations and returns how many of them were still accepted."""
    positions = [[position for _, _, position in pickletools.genops(base)] for base in bases]
    num_accepted = 0
    for case in range(num_cases):
        rng = random.Random(f"{seed}:{case}")
        number = case % len(bases)
        num_accepted += check(mutated(bases[number], rng, positions[number]), memory=case % 7 == 0)
    return num_accepted


def test_mutated_parts_of_golden_pickles(check, fixture_path):
    num_cases = 1000
    num_accepted = fuzz(check, small_bases(fixture_path), num_cases, seed=1)
    assert 0 < num_accepted < num_cases / 2  # the mutations bite, and some leave a good pickle


@pytest.mark.parametrize("name", ["sg2ada/d_gray16.pkl", "edm/s6_iddpm_adm_uncond16.pkl"])
def test_mutated_golden_pickles(name, check, fixture_path):
    fuzz(check, [fixture_path(name).read_bytes()], 30, seed=2)


def test_truncated_golden_pickles(check, fixture_path):
    data = fixture_path("edm/s6_iddpm_adm_uncond16.pkl").read_bytes()
    rng = random.Random(3)
    for length in [1, 2, 3, 4, 10, 11, len(data) - 1, *(rng.randrange(len(data)) for _ in range(40))]:
        assert not check(data[:length])


@pytest.mark.slow
def test_long_fuzzing(check, fixture_path):
    fuzz(check, small_bases(fixture_path), 10_000, seed=4)
    for name in ("sg2ada/b_cond16.oldstyle.pkl", "sg3/s1_stylegan2_uncond32.pkl", "edm/s4_sid_ddpmpp_cond16.pkl"):
        fuzz(check, [fixture_path(name).read_bytes()], 60, seed=5)
