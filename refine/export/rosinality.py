"""The state dict of rosinality's stylegan2-pytorch, which editing tools (pSp, e4e, StyleGAN-NADA) are built on.

https://github.com/rosinality/stylegan2-pytorch (MIT): `{"g_ema": state dict, "latent_avg": w}`. The networks are the
same but for names and shapes: both store unit-variance weights and scale them when they are used. Upsampling layers
need no flip, since `conv_transpose2d` there convolves with the stored weight, as these layers do here.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.nn import functional

from refine.errors import UserError
from refine.export.agreement import Probe
from refine.networks import stylegan2
from refine.networks.loading import LoadedNetwork
from stylegan_ops.upfirdn2d import setup_filter

MAPPING_LR_MULTIPLIER = 0.01
NARROW = 512  # channels up to 32x32, whatever the channel multiplier


@dataclass(frozen=True)
class Layout:
    """Arguments of rosinality's constructor.

    Attributes:
        size: Pixels along each side of the image.
        style_dim: Width of z and w.
        n_mlp: Layers of the mapping network.
    """

    size: int
    style_dim: int
    n_mlp: int

    @property
    def resolutions(self) -> tuple[int, ...]:
        """4, 8, ... size."""
        return tuple(2**i for i in range(2, self.size.bit_length()))


def names(layout: Layout) -> dict[str, str]:
    """Name there -> name in the checkpoint, of everything but the filters, which are constants there."""
    found = {}
    for i in range(layout.n_mlp):  # style.0 normalizes z and has no weights
        for part in ("weight", "bias"):
            found[f"style.{i + 1}.{part}"] = f"mapping.fc{i}.{part}"
    found["input.input"] = "synthesis.b4.const"
    for index, resolution in enumerate(layout.resolutions):
        block = f"synthesis.b{resolution}"
        if index == 0:
            layers = [("conv1", f"{block}.conv1")]
        else:
            layers = [(f"convs.{2 * index - 2 + i}", f"{block}.conv{i}") for i in range(2)]
        for i, (there, here) in enumerate(layers):
            found |= _modulated(f"{there}.conv", here)
            found[f"{there}.noise.weight"] = f"{here}.noise_strength"
            found[f"{there}.activate.bias"] = f"{here}.bias"
            found[f"noises.noise_{max(0, 2 * index - 1) + i}"] = f"{here}.noise_const"
        there = "to_rgb1" if index == 0 else f"to_rgbs.{index - 1}"
        found |= _modulated(f"{there}.conv", f"{block}.torgb")
        found[f"{there}.bias"] = f"{block}.torgb.bias"
    return found


def _modulated(there: str, here: str) -> dict[str, str]:
    modulation = {f"{there}.modulation.{part}": f"{here}.affine.{part}" for part in ("weight", "bias")}
    return {f"{there}.weight": f"{here}.weight", **modulation}


def _shape_there(name: str, tensor: Tensor) -> Tensor:
    """The tensor with the extents of 1 that it has there."""
    if name == "input.input" or name.endswith(".conv.weight"):
        return tensor[None]
    if name.startswith("to_rgb") and name.endswith("bias") and "modulation" not in name:
        return tensor[None, :, None, None]
    if name.startswith("noises."):
        return tensor[None, None]
    return tensor.reshape(1) if tensor.ndim == 0 else tensor


def write(loaded: LoadedNetwork, file: BinaryIO) -> None:
    """Writes the checkpoint.

    Raises:
        UserError: The format has no place for something that this generator has.
    """
    layout = _layout(loaded)
    ours = loaded.network.state_dict()
    state = {there: _shape_there(there, ours[here]).clone() for there, here in names(layout).items()}
    kernel = setup_filter([1, 3, 3, 1]) * 4  # the zeros between the pixels darken the image
    for index in range(1, len(layout.resolutions)):
        state[f"convs.{2 * index - 2}.conv.blur.kernel"] = kernel.clone()
        state[f"to_rgbs.{index - 1}.upsample.kernel"] = kernel.clone()
    torch.save({"g_ema": state, "latent_avg": ours["mapping.w_avg"].clone()}, file)


def usage(loaded: LoadedNetwork) -> str:
    """Line of code that opens such a checkpoint in that project."""
    return constructor(_layout(loaded), loaded.network.state_dict())


def constructor(layout: Layout, ours: Mapping[str, Tensor]) -> str:
    """The call that makes the network there; with its own table of channels, what has to be changed."""
    widths = {resolution: len(ours[f"synthesis.b{resolution}.conv1.bias"]) for resolution in layout.resolutions}
    for multiplier in (2, 1):
        if all(n == min(NARROW, multiplier * 16384 // res) for res, n in widths.items()):
            return f"Generator({layout.size}, {layout.style_dim}, {layout.n_mlp}, channel_multiplier={multiplier})"
    return (
        f"Generator({layout.size}, {layout.style_dim}, {layout.n_mlp}), in whose source the table of channels has to "
        f"become {widths}"
    )


def _layout(loaded: LoadedNetwork) -> Layout:
    if not isinstance(loaded.network, stylegan2.Generator):
        raise _no_place(loaded, "an architecture other than StyleGAN2's")
    G: Any = loaded.network
    first, last = G.synthesis.b4.conv1, G.synthesis.get_submodule(f"b{G.img_resolution}")
    mapping: list[Any] = [G.mapping.get_submodule(f"fc{i}") for i in range(G.mapping.num_layers)]
    taps = setup_filter([1, 3, 3, 1])
    for wrong, what in (
        (G.c_dim != 0, "classes"),
        (G.mapping.w_avg is None, "no average w"),
        (G.img_channels != 3, f"{G.img_channels} image channels"),
        (G.img_resolution < 8, "a resolution of 4"),
        (last.architecture != "skip", f"the architecture {last.architecture!r}"),
        (any(tuple(layer.weight.shape) != (G.w_dim, G.w_dim) for layer in mapping), "a z or layers not as wide as w"),
        (any(layer.activation != "lrelu" for layer in [first, *mapping]), "another activation than lrelu"),
        (any(layer.bias_gain != MAPPING_LR_MULTIPLIER for layer in mapping), "another lr_multiplier than 0.01"),
        (first.weight.shape[2] != 3, "another kernel size than 3"),
        (not first.use_noise, "no noise"),
        (not torch.equal(last.resample_filter, taps), "another filter than [1, 3, 3, 1]"),
    ):
        if wrong:
            raise _no_place(loaded, what)
    return Layout(G.img_resolution, G.w_dim, G.mapping.num_layers)


def _no_place(loaded: LoadedNetwork, what: str) -> UserError:
    return UserError(
        f"{loaded.pickle.path} cannot become a rosinality checkpoint: it has {what}, for which that format has no "
        "place; --format=safetensors takes every generator."
    )


def read(path: Path, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of such a checkpoint under our names.

    Args:
        path: `.pt` file; nothing in it is executed.
        ours: Tensors of a generator of the same shape, from which the names and shapes are taken.

    Raises:
        UserError: It is no such file, or of another shape.
    """
    state, latent_avg = _load(path)
    num_layers = sum(1 for name in ours if name.startswith("mapping.fc") and name.endswith("weight"))
    size = max(int(name.split(".")[1][1:]) for name in ours if name.startswith("synthesis.b"))
    found = {"mapping.w_avg": latent_avg}
    for there, here in names(Layout(size, ours["mapping.w_avg"].shape[0], num_layers)).items():
        if there not in state or here not in ours or state[there].numel() != ours[here].numel():
            raise UserError(f"{path} has no {there} like the {here} of --like: give a pickle of its architecture.")
        found[here] = state[there].reshape(ours[here].shape)
    return found | {name: tensor for name, tensor in ours.items() if name.endswith("resample_filter")}


def _load(path: Path) -> tuple[dict[str, Tensor], Tensor]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        return checkpoint["g_ema"], checkpoint["latent_avg"]
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is not a rosinality checkpoint with g_ema and latent_avg ({line}).") from error


def images(path: Path, loaded: LoadedNetwork, probe: Probe) -> Tensor:
    """Images of the checkpoint by that project's arithmetic, with the stored noise."""
    state, latent_avg = _load(path)
    return probe.images(lambda z, c, psi: compute(state, latent_avg, z, psi))


def compute(state: Mapping[str, Tensor], latent_avg: Tensor, z: Tensor, psi: float) -> Tensor:
    """Images [N, 3, size, size] of such a checkpoint, in PyTorch's own operators only.

    Args:
        state: `g_ema`.
        latent_avg: [style_dim].
        z: [N, style_dim].
        psi: Truncation.
    """

    def linear(x: Tensor, name: str, lr_multiplier: float = 1.0) -> Tensor:
        weight = state[f"{name}.weight"] * (lr_multiplier / math.sqrt(x.shape[1]))
        return functional.linear(x, weight, state[f"{name}.bias"] * lr_multiplier)

    def blur(x: Tensor, kernel: Tensor, before: int, after: int) -> Tensor:
        x = functional.pad(x, [before, after, before, after])
        return functional.conv2d(x, kernel.flip([0, 1]).expand(x.shape[1], 1, -1, -1), groups=x.shape[1])

    def modulated(x: Tensor, w: Tensor, name: str, demodulate: bool = True, up: bool = False) -> Tensor:
        weight = state[f"{name}.weight"]  # [1, out, in, k, k]
        weight = weight / math.sqrt(weight[0, 0].numel()) * linear(w, f"{name}.modulation")[:, None, :, None, None]
        if demodulate:
            weight = weight * (weight.square().sum([2, 3, 4], keepdim=True) + 1e-8).rsqrt()
        pairs = zip(x, weight, strict=True)
        if not up:
            return torch.stack([functional.conv2d(one, k, padding=k.shape[-1] // 2) for one, k in pairs])
        x = torch.stack([functional.conv_transpose2d(one, k.transpose(0, 1), stride=2) for one, k in pairs])
        return blur(x, state[f"{name}.blur.kernel"], 1, 1)

    def styled(x: Tensor, w: Tensor, name: str, noise: int, up: bool = False) -> Tensor:
        x = modulated(x, w, f"{name}.conv", up=up)
        x = x + state[f"{name}.noise.weight"] * state[f"noises.noise_{noise}"]
        return functional.leaky_relu(x + state[f"{name}.activate.bias"][:, None, None], 0.2) * math.sqrt(2)

    w = z * (z.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
    for i in range(sum(1 for name in state if name.startswith("style.") and name.endswith("weight"))):
        w = functional.leaky_relu(linear(w, f"style.{i + 1}", MAPPING_LR_MULTIPLIER), 0.2) * math.sqrt(2)
    w = latent_avg + psi * (w - latent_avg)

    x = styled(state["input.input"].expand(len(z), -1, -1, -1), w, "conv1", 0)
    image = modulated(x, w, "to_rgb1.conv", demodulate=False) + state["to_rgb1.bias"]
    for i in range(sum(1 for name in state if name.startswith("to_rgbs.") and name.endswith("upsample.kernel"))):
        x = styled(x, w, f"convs.{2 * i}", 2 * i + 1, up=True)
        x = styled(x, w, f"convs.{2 * i + 1}", 2 * i + 2)
        stuffed = torch.zeros(*image.shape[:2], 2 * image.shape[2], 2 * image.shape[3])
        stuffed[:, :, ::2, ::2] = image
        image = blur(stuffed, state[f"to_rgbs.{i}.upsample.kernel"], 2, 1)
        image = image + modulated(x, w, f"to_rgbs.{i}.conv", demodulate=False) + state[f"to_rgbs.{i}.bias"]
    return image
