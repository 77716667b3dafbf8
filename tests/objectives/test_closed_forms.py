"""Gradients of every objective against closed forms: a Gaussian pair on the line, by quadrature to 1e-6."""

from __future__ import annotations

import math

import pytest
from line import finite_differences, gaussian, hermite, mixture, objective_gradient

from refine.objectives import OBJECTIVES, parse_objective

TEACHER = (0.4, 0.7)  # m, s
CASES = [(-0.3, 0.5, 0.6), (1.1, 1.3, 0.3), (0.2, 0.2, 2.0)]  # mu, tau, sigma


def constants(mu, tau, sigma):
    m, s = TEACHER
    A, B = s**2 + sigma**2, tau**2 + sigma**2
    return A, B, mu - m, 1 / B - 1 / A


def ikl(mu, tau, sigma):
    A, B, d, _ = constants(mu, tau, sigma)
    return sigma**2 * d / A, sigma**2 * tau * (1 / A - 1 / B)


def forward_kl(mu, tau, sigma):
    A, B, d, _ = constants(mu, tau, sigma)
    return sigma**2 * d / B, sigma**2 * tau * (1 / B - (A + d**2) / B**2)


def sds(mu, tau, sigma):
    A, _, d, _ = constants(mu, tau, sigma)
    return sigma**2 * d / A, tau * sigma**2 / A


def smart(mu, tau, sigma):
    A, _, d, _ = constants(mu, tau, sigma)
    return 2 * (sigma**2 / A) ** 2 * d, 2 * tau * (sigma**2 / A) ** 2


def sid(alpha):
    def gradient(mu, tau, sigma):
        A, B, d, k = constants(mu, tau, sigma)
        return (
            sigma**4 * d / A * (1 / B - 2 * (1 - alpha) * k),
            2 * tau * sigma**4 * k * ((1 - alpha) * k - 1 / B),
        )

    return gradient


def times(factor, gradient):
    return lambda *case: tuple(factor * value for value in gradient(*case))


def over_sigma(power, gradient):
    return lambda *case: tuple(value / case[2] ** power for value in gradient(*case))


def add(first, second):
    return lambda *case: tuple(a + b for a, b in zip(first(*case), second(*case), strict=True))


EXACT = "r_min=0,r_max=inf"
TABLE = {
    "ikl": ikl,
    "ikl:score": over_sigma(2, ikl),
    "ikl:vsd": over_sigma(1, ikl),
    "sds": sds,
    "smart:uniform": smart,
    "smart": over_sigma(2, smart),
    "sid:alpha=0.5,weighting=uniform": sid(0.5),
    "sid:alpha=1,weighting=uniform": sid(1.0),
    "sid:alpha=1.2,weighting=uniform": sid(1.2),
    "sid:alpha=0.2,weighting=uniform": sid(0.2),
    "sid:alpha=1.2,weighting=score": over_sigma(2, sid(1.2)),
    "fgm": times(2, sid(0.5)),
    "uid": times(2, sid(0.5)),
    "sim:distance=l2": times(2, sid(1.0)),
    f"f:rkl,{EXACT}": ikl,
    f"f:kl,{EXACT}": forward_kl,
    f"f:jeffreys,{EXACT}": add(ikl, forward_kl),
    f"fisher:rkl,{EXACT}": times(2, sid(0.5)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("text", TABLE)
def test_gradient_of_a_gaussian_generator(text, case):
    found = objective_gradient(parse_objective(text), gaussian(*TEACHER), *case, num=120)
    assert found == pytest.approx(TABLE[text](*case), rel=1e-6, abs=1e-9)


def test_every_objective_is_in_a_table():
    assert {text.partition(":")[0] for text in TABLE} | {"sim"} == OBJECTIVES.keys()


def test_half_sid_is_half_the_gradient_of_the_fisher_divergence():
    """E Delta^2 in closed form: Delta is affine in x_t."""

    def fisher(mu, tau, sigma):
        A, B, d, k = constants(mu, tau, sigma)
        return sigma**4 * (B * k**2 + (d / A) ** 2)

    for case in CASES:
        expected = finite_differences(lambda mu, tau, s=case[2]: fisher(mu, tau, s), *case[:2])
        assert times(2, sid(0.5))(*case) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("text", ["sim:c=0.3", "sim:c=1", "sim:c=20", "sim:distance=l2"])
def test_sim_is_the_gradient_of_its_distance_with_the_density_held_constant(text):
    """E_q h(Delta) where q's own parameters do not move: differences of the score in h alone."""
    objective, nodes = parse_objective(text), hermite(120)
    for mu, tau, sigma in CASES:
        B = tau**2 + sigma**2
        x = mu + math.sqrt(B) * nodes[0]

        def distance(mean, std, x=x, sigma=sigma):
            delta = gaussian(*TEACHER).denoise(x, sigma) - gaussian(mean, std).denoise(x, sigma)
            h = delta**2 if objective.distance == "l2" else (delta**2 + objective.c**2).sqrt() - objective.c
            return float((h * nodes[1]).sum())

        expected = finite_differences(distance, mu, tau)
        found = objective_gradient(objective, gaussian(*TEACHER), mu, tau, sigma, num=120)
        assert found == pytest.approx(expected, rel=2e-6, abs=1e-9)


def test_large_c_is_l2_and_a_detached_norm_is_another_gradient():
    def gradient(text):
        return objective_gradient(parse_objective(text), gaussian(*TEACHER), *CASES[0])

    assert [2e4 * g for g in gradient("sim:c=1e4")] == pytest.approx(gradient("sim:distance=l2"), rel=1e-6)
    through, detached = gradient("sim:c=0.1"), gradient("sim:c=0.1,detach_norm=1")
    assert through != pytest.approx(detached, rel=0.01)


def signs(alpha, ratio):
    """Signs of the motion of mean and spread toward the teacher's, of a generator with B / A = ratio."""
    m, s, sigma = 0.0, 1.0, 0.5
    A = s**2 + sigma**2
    tau = math.sqrt(ratio * A - sigma**2)
    mean, spread = objective_gradient(
        parse_objective(f"sid:alpha={alpha},weighting=uniform"), gaussian(m, s), 0.3, tau, sigma
    )
    return mean > 0, (spread > 0) == (tau > s)


@pytest.mark.parametrize(
    ("alpha", "wrong"),
    [
        (0.5, {}), (0.75, {}), (1.0, {}),
        (1.2, {"mean": (3.4, 3.6), "spread": (5.9, 6.1)}),
        (1.5, {"mean": (1.9, 2.1), "spread": (2.9, 3.1)}),
        (0.2, {"mean": (0.38, 0.37)}),
    ],
)  # fmt: skip
def test_sign_rule_of_alpha(alpha, wrong):
    """In [1/2, 1] nothing is pushed the wrong way; outside, what is lies beyond the stated ratios of variances."""
    for ratio in (0.25, 0.5, 0.9, 1.1, 2.0, 4.0, 8.0):
        if not wrong:
            assert signs(alpha, ratio) == (True, True)
    for index, name in enumerate(("mean", "spread")):
        if name in wrong:
            right_side, wrong_side = wrong[name]
            assert signs(alpha, right_side)[index] and not signs(alpha, wrong_side)[index]


@pytest.mark.parametrize(
    ("text", "numbers"), [("sid:1.2", ("3.5", "6 times")), ("sid:0.2", ("0.375",)), ("sid:1.5", ("2 times", "3 times"))]
)
def test_caution_says_where_the_sign_turns(text, numbers):
    caution = parse_objective(text).caution()
    assert caution is not None and all(number in caution for number in (text.partition(":")[2], *numbers))


@pytest.mark.parametrize("text", ["ikl", "sid:0.5", "sid", "sid:0.7", "sim", "fgm", "f:js", "fisher:kl"])
def test_no_caution_where_there_is_no_reason(text):
    assert parse_objective(text).caution() is None


def test_collapse_is_announced():
    assert parse_objective("sds").caution() and parse_objective("smart").caution()


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_sid_is_zero_at_a_mixture_teacher_that_the_generator_matches(alpha):
    """A generator of the teacher's own law has no gradient under any weighting."""
    for weighting in ("uniform", "dmd", "score", "vsd"):
        objective = parse_objective(f"sid:alpha={alpha},weighting={weighting}")
        found = objective_gradient(objective, mixture([1.0], [0.2], [0.6]), 0.2, 0.6, 0.8)
        assert found == pytest.approx((0, 0), abs=1e-12)
