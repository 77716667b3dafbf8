"""3 x 3 convolution, with a quarter of the multiplications where there are kernels for that."""

from __future__ import annotations

from torch import Tensor

from stylegan_ops import autograd, dispatch


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Correlate images, padded by one pixel of zeros, like `torch.conv2d(x, weight, bias, padding=1)`.

    Contiguous float32 images on the CPU with enough channels and pixels are convolved by Winograd's F(4x4, 3x3) (Lavin
    & Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308), and so are their gradients. Its
    rounding is some five times as coarse as that of the sum itself: with 128 channels, 1.1e-6 of a result's standard
    deviation on average. One infinite or NaN pixel makes NaN of all results in the tiles of 4 x 4 pixels that it
    reaches. Everything else is left to PyTorch.

    Args:
        x: Images [N, in_channels, H, W].
        weight: Filters [out_channels, in_channels, 3, 3] of x's dtype.
        bias: Summand [out_channels] of x's dtype, or None.

    Returns:
        Images [N, out_channels, H, W], differentiable any number of times.
    """
    return autograd.run("conv3x3", dispatch.route("conv3x3", x, weight, bias), (x, weight, bias))
