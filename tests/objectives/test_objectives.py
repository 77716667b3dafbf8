"""Texts of objectives, and what the contract promises of each."""

from __future__ import annotations

import pytest
import torch

from refine.errors import UserError
from refine.objectives import IKL, OBJECTIVES, FDistill, Scores, SiD, parse_objective

TEXTS = ["ikl", "sid", "sid:0.5", "sim:c=0.03", "sim:distance=l2", "fgm", "uid", "f:js", "fisher:kl", "sds", "smart"]


@pytest.mark.parametrize(
    ("text", "objective"),
    [
        ("ikl", IKL()),
        ("ikl:dmd", IKL(weighting="dmd")),
        ("ikl:weighting=vsd", IKL(weighting="vsd")),
        ("sid:alpha=1.2", SiD(alpha=1.2)),
        ("sid:1.2, weighting = uniform", SiD(alpha=1.2, weighting="uniform")),
        ("f:kl", FDistill("kl")),
        ("f:skew:alpha=0.3", FDistill("skew", alpha=0.3)),
        ("f:skew,alpha=0.3,r_max=inf", FDistill("skew", alpha=0.3, r_max=float("inf"))),
        (SiD(), SiD()),
    ],
)
def test_texts(text, objective):
    assert parse_objective(text) == objective
    assert parse_objective(str(objective)) == objective


@pytest.mark.parametrize("name", OBJECTIVES)
def test_names_are_their_own_text(name):
    assert str(parse_objective(name)) == name == parse_objective(name).name


def test_switches_are_read_as_such():
    assert parse_objective("sim:detach_norm=1").detach_norm is True
    assert parse_objective("sim:detach_norm=0").detach_norm is False
    assert str(parse_objective("sim:detach_norm=True")) == "sim:detach_norm=1"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("dmd", "ikl, sid, sim"),
        ("", "ikl, sid, sim"),
        ("sid:beta=1", "alpha, weighting"),
        ("sid:alpha=high", "'high'"),
        ("sid:alpha=nan", "nan"),
        ("sid:", "alpha"),
        ("sid:1:alpha=2", "alpha"),
        ("sid:alpha=1,dmd", "'dmd'"),
        ("ikl:weighting=new", "uniform, dmd, score, vsd"),
        ("sim:c=0", "c must"),
        ("sim:distance=l1", "huber, l2"),
        ("sim:detach_norm=maybe", "'maybe'"),
        ("f:new", "jeffreys"),
        ("f:skew,alpha=1.5", "1.5"),
        ("f:kl,alpha=0.3", "skew"),
        ("fisher:kl,r_min=2,r_max=1", "r_min"),
    ],
)
def test_impossible_texts(text, told):
    with pytest.raises(UserError) as raised:
        parse_objective(text)
    assert told in str(raised.value)


def scores_of(objective, num=4):
    """Estimates that depend on x0, as those of networks do."""
    rng = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(num, 2, 3, 3, generator=rng, dtype=torch.float64) for _ in range(2))
    x0.requires_grad_()
    sigma = torch.rand(num, generator=rng, dtype=torch.float64) + 0.2
    x_t = x0 + sigma.reshape(-1, 1, 1, 1) * noise
    if not objective.through_networks:
        x_t = x_t.detach()
    logit = 0.1 * x_t.sum([1, 2, 3]) if objective.needs_ratio else None
    return Scores(x0, sigma, 0.8 * x_t, 0.5 * x_t + 0.1, logit)


@pytest.mark.parametrize("text", TEXTS)
def test_losses_are_per_image(text):
    """[N], finite, and an image's gradient is its own loss's alone."""
    objective = parse_objective(text)
    scores = scores_of(objective)
    loss = objective.loss(scores)
    assert loss.shape == (4,) and loss.isfinite().all()
    gradient = torch.autograd.grad(loss[1], scores.x0)[0]
    assert gradient[1].abs().max() > 1e-6 and not gradient[[0, 2, 3]].any()


@pytest.mark.parametrize("text", ["ikl", "f:js", "sds"])
def test_estimates_are_constants_where_the_gradient_does_not_pass(text):
    """An objective that does not pass through the networks gives them no gradient even if they ask for one."""
    objective = parse_objective(text)
    x0, teacher, fake = (torch.randn(3, 1, 2, 2, requires_grad=True) for _ in range(3))
    logit = torch.randn(3, requires_grad=True)
    objective.loss(Scores(x0, torch.ones(3), teacher, fake, logit)).sum().backward()
    assert x0.grad is not None and teacher.grad is fake.grad is logit.grad is None


@pytest.mark.parametrize("weighting", ["dmd", "score"])
@pytest.mark.parametrize("name", ["sid", "fgm", "sim", "fisher", "smart"])
def test_weights_are_constants(name, weighting):
    """The gradient with a weight is that weight times the gradient without."""
    gradients, weights = [], None
    for each in ("uniform", weighting):
        objective = parse_objective(f"{name}:weighting={each}")
        scores = scores_of(objective)
        gradients.append(torch.autograd.grad(objective.loss(scores).sum(), scores.x0)[0])
        error = (scores.x0 - scores.teacher).abs().mean([1, 2, 3]).detach()
        weights = 1 / error if each == "dmd" else 1 / scores.sigma**2
    assert torch.allclose(gradients[1], weights.reshape(-1, 1, 1, 1) * gradients[0])
