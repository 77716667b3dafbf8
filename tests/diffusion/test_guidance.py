"""Guidance against closed forms on Gaussians: estimates, samples, the limit of the weight, and a step of training."""

from __future__ import annotations

import math

import pytest
import torch
from gaussian_denoiser import GaussianDenoiser

from refine.diffusion.guidance import SIGMAS, Guided, caution, largest_weight, parts_of
from refine.diffusion.guidance import precision as precision_of
from refine.diffusion.sampler import HeunOptions, heun_sample
from refine.errors import UserError
from refine.training.frozen import frozen_copy

NOISE = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CPU = torch.device("cpu")


def guided(s=0.5, s_guide=0.8, weight=2.0, mean=0.3):
    return Guided(GaussianDenoiser(mean, s), GaussianDenoiser(mean, s_guide), weight)


def precision(net, sigma):
    """Closed form: that of the guided density at a noise level."""
    s, s_guide = net.denoiser.s, net.guide.s
    return net.weight / (s**2 + sigma**2) + (1 - net.weight) / (s_guide**2 + sigma**2)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 1.7, 3.0])
@pytest.mark.parametrize("sigma", [0.02, 0.5, 20.0])
def test_estimate_is_that_of_the_closed_form(weight, sigma):
    """The score of a Gaussian is minus the precision times the distance from its mean."""
    net = guided(weight=weight)
    x = 0.3 + 2 * NOISE
    expected = x - sigma**2 * precision(net, sigma) * (x - 0.3)
    assert torch.allclose(net(x, sigma), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weight", [0.6, 1.0, 1.7, 2.5])
def test_samples_have_the_spread_of_the_closed_form(weight):
    """The sampler follows dx/dsigma = sigma P(sigma) (x - m), whose solution for a Gaussian is exact."""
    net = guided(weight=weight)
    options = HeunOptions(num_steps=200, sigma_min=0.002, sigma_max=80)
    samples = heun_sample(net, NOISE, options=options)

    def log_shrinkage(s):  # integral of sigma / (s^2 + sigma^2) from 0 to 80
        return 0.5 * math.log((s**2 + 80**2) / s**2)

    shrunk = math.exp(-weight * log_shrinkage(0.5) - (1 - weight) * log_shrinkage(0.8))
    expected = 0.3 + (80 * NOISE - 0.3) * shrunk
    assert torch.allclose(samples, expected, rtol=2e-3, atol=2e-3)
    if weight > 1:
        assert samples.std() < 0.5 * NOISE.std()  # a broader guide makes samples sharper


def test_weight_of_one_spares_the_guide():
    net = guided(weight=1.0)
    net.guide = None
    assert torch.equal(net(NOISE, 1.0), net.denoiser(NOISE, 1.0))


@pytest.mark.parametrize("s", [0.1, 0.5, 1.3])
@pytest.mark.parametrize("sigma", [0.1, 3.0])
def test_precision_of_a_gaussian_is_found(s, sigma):
    found = precision_of(GaussianDenoiser(0.7, s), 0.2 * NOISE, sigma, NOISE.roll(1, 0))
    assert found == pytest.approx(1 / (s**2 + sigma**2), rel=1e-6)


@pytest.mark.parametrize(
    ("s", "s_guide", "weight"), [(0.5, 0.8, 50), (0.5, 0.4, 2.7), (0.5, 0.4, 3.0), (0.5, 0.1, 1.05), (0.5, 0.1, 1.1)]
)
def test_caution_where_no_density_exists(s, s_guide, weight):
    """The precision at every noise level decides; it is least at the lowest."""
    net = guided(s, s_guide, weight)
    least = min(precision(net, sigma) for sigma in SIGMAS)
    assert largest_weight(1 / s**2, 1 / s_guide**2) == (
        math.inf if s_guide > s else pytest.approx(s**2 / (s**2 - s_guide**2))
    )
    sentence = caution(net, NOISE, NOISE)
    assert (sentence is None) == (least > 0)
    if sentence:
        limit = largest_weight(1 / (s**2 + 0.01), 1 / (s_guide**2 + 0.01))
        assert f"{weight:g}" in sentence and f"{limit:.3g}" in sentence


def test_gradient_passes_through_both():
    net, x = guided(weight=2.0), NOISE.clone().requires_grad_()
    net(x, 1.0).sum().backward()
    expected = 1 - precision(net, 1.0)
    assert torch.allclose(x.grad, torch.full_like(x, expected))


def test_labels_go_to_a_guide_with_classes_only():
    seen = {}

    class Labeled(GaussianDenoiser):
        def __call__(self, x, sigma, class_labels=None, augment_labels=None):
            seen[self.s] = (class_labels, augment_labels)
            return super().__call__(x, sigma)

    labels, augmentation = torch.eye(4), torch.zeros(4, 9)
    for guide_classes in (0, 4):
        ours, guide = Labeled(0, 0.5, label_dim=4, augment_dim=9), Labeled(0, 0.8, label_dim=guide_classes)
        Guided(ours, guide, 2)(NOISE, 1.0, labels, augmentation)
        assert seen[0.5] == (labels, augmentation)
        assert seen[0.8] == ((labels if guide_classes else None), None)


@pytest.mark.parametrize("change", [{"img_resolution": 16}, {"img_channels": 1}, {"label_dim": 3}])
def test_a_guide_of_another_kind_is_refused(change):
    with pytest.raises(UserError, match="guide"):
        Guided(GaussianDenoiser(0, 0.5), GaussianDenoiser(0, 0.5, **change), 2)


def test_copies_and_noise_levels():
    net = guided()
    net.guide.sigma_min, net.denoiser.sigma_max = 0.01, 50.0
    net = Guided(*parts_of(net), 2.0)
    assert (net.sigma_min, net.sigma_max) == (0.01, 50.0)
    copied = frozen_copy(net, CPU)
    assert isinstance(copied, Guided) and copied.weight == 2.0
    assert copied.guide is not net.guide and copied.denoiser is not net.denoiser
    assert torch.equal(copied(NOISE, 1.0), net(NOISE, 1.0))
