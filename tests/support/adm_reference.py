"""ADM networks by the names of their state dicts: random ones, and their forward pass in plain functions.

Written from the papers (arXiv 2105.05233, 2102.09672) and the names in published files, apart from `refine/networks`.
"""

from __future__ import annotations

import collections
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Form:
    """Form of a network; attention by resolution level, from high to low."""

    width: int = 32
    mult: tuple[float, ...] = (1, 2)
    num_blocks: int = 1
    attention: tuple[bool, ...] = (False, True)
    classes: int = 0
    out_channels: int = 6
    scale_shift: bool = True
    planar: bool = False  # consistency_models' attention
    img_channels: int = 3

    @property
    def channels(self) -> list[int]:
        return [int(self.width * mult) for mult in self.mult]


def random_state_dict(form: Form, seed: int = 0) -> collections.OrderedDict[str, Tensor]:
    """Weights such that every layer matters."""
    generator = torch.Generator().manual_seed(seed)
    state: collections.OrderedDict[str, Tensor] = collections.OrderedDict()

    def weight(name: str, *shape: int) -> None:
        fan_in = math.prod(shape[1:])
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) / math.sqrt(fan_in)
        state[f"{name}.bias"] = 0.2 * torch.randn(shape[0], generator=generator)

    def norm(name: str, channels: int) -> None:
        state[f"{name}.weight"] = 1 + 0.2 * torch.randn(channels, generator=generator)
        state[f"{name}.bias"] = 0.2 * torch.randn(channels, generator=generator)

    emb = 4 * form.width

    def res(name: str, before: int, after: int) -> None:
        norm(f"{name}.in_layers.0", before)
        weight(f"{name}.in_layers.2", after, before, 3, 3)
        weight(f"{name}.emb_layers.1", after * (2 if form.scale_shift else 1), emb)
        norm(f"{name}.out_layers.0", after)
        weight(f"{name}.out_layers.3", after, after, 3, 3)
        if before != after:
            weight(f"{name}.skip_connection", after, before, 1, 1)

    def attention(name: str, channels: int) -> None:
        norm(f"{name}.norm", channels)
        kernel = (1, 1) if form.planar else (1,)
        weight(f"{name}.qkv", 3 * channels, channels, *kernel)
        weight(f"{name}.proj_out", channels, channels, *kernel)

    weight("time_embed.0", emb, form.width)
    weight("time_embed.2", emb, emb)
    if form.classes:
        state["label_emb.weight"] = torch.randn(form.classes, emb, generator=generator)
    now = form.channels[0]
    weight("input_blocks.0.0", now, form.img_channels, 3, 3)
    index, skips = 1, [now]
    for level, channels in enumerate(form.channels):
        if level:
            res(f"input_blocks.{index}.0", now, now)
            skips.append(now)
            index += 1
        for _ in range(form.num_blocks):
            res(f"input_blocks.{index}.0", now, channels)
            now = channels
            if form.attention[level]:
                attention(f"input_blocks.{index}.1", now)
            skips.append(now)
            index += 1
    res("middle_block.0", now, now)
    attention("middle_block.1", now)
    res("middle_block.2", now, now)
    index = 0
    for level in reversed(range(len(form.channels))):
        for block in range(form.num_blocks + 1):
            res(f"output_blocks.{index}.0", now + skips.pop(), form.channels[level])
            now, child = form.channels[level], 1
            if form.attention[level]:
                attention(f"output_blocks.{index}.1", now)
                child = 2
            if level and block == form.num_blocks:
                res(f"output_blocks.{index}.{child}", now, now)
            index += 1
    norm("out.0", now)
    weight("out.2", form.out_channels, now, 3, 3)
    return state


def forward(
    state: dict[str, Tensor],
    form: Form,
    x: Tensor,
    t: Tensor,
    y: Tensor | None,
    *,
    head_channels: int | None = None,
    num_heads: int | None = None,
    order: str = "old",
) -> Tensor:
    """Output [N, out_channels, R, R] of the network for x [N, C, R, R], timesteps t [N] and class indices y [N]."""

    def affine(name: str, value: Tensor) -> Tensor:
        w, b = state[f"{name}.weight"], state[f"{name}.bias"]
        if w.ndim == 2:
            return functional.linear(value, w, b)
        return functional.conv2d(value, w, b, padding=1)

    def norm(name: str, value: Tensor) -> Tensor:
        return functional.group_norm(value, 32, state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def res(name: str, h: Tensor, change: str = "") -> Tensor:
        def resampled(value: Tensor) -> Tensor:
            if change == "down":
                return functional.avg_pool2d(value, 2)
            return functional.interpolate(value, scale_factor=2, mode="nearest") if change else value

        inner = affine(f"{name}.in_layers.2", resampled(functional.silu(norm(f"{name}.in_layers.0", h))))
        told = affine(f"{name}.emb_layers.1", functional.silu(emb))[:, :, None, None]
        if form.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            inner = norm(f"{name}.out_layers.0", inner) * (1 + scale) + shift
        else:
            inner = norm(f"{name}.out_layers.0", inner + told)
        inner = affine(f"{name}.out_layers.3", functional.silu(inner))
        outer = resampled(h)
        if f"{name}.skip_connection.weight" in state:
            w, b = state[f"{name}.skip_connection.weight"], state[f"{name}.skip_connection.bias"]
            outer = functional.conv2d(outer, w, b)
        return outer + inner

    def attention(name: str, h: Tensor) -> Tensor:
        n, c = h.shape[:2]
        heads = c // head_channels if head_channels else num_heads
        assert heads
        rows = torch.einsum(
            "oc,ncp->nop", state[f"{name}.qkv.weight"].reshape(3 * c, c), norm(f"{name}.norm", h).flatten(2)
        )
        rows = rows + state[f"{name}.qkv.bias"][:, None]
        if order == "old":
            q, k, v = rows.reshape(n, heads, 3, c // heads, -1).unbind(2)
        else:
            q, k, v = rows.reshape(n, 3, heads, c // heads, -1).unbind(1)
        weights = torch.einsum("nhcq,nhck->nhqk", q, k) / math.sqrt(c // heads)
        mixed = torch.einsum("nhqk,nhck->nhcq", weights.softmax(-1), v).reshape(n, c, -1)
        out = torch.einsum("oc,ncp->nop", state[f"{name}.proj_out.weight"].reshape(c, c), mixed)
        return h + (out + state[f"{name}.proj_out.bias"][:, None]).reshape(h.shape)

    half = form.width // 2
    angles = t[:, None] * 10000 ** (-torch.arange(half, dtype=x.dtype) / half)
    emb = affine("time_embed.0", torch.cat([angles.cos(), angles.sin()], dim=1))
    emb = affine("time_embed.2", functional.silu(emb))
    if y is not None:
        emb = emb + state["label_emb.weight"][y]
    h = affine("input_blocks.0.0", x)
    skips, index = [h], 1
    for level in range(len(form.channels)):
        if level:
            h = res(f"input_blocks.{index}.0", h, "down")
            skips.append(h)
            index += 1
        for _ in range(form.num_blocks):
            h = res(f"input_blocks.{index}.0", h)
            h = attention(f"input_blocks.{index}.1", h) if form.attention[level] else h
            skips.append(h)
            index += 1
    h = res("middle_block.2", attention("middle_block.1", res("middle_block.0", h)))
    index = 0
    for level in reversed(range(len(form.channels))):
        for block in range(form.num_blocks + 1):
            h = res(f"output_blocks.{index}.0", torch.cat([h, skips.pop()], dim=1))
            child = 1
            if form.attention[level]:
                h, child = attention(f"output_blocks.{index}.1", h), 2
            if level and block == form.num_blocks:
                h = res(f"output_blocks.{index}.{child}", h, "up")
            index += 1
    return affine("out.2", functional.silu(norm("out.0", h)))
