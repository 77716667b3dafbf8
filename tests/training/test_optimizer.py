"""The optimizer's step against torch's own, its guard against what is not finite, and the learning rate."""

from __future__ import annotations

import math

import pytest
import torch

from refine.training.optimizer import Optimizer, learning_rate


def parameters(seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=rng)) for shape in ((3, 4), (5,))]


def loss_of(values, target=0.5):
    return sum((value - target).square().sum() for value in values)


@pytest.mark.parametrize("clip", [None, 0.1])
def test_it_is_adam_with_clipping(clip):
    ours, theirs = parameters(), parameters()
    optimizer = Optimizer(ours, (0.0, 0.999), clip)
    adam = torch.optim.Adam(theirs, lr=1e-2, betas=(0.0, 0.999), eps=1e-8)
    for _ in range(5):
        optimizer.zero_grad()
        optimizer.backward(loss_of(ours))
        norm = optimizer.step(1e-2)
        adam.zero_grad()
        loss_of(theirs).backward()
        expected = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in theirs]))
        assert norm == pytest.approx(float(expected), rel=1e-6)
        if clip:
            torch.nn.utils.clip_grad_norm_(theirs, clip)
        adam.step()
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("scale_loss", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_left_out(bad, scale_loss):
    values = parameters()
    optimizer = Optimizer(values, (0.0, 0.999), scale_loss=scale_loss)
    before = [value.clone() for value in values]
    optimizer.backward(loss_of(values) * bad)
    assert optimizer.step(1e-2) is None
    assert all(torch.equal(a, b) for a, b in zip(values, before, strict=True))
    optimizer.zero_grad()
    optimizer.backward(loss_of(values))
    assert optimizer.step(1e-2) is not None
    assert all(torch.isfinite(value).all() for value in values)
    assert not any(torch.equal(a, b) for a, b in zip(values, before, strict=True))


def test_scaled_losses_give_the_same_step_and_are_remembered():
    plain, scaled = parameters(), parameters()
    optimizers = [Optimizer(plain, (0.0, 0.99)), Optimizer(scaled, (0.0, 0.99), scale_loss=True)]
    norms = []
    for optimizer, values in zip(optimizers, (plain, scaled), strict=True):
        optimizer.backward(loss_of(values))
        norms.append(float(optimizer.step(1e-2)))
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(plain, scaled, strict=True))
    optimizers[1].zero_grad()
    optimizers[1].backward(loss_of(scaled) * math.inf)
    optimizers[1].step(1e-2)  # halves the factor
    again = Optimizer(scaled, (0.0, 0.99), scale_loss=True)
    again.load_state_dict(optimizers[1].state_dict())
    assert again.scaler.get_scale() == optimizers[1].scaler.get_scale() == 128


def test_learning_rate():
    def rate(cur_nimg, **options):
        return learning_rate(2.0, cur_nimg, **({"rampup_nimg": 0, "decay": "none", "total_nimg": 100} | options))

    assert rate(0) == rate(100) == 2
    assert [rate(n, rampup_nimg=10) for n in (0, 5, 10, 50)] == [0, 1, 2, 2]
    assert [rate(n, decay="cosine") for n in (0, 50, 100, 200)] == pytest.approx([2, 1, 0, 0])
    assert rate(25, decay="cosine", rampup_nimg=50) == pytest.approx((1 + math.sqrt(0.5)) / 2)
