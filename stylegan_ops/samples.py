"""Sample inputs of every operator, on which `doctor` and the tests compare implementations with `reference`.

The tensors are float64 and random, the same in each process. Images and filters are not symmetric, and the kernels for
single precision take all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stylegan_ops import reference
from stylegan_ops.backends.packing import ACTS

Tensors = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Sample:
    """Arguments of a raw operator.

    Attributes:
        name: Name of the operator.
        label: Name of this sample among those of the operator.
        tensors: Tensors among the arguments, which come first; None for one that is left out.
        options: All other arguments.
        differentiable: Indices of the tensors with respect to which the operator can be differentiated.
    """

    name: str
    label: str
    tensors: Tensors
    options: tuple[Any, ...] = ()
    differentiable: tuple[int, ...] = (0,)

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Sample:
        """Round all tensors that are differentiated to a dtype, and move all to a device."""

        def convert(index: int, t: Tensor | None) -> Tensor | None:
            if t is None:
                return None
            return t.to(device, dtype if index in self.differentiable else t.dtype)

        return replace(self, tensors=tuple(convert(i, t) for i, t in enumerate(self.tensors)))

    def with_leaves(self) -> Sample:
        """Copy the tensors that are differentiated, as leaves that require gradients."""

        def copy(index: int, t: Tensor | None) -> Tensor | None:
            return t.detach().clone().requires_grad_() if t is not None and index in self.differentiable else t

        return replace(self, tensors=tuple(copy(i, t) for i, t in enumerate(self.tensors)))

    @property
    def leaves(self) -> list[Tensor]:
        """The tensors that are differentiated."""
        return [t for i in self.differentiable if (t := self.tensors[i]) is not None]

    def defined(self) -> Tensor:
        """Compute the result by its definition."""
        return DEFINITIONS[self.name](*self.tensors, *self.options)

    def __str__(self) -> str:
        """For names of tests."""
        return f"{self.name}-{self.label}"


def _bias_act(x: Tensor, b: Tensor | None, dim: int, act: int, alpha: float, gain: float, clamp: float) -> Tensor:
    return reference.bias_act(x, b, dim, ACTS[act], alpha, gain, None if clamp < 0 else clamp)


def _upfirdn2d(x: Tensor, f: Tensor, *options: Any) -> Tensor:
    up_x, up_y, down_x, down_y, *padding, flip, gain = options
    return reference.upfirdn2d(x, f, (up_x, up_y), (down_x, down_y), padding, flip, gain)


def _norm_conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    before: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    keep: Tensor | None,
    groups: int,
    eps: float,
    gain: float,
) -> Tensor:
    h = reference.group_norm_silu(x, norm_weight, norm_bias, before, scale, shift, groups, eps)
    return reference.conv3x3(h if keep is None else h * keep * gain, weight, bias)


def _filtered_lrelu(x: Tensor, fu: Tensor, fd: Tensor, b: Tensor | None, up: int, down: int, *options: Any) -> Tensor:
    *padding, gain, slope, clamp, flip = options
    clamp = None if clamp < 0 else clamp
    return reference.filtered_lrelu(x, fu, fd, b, up, down, padding, gain, slope, clamp, flip)


ANY_DTYPE = ("bias_act", "upfirdn2d", "filtered_lrelu")  # The kernels of all others take float32 only.
DEFINITIONS: dict[str, Callable[..., Tensor]] = {
    "bias_act": _bias_act,
    "upfirdn2d": _upfirdn2d,
    "filtered_lrelu": _filtered_lrelu,
    "conv3x3": reference.conv3x3,
    "conv1x1": reference.conv1x1,
    "attention": reference.attention,
    "group_norm_silu": reference.group_norm_silu,
    "norm_conv3x3": _norm_conv3x3,
}


class _Random:
    """Normal numbers, the same ones for a seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)


def _bias_act_samples(random: _Random) -> list[Sample]:
    samples = []
    for act, name in enumerate(ACTS):
        x, b = random(2, 3, 9, 11), random(3)
        samples.append(Sample("bias_act", name, (x, b), (1, act, 0.2, 1.25, 1.5), (0, 1)))
    swish, lrelu = ACTS.index("swish"), ACTS.index("lrelu")
    last = random(2, 3, 9, 11).to(memory_format=torch.channels_last)
    return [
        *samples,
        Sample("bias_act", "swish-channels_last", (last, random(3)), (1, swish, 0.0, -0.75, -1.0), (0, 1)),
        Sample("bias_act", "lrelu-no_bias", (random(5, 7), None), (0, lrelu, 0.3, 2.0, 1.0)),
        Sample("bias_act", "swish-no_bias", (random(5, 7), None), (0, swish, 0.0, 2.0, -1.0)),
        Sample("bias_act", "swish-last_dim", (random(5, 7), random(7)), (1, swish, 0.0, 1.0, -1.0), (0, 1)),
    ]


def _upfirdn2d_samples(random: _Random) -> list[Sample]:
    cases = {
        "filter": ((4, 4), (1, 1, 1, 1), (2, 1, 2, 1), False),
        "up": ((4, 4), (2, 2, 1, 1), (2, 1, 2, 1), False),
        "down": ((4, 4), (1, 1, 2, 2), (1, 1, 1, 1), True),
        "up-separable": ((12,), (2, 2, 1, 1), (6, 5, 6, 5), False),
        "rest": ((3, 5), (3, 1, 1, 2), (-1, 4, 3, -2), True),
    }
    samples = []
    for label, (shape, factors, padding, flip) in cases.items():
        x, f = random(2, 3, 10, 13), random(*shape).float()
        options = (*factors, *padding, flip, 1.5)
        samples.append(Sample("upfirdn2d", label, (x, f), options))
        last = x.to(memory_format=torch.channels_last)
        samples.append(Sample("upfirdn2d", f"{label}-channels_last", (last, f), options))
    return samples


def _filtered_lrelu_samples(random: _Random) -> list[Sample]:
    cases: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, int, tuple[int, ...], float, bool]] = {
        "same": ((12,), (12,), 2, 2, (9, 8, 9, 8), 1.5, False),
        "larger": ((24,), (12,), 4, 2, (-1, 2, 3, -4), 1.0, False),
        "smaller": ((12,), (24,), 2, 4, (16, 17, 18, 19), -1.0, True),
        "radial": ((12,), (12, 12), 2, 2, (11, 10, 11, 10), 1.5, False),
        "rest": ((4, 3), (3, 5), 3, 2, (2, -1, 3, 4), 0.7, True),
    }
    samples = []
    for label, (fu, fd, up, down, padding, clamp, flip) in cases.items():
        x, filters = random(2, 3, 10, 13), (random(*fu).float() / 4, random(*fd).float() / 4)
        options = (up, down, *padding, 1.25, 0.3, clamp, flip)
        b, differentiable = (None, (0,)) if label == "larger" else (random(3), (0, 3))
        samples.append(Sample("filtered_lrelu", label, (x, *filters, b), options, differentiable))
    return samples


def _group_norm_samples(random: _Random) -> list[Sample]:
    x, weight, bias = random(2, 8, 9, 11), random(8), random(8)
    before, scale, shift = random(2, 8), random(2, 8), random(2, 8)
    return [
        Sample("group_norm_silu", "alone", (x, weight, bias, None, None, None), (2, 1e-5), (0, 1, 2)),
        Sample("group_norm_silu", "all", (x, weight, bias, before, scale, shift), (4, 1e-2), tuple(range(6))),
        Sample("group_norm_silu", "before", (x, weight, bias, before, None, None), (1, 1e-5), (0, 1, 2, 3)),
    ]


def _norm_conv3x3_samples(random: _Random) -> list[Sample]:
    x, weight, bias = random(2, 16, 17, 21), random(18, 16, 3, 3), random(18)
    norm, given = (random(16), random(16)), (random(2, 16), random(2, 16), random(2, 16))
    keep = random(2, 16, 17, 21) > -0.5
    alone = (x, weight, bias, *norm, None, None, None, None)
    return [
        Sample("norm_conv3x3", "alone", alone, (4, 1e-5, 1.0), tuple(range(5))),
        Sample("norm_conv3x3", "all", (x, weight, bias, *norm, *given, keep), (4, 1e-5, 1.5), tuple(range(8))),
    ]


def sample_inputs(name: str) -> list[Sample]:
    """Return samples of the operator `name`, a key of `DEFINITIONS`, in float64."""
    random = _Random(list(DEFINITIONS).index(name))
    if name == "bias_act":
        return _bias_act_samples(random)
    if name == "upfirdn2d":
        return _upfirdn2d_samples(random)
    if name == "filtered_lrelu":
        return _filtered_lrelu_samples(random)
    if name == "conv3x3":
        x, weight = random(3, 16, 17, 21), random(18, 16, 3, 3)
        with_bias = Sample(name, "bias", (x, weight, random(18)), (), (0, 1, 2))
        return [with_bias, Sample(name, "no_bias", (x, weight, None), (), (0, 1))]
    if name == "conv1x1":
        return [Sample(name, "bias", (random(16, 6, 5, 7), random(4, 6, 1, 1), random(4)), (), (0, 1, 2))]
    if name == "attention":
        return [Sample(name, "one_head", (random(3, 1, 16, 3, 32),)), Sample(name, "heads", (random(1, 2, 8, 3, 64),))]
    return _group_norm_samples(random) if name == "group_norm_silu" else _norm_conv3x3_samples(random)
