"""Any module or function as a denoiser."""

from __future__ import annotations

import math

import pytest
import torch

from refine import load_teacher
from refine.errors import UserError
from refine.networks.plain_denoiser import PlainDenoiser, as_denoiser_contract
from refine.networks.preconditioned import Preconditioned


class Gaussian(torch.nn.Module):
    """The exact denoiser of N(0, 1) images."""

    img_resolution, img_channels = 4, 1

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(()))

    def forward(self, x, sigma):
        return x * self.one / (1 + sigma[:, None, None, None] ** 2)


def test_a_module_without_labels():
    denoiser = as_denoiser_contract(Gaussian())
    assert isinstance(denoiser, PlainDenoiser)
    assert (denoiser.img_resolution, denoiser.img_channels, denoiser.label_dim, denoiser.augment_dim) == (4, 1, 0, 0)
    assert (denoiser.sigma_min, denoiser.sigma_max, denoiser.sigma_data) == (0, math.inf, 0.5)
    x = torch.randn(3, 1, 4, 4)
    assert torch.equal(denoiser(x, 2.0), x / 5)
    assert torch.equal(denoiser(x, torch.tensor([0.0, 1.0, 3.0]))[:, 0, 0, 0], x[:, 0, 0, 0] / torch.tensor([1, 2, 10]))
    assert float(denoiser.round_sigma(0.3)) == pytest.approx(0.3) and not denoiser.blocks()


def test_labels_augmentation_and_levels_are_passed_on():
    seen = {}

    def function(x, sigma, labels, augment_labels=None):
        seen.update(sigma=sigma, labels=labels, augment_labels=augment_labels)
        return x.double()

    attributes = {"img_resolution": 4, "img_channels": 1, "label_dim": 3, "augment_dim": 9, "sigma_min": 0.01}
    for name, value in (attributes | {"sigma_max": 50, "sigma_data": 1, "round_sigma": round}).items():
        setattr(function, name, value)
    denoiser = as_denoiser_contract(function)
    assert seen["labels"].shape == (1, 3) and seen["augment_labels"] is None
    assert denoiser(torch.zeros(2, 1, 4, 4), 3, None, torch.ones(2, 9)).dtype == torch.float32
    assert (
        seen["sigma"].tolist() == [3, 3] and seen["labels"].shape == (2, 3) and seen["augment_labels"].shape == (2, 9)
    )
    labels = torch.eye(3)[:2]
    denoiser(torch.zeros(2, 1, 4, 4), 3, labels)
    assert seen["labels"] is labels
    assert (denoiser.sigma_min, denoiser.sigma_max, denoiser.sigma_data, denoiser.label_dim) == (0.01, 50, 1, 3)
    assert float(denoiser.round_sigma(2.7)) == 3 and not list(denoiser.module.parameters())


def test_contracts_and_own_networks_are_used_as_they_are():
    network = load_teacher("edm-digits").network
    denoiser = as_denoiser_contract(network)
    assert isinstance(denoiser, Preconditioned) and denoiser.blocks()
    assert as_denoiser_contract(denoiser) is denoiser


@pytest.mark.parametrize(
    ("attributes", "function", "words"),
    [
        ({}, lambda x, sigma: x, ["img_resolution", "img_channels"]),
        ({"img_resolution": 4}, lambda x, sigma: x, ["img_channels"]),
        ({"img_resolution": 4, "img_channels": 1, "label_dim": 2}, lambda x, sigma: x, ["label_dim 2", "labels"]),
        ({"img_resolution": 4, "img_channels": 1}, lambda x: x, ["D(x, sigma)", "TypeError"]),
        ({"img_resolution": 4, "img_channels": 1}, lambda x, sigma: x[:, :, :2], ["[1, 1, 2, 4]", "[1, 1, 4, 4]"]),
        ({"img_resolution": 4, "img_channels": 1}, lambda x, sigma: x / 0, ["not finite"]),
    ],
)
def test_unusable_functions(attributes, function, words):
    for name, value in attributes.items():
        setattr(function, name, value)
    with pytest.raises(UserError) as caught:
        as_denoiser_contract(function)
    assert all(word in str(caught.value) for word in words), caught.value
