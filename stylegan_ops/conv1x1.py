"""1 x 1 convolution, which mixes the channels of each pixel, by the faster of PyTorch's two ways."""

from __future__ import annotations

from torch import Tensor

from stylegan_ops import dispatch


def conv1x1(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `torch.conv2d(x, weight, bias)`.

    On the CPU, PyTorch rearranges many images for its library of convolutions, which takes longer than one product of
    matrices for each image.

    Args:
        x: Images [N, in_channels, H, W].
        weight: Filters [out_channels, in_channels, 1, 1] of x's dtype.
        bias: Summand [out_channels] of x's dtype, or None.

    Returns:
        Images [N, out_channels, H, W], differentiable any number of times.
    """
    operators, _ = dispatch.route("conv1x1", x, weight, bias)
    return operators.conv1x1(x, weight, bias)  # PyTorch can differentiate all of them.
