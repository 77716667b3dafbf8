"""Vision transformers as detectors: DINOv2 and the image half of CLIP, built from a file of weights.

Both are stacks of PyTorch's own `TransformerEncoderLayer`; what is special of each happens once, while weights are
loaded: DINOv2's layer scale is multiplied into the layers that it follows, and its position embedding is resampled to
the size of the images. Packages that offer these networks depend on torchvision, which needs one certain release of
PyTorch and does not import beside a CPU build (timm, open_clip), or rename tensors with each major release
(transformers, with which the tests compare).

Weights are read as tensors; nothing in the file is executed. Sizes follow from the tensors, so any network of either
family will do; the published values are of ViT-L/14.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from refine.errors import UserError

HEAD_DIM = 64  # of every published network of both families

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Preparation:
    """Preparation of images.

    Attributes:
        resolution: Pixels along an axis.
        mean: Mean of each color, of values from 0 to 1.
        std: Standard deviation of each color.
    """

    resolution: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: Tensor) -> Tensor:
        """Uint8 images [N, 3, H, W] -> float32 [N, 3, R, R], resized as `resized` does."""
        x = resized(images, self.resolution) / 255
        mean, std = (torch.tensor(values, device=x.device)[:, None, None] for values in (self.mean, self.std))
        return (x - mean) / std


def resized(images: Tensor, resolution: int) -> Tensor:
    """Images [N, C, H, W] at another resolution, float32, by Pillow's rule: bicubic, a = -0.5, wider for fewer pixels.

    Values are neither rounded nor clipped.
    """
    x = images.to(torch.float32)
    if x.shape[-2:] == (resolution, resolution):
        return x
    size = (resolution, resolution)
    return nn.functional.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False)


class VisionTransformer(nn.Module):
    """Network from images to one feature vector each, called as a TorchScript detector is.

    Args:
        prepare: Preparation of images.
        patch: Pixels of a patch along an axis.
        width: Width of a token.
        depth: Layers.
        hidden: Width of the hidden layer of each MLP.
        activation: Activation of the MLPs.
        eps: Term of the normalizations.
        num_tokens: Class token and patches.
        pre_norm: Normalize tokens before the first layer.
        output: Dimension of a linear projection of the class token; None: no projection.
    """

    def __init__(
        self,
        prepare: Preparation,
        *,
        patch: int,
        width: int,
        depth: int,
        hidden: int,
        activation: Any,
        eps: float,
        num_tokens: int,
        pre_norm: bool,
        output: int | None,
    ) -> None:
        super().__init__()
        self.prepare = prepare
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.zeros(num_tokens, width))
        self.pre_norm = nn.LayerNorm(width, eps) if pre_norm else nn.Identity()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, max(width // HEAD_DIM, 1), hidden, 0.0, activation, eps, batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps)
        self.projection = nn.Linear(width, output, bias=False) if output else nn.Identity()

    def forward(self, images: Tensor, return_features: bool = True) -> Tensor:
        """Uint8 images [N, 3, H, W] -> features [N, D]; `return_features` as other detectors have it."""
        x = self.patches(self.prepare(images)).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1) + self.positions
        x = self.pre_norm(x)
        for layer in self.layers:
            x = layer(x)
        return self.projection(self.norm(x[:, 0]))


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's approximation of the Gaussian error linear unit: x sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


# -- files --------------------------------------------------------------------------------------------


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a file by name, float32: `torch.save` of a state dict, or safetensors.

    Raises:
        UserError: The file is neither.
    """
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise UserError(
            f"{path} is read by the package safetensors, which is missing: pip install safetensors."
        ) from error
    except Exception as error:  # pickle, zipfile, torch and safetensors raise many
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"The detector {path} holds no weights that can be read ({said[0][:120]}): download it again, or give "
            "another."
        ) from error
    return tensors_in(found, path)


def tensors_in(found: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, float32; of one within it, if it holds only that.

    Raises:
        UserError: There are none.
    """
    if isinstance(found, Mapping):
        for name in ("state_dict", "model", "teacher"):
            if isinstance(found.get(name), Mapping):
                found = found[name]
        tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
        if tensors:
            return {name: x.float() if x.is_floating_point() else x for name, x in tensors.items()}
    raise UserError(f"The detector {path} holds no weights: give a state dict.")


def build(role: str, weights: Weights, path: Path) -> VisionTransformer:
    """The network of a role, "dinov2" or "clip", with the weights of a file.

    Raises:
        UserError: The weights are those of another network, are incomplete, or are not finite.
    """
    name, make = {"dinov2": ("DINOv2", dinov2), "clip": ("CLIP", clip)}[role]
    try:
        network = make(weights)
    except (KeyError, ValueError, RuntimeError, StopIteration) as error:
        missing = f"no {error.args[0]}" if isinstance(error, KeyError) else str(error).splitlines()[0][:150]
        first = ", ".join(list(weights)[:3])
        raise UserError(
            f"The detector {path} holds no {name} network ({missing}; it begins with {first}): give the weights of "
            f"one, such as {_PUBLISHED[role]}."
        ) from error
    if not all(bool(torch.isfinite(x).all()) for x in network.state_dict().values()):
        raise UserError(f"The detector {path} holds weights that are not finite: download it again.")
    return network.eval().requires_grad_(False)


_PUBLISHED = {
    "dinov2": "dinov2_vitl14_pretrain.pth of facebookresearch/dinov2",
    "clip": "ViT-L-14-336px.pt of OpenAI, or model.safetensors of openai/clip-vit-large-patch14-336",
}

# -- DINOv2 -------------------------------------------------------------------------------------------

DINO_RESOLUTION = 224
DINO_OFFSET = 0.1  # added to the number of patches before positions are resampled, in the published network
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def dinov2(weights: Weights) -> VisionTransformer:
    """DINOv2 without registers (Oquab et al., arXiv 2304.07193) for images of 224 pixels; features: the class token.

    Args:
        weights: Tensors as facebookresearch/dinov2 and timm name them, or as transformers does.

    Raises:
        KeyError: A tensor is missing.
        ValueError: It is a form of DINOv2 that the metric does not use.
        RuntimeError: Shapes do not fit.
    """
    weights = _dinov2_names(weights)
    if any("register" in name or "reg_token" in name or ".w12." in name for name in weights):
        raise ValueError("it has registers or gated MLPs")
    width, patch = weights["patch_embed.proj.weight"].shape[0], weights["patch_embed.proj.weight"].shape[-1]
    per_axis = DINO_RESOLUTION // patch
    positions = weights["pos_embed"].reshape(-1, width)
    tensors = {
        "patches.weight": weights["patch_embed.proj.weight"],
        "patches.bias": weights["patch_embed.proj.bias"],
        "class_token": weights["cls_token"].reshape(width),
        "positions": torch.cat([positions[:1], resampled_positions(positions[1:], per_axis)]),
        **_both(weights, "norm", "norm"),
    }
    depth = _depth(weights, r"blocks\.(\d+)\.")
    for i in range(depth):
        source, target = f"blocks.{i}", f"layers.{i}"
        scale = [weights[f"{source}.ls{n}.gamma"] for n in (1, 2)]
        tensors |= {
            f"{target}.self_attn.in_proj_weight": weights[f"{source}.attn.qkv.weight"],
            f"{target}.self_attn.in_proj_bias": weights[f"{source}.attn.qkv.bias"],
            **_both(weights, f"{source}.attn.proj", f"{target}.self_attn.out_proj", scale[0]),
            **_both(weights, f"{source}.mlp.fc1", f"{target}.linear1"),
            **_both(weights, f"{source}.mlp.fc2", f"{target}.linear2", scale[1]),
            **_both(weights, f"{source}.norm1", f"{target}.norm1"),
            **_both(weights, f"{source}.norm2", f"{target}.norm2"),
        }
    network = VisionTransformer(
        Preparation(DINO_RESOLUTION, *IMAGENET),
        patch=patch,
        width=width,
        depth=depth,
        hidden=weights["blocks.0.mlp.fc1.weight"].shape[0],
        activation="gelu",
        eps=1e-6,
        num_tokens=per_axis**2 + 1,
        pre_norm=False,
        output=None,
    )
    network.load_state_dict(tensors)
    return network


def resampled_positions(positions: Tensor, per_axis: int) -> Tensor:
    """Position embeddings of a square grid [M * M, D] for another one [per_axis * per_axis, D], as DINOv2 makes them.

    Bicubic (a = -0.75), with the distance of samples M / (per_axis + 0.1) as in the published network.
    """
    count, width = positions.shape
    side = math.isqrt(count)
    if side**2 != count:
        raise ValueError(f"{count} position embeddings are no square")
    if side == per_axis:
        return positions
    grid = positions.reshape(1, side, side, width).permute(0, 3, 1, 2)
    factor = (per_axis + DINO_OFFSET) / side
    grid = nn.functional.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
    if grid.shape[-2:] != (per_axis, per_axis):
        raise ValueError(f"{side} x {side} position embeddings cannot be resampled to {per_axis} x {per_axis}")
    return grid.flatten(2)[0].t()


def _dinov2_names(weights: Weights) -> Weights:
    """Tensors under the names of facebookresearch/dinov2."""
    if "embeddings.cls_token" not in weights and "dinov2.embeddings.cls_token" not in weights:
        return weights
    stripped = {name.removeprefix("dinov2."): value for name, value in weights.items()}
    found = {
        "cls_token": stripped["embeddings.cls_token"],
        "pos_embed": stripped["embeddings.position_embeddings"],
        **_both(stripped, "embeddings.patch_embeddings.projection", "patch_embed.proj"),
        **_both(stripped, "layernorm", "norm"),
    }
    if "embeddings.register_tokens" in stripped:
        found["register_tokens"] = stripped["embeddings.register_tokens"]
    for i in range(_depth(stripped, r"encoder\.layer\.(\d+)\.")):
        source, target = f"encoder.layer.{i}", f"blocks.{i}"
        attention = f"{source}.attention.attention"
        for part in ("weight", "bias"):
            parts = [stripped[f"{attention}.{which}.{part}"] for which in ("query", "key", "value")]
            found[f"{target}.attn.qkv.{part}"] = torch.cat(parts)
        found |= _both(stripped, f"{source}.attention.output.dense", f"{target}.attn.proj")
        for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
            found |= _both(stripped, f"{source}.{name}", f"{target}.{name}")
        for n in (1, 2):
            found[f"{target}.ls{n}.gamma"] = stripped[f"{source}.layer_scale{n}.lambda1"]
    return found


# -- CLIP ---------------------------------------------------------------------------------------------

CLIP_COLORS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def clip(weights: Weights) -> VisionTransformer:
    """The image half of CLIP (Radford et al., arXiv 2103.00020) at its own resolution; features are its embeddings.

    Args:
        weights: Tensors as OpenAI and open_clip name them, or as transformers does; the text half may be there.

    Raises:
        KeyError: A tensor is missing.
        RuntimeError: Shapes do not fit.
    """
    weights = _clip_names(weights)
    width, _, _, patch = weights["visual.conv1.weight"].shape
    positions = weights["visual.positional_embedding"]
    side = math.isqrt(len(positions) - 1)
    if side**2 != len(positions) - 1:
        raise ValueError(f"{len(positions)} position embeddings are no square and a class")
    tensors = {
        "patches.weight": weights["visual.conv1.weight"],
        "patches.bias": torch.zeros(width),
        "class_token": weights["visual.class_embedding"],
        "positions": positions,
        "projection.weight": weights["visual.proj"].t(),
        **_both(weights, "visual.ln_pre", "pre_norm"),
        **_both(weights, "visual.ln_post", "norm"),
    }
    depth = _depth(weights, r"visual\.transformer\.resblocks\.(\d+)\.")
    for i in range(depth):
        source, target = f"visual.transformer.resblocks.{i}", f"layers.{i}"
        tensors |= {
            f"{target}.self_attn.in_proj_weight": weights[f"{source}.attn.in_proj_weight"],
            f"{target}.self_attn.in_proj_bias": weights[f"{source}.attn.in_proj_bias"],
            **_both(weights, f"{source}.attn.out_proj", f"{target}.self_attn.out_proj"),
            **_both(weights, f"{source}.mlp.c_fc", f"{target}.linear1"),
            **_both(weights, f"{source}.mlp.c_proj", f"{target}.linear2"),
            **_both(weights, f"{source}.ln_1", f"{target}.norm1"),
            **_both(weights, f"{source}.ln_2", f"{target}.norm2"),
        }
    network = VisionTransformer(
        Preparation(side * patch, *CLIP_COLORS),
        patch=patch,
        width=width,
        depth=depth,
        hidden=weights["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        activation=quick_gelu,
        eps=1e-5,
        num_tokens=len(positions),
        pre_norm=True,
        output=weights["visual.proj"].shape[1],
    )
    network.load_state_dict(tensors)
    return network


def _clip_names(weights: Weights) -> Weights:
    """Tensors under the names of OpenAI's files."""
    if "vision_model.embeddings.class_embedding" not in weights:
        return weights
    found = {
        "visual.class_embedding": weights["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": weights["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": weights["vision_model.embeddings.position_embedding.weight"],
        "visual.proj": weights["visual_projection.weight"].t(),
        **_both(weights, "vision_model.pre_layrnorm", "visual.ln_pre"),  # their spelling
        **_both(weights, "vision_model.post_layernorm", "visual.ln_post"),
    }
    for i in range(_depth(weights, r"vision_model\.encoder\.layers\.(\d+)\.")):
        source, target = f"vision_model.encoder.layers.{i}", f"visual.transformer.resblocks.{i}"
        for part in ("weight", "bias"):
            parts = [weights[f"{source}.self_attn.{which}_proj.{part}"] for which in "qkv"]
            found[f"{target}.attn.in_proj_{part}"] = torch.cat(parts)
        found |= _both(weights, f"{source}.self_attn.out_proj", f"{target}.attn.out_proj")
        for theirs, ours in (("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")):
            found |= _both(weights, f"{source}.{theirs}", f"{target}.{ours}")
        for n in (1, 2):
            found |= _both(weights, f"{source}.layer_norm{n}", f"{target}.ln_{n}")
    return found


def _both(weights: Weights, source: str, target: str, scale: Tensor | None = None) -> dict[str, Tensor]:
    """Weight and bias of a layer under another name, its outputs multiplied by a scale."""
    weight, bias = weights[f"{source}.weight"], weights[f"{source}.bias"]
    if scale is not None:
        weight, bias = weight * scale[:, None], bias * scale
    return {f"{target}.weight": weight, f"{target}.bias": bias}


def _depth(weights: Weights, pattern: str) -> int:
    """Number of layers, of whose tensors the pattern gives the layer's number."""
    numbers = {int(match[1]) for name in weights if (match := re.match(pattern, name))}
    if not numbers or len(numbers) != max(numbers) + 1:
        raise ValueError(f"it has {len(numbers)} layers {pattern!r}")
    return len(numbers)
