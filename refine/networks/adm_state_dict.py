"""State dicts of ADM networks: the shape that their tensors show, and their tensors under Refine's names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from refine.networks.edm_layers import UNetBlock, resampling_kernel
from refine.networks.edm_unet import DhariwalUNet
from refine.pickles import PickleError
from refine.pickles.errors import NonFiniteError
from refine.pickles.tensor_records import TensorRecord

MAX_BLOCKS = 2000  # of one half of a U-Net; the largest published one has 21
MAX_WIDTH = 2**20  # channels
_TAPS = (1, 1)  # of the filter that resamples
# Channels by level, in units of the network's width -> image size; the defaults of guided-diffusion.
IMAGE_SIZES = {
    (0.5, 1, 1, 2, 2, 4, 4): 512,
    (1, 1, 2, 2, 4, 4): 256,
    (1, 1, 2, 3, 4): 128,
    (1, 2, 3, 4): 64,
}


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
    if img_channels == 6:
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


Convert = Callable[[Tensor], Tensor]


def as_is(tensor: Tensor) -> Tensor:
    """The tensor."""
    return tensor


def sources(unet: DhariwalUNet, order: str) -> Iterator[tuple[str, str, Convert]]:
    """Name of each tensor here, its name in the state dict, and its conversion.

    Args:
        unet: U-Net in the shape of the state dict.
        order: Order of the rows of `qkv` in the state dict, "old" or "new".
    """
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


def _both(ours: str, theirs: str, convert: Convert = as_is) -> Iterator[tuple[str, str, Convert]]:
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


def read(unet: DhariwalUNet, tensors: Mapping[str, TensorRecord], order: str) -> dict[str, Tensor]:
    """State of a U-Net, read one tensor after the other, so that no second copy of all of them is ever in memory.

    Args:
        unet: U-Net in the shape of the state dict, on the meta device.
        tensors: State dict.
        order: Order of the rows of `qkv` in the state dict, "old" or "new".

    Raises:
        PickleError: A tensor is missing, unknown, of another shape, or not finite.
    """
    state = {}
    found = {ours: (theirs, convert) for ours, theirs, convert in sources(unet, order)}
    for name, expected in unet.state_dict().items():
        if name not in found:
            assert name.endswith(".resample_filter"), "every other tensor has a source"
            state[name] = resampling_kernel(_TAPS)
            continue
        theirs, convert = found[name]
        shape = tuple(expected.shape)[:: -1 if convert is torch.t else 1]
        if theirs not in tensors:
            raise PickleError(f"its state dict has no tensor {theirs}, expected with shape {shape}")
        record = tensors[theirs]
        if _without_ones(record.shape) != _without_ones(shape) or not record.dtype.is_floating_point:
            raise PickleError(f"its tensor {theirs} has shape {record.shape}, {shape} expected")
        value = record.read()
        _require_finite(theirs, value)
        state[name] = convert(value).reshape(expected.shape).float().contiguous()
    for theirs in tensors.keys() - {theirs for theirs, _ in found.values()}:
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
