"""ADM denoisers from state dicts: the diffusion models of guided-diffusion, P2-weighting and consistency_models.

The U-Net is EDM's DhariwalUNet (arXiv 2105.05233) under other names. Its shape is read off the tensors; the settings
that leave no trace in them come from the zoo or from the user (`ADMSettings`).

With guided-diffusion's preconditioning the network predicts the noise in x / sqrt(1 + sigma^2) at one of 1000 levels
sigma_i = sqrt(1 / abar_i - 1). Between two levels, the index that the network is told is interpolated linearly in
ln sigma. That of consistency_models is EDM's, with c_noise = 250 ln sigma.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from refine.networks.adm_settings import EXAMPLE, ADMSettings
from refine.networks.edm import PreconditionedDenoiser, Preconditioning
from refine.networks.edm_layers import UNetBlock, resampling_kernel
from refine.networks.edm_unet import DhariwalUNet, _UNet, adm_blocks
from refine.pickles import PickleError
from refine.pickles.errors import NonFiniteError
from refine.pickles.tensor_records import TensorRecord

NUM_LEVELS = 1000
NORM_GROUPS = 32
_TAPS = (1, 1)  # of the filter that resamples
MAX_BLOCKS = 2000  # of one half of a U-Net; the largest published one has 21
MAX_WIDTH = 2**20  # channels
# Channels by level, in units of the network's width -> image size; the defaults of guided-diffusion.
IMAGE_SIZES = {
    (0.5, 1, 1, 2, 2, 4, 4): 512,
    (1, 1, 2, 2, 4, 4): 256,
    (1, 1, 2, 3, 4): 128,
    (1, 2, 3, 4): 64,
}
SIGMA_RANGE = (0.002, 80.0)  # of consistency_models
SIGMA_DATA = 0.5


@dataclass(frozen=True)
class UNetShape:
    """Shape of an ADM U-Net, as its tensors show it.

    Attributes:
        img_channels: Channels of an image.
        out_channels: Channels of the output; twice as many where a variance is predicted, too.
        label_dim: Number of classes; 0 for an unconditional network.
        model_channels: Width of the network.
        emb_channels: Width of the noise level's embedding.
        level_channels: Channels at each resolution, from high to low.
        attention: Whether there is self-attention at each resolution.
        num_blocks: Residual blocks per resolution.
        adaptive_scale: Whether the embedding scales and shifts (use_scale_shift_norm) or only shifts.
        planar_attention: Whether attention has 1x1 convolutions of planes, as in consistency_models, not of rows.
    """

    img_channels: int
    out_channels: int
    label_dim: int
    model_channels: int
    emb_channels: int
    level_channels: tuple[int, ...]
    attention: tuple[bool, ...]
    num_blocks: int
    adaptive_scale: bool
    planar_attention: bool

    @property
    def image_size(self) -> int | None:
        """Height and width of an image, if the widths of the levels are guided-diffusion's defaults for one."""
        return IMAGE_SIZES.get(tuple(channels / self.model_channels for channels in self.level_channels))

    @property
    def description(self) -> str:
        """The kind of network in words."""
        origin = "consistency_models" if self.planar_attention else "guided-diffusion"
        return f"ADM denoiser ({origin})"


def shape_of(tensors: Mapping[str, TensorRecord]) -> UNetShape:
    """Reads the shape of a U-Net off its state dict.

    Args:
        tensors: A state dict with `state_dict.UNET_NAMES`.

    Raises:
        PickleError: The network is of another kind: for latents, an upsampler, or without residual resampling.
    """

    def dims(name: str, count: int) -> tuple[int, ...]:
        if name not in tensors:
            raise PickleError(f"its state dict has no tensor {name}")
        found = tensors[name].shape
        if len(found) != count or not all(1 <= n <= MAX_WIDTH for n in found):
            raise PickleError(f"its tensor {name} has the shape {found}, which no ADM network has")
        return found

    if any(".op." in name or name.endswith((".conv.weight", ".conv.bias")) for name in tensors):
        raise PickleError(
            "it resamples by convolutions outside of residual blocks (resblock_updown=False), which Refine does not "
            "rebuild: use a network that was trained with resblock_updown=True"
        )
    img_channels, out_channels = dims("input_blocks.0.0.weight", 4)[1], dims("out.2.weight", 4)[0]
    if img_channels in (6, 2) and out_channels in (3, 6, 1) and img_channels != out_channels:
        raise PickleError(
            "it is an upsampler, which is told a smaller image beside the noisy one: give the diffusion model of the "
            "small images, or one of the large ones alone"
        )
    if img_channels not in (1, 3) or out_channels not in (img_channels, 2 * img_channels):
        raise PickleError(
            f"its network maps {img_channels} channels to {out_channels}, so it is not a diffusion model of pixels; 4 "
            "channels are the latents of an autoencoder"
        )
    emb_channels, model_channels = dims("time_embed.0.weight", 2)
    label_dim = dims("label_emb.weight", 2)[0] if "label_emb.weight" in tensors else 0
    decoder = list(_decoder_blocks(tensors))
    num_levels = 1 + sum(block.has_up for block in decoder)
    per_level = len(decoder) // num_levels
    ends = [index for index, block in enumerate(decoder) if block.has_up]
    if len(decoder) % num_levels or ends != [per_level * (level + 1) - 1 for level in range(num_levels - 1)]:
        raise PickleError("its state dict has another number of blocks at some resolutions than at others")
    levels = [decoder[level * per_level] for level in range(num_levels)][::-1]
    width = dims("input_blocks.0.0.weight", 4)[0]
    channels = tuple(dims(f"output_blocks.{level.number}.0.in_layers.2.weight", 4)[0] for level in levels)
    if width != channels[0]:
        raise PickleError(f"its first layer has {width} channels and its last block {channels[0]}, which no ADM has")
    scale = dims("middle_block.0.emb_layers.1.weight", 2)[0] / dims("middle_block.0.out_layers.0.weight", 1)[0]
    qkv = tensors["middle_block.1.qkv.weight"].shape
    return UNetShape(
        img_channels=img_channels,
        out_channels=out_channels,
        label_dim=label_dim,
        model_channels=model_channels,
        emb_channels=emb_channels,
        level_channels=channels,
        attention=tuple(level.has_attention for level in levels),
        num_blocks=per_level - 1,
        adaptive_scale=scale == 2,
        planar_attention=len(qkv) == 4,
    )


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
    state = _read(network, tensors, settings)
    if settings.noise_schedule is not None and settings.preconditioning == "epsilon":
        state["log_sigmas"] = sigma_table(settings.noise_schedule).log().float()
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)


# -- details ------------------------------------------------------------------------------------------


class _DecoderBlock(NamedTuple):
    """An entry of `output_blocks`."""

    number: int
    has_attention: bool
    has_up: bool


def _decoder_blocks(tensors: Mapping[str, TensorRecord]) -> Iterator[_DecoderBlock]:
    for index in range(MAX_BLOCKS):
        prefix = f"output_blocks.{index}"
        if f"{prefix}.0.in_layers.0.weight" not in tensors:
            return
        has_attention = f"{prefix}.1.norm.weight" in tensors
        has_up = f"{prefix}.{2 if has_attention else 1}.in_layers.0.weight" in tensors
        yield _DecoderBlock(index, has_attention, has_up)
    raise PickleError(f"its state dict has more than {MAX_BLOCKS} blocks")


def _attention_channels(shape: UNetShape) -> Iterator[tuple[str, int]]:
    """Place in words and channels of each level with attention."""
    for level, (channels, has) in enumerate(zip(shape.level_channels, shape.attention, strict=True)):
        if has:
            yield f"at level {level}", channels
    yield "in the middle", shape.level_channels[-1 if shape.num_blocks else 0]


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


Convert = Callable[[Tensor], Tensor]


def _as_is(tensor: Tensor) -> Tensor:
    return tensor


def _sources(network: ADMDenoiser, order: str) -> Iterator[tuple[str, str, Convert]]:
    """Name of each tensor here, its name in the state dict, and its conversion."""
    unet = network.model
    assert isinstance(unet, ADMUNet)
    for ours, theirs in (("map_layer0", "time_embed.0"), ("map_layer1", "time_embed.2")):
        yield from _both(ours, theirs)
    if unet.map_label is not None:
        yield "map_label.weight", "label_emb.weight", torch.t
    for index, (name, block) in enumerate(unet.enc.items()):
        yield from _block(f"enc.{name}", f"input_blocks.{index}", block, order)
    index = last = -1
    for name, block in unet.dec.items():
        ours = f"dec.{name}"
        if name.endswith("_in0"):
            yield from _block(ours, "middle_block", block, order)
        elif name.endswith("_in1"):
            yield from _block(ours, "middle_block", block, order, first=2)
        elif name.endswith("_up"):
            yield from _block(ours, f"output_blocks.{index}", block, order, first=last + 1)
        else:
            index += 1
            last = 1 if block.num_heads else 0
            yield from _block(ours, f"output_blocks.{index}", block, order)
    for ours, theirs in (("out_norm", "out.0"), ("out_conv", "out.2")):
        yield from _both(ours, theirs)


def _both(ours: str, theirs: str, convert: Convert = _as_is) -> Iterator[tuple[str, str, Convert]]:
    for kind in ("weight", "bias"):
        yield f"{ours}.{kind}", f"{theirs}.{kind}", convert


def _block(ours: str, theirs: str, block: nn.Module, order: str, first: int = 0) -> Iterator[tuple[str, str, Convert]]:
    """Tensors of a block that begins with the child `first` of an entry of the state dict."""
    if not isinstance(block, UNetBlock):
        yield from _both(ours, f"{theirs}.{first}")
        return
    residual = f"{theirs}.{first}"
    names = {"norm0": "in_layers.0", "conv0": "in_layers.2", "affine": "emb_layers.1"}
    names |= {"norm1": "out_layers.0", "conv1": "out_layers.3"}
    if isinstance(block.skip, nn.Conv2d):
        names["skip"] = "skip_connection"
    for mine, name in names.items():
        yield from _both(f"{ours}.{mine}", f"{residual}.{name}")
    if block.num_heads:
        attention = f"{theirs}.{first + 1}"
        yield from _both(f"{ours}.norm2", f"{attention}.norm")
        yield from _both(f"{ours}.qkv", f"{attention}.qkv", _qkv_order(block.num_heads, order))
        yield from _both(f"{ours}.proj", f"{attention}.proj_out")


def _qkv_order(num_heads: int, order: str) -> Convert:
    """Reorders the rows of qkv to [head, channel, (q, k, v)]."""

    def convert(tensor: Tensor) -> Tensor:
        rest = tensor.shape[1:]
        if order == "old":
            rows = tensor.reshape(num_heads, 3, -1, *rest).transpose(1, 2)
        else:
            rows = tensor.reshape(3, num_heads, -1, *rest).movedim(0, 2)
        return rows.reshape(tensor.shape)

    return convert


def _read(network: ADMDenoiser, tensors: Mapping[str, TensorRecord], settings: ADMSettings) -> dict[str, Tensor]:
    """State of the network, one tensor after the other, so that no second copy of all of them is ever in memory."""
    assert settings.attention_order is not None
    state = {}
    sources = {ours: (theirs, convert) for ours, theirs, convert in _sources(network, settings.attention_order)}
    for name, expected in network.model.state_dict().items():
        if name not in sources:
            assert name.endswith(".resample_filter"), "every other tensor has a source"
            state[f"model.{name}"] = resampling_kernel(_TAPS)
            continue
        theirs, convert = sources[name]
        shape = tuple(expected.shape)[:: -1 if convert is torch.t else 1]
        if theirs not in tensors:
            raise PickleError(f"its state dict has no tensor {theirs}, expected with shape {shape}")
        record = tensors[theirs]
        if _without_ones(record.shape) != _without_ones(shape) or not record.dtype.is_floating_point:
            raise PickleError(f"its tensor {theirs} has shape {record.shape}, {shape} expected")
        value = record.read()
        _require_finite(theirs, value)
        state[f"model.{name}"] = convert(value).reshape(expected.shape).float().contiguous()
    for theirs in tensors.keys() - {theirs for theirs, _ in sources.values()}:
        raise PickleError(f"its state dict has a tensor {theirs}, {tensors[theirs].shape}, which is not expected")
    return state


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the kernel sizes of 1x1 convolutions, which some files have and others do not."""
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _require_finite(name: str, value: Tensor) -> None:
    if not value.sum(dtype=torch.float32).isfinite() and (count := int((~value.isfinite()).sum())):
        raise NonFiniteError(
            f"it has {count:,} NaN or infinite value{'s' if count > 1 else ''} of {value.numel():,} in {name}: use "
            "another file"
        )
