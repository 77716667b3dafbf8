"""Layers of the operators, as StyleGAN and U-Nets have them, for tests of what PyTorch makes of them."""

from __future__ import annotations

import torch
from torch import Tensor

from refine.networks.stylegan2 import Generator
from refine.networks.stylegan2_options import GeneratorOptions, MappingOptions, SynthesisOptions
from stylegan_ops import reference
from stylegan_ops.attention import attention
from stylegan_ops.bias_act import bias_act
from stylegan_ops.conv1x1 import conv1x1
from stylegan_ops.conv3x3 import conv3x3
from stylegan_ops.group_norm_silu import group_norm_silu
from stylegan_ops.norm_conv3x3 import Norm, norm_conv3x3
from stylegan_ops.upfirdn2d import setup_filter, upfirdn2d


def tensors(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def layer(x: Tensor, b: Tensor, f: Tensor) -> Tensor:
    """Both operators of StyleGAN, in a row."""
    return bias_act(upfirdn2d(x, f, up=2, padding=[2, 1, 2, 1], gain=4), b, act="swish", clamp=1.5)


def layer_arguments(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [*tensors((2, 3, 4, 5), (3,), dtype=dtype), setup_filter([1, 3, 3, 1])]


def definition(x: Tensor, b: Tensor, f: Tensor) -> Tensor:
    y = reference.upfirdn2d(x, f, 2, 1, [2, 1, 2, 1], gain=4)
    return reference.bias_act(y, b, act="swish", clamp=1.5)


UNET = ("norm_conv3x3", "conv3x3", "group_norm_silu", "conv1x1", "attention")  # in the order of their calls


def unet(x: Tensor, weight: Tensor, bias: Tensor, projection: Tensor) -> Tensor:
    """All operators of U-Nets, in a row."""
    y = norm_conv3x3(x, Norm(4, bias, bias, 1e-5, scale=x.mean((2, 3))), weight, bias)
    y = conv3x3(y, weight, bias)
    y = group_norm_silu(y, 4, bias, bias)
    y = conv1x1(y, projection, projection[:, 0, 0, 0])
    return attention(y.reshape(x.shape[0], 1, 8, 3, -1))


def unet_arguments(batch: int = 16) -> list[Tensor]:
    """Arguments that kernels are faster for."""
    x, weight, bias, projection = tensors((batch, 16, 8, 8), (16, 16, 3, 3), (16,), (24, 16, 1, 1))
    return [x, *((t / 4).detach().requires_grad_() for t in (weight, bias, projection))]


def unet_definition(x: Tensor, weight: Tensor, bias: Tensor, projection: Tensor) -> Tensor:
    scale = x.mean((2, 3))
    y = reference.conv3x3(reference.group_norm_silu(x, bias, bias, None, scale, None, 4, 1e-5), weight, bias)
    y = reference.conv3x3(y, weight, bias)
    y = reference.group_norm_silu(y, bias, bias, None, None, None, 4, 1e-5)
    y = reference.conv1x1(y, projection, projection[:, 0, 0, 0])
    return reference.attention(y.reshape(x.shape[0], 1, 8, 3, -1))


def small_generator() -> Generator:
    torch.manual_seed(0)
    return Generator(
        GeneratorOptions(
            *(8, 0, 8, 16, 3),
            mapping=MappingOptions(num_layers=2),
            synthesis=SynthesisOptions(
                channel_base=64,
                channel_max=6,
                architecture="resnet",
                conv_clamp=256,
                fused_modconv_default="inference_only",
            ),
        )
    )
