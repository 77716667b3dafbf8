"""Distributions of sigma against SciPy, and their notation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from refine.diffusion.noise_levels import Karras, LogNormal, Schedule, parse_schedule
from refine.diffusion.sampler import karras_sigmas
from refine.errors import UserError

U = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)


def test_lognormal_is_scipys():
    expected = stats.lognorm(s=1.2, scale=math.exp(-1.2)).ppf(U.numpy())
    assert np.allclose(LogNormal().quantile(U).numpy(), expected, rtol=1e-9)


def test_karras_is_the_samplers_grid():
    grid = karras_sigmas(101, 0.01, 50, 5).flip(0)
    assert torch.allclose(Karras(0.01, 50, 5).quantile(torch.linspace(0, 1, 101, dtype=torch.float64)), grid)


@pytest.mark.parametrize("distribution", [LogNormal(0.5, 0.3), Karras(0.1, 10, 3)])
def test_quantiles_rise(distribution):
    assert (distribution.quantile(U).diff() > 0).all()


def test_notation():
    assert parse_schedule("lognormal") == Schedule(LogNormal(), LogNormal())
    assert parse_schedule("lognormal:0,1") == Schedule(LogNormal(0, 1), LogNormal(0, 1))
    assert parse_schedule("karras:0.01, 20") == Schedule(Karras(0.01, 20), Karras(0.01, 20))
    moving = parse_schedule("lognormal:1,1.2 -> lognormal:-1.2,1.2")
    assert moving.at(0) == LogNormal(1, 1.2) and moving.at(1) == LogNormal(-1.2, 1.2)
    assert moving.at(0.5).P_mean == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "''.*lognormal:-1.2,1.2"),
        ("normal:1", "'normal:1'.*lognormal:-1.2,1.2"),
        ("lognormal:a", "'lognormal:a'.*lognormal:-1.2,1.2"),
        ("lognormal:1,2,3", "'lognormal:1,2,3'.*lognormal:-1.2,1.2"),
        ("lognormal:0,-1", "lognormal:0.0,-1.0 .*std >= 0"),
        ("lognormal:nan", "lognormal:nan.*finite mean"),
        ("karras:0,80", "karras:0.0,80.0.*0 < sigma_min"),
        ("karras:2,1", "karras:2.0,1.0.*sigma_min <= sigma_max"),
        ("karras:1,inf", "karras:1.0,inf.*sigma_max < inf"),
        ("lognormal -> karras", "lognormal:.* karras:"),
        ("lognormal->lognormal->lognormal", "'lognormal->lognormal->lognormal'"),
    ],
)
def test_wrong_notation(text, named):
    with pytest.raises(UserError, match=named):
        parse_schedule(text)
