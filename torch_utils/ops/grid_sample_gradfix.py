"""Bilinear sampling of images that is differentiable as often as one likes, on every PyTorch.

PyTorch's own `grid_sample` is differentiable twice or not depending on its version and on the device. An
augmentation pipe in front of a discriminator needs it: R1 regularization differentiates through the images' gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function

enabled = False  # training scripts set it; nothing depends on it

_BILINEAR, _ZEROS, _ALIGN_CORNERS = 0, 0, False


def grid_sample(input: Tensor, grid: Tensor) -> Tensor:
    """Samples images [N, C, H, W] at `grid` [N, H', W', 2]: bilinear, zeros outside, corners not aligned.

    Args:
        input: Images of any floating-point dtype.
        grid: Places (x, y) of `input`'s dtype; -1 and 1 are the outer borders of the image.

    Returns:
        Images [N, C, H', W'], differentiable as often as one likes in both arguments.
    """
    return _GridSample.apply(input, grid)


class _GridSample(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(input, grid)
        return torch.ops.aten.grid_sampler_2d(input, grid, _BILINEAR, _ZEROS, _ALIGN_CORNERS)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        input, grid = ctx.saved_tensors
        dinput, dgrid = _GridSampleGradient.apply(dy, input, grid, *ctx.needs_input_grad)
        return (dinput if ctx.needs_input_grad[0] else None), (dgrid if ctx.needs_input_grad[1] else None)


class _GridSampleGradient(Function):
    """(dy, input, grid) -> the gradients of sum(dy * grid_sample(input, grid))."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, input: Tensor, grid: Tensor, of_input: bool, of_grid: bool) -> Any:
        ctx.save_for_backward(dy, input, grid)
        ctx.of_grid = of_grid
        ctx.set_materialize_grads(False)
        # The kernels compute the gradient of the grid in any case.
        dinput, dgrid = torch.ops.aten.grid_sampler_2d_backward(
            dy.contiguous(), input, grid, _BILINEAR, _ZEROS, _ALIGN_CORNERS, [of_input, of_grid]
        )
        return dinput, dgrid if of_grid else None

    @staticmethod
    def backward(ctx: Any, ddinput: Tensor | None, ddgrid: Tensor | None) -> Any:
        dy, input, grid = ctx.saved_tensors
        if ddinput is None and ddgrid is None:
            return None, None, None, None, None
        if not (ctx.needs_input_grad[2] or ctx.of_grid):
            # The images' gradient is linear in dy, and does not depend on the images.
            return grid_sample(ddinput, grid), None, None, None, None  # type: ignore[arg-type]
        again = torch.is_grad_enabled()  # whether a third derivative may follow
        with torch.enable_grad():
            dy, input, grid = (_leaf_or_view(tensor) for tensor in (dy, input, grid))
            first = torch.autograd.grad((_by_gathering(input, grid) * dy).sum(), (input, grid), create_graph=True)
            pairs = [(d, dd) for d, dd in zip(first, (ddinput, ddgrid), strict=True) if dd is not None]
            total = torch.stack([(d * dd).sum() for d, dd in pairs]).sum()
            second = torch.autograd.grad(total, (dy, input, grid), create_graph=again, materialize_grads=True)
        return *second, None, None


def _leaf_or_view(tensor: Tensor) -> Tensor:
    """The same tensor as one to take derivatives for, whose own history they do not run into."""
    return tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()


def _by_gathering(input: Tensor, grid: Tensor) -> Tensor:
    """`grid_sample` from PyTorch's elementary functions, whose derivatives never end."""
    height, width = input.shape[2:]
    x = ((grid[..., 0] + 1) * width - 1) / 2
    y = ((grid[..., 1] + 1) * height - 1) / 2
    left, top = x.detach().floor(), y.detach().floor()
    result = torch.zeros((), dtype=input.dtype, device=input.device)
    for column, weight_x in ((left, left + 1 - x), (left + 1, x - left)):
        for row, weight_y in ((top, top + 1 - y), (top + 1, y - top)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()  # [N, H', W']
            index = index.flatten(1)[:, None].expand(-1, input.shape[1], -1)
            pixels = input.flatten(2).gather(2, index).unflatten(2, grid.shape[1:3])
            result = result + pixels * (weight_x * weight_y * inside)[:, None]
    return result
