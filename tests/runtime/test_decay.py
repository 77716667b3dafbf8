"""Decays of moving averages: half-lives, EDM2's power function against its profile, and their texts."""

from __future__ import annotations

import numpy as np
import pytest

from refine.errors import UserError
from refine.runtime.decay import Decays, HalfLife, Power, parse_decays


def profile(decay, steps, batch=8):
    """Weight of each step's value in the average at the end."""
    weights = np.zeros(steps)
    for step in range(1, steps + 1):
        beta = decay.beta(step * batch, batch)
        weights *= beta
        weights[step - 1] += 1 - beta
    return weights


def test_half_life():
    weights = profile(HalfLife(0.08), 60)  # ten steps
    assert weights[-1] / weights[-11] == pytest.approx(2) and weights[40] / weights[30] == pytest.approx(2)
    assert HalfLife(0.0).beta(8, 8) == 0


def test_ramp_up():
    """The half-life is a share of the images so far until it is the given one."""
    decay = HalfLife(1.0, rampup=0.1)
    assert decay.beta(2000, 8) == pytest.approx(0.5 ** (8 / 200)) and decay.beta(10**6, 8) == pytest.approx(0.5**0.008)


@pytest.mark.parametrize("std", [0.03, 0.1, 0.2, 0.27])
def test_power_function_has_its_length(std):
    """Weights grow like t^gamma, and their standard deviation is the stated share of the run."""
    decay, steps = Power(std), 4000
    weights = profile(decay, steps)
    t = (np.arange(steps) + 0.5) / steps
    assert weights.sum() == pytest.approx(1)
    assert weights[3000] / weights[1500] == pytest.approx(2**decay.gamma, rel=0.02)
    mean = (weights * t).sum()
    assert np.sqrt((weights * (t - mean) ** 2).sum()) == pytest.approx(std, rel=0.01)


def test_published_exponents():
    """EDM2 names 0.05 and 0.10 with exponents 16.97 and 6.94."""
    assert Power(0.05).gamma == pytest.approx(16.97, abs=0.01) and Power(0.1).gamma == pytest.approx(6.94, abs=0.01)


def test_texts():
    decays = parse_decays("0.5, 2,power:0.1")
    assert decays == Decays((HalfLife(0.5), HalfLife(2.0), Power(0.1))) and str(decays) == "0.5,2,power:0.1"
    assert parse_decays(str(decays)) == decays and parse_decays("none") == Decays() and str(Decays()) == "none"


@pytest.mark.parametrize("text", ["", "x", "-1", "inf", "power:0.3", "power:", "half:1", "1,1", "1,none"])
def test_impossible_texts(text):
    with pytest.raises(UserError):
        parse_decays(text)
