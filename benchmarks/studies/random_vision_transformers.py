"""Weights of tiny vision transformers, random, under the names and in the layout of the published files."""

from __future__ import annotations

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def dinov2_weights(width: int = 128, depth: int = 2, side: int = 37, patch: int = 14, seed: int = 0) -> Weights:
    """As facebookresearch/dinov2 saves its networks, which see 518 pixels in training: 37 x 37 patches of 14."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 0.1) -> Tensor:
        return torch.randn(*shape, generator=draw) * scale

    found = {
        "cls_token": normal(1, 1, width),
        "pos_embed": normal(1, side**2 + 1, width),
        "mask_token": normal(1, width),
        "patch_embed.proj.weight": normal(width, 3, patch, patch),
        "patch_embed.proj.bias": normal(width),
        "norm.weight": 1 + normal(width),
        "norm.bias": normal(width),
    }
    for i in range(depth):
        for name, rows, columns in (
            ("attn.qkv", 3 * width, width), ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width), ("mlp.fc2", width, 4 * width),
        ):  # fmt: skip
            found |= {f"blocks.{i}.{name}.weight": normal(rows, columns), f"blocks.{i}.{name}.bias": normal(rows)}
        for n in (1, 2):
            found |= {f"blocks.{i}.norm{n}.weight": 1 + normal(width), f"blocks.{i}.norm{n}.bias": normal(width)}
            found[f"blocks.{i}.ls{n}.gamma"] = 0.5 + normal(width)
    return found


def clip_weights(width: int = 128, depth: int = 2, side: int = 3, output: int = 48, seed: int = 0) -> Weights:
    """As OpenAI saves CLIP, for images of 14 * side pixels; one tensor of the text half is there, too."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 0.1) -> Tensor:
        return torch.randn(*shape, generator=draw) * scale

    found = {
        "text_projection": normal(width, output),
        "visual.class_embedding": normal(width),
        "visual.positional_embedding": normal(side**2 + 1, width),
        "visual.proj": normal(width, output),
        "visual.conv1.weight": normal(width, 3, 14, 14),
    }
    for name in ("visual.ln_pre", "visual.ln_post"):
        found |= {f"{name}.weight": 1 + normal(width), f"{name}.bias": normal(width)}
    for i in range(depth):
        block = f"visual.transformer.resblocks.{i}"
        found |= {
            f"{block}.attn.in_proj_weight": normal(3 * width, width),
            f"{block}.attn.in_proj_bias": normal(3 * width),
        }
        for name, rows, columns in (
            ("attn.out_proj", width, width), ("mlp.c_fc", 4 * width, width), ("mlp.c_proj", width, 4 * width),
        ):  # fmt: skip
            found |= {f"{block}.{name}.weight": normal(rows, columns), f"{block}.{name}.bias": normal(rows)}
        for n in (1, 2):
            found |= {f"{block}.ln_{n}.weight": 1 + normal(width), f"{block}.ln_{n}.bias": normal(width)}
    return found
