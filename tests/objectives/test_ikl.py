"""The gradient of the divergence against closed forms: Gaussian generator, Gaussian and mixture teachers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special

from refine.objectives import ikl
from refine.objectives.weighting import WEIGHTINGS

D = 4  # images are [N, 1, 2, 2]
P_MEAN, P_STD = -0.5, 0.8


def random_covariance(rng, scale):
    a = rng.normal(size=(D, D)) * scale
    return a @ a.T + 0.05 * np.eye(D)


def gaussian_denoiser(mean, covariance, x, sigma):
    """E[x0 | x0 + sigma n = x] for x0 ~ N(mean, covariance): x [N, D], sigma [N]."""
    values, vectors = np.linalg.eigh(covariance)
    shrink = values / (values + sigma[:, None] ** 2)
    return mean + ((x - mean) @ vectors * shrink) @ vectors.T


def expectation_over_sigma(function, num_nodes=80):
    """E over ln sigma ~ N(P_MEAN, P_STD^2), by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    return sum(w * function(math.exp(P_MEAN + P_STD * t)) for t, w in zip(nodes, weights, strict=True)) / weights.sum()


def images(a):
    return torch.from_numpy(a).reshape(-1, 1, 2, 2)


def within_three_standard_errors(samples, expected):
    """Means of `samples` [N, ...] against `expected`; the largest of many z-scores may be a little above 3."""
    error = samples.std(axis=0) / math.sqrt(len(samples))
    z = np.abs(samples.mean(axis=0) - expected) / error
    return np.all(z < 3 + math.log10(z.size))


@pytest.mark.parametrize(("weighting", "weight"), [("uniform", lambda s: 1.0), ("score", lambda s: 1 / s**2)])
def test_gradient_of_a_gaussian_generator(weighting, weight):
    rng = np.random.default_rng(0)
    num = 1_000_000
    mean_t, cov_t = rng.normal(size=D), random_covariance(rng, 0.6)
    mean_g, root = rng.normal(size=D) * 0.5, rng.normal(size=(D, D)) * 0.4
    cov_g = root @ root.T
    z, noise = rng.normal(size=(num, D)), rng.normal(size=(num, D))
    sigma = np.exp(P_MEAN + P_STD * rng.normal(size=num))
    x0 = mean_g + z @ root.T
    x_t = x0 + sigma[:, None] * noise
    teacher, fake = (gaussian_denoiser(m, c, x_t, sigma) for m, c in ((mean_t, cov_t), (mean_g, cov_g)))
    gradient = ikl.generator_gradient(images(x0), images(teacher), images(fake), torch.from_numpy(sigma), weighting)
    gradient = gradient.reshape(num, D).numpy()

    def shrinkage(covariance, s):
        return covariance @ np.linalg.inv(covariance + s**2 * np.eye(D))

    def mean_part(s):  # -w E[Delta], Delta affine in x_t
        return -weight(s) * (mean_t + shrinkage(cov_t, s) @ (mean_g - mean_t) - mean_g)

    def root_part(s):  # -w E[Delta z^T]
        return -weight(s) * (shrinkage(cov_t, s) - shrinkage(cov_g, s)) @ root

    assert within_three_standard_errors(gradient, expectation_over_sigma(mean_part))
    assert within_three_standard_errors(gradient[:, :, None] * z[:, None, :], expectation_over_sigma(root_part))


def test_it_is_the_gradient_of_the_divergence():
    """In 1-D: d/dm of the expected KL divergence itself, by finite differences."""
    mean_t, sd_t, sd_g = 0.3, 0.9, 0.4

    def kl(m, s):  # between N(m, sd_g^2 + s^2) and N(mean_t, sd_t^2 + s^2)
        p, q = sd_g**2 + s**2, sd_t**2 + s**2
        return 0.5 * (math.log(q / p) + (p + (m - mean_t) ** 2) / q - 1)

    m, step = -0.2, 1e-5
    divergence = [expectation_over_sigma(lambda s, m=m: kl(m, s)) for m in (m - step, m + step)]
    expected = (divergence[1] - divergence[0]) / (2 * step)
    # E[Delta] / sigma^2 is the expected difference of the scores: weighting `score` integrates the KL with weight 1.
    num = 400_000
    rng = np.random.default_rng(1)
    x0 = m + sd_g * rng.normal(size=num)
    sigma = np.exp(P_MEAN + P_STD * rng.normal(size=num))
    x_t = x0 + sigma * rng.normal(size=num)
    denoised = [
        torch.from_numpy(mean + sd**2 / (sd**2 + sigma**2) * (x_t - mean)).reshape(-1, 1, 1, 1)
        for mean, sd in ((mean_t, sd_t), (m, sd_g))
    ]
    sigma = torch.from_numpy(sigma)
    gradient = ikl.generator_gradient(torch.from_numpy(x0).reshape(-1, 1, 1, 1), *denoised, sigma, "score")
    assert within_three_standard_errors(gradient.flatten().numpy()[:, None], expected)


def test_mixture_teacher():
    """Teacher: two Gaussians in 1-D; the expectation by quadrature over x_t at a fixed sigma."""
    modes, sd_t, mean_g, sd_g, sigma = np.array([-1.0, 1.5]), 0.3, 0.2, 0.8, 0.7
    variance_t = sd_t**2 + sigma**2

    def teacher(x):
        logits = -((np.asarray(x)[..., None] - modes) ** 2) / (2 * variance_t)
        posterior = special.softmax(logits, axis=-1)
        return (posterior * (modes + sd_t**2 / variance_t * (np.asarray(x)[..., None] - modes))).sum(-1)

    def fake(x):
        return mean_g + sd_g**2 / (sd_g**2 + sigma**2) * (x - mean_g)

    spread = math.sqrt(sd_g**2 + sigma**2)

    def density(x):
        return math.exp(-(((x - mean_g) / spread) ** 2) / 2) / (spread * math.sqrt(2 * math.pi))

    expected = -integrate.quad(lambda x: (teacher(x) - fake(x)) * density(x), -12, 12, epsabs=1e-12)[0]
    rng = np.random.default_rng(2)
    num = 1_000_000
    x0 = mean_g + sd_g * rng.normal(size=num)
    x_t = x0 + sigma * rng.normal(size=num)
    shape = (-1, 1, 1, 1)
    tensors = [torch.from_numpy(a).reshape(shape) for a in (x0, teacher(x_t), fake(x_t))]
    gradient = ikl.generator_gradient(*tensors, torch.full((num,), sigma, dtype=torch.float64))
    assert within_three_standard_errors(gradient.flatten().numpy()[:, None], expected)


def test_dmd_weighting_by_quadrature():
    """Independent pixels: E[Delta_1 / mean |u|], u = x0 - D_T, with 1 / S = integral of exp(-t S) over t."""
    mean_t, sd_t, mean_g, sd_g, sigma = 0.5, 0.8, -0.3, 0.5, 0.6
    a_t, a_g = (sd**2 / (sd**2 + sigma**2) for sd in (sd_t, sd_g))
    # Per pixel, with x_t = mean_g + sd_g z + sigma n: u and Delta are affine in (z, n).
    u_mean = mean_g - (mean_t + a_t * (mean_g - mean_t))
    u_z, u_n = sd_g * (1 - a_t), -a_t * sigma
    delta_mean = mean_t + a_t * (mean_g - mean_t) - mean_g
    delta_z, delta_n = (a_t - a_g) * sd_g, (a_t - a_g) * sigma
    u_sd = math.hypot(u_z, u_n)
    slope = (u_z * delta_z + u_n * delta_n) / u_sd**2  # E[Delta | u] = delta_mean + slope (u - u_mean)

    def moment(t, function):  # E[function(u) exp(-t |u|)]
        def integrand(u):
            return function(u) * math.exp(-t * abs(u) - (((u - u_mean) / u_sd) ** 2) / 2)

        value = integrate.quad(integrand, u_mean - 10 * u_sd, u_mean + 10 * u_sd, points=[0.0], limit=200)[0]
        return value / (u_sd * math.sqrt(2 * math.pi))

    def over_t(t):
        return moment(t, lambda u: delta_mean + slope * (u - u_mean)) * moment(t, lambda u: 1.0) ** (D - 1)

    expected = -D * integrate.quad(over_t, 0, math.inf, limit=200)[0]
    rng = np.random.default_rng(3)
    num = 1_000_000
    x0 = mean_g + sd_g * rng.normal(size=(num, D))
    x_t = x0 + sigma * rng.normal(size=(num, D))
    teacher, fake = (m + a * (x_t - m) for m, a in ((mean_t, a_t), (mean_g, a_g)))
    gradient = ikl.generator_gradient(
        images(x0), images(teacher), images(fake), torch.full((num,), sigma, dtype=torch.float64), "dmd"
    )
    assert within_three_standard_errors(gradient.reshape(num, D).numpy(), expected)


def test_fake_score_loss_is_least_for_the_posterior_mean():
    """Of all affine denoisers the exact one has the least loss, at every noise level; lambda as in the paper."""
    rng = np.random.default_rng(4)
    mean, sd, sigma, sigma_data, num = 0.3, 0.7, 0.9, 0.5, 200_000
    x0 = mean + sd * rng.normal(size=(num, D))
    x_t = x0 + sigma * rng.normal(size=(num, D))
    level = torch.full((num,), sigma, dtype=torch.float64)

    def loss(slope, offset):
        denoised = images(mean + slope * (x_t - mean) + offset)
        return ikl.fake_score_loss(denoised, images(x0), level, sigma_data).mean().item()

    best = sd**2 / (sd**2 + sigma**2)
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    assert loss(best, 0) == pytest.approx(weight * D * best * sigma**2, rel=0.01)
    assert all(loss(best + ds, do) > loss(best, 0) for ds, do in ((0.05, 0), (-0.05, 0), (0, 0.05), (0, -0.05)))


def test_fake_score_loss_sends_no_gradient_to_the_generator():
    x0, denoised = (torch.randn(3, 1, 2, 2, requires_grad=True) for _ in range(2))
    ikl.fake_score_loss(denoised, x0, torch.ones(3), 0.5).mean().backward()
    assert x0.grad is None and denoised.grad is not None


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_surrogate_has_the_gradient(weighting):
    torch.manual_seed(0)
    x0 = torch.randn(5, 3, 4, 4, requires_grad=True)
    teacher, fake = (torch.randn(5, 3, 4, 4, requires_grad=True) for _ in range(2))
    gradient = ikl.generator_gradient(x0, teacher, fake, torch.rand(5) + 0.1, weighting)
    assert not gradient.requires_grad
    ikl.surrogate_loss(x0, gradient).mean().backward()
    assert torch.allclose(x0.grad, gradient / 5)
    assert teacher.grad is None and fake.grad is None


def test_no_gradient_where_both_scores_agree():
    """At the start the fake score is a copy of the teacher: hence the warm-up."""
    denoised = torch.randn(2, 3, 4, 4)
    assert not ikl.generator_gradient(torch.randn(2, 3, 4, 4), denoised, denoised, torch.ones(2), "dmd").any()


def test_unknown_weighting():
    with pytest.raises(ValueError, match="weighting must be one of uniform, dmd, score, vsd, not 'x'"):
        ikl.generator_gradient(*[torch.zeros(1, 1, 1, 1)] * 3, torch.ones(1), "x")
