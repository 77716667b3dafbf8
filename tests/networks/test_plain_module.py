"""Any module or function that draws images, behind the contract of a generator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from refine.contracts import GeneratorOutput
from refine.errors import UserError
from refine.networks.plain_module import PlainModule, as_contract


class Net(nn.Module):
    """One that tells everything and takes everything."""

    z_dim, c_dim, img_channels, img_resolution = 6, 3, 1, 4

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(9, 16)
        self.seen: list[dict[str, Any]] = []

    def forward(self, z: torch.Tensor, c: torch.Tensor, truncation_psi: float = 1, **more: Any) -> torch.Tensor:
        self.seen.append({"truncation_psi": truncation_psi, **more})
        return self.layer(torch.cat([z * truncation_psi, c], dim=1)).reshape(-1, 1, 4, 4)


def test_a_module_with_all_attributes_is_not_drawn_from() -> None:
    net = Net()
    contract = as_contract(net)
    assert net.seen == [] and contract.module is net
    assert (contract.z_shape, contract.c_dim, contract.img_channels, contract.img_resolution) == ((6,), 3, 1, 4)
    z, c = torch.randn(5, 6), torch.eye(3)[[0, 1, 2, 0, 1]]
    output = contract(z, c, noise_mode="const", truncation_psi=0.5)
    assert isinstance(output, GeneratorOutput) and output.w is None
    assert torch.equal(output.images, net(z, c, truncation_psi=0.5))
    assert net.seen[0] == {"truncation_psi": 0.5, "noise_mode": "const"}
    contract(z, c, force_fp32=True)
    assert net.seen[-1]["force_fp32"] is True
    assert contract.resolution_of("layer.weight") is None and list(contract.blocks()) == []
    contract.after_step(None)
    assert as_contract(contract) is contract


def test_a_function_tells_its_width_and_the_rest_is_seen() -> None:
    def draw(z: torch.Tensor) -> torch.Tensor:
        return z[:, :3, None, None].expand(-1, -1, 8, 8)

    draw.z_dim = 5  # type: ignore[attr-defined]
    contract = as_contract(draw)
    assert (contract.z_shape, contract.c_dim, contract.img_channels, contract.img_resolution) == ((5,), 0, 3, 8)
    assert list(contract.module.parameters()) == []
    z = torch.randn(2, 5)
    assert torch.equal(contract(z, torch.zeros(2, 0)).images, draw(z))
    with pytest.raises(UserError, match="truncation_psi"):
        contract(z, torch.zeros(2, 0), truncation_psi=0.7)


def test_options_are_no_labels() -> None:
    class Truncated(nn.Module):
        z_dim, img_channels, img_resolution = 4, 1, 2

        def forward(self, z: torch.Tensor, truncation_psi: float = 1) -> torch.Tensor:
            return truncation_psi * z.reshape(-1, 1, 2, 2)

    z = torch.randn(2, 4)
    assert torch.equal(as_contract(Truncated())(z, torch.zeros(2, 0), truncation_psi=0.5).images.flatten(1), 0.5 * z)


def test_latents_that_are_images() -> None:
    class Denoise(nn.Module):
        z_shape = (3, 8, 8)

        def forward(self, z: torch.Tensor, c: torch.Tensor) -> GeneratorOutput:
            return GeneratorOutput(z.tanh(), None)

    contract = as_contract(PlainModule(Denoise()))
    assert contract.z_shape == (3, 8, 8) and contract.img_resolution == 8
    z = torch.randn(2, 3, 8, 8)
    assert torch.equal(contract(z, torch.zeros(2, 0)).images, z.tanh())


def no_width(z: torch.Tensor) -> torch.Tensor:
    return z


def flat(z: torch.Tensor) -> torch.Tensor:
    return z


def oblong(z: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(z), 3, 8, 4)


def no_labels(z: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(z), 3, 8, 8)


flat.z_dim = oblong.z_dim = no_labels.z_dim = 4  # type: ignore[attr-defined]
no_labels.c_dim = 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("function", "says"),
    [(no_width, "z_dim"), (flat, r"\[1, 4\]"), (oblong, r"\[1, 3, 8, 4\]"), (no_labels, "c_dim 2")],
)
def test_what_is_no_generator(function: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        as_contract(function)
