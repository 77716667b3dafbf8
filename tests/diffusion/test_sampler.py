"""Scores, noise levels and the Heun sampler against Gaussian data, for which everything is known in closed form."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from refine.diffusion.denoiser import score
from refine.diffusion.sampler import HeunOptions, heun_sample, karras_sigmas

MEAN = torch.tensor([0.3, -0.7, 0.0], dtype=torch.float64).reshape(3, 1, 1)
STD = torch.tensor([0.5, 0.1, 1.4], dtype=torch.float64).reshape(3, 1, 1)


@dataclass
class GaussianDenoiser:
    """The exact denoiser of independent Gaussian pixels; notes what it is asked."""

    img_resolution: int = 4
    img_channels: int = 3
    label_dim: int = 0
    sigma_data: float = 0.5
    sigma_min: float = 0
    sigma_max: float = math.inf
    rounding: float = 0
    sigmas: list[float] = field(default_factory=list)
    labels: list[torch.Tensor | None] = field(default_factory=list)

    def __call__(self, x, sigma, class_labels=None, augment_labels=None, force_fp32=False):
        assert sigma.ndim == 0
        self.sigmas.append(float(sigma))
        self.labels.append(class_labels)
        return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)

    def round_sigma(self, sigma):
        return (sigma / self.rounding).round() * self.rounding if self.rounding else sigma


def gaussian_latents(n: int = 2) -> torch.Tensor:
    return torch.randn([n, 3, 4, 4], generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def exact_solution(latents: torch.Tensor, sigma_max: float, sigma_min: float) -> torch.Tensor:
    """The probability flow from sigma_max to sigma_min, then the sampler's last step: one Euler step to 0."""
    x = MEAN + (latents * sigma_max - MEAN) * ((STD**2 + sigma_min**2) / (STD**2 + sigma_max**2)).sqrt()
    return (STD**2 * x + sigma_min**2 * MEAN) / (STD**2 + sigma_min**2)


def test_score_is_the_gradient_of_the_log_density():
    x, sigma = gaussian_latents().requires_grad_(), torch.tensor([0.2, 3.0], dtype=torch.float64)
    per_sample = sigma.reshape(-1, 1, 1, 1)
    log_density = -((x - MEAN) ** 2) / (2 * (STD**2 + per_sample**2))
    (want,) = torch.autograd.grad(log_density.sum(), x)
    denoised = (STD**2 * x + per_sample**2 * MEAN) / (STD**2 + per_sample**2)
    torch.testing.assert_close(score(x, denoised, sigma), want)
    torch.testing.assert_close(score(x, denoised, per_sample), want)
    torch.testing.assert_close(score(x[:1], denoised[:1], 0.2), want[:1])


def test_sigmas_fall_from_maximum_to_minimum_evenly_in_their_root():
    sigmas = karras_sigmas(18)
    assert sigmas.dtype == torch.float64
    assert sigmas[0] == pytest.approx(80, rel=1e-12)
    assert sigmas[-1] == pytest.approx(0.002, rel=1e-12)
    assert (sigmas.diff() < 0).all()
    for rho in (1, 3, 7):
        steps = (karras_sigmas(9, 0.1, 30, rho) ** (1 / rho)).diff()
        np.testing.assert_allclose(steps, (0.1 ** (1 / rho) - 30 ** (1 / rho)) / 8, rtol=1e-10)
    assert karras_sigmas(1, 0.5, 3).tolist() == pytest.approx([3])


@pytest.mark.parametrize("arguments", [(0,), (5, 0, 1), (5, 2, 1), (5, 0.1, math.inf), (5, math.nan, 1)])
def test_impossible_sigma_grids_are_refused(arguments):
    with pytest.raises(ValueError, match=r"num_steps=0|sigma_min=.*, sigma_max="):
        karras_sigmas(*arguments)


def test_heun_converges_to_the_probability_flow_with_second_order():
    latents = gaussian_latents()
    want = exact_solution(latents, 80, 0.002)
    errors = []
    for intervals in (32, 64, 128, 256):
        images = heun_sample(GaussianDenoiser(), latents, options=HeunOptions(num_steps=intervals + 1))
        errors.append(float((images - want).abs().max()))
    orders = -np.diff(np.log2(errors))
    assert ((orders > 1.85) & (orders < 2.3)).all(), orders
    assert errors[-1] < 1e-3


def test_heun_on_a_network_with_a_smaller_range_of_sigma():
    denoiser, latents = GaussianDenoiser(sigma_min=0.05, sigma_max=20), gaussian_latents()
    images = heun_sample(denoiser, latents, options=HeunOptions(num_steps=200))
    torch.testing.assert_close(images, exact_solution(latents, 20, 0.05), rtol=1e-3, atol=1e-3)
    assert max(denoiser.sigmas) == pytest.approx(20)
    assert min(denoiser.sigmas) == pytest.approx(0.05)


def test_heun_evaluates_the_network_where_the_algorithm_says():
    denoiser = GaussianDenoiser()
    heun_sample(denoiser, gaussian_latents(), options=HeunOptions(num_steps=5, sigma_min=0.1, sigma_max=10, rho=3))
    grid = karras_sigmas(5, 0.1, 10, 3).tolist()
    assert denoiser.sigmas == pytest.approx([s for pair in itertools.pairwise(grid) for s in pair] + [0.1])


def test_a_single_step_is_the_denoised_latent():
    denoiser, latents = GaussianDenoiser(), gaussian_latents()
    images = heun_sample(denoiser, latents, options=HeunOptions(num_steps=1))
    torch.testing.assert_close(images, denoiser(80 * latents, torch.tensor(80.0)))


def test_sigmas_are_rounded_to_the_network_and_labels_passed_on():
    denoiser, labels = GaussianDenoiser(rounding=0.125), torch.eye(2)
    options = HeunOptions(num_steps=6, sigma_min=0.3, sigma_max=20.3, S_churn=3)
    heun_sample(denoiser, gaussian_latents(), labels, options)
    assert all(sigma % 0.125 == 0 for sigma in denoiser.sigmas)
    assert all(seen is labels for seen in denoiser.labels)
    grid = [0.125 * round(s / 0.125) for s in karras_sigmas(6, 0.3, 20.3).tolist()]
    assert denoiser.sigmas[1::2] == grid[1:]


def test_the_deterministic_sampler_draws_no_noise_and_tracks_no_gradient():
    state = torch.get_rng_state()
    images = heun_sample(GaussianDenoiser(), gaussian_latents().float().requires_grad_())
    assert torch.equal(torch.get_rng_state(), state)
    assert images.dtype == torch.float64
    assert not images.requires_grad


def reference_stochastic_sampler(latents, sigmas, S_churn, S_min, S_max, S_noise, generator):
    """Algorithm 2 of arXiv 2206.00364 on Gaussian data, in NumPy."""
    mean, var = MEAN.numpy(), STD.numpy() ** 2

    def slope(x, t):
        return (x - (var * x + t**2 * mean) / (var + t**2)) / t

    times = np.append(sigmas.numpy(), 0)
    x = latents.numpy() * times[0]
    count = len(sigmas)
    for i in range(count):
        t = times[i]
        gamma = min(S_churn / count, 2**0.5 - 1) if S_min <= t <= S_max else 0.0
        if gamma > 0:
            noise = torch.randn(latents.shape, generator=generator, dtype=torch.float64).numpy()
            t = times[i] * (1 + gamma)
            x = x + (t**2 - times[i] ** 2) ** 0.5 * S_noise * noise
        d = slope(x, t)
        x_next = x + (times[i + 1] - t) * d
        if i < count - 1:
            x_next = x + (times[i + 1] - t) * (d + slope(x_next, times[i + 1])) / 2
        x = x_next
    return torch.from_numpy(x)


@pytest.mark.parametrize(
    ("S_churn", "S_min", "S_max", "S_noise"), [(4, 0, math.inf, 1), (100, 0.05, 50, 1.007), (1, 1, 2, 0.5)]
)
def test_stochastic_sampler_equals_an_independent_evaluation(S_churn, S_min, S_max, S_noise):
    latents = gaussian_latents()
    options = HeunOptions(10, S_churn=S_churn, S_min=S_min, S_max=S_max, S_noise=S_noise)
    images = heun_sample(GaussianDenoiser(), latents, None, options, torch.Generator().manual_seed(7))
    want = reference_stochastic_sampler(
        latents, karras_sigmas(10), S_churn, S_min, S_max, S_noise, torch.Generator().manual_seed(7)
    )
    torch.testing.assert_close(images, want, rtol=1e-10, atol=1e-10)
    assert (images - heun_sample(GaussianDenoiser(), latents, options=HeunOptions(10))).abs().max() > 1e-3


def test_stochastic_sampler_keeps_the_distribution():
    options = HeunOptions(num_steps=64, S_churn=20)
    images = heun_sample(GaussianDenoiser(), gaussian_latents(2000), None, options, torch.Generator().manual_seed(1))
    pixels = images.transpose(0, 1).reshape(3, -1)
    torch.testing.assert_close(pixels.mean(1), MEAN.flatten(), rtol=0, atol=0.03)
    torch.testing.assert_close(pixels.std(1), STD.flatten(), rtol=0.03, atol=0)
