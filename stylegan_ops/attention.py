"""Attention between pixels, with queries, keys and values as the convolutions of U-Nets leave them."""

from __future__ import annotations

from torch import Tensor

from stylegan_ops import autograd, dispatch


def attention(qkv: Tensor) -> Tensor:
    """Map the query of every pixel to the sum of all values, weighted by the softmax of its products with their keys.

    Contiguous float32 tensors on the CPU with 8, 16, ... or 128 channels per head and a multiple of 32 pixels have
    kernels that leave the pixels of a channel side by side. Everything else is left to PyTorch's
    scaled_dot_product_attention.

    Args:
        qkv: Query, key and value of each channel of L pixels, [N, heads, C, 3, L]. Products are divided by sqrt(C).

    Returns:
        Sums of values [N, heads, C, L] of qkv's dtype, differentiable any number of times if kernels compute them.
    """
    return autograd.run("attention", dispatch.route("attention", qkv), (qkv,))
