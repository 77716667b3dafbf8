"""ADM denoisers from state dicts: the diffusion models of guided-diffusion, P2-weighting and consistency_models.

The U-Net is EDM's DhariwalUNet (arXiv 2105.05233) under other names. Its shape is read off the tensors; the settings
that leave no trace in them come from the zoo or from the user (`ADMSettings`).

With guided-diffusion's preconditioning the network predicts the noise in x / sqrt(1 + sigma^2) at one of 1000 levels
sigma_i = sqrt(1 / abar_i - 1). Between two levels, the index that the network is told is interpolated linearly in
ln sigma. That of consistency_models is EDM's, with c_noise = 250 ln sigma.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from refine.networks.adm_settings import EXAMPLE, ADMSettings
from refine.networks.adm_state_dict import UNetShape, read, shape_of
from refine.networks.edm import PreconditionedDenoiser, Preconditioning
from refine.networks.edm_unet import DhariwalUNet, _UNet, adm_blocks
from refine.pickles import PickleError
from refine.pickles.tensor_records import TensorRecord

NUM_LEVELS = 1000
NORM_GROUPS = 32
SIGMA_RANGE = (0.002, 80.0)  # of consistency_models
SIGMA_DATA = 0.5


def completed(shape: UNetShape, settings: ADMSettings) -> ADMSettings:
    """Settings with what the shape tells, and nothing missing that the network depends on.

    Args:
        shape: Shape of the network.
        settings: Settings as the zoo or the user gave them.

    Raises:
        PickleError: Settings are missing, each of which the message names, or contradict the tensors.
    """
    guided = not shape.planar_attention
    told = ADMSettings(
        image_size=shape.image_size,
        attention_order=None if guided else "new",
        preconditioning="epsilon" if guided else None,
        dropout=0.0,
    )
    if settings.attention_order == "old" and not guided:
        raise PickleError("attention_order=old is impossible: the networks of consistency_models have the new order")
    settings = settings.or_else(told)
    missing = []
    if settings.image_size is None:
        missing.append("image_size")
    if settings.num_heads is None and settings.num_head_channels is None:
        missing.append("num_head_channels (or num_heads)")
    if settings.attention_order is None:
        missing.append("attention_order (old or new)")
    if settings.preconditioning is None:
        missing.append("preconditioning (edm or consistency)")
    if settings.preconditioning == "epsilon" and settings.noise_schedule is None:
        missing.append("noise_schedule (linear or cosine)")
    if missing:
        raise PickleError(
            f"its state dict does not tell {_listed(missing)}: look into the command that trained or sampled it, and "
            f"give the settings with --teacher-settings (in Python teacher_settings), such as {EXAMPLE}"
        )
    assert settings.image_size is not None
    if settings.image_size % 2 ** (len(shape.level_channels) - 1):
        raise PickleError(
            f"image_size={settings.image_size} cannot be halved {len(shape.level_channels) - 1} times, as its network "
            "does"
        )
    for name, channels in _attention_channels(shape):
        by = settings.num_head_channels or settings.num_heads or 1
        if channels % by:
            spelled = f"{'num_head_channels' if settings.num_head_channels else 'num_heads'}={by}"
            raise PickleError(f"{spelled} does not divide the {channels} channels of its attention {name}")
    return settings


def sigma_table(noise_schedule: str) -> Tensor:
    """The 1000 noise levels sigma_i = sqrt(1 / abar_i - 1) of a schedule, rising, float64 on the CPU.

    Sources: Ho et al., arXiv 2006.11239, section 4 (linear); Nichol and Dhariwal, arXiv 2102.09672, eq. 17 (cosine).

    Args:
        noise_schedule: "linear" or "cosine".
    """
    with torch.device("cpu"):
        if noise_schedule == "linear":
            betas = torch.linspace(1e-4, 0.02, NUM_LEVELS, dtype=torch.float64)
        else:
            time = torch.arange(NUM_LEVELS + 1, dtype=torch.float64) / NUM_LEVELS
            remaining = ((time + 0.008) / 1.008 * math.pi / 2).cos() ** 2
            betas = (1 - remaining[1:] / remaining[:-1]).clamp(max=0.999)
        return (1 / (1 - betas).cumprod(0) - 1).sqrt()


class ADMUNet(DhariwalUNet):
    """DhariwalUNet in the shape of any ADM network.

    Args:
        shape: Shape of the network.
        settings: Complete settings; see `completed`.
    """

    def __init__(self, shape: UNetShape, settings: ADMSettings) -> None:
        levels = len(shape.level_channels)
        assert settings.image_size is not None and settings.dropout is not None
        _UNet.__init__(self, settings.image_size, [1] * levels, shape.num_blocks, settings.dropout, 0)
        options = replace(
            adm_blocks(shape.emb_channels, settings.dropout),
            num_heads=None if settings.num_head_channels else settings.num_heads,
            head_channels=settings.num_head_channels or 64,
            adaptive_scale=shape.adaptive_scale,
            norm_groups=NORM_GROUPS,
        )
        attention = [res for res, has in zip(self.resolutions, shape.attention, strict=True) if has]
        self._assemble(
            *(shape.img_channels, shape.out_channels, shape.label_dim, 0, shape.model_channels),
            *(shape.level_channels, attention, options),
        )


class ADMDenoiser(PreconditionedDenoiser):
    """Base of the denoisers around an ADM U-Net.

    Args:
        unet: The raw network.
        shape: Its shape.
        settings: Complete settings.
    """

    def __init__(self, unet: ADMUNet, shape: UNetShape, settings: ADMSettings) -> None:
        nn.Module.__init__(self)
        assert settings.image_size is not None
        self.img_resolution, self.img_channels = settings.image_size, shape.img_channels
        self.label_dim, self.use_fp16 = shape.label_dim, False
        self.model = unet
        self.settings = settings
        self.sigma_data = SIGMA_DATA


class EpsilonDenoiser(ADMDenoiser):
    """Denoiser of guided-diffusion: the network predicts the noise at 1000 levels, between which it is interpolated."""

    log_sigmas: Tensor

    def __init__(self, unet: ADMUNet, shape: UNetShape, settings: ADMSettings) -> None:
        super().__init__(unet, shape, settings)
        assert settings.noise_schedule is not None
        sigmas = sigma_table(settings.noise_schedule)
        self.register_buffer("log_sigmas", torch.empty(NUM_LEVELS).copy_(sigmas.log()))
        self.sigma_min, self.sigma_max = float(sigmas[0]), float(sigmas[-1])

    def index_of(self, sigma: Tensor) -> Tensor:
        """Index of the noise level, from 0 to 999, with a fraction between two levels; in the shape of sigma."""
        wanted, table = sigma.log(), self.log_sigmas.to(sigma.dtype)
        upper = torch.searchsorted(table, wanted.contiguous()).clamp(1, NUM_LEVELS - 1)
        low, high = table[upper - 1], table[upper]
        return (upper - 1 + (wanted - low) / (high - low)).clamp(0, NUM_LEVELS - 1)

    def preconditioning(self, sigma: Tensor) -> Preconditioning:
        """D = x - sigma eps(x / sqrt(1 + sigma^2))."""
        return Preconditioning(
            c_skip=torch.ones_like(sigma),
            c_out=-sigma,
            c_in=1 / (sigma**2 + 1).sqrt(),
            c_noise=self.index_of(sigma),
        )


class KarrasDenoiser(ADMDenoiser):
    """EDM's denoiser as consistency_models writes it: c_noise = 250 ln sigma."""

    sigma_min, sigma_max = SIGMA_RANGE

    def preconditioning(self, sigma: Tensor) -> Preconditioning:
        """Table 1 of arXiv 2206.00364, column "ours", but for c_noise."""
        variance = sigma**2 + self.sigma_data**2
        return Preconditioning(
            c_skip=self.sigma_data**2 / variance,
            c_out=sigma * self.sigma_data / variance.sqrt(),
            c_in=1 / variance.sqrt(),
            c_noise=250 * (sigma + 1e-44).log(),
        )


class ConsistencyFunction(KarrasDenoiser):
    """Consistency function (Song et al., arXiv 2303.01469, appendix C): the image at sigma_min of a noisy image's path.

    It is a generator, G(z) = f(80 z; 80), and no denoiser: its result is not a mean.
    """

    def preconditioning(self, sigma: Tensor) -> Preconditioning:
        """KarrasDenoiser's, but for an identity at sigma_min instead of 0."""
        above, variance = sigma - self.sigma_min, sigma**2 + self.sigma_data**2
        c_skip, c_out = self.sigma_data**2 / (above**2 + self.sigma_data**2), above * self.sigma_data / variance.sqrt()
        return super().preconditioning(sigma)._replace(c_skip=c_skip, c_out=c_out)


_DENOISERS: dict[str, type[ADMDenoiser]] = {
    "epsilon": EpsilonDenoiser,
    "edm": KarrasDenoiser,
    "consistency": ConsistencyFunction,
}


def build(tensors: Mapping[str, TensorRecord], settings: ADMSettings) -> ADMDenoiser:
    """The denoiser of a state dict: float32, on the CPU, in evaluation mode, gradients off.

    Args:
        tensors: A state dict with `state_dict.UNET_NAMES`.
        settings: Settings as the zoo or the user gave them.

    Raises:
        PickleError: The network is of another kind, settings are missing or impossible, or a tensor is missing,
            unknown, of another shape or not finite.
    """
    shape = shape_of(tensors)
    settings = completed(shape, settings)
    assert settings.preconditioning is not None
    with torch.device("meta"):
        network = _DENOISERS[settings.preconditioning](ADMUNet(shape, settings), shape, settings)
    assert settings.attention_order is not None
    unet = network.model
    assert isinstance(unet, ADMUNet)
    state = {f"model.{name}": value for name, value in read(unet, tensors, settings.attention_order).items()}
    if settings.noise_schedule is not None and settings.preconditioning == "epsilon":
        state["log_sigmas"] = sigma_table(settings.noise_schedule).log().float()
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def _attention_channels(shape: UNetShape) -> Iterator[tuple[str, int]]:
    """Place in words and channels of each level with attention."""
    for level, (channels, has) in enumerate(zip(shape.level_channels, shape.attention, strict=True)):
        if has:
            yield f"at level {level}", channels
    yield "in the middle", shape.level_channels[-1 if shape.num_blocks else 0]


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
