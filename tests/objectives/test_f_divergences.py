"""f-divergences on the line: estimators against finite differences of the divergence itself, with the exact ratio."""

from __future__ import annotations

import math

import pytest
import torch
from line import finite_differences, gaussian, mixture, objective_gradient
from scipy import integrate

from refine.objectives import Scores, parse_objective
from refine.objectives.f_divergence import DIVERGENCES, parse_divergence

# Definitions by r = p / q, written here once more as the papers have them.
F = {
    "kl": lambda r: r * r.log(),
    "rkl": lambda r: -r.log(),
    "softened-rkl": lambda r: (r + 1) * (0.5 + 0.5 / r).log(),
    "js": lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
    "jeffreys": lambda r: (r - 1) * r.log(),
    "hellinger": lambda r: 1 - r.sqrt(),
    "neyman": lambda r: 1 / r - 1,
    "skew:alpha=0.3": None,
    "skew:alpha=0.8": None,
}
PSI = {"rkl": lambda r: r**0, "kl": lambda r: r, "jeffreys": lambda r: 1 + r, "neyman": lambda r: 2 / r}
TEACHER = mixture([0.35, 0.65], [-0.9, 0.8], [0.35, 0.5])
MU, TAU, SIGMA = 0.15, 0.6, 0.5
EXACT = "r_min=0,r_max=inf"
GRID = torch.linspace(-9, 9, 20001, dtype=torch.float64)  # the trapezoid rule is exact for smooth decaying functions


def skew_f(alpha):
    """Function with r^2 f'' = r / (alpha r + 1 - alpha), f(1) = f'(1) = 0."""

    def f(r):
        mixed = alpha * r + 1 - alpha
        return (r * r.log() - mixed * mixed.log() / alpha) / (1 - alpha)

    return f


def f_of(name):
    return F[name] or skew_f(float(name.partition("=")[2]))


def divergence_of(name):
    divergence, _, alpha = name.partition(":alpha=")
    return parse_divergence(divergence, *([float(alpha)] if alpha else []))


def expectation(values):
    """E under q of values(q's log density, teacher's log density, x), for a generator N(mu, tau^2) with noise."""

    def of(mu, tau):
        own = gaussian(mu, tau)
        log_q = own.log_density(GRID, SIGMA)
        inside = values(own, TEACHER.log_density(GRID, SIGMA) - log_q)
        return float(torch.trapezoid(log_q.exp() * inside, GRID))

    return of


def f_divergence(name):
    f = f_of(name)
    return expectation(lambda own, log_r: f(log_r.exp()))


def generalized_fisher(name):
    h = divergence_of(name).h

    def inside(own, log_r):
        delta = TEACHER.denoise(GRID, SIGMA) - own.denoise(GRID, SIGMA)
        return h(log_r.exp()) * delta**2

    return expectation(inside)


@pytest.mark.parametrize("name", F)
def test_h_is_the_curvature_of_f(name):
    r = torch.tensor([0.05, 0.3, 1.0, 2.5, 12.0], dtype=torch.float64, requires_grad=True)
    first = torch.autograd.grad(f_of(name)(r).sum(), r, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), r)[0]
    divergence = divergence_of(name)
    assert divergence.h(r).detach() == pytest.approx((r**2 * second).detach(), rel=1e-10)
    value = divergence.h(r)
    slope = torch.autograd.grad(value.sum(), r)[0] if value.requires_grad else torch.zeros_like(r)
    assert divergence.slope(r).detach() == pytest.approx(slope, rel=1e-10)


def test_all_divergences_are_in_the_table():
    assert {name.partition(":")[0] for name in F} == {*DIVERGENCES, "skew"}


@pytest.mark.parametrize("name", PSI)
def test_psi_of_the_fisher_family(name):
    r = torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)
    assert divergence_of(name).h(r) == pytest.approx(PSI[name](r))


def test_ends_of_the_skew_divergence():
    r = torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)
    for alpha, name, factor in ((0.0, "kl", 1), (1.0, "rkl", 1), (0.5, "js", 2)):
        assert parse_divergence("skew", alpha).h(r) == pytest.approx(factor * DIVERGENCES[name].h(r))


@pytest.mark.parametrize("name", F)
def test_f_distill_is_the_gradient_of_the_divergence(name):
    """sigma^2 times finite differences of D_f."""
    found = objective_gradient(parse_objective(f"f:{name},{EXACT}"), TEACHER, MU, TAU, SIGMA, num=140)
    expected = [SIGMA**2 * slope for slope in finite_differences(f_divergence(name), MU, TAU)]
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert max(map(abs, found)) > 1e-3


@pytest.mark.parametrize("name", F)
def test_generalized_fisher_needs_the_ratio_differentiated(name):
    """Exact with r differentiated; with r detached, as published code has it, only where psi is constant."""
    objective = parse_objective(f"fisher:{name},{EXACT}")
    expected = finite_differences(generalized_fisher(name), MU, TAU)
    found = objective_gradient(objective, TEACHER, MU, TAU, SIGMA, num=140)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
    detached = objective_gradient(objective, TEACHER, MU, TAU, SIGMA, num=140, detach=True)
    if name == "rkl":
        assert detached == pytest.approx(expected, rel=1e-6)
    else:
        assert detached != pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("name", ["kl", "rkl", "js"])
def test_fisher_integrates_to_the_divergence(name):
    """D_f(q, p) = 1/2 integral of E psi |Delta / sigma^2|^2 d(sigma^2), in ln sigma."""
    teacher, own, h, f = gaussian(0.3, 0.5), gaussian(-0.2, 0.8), divergence_of(name).h, f_of(name)
    grid = torch.linspace(-120, 120, 8001, dtype=torch.float64)

    def rate(log_sigma):
        sigma = math.exp(log_sigma)
        x = grid * math.hypot(1, sigma) / 8
        log_q = own.log_density(x, sigma)
        r = (teacher.log_density(x, sigma) - log_q).exp()
        delta = teacher.denoise(x, sigma) - own.denoise(x, sigma)
        return float(torch.trapezoid(log_q.exp() * h(r) * delta**2, x)) / sigma**2

    total = integrate.quad(rate, -7, 7, limit=200, epsrel=1e-6)[0]
    log_q = own.log_density(GRID, 0.0)
    exact = float(torch.trapezoid(log_q.exp() * f((teacher.log_density(GRID, 0.0) - log_q).exp()), GRID))
    assert total == pytest.approx(exact, rel=1e-4)


def test_ratios_are_clamped():
    """Outside of the range psi is constant: the loss is that of FGM times the end's value."""
    torch.manual_seed(0)
    x0, teacher, fake = (torch.randn(2, 1, 3, 3, dtype=torch.float64) for _ in range(3))
    logit = torch.tensor([-9.0, 9.0], dtype=torch.float64)
    scores = Scores(x0, torch.ones(2, dtype=torch.float64), teacher, fake, logit)
    fgm = parse_objective("fgm").loss(scores)
    assert parse_objective("fisher:kl").loss(scores) == pytest.approx(fgm * torch.tensor([0.1, 20.0]))
    x0.requires_grad_()
    for text, ends in (("f:kl", (0.1, 20.0)), ("f:kl,r_min=0.5,r_max=4", (0.5, 4.0)), ("f:js", (1 / 11, 20 / 21))):
        gradient = torch.autograd.grad(parse_objective(text).loss(scores).sum(), x0)[0]
        expected = -torch.tensor(ends, dtype=torch.float64).reshape(-1, 1, 1, 1) * (teacher - fake)
        assert torch.allclose(gradient, expected)
