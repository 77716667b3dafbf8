"""The number in nats against analytic divergences, within its stated error; and what is made of its course."""

from __future__ import annotations

import math

import pytest
import torch
from line import gaussian, mixture
from scipy import integrate

from refine.diffusion.noise_levels import Karras, LogNormal
from refine.objectives import Scores
from refine.training.divergence import (
    NATS,
    STDERR,
    Reading,
    add_divergence,
    best_snapshot,
    covered_levels,
    divergence_terms,
    is_flat,
    reading_at,
    readings,
)
from refine.training.statistics import SIGMA_BANDS, RunningMeans

WIDE = LogNormal(-0.5, 2.0)
GRID = torch.linspace(-80, 80, 16001, dtype=torch.float64)


def scores_of(teacher, own, distribution, num, seed=0, channels=1):
    """Exact estimates on images of independent pixels [N, C, 1, 1], each of the law `own`."""
    rng = torch.Generator().manual_seed(seed)
    u = torch.rand(num, generator=rng, dtype=torch.float64)
    sigma = distribution.quantile(u)
    component = torch.multinomial(own.weights, num * channels, replacement=True, generator=rng)
    noise = torch.randn(2, num, channels, generator=rng, dtype=torch.float64)
    x0 = own.means[component].reshape(num, channels) + own.stds[component].reshape(num, channels) * noise[0]
    x_t = x0 + sigma[:, None] * noise[1]
    estimates = []
    for law in (teacher, own):
        variance = law.stds**2 + sigma[:, None, None] ** 2
        away = x_t[..., None] - law.means
        posterior = (law.weights.log() - away**2 / (2 * variance) - variance.log() / 2).softmax(-1)
        estimates.append((posterior * (law.means + law.stds**2 / variance * away)).sum(-1)[..., None, None])
    return Scores(x0[..., None, None], sigma, *estimates)


def kl(own, teacher):
    log_q = own.log_density(GRID, 0.0)
    return float(torch.trapezoid(log_q.exp() * (log_q - teacher.log_density(GRID, 0.0)), GRID))


def covered_kl(own, teacher, distribution):
    """KL at the lowest level that is covered, less that at the highest: what noise takes away between them."""

    def at(sigma):
        log_q = own.log_density(GRID, sigma)
        return float(torch.trapezoid(log_q.exp() * (log_q - teacher.log_density(GRID, sigma)), GRID))

    low, high = covered_levels(distribution)
    return at(low) - at(high)


PAIRS = {
    "Gaussians": (gaussian(0.3, 0.5), gaussian(-0.2, 0.8)),
    "mixtures": (mixture([0.5, 0.5], [-1.0, 1.0], [0.4, 0.4]), mixture([0.2, 0.8], [-0.8, 1.1], [0.5, 0.6])),
}


@pytest.mark.parametrize("distribution", [WIDE, Karras(0.01, 80.0, 7.0)])
@pytest.mark.parametrize("name", PAIRS)
def test_nats_are_those_of_the_divergence(name, distribution):
    """Within four standard errors of the part that is covered, which is all of it but a few percent."""
    teacher, own = PAIRS[name]
    statistics = RunningMeans()
    for seed in range(4):
        add_divergence(statistics, scores_of(teacher, own, distribution, 50_000, seed, channels=3), distribution)
    means = statistics.means()
    exact = 3 * covered_kl(own, teacher, distribution)
    assert means[STDERR] < 0.01 * exact
    assert means[NATS] == pytest.approx(exact, abs=4 * means[STDERR])
    assert exact == pytest.approx(3 * kl(own, teacher), rel=0.06)


def test_closed_form_of_a_gaussian_pair():
    """The quadrature itself against the textbook."""
    (m, s), (mu, tau) = (0.3, 0.5), (-0.2, 0.8)
    exact = math.log(s / tau) + (tau**2 + (mu - m) ** 2) / (2 * s**2) - 0.5
    assert kl(gaussian(mu, tau), gaussian(m, s)) == pytest.approx(exact, rel=1e-9)


def test_standard_error_is_that_of_repetitions():
    teacher, own = PAIRS["mixtures"]
    values, errors = [], []
    for seed in range(300):
        statistics = RunningMeans()
        add_divergence(statistics, scores_of(teacher, own, WIDE, 500, seed), WIDE)
        means = statistics.means()
        values.append(means[NATS])
        errors.append(means[STDERR])
    spread = torch.tensor(values).std()
    assert float(spread) == pytest.approx(sum(errors) / len(errors), rel=0.2)


def test_bands_add_up_and_are_integrals_themselves():
    teacher, own = PAIRS["Gaussians"]
    statistics = RunningMeans()
    add_divergence(statistics, scores_of(teacher, own, WIDE, 200_000), WIDE)
    means = statistics.means()
    bands = {name: value for name, value in means.items() if name.startswith(f"{NATS}/sigma_")}
    assert len(bands) == len(SIGMA_BANDS) - 1 and sum(bands.values()) == pytest.approx(means[NATS])

    def rate(log_sigma):  # E |Delta|^2 / sigma^2 of the Gaussian pair
        variance = math.exp(2 * log_sigma)
        A, B = 0.5**2 + variance, 0.8**2 + variance
        return variance * (B * (1 / B - 1 / A) ** 2 + (0.5 / A) ** 2)

    for low, high in ((0.1, 0.4), (0.4, 1.5), (1.5, 6.0)):
        name = f"/sigma_{low:g}_{high:g}"
        exact = integrate.quad(rate, math.log(low), math.log(high))[0]
        assert means[NATS + name] == pytest.approx(exact, abs=4 * means[STDERR + name])
        assert means[STDERR + name] < 0.03 * exact


def test_micro_batches_and_restored_totals_add_up():
    teacher, own = PAIRS["mixtures"]
    parts = [scores_of(teacher, own, WIDE, 400, seed) for seed in range(3)]
    whole, split = RunningMeans(), RunningMeans()
    add_divergence(
        whole, Scores(*(torch.cat([getattr(p, n) for p in parts]) for n in ("x0", "sigma", "teacher", "fake"))), WIDE
    )
    for part in parts:
        add_divergence(split, part, WIDE)
        split = RunningMeans(split.merged())
    expected = whole.means()
    assert split.means() == pytest.approx(expected) and len(expected) > 8


def test_what_is_not_finite_is_left_out():
    scores = scores_of(*PAIRS["mixtures"], WIDE, 100)
    scores.fake[3] = math.nan
    statistics = RunningMeans()
    add_divergence(statistics, scores, WIDE)
    assert math.isfinite(statistics.means()[NATS])
    one_level = LogNormal(0.0, 0.0)
    scores = scores_of(*PAIRS["mixtures"], one_level, 100)
    assert not divergence_terms(scores, one_level).isfinite().any()
    statistics = RunningMeans()
    add_divergence(statistics, scores, one_level)
    assert statistics.means() == {}


@pytest.mark.parametrize("distribution", [WIDE, Karras(0.002, 80.0, 7.0)])
def test_density_is_the_quantiles_slope(distribution):
    u = torch.tensor([0.02, 0.3, 0.5, 0.9], dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(distribution.quantile(u).log().sum(), u)[0]
    assert distribution.log_sigma_density(distribution.quantile(u)).detach() == pytest.approx(1 / slope, rel=1e-9)


# -- the course ------------------------------------------------------------------------------------------


def course(values, stderr=0.05):
    return [Reading(1000 * (i + 1), value, stderr * value) for i, value in enumerate(values)]


def noisy(values, stderr, seed):
    rng = torch.Generator().manual_seed(seed)
    return course([v * (1 + stderr * float(torch.randn([], generator=rng))) for v in values], stderr)


def test_flat_and_falling():
    falling, flat = [10 * 0.9**i for i in range(10)], [10.0] * 10
    assert not any(is_flat(noisy(falling, 0.05, seed), 8) for seed in range(50))
    assert sum(is_flat(noisy(flat, 0.05, seed), 8) for seed in range(200)) > 180
    assert is_flat(course([10, 11, 12, 13, 14]), 5)
    assert is_flat(noisy(falling + [3.0] * 8, 0.05, 3), 8)


def test_scatter_beyond_the_stated_errors_counts():
    """Readings that jump by more than they say do not fall for certain."""
    jumping = course([10, 6, 11, 5, 10.5, 5.5, 9.5, 5], stderr=1e-3)
    assert is_flat(jumping, 8)


def test_flat_needs_its_readings():
    assert not is_flat(course([10.0] * 4), 5)
    with pytest.raises(ValueError, match="patience=2"):
        is_flat(course([10.0] * 4), 2)


def test_readings_of_rows():
    rows = [
        {"Progress/cur_nimg": -500, "Loss/fake": 3.0},
        {"Progress/cur_nimg": 1000, NATS: 4.0, STDERR: 0.5},
        {"Progress/cur_nimg": 2000, NATS: math.nan, STDERR: 0.5},
        {"Progress/cur_nimg": 3000, NATS: 3},
        {"Progress/cur_nimg": 4000, NATS: 2, STDERR: 0.25},
    ]
    assert readings(rows) == [Reading(1000, 4.0, 0.5), Reading(4000, 2.0, 0.25)]


def test_best_snapshot():
    history = course([5, 4, 2, 2.5, 3, 3.5])
    assert reading_at(history, 1000, 3000).nats == pytest.approx(3.0)
    assert reading_at(history, 1000, 3000).stderr == pytest.approx(0.05 * math.hypot(4, 2) / 2)
    assert reading_at(history, 6000, 9000) is None
    assert best_snapshot(history, [0, 2000, 4000, 6000]) == 4000
    assert best_snapshot([], [0, 2000]) is None and best_snapshot(history, [0]) is None
