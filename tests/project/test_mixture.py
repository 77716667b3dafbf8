"""An MLP learns a 2-D mixture through the real trainer, with a fake score that is learned too."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.studies import mixture


def test_denoiser_is_exact():
    """Against the posterior mean by quadrature over the plane."""
    axis = torch.linspace(-2.5, 2.5, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    squared = torch.cdist(grid, mixture.modes().double()).square()
    density = (-squared / (2 * mixture.MODE_STD**2)).exp().sum(1)
    teacher = mixture.MixtureDenoiser()
    for sigma in (0.15, 0.6, 3.0):
        for x in ([0.9, 0.3], [-0.2, 0.1], [1.5, -1.5]):
            point = torch.tensor(x)
            weights = density * (-(grid - point.double()).square().sum(1) / (2 * sigma**2)).exp()
            expected = (weights[:, None] * grid).sum(0) / weights.sum()
            denoised = teacher(point.reshape(1, 2, 1, 1), torch.tensor([sigma])).flatten()
            assert (denoised.double() - expected).abs().max() < 2e-4


def test_energy_distance():
    """Zero for one law; for two points a and b at distance 2 and their mirror at 0: by hand."""
    rng = torch.Generator().manual_seed(0)
    x, y = (mixture.draw_data(3000, rng) for _ in range(2))
    assert abs(mixture.energy_distance(x, y)) < 0.003
    a, b = torch.tensor([[0.0, 0], [2, 0]]), torch.tensor([[1.0, 0], [1, 0]])
    assert mixture.energy_distance(a, b) == pytest.approx(2 * 1 - 2 - 0)


@pytest.mark.slow
def test_generator_reaches_the_mixture():
    """Energy distance to fresh samples falls by more than 20 times, and all modes are there."""
    rng = torch.Generator().manual_seed(0)
    trainer = mixture.make_trainer(replace(mixture.CONFIG, kimg=150.0, warmup_kimg=30.0))
    before = mixture.measure(mixture.draw_points(mixture.average_of(trainer), 4000, rng), rng)
    mixture.train(trainer)
    after = mixture.measure(mixture.draw_points(mixture.average_of(trainer), 4000, rng), rng)
    assert before.distance > 0.5 and after.distance < before.distance / 20, (before, after)
    assert before.shares.min() == 0 and after.shares.min() > 0.04 and after.shares.max() < 0.25, after
    assert after.shares.sum() > 0.7 and after.spread < 1.3 * mixture.MODE_STD, after
