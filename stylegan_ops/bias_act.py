"""Bias, activation, gain and clamp in one step: the element-wise half of every StyleGAN layer."""

from __future__ import annotations

from torch import Tensor

from stylegan_ops import autograd, dispatch, reference
from stylegan_ops.backends.packing import ACTS
from stylegan_ops.reference import ACTIVATIONS

ACT_INDEX = {name: index for index, name in enumerate(ACTS)}


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """Compute clamp(gain * act(x + b)), element by element.

    Args:
        x: Floating-point tensor of any shape.
        b: Bias [x.shape[dim]], added along `dim` in x's dtype; None adds nothing.
        dim: Dimension of x that `b` runs along.
        act: Key of `ACTIVATIONS`: linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus or swish.
        alpha: Slope of `lrelu` below zero, default 0.2; the other activations ignore it.
        gain: Factor after the activation; default sqrt(2) for relu, lrelu and swish, 1 for the others.
        clamp: Limit of the result, [-clamp, clamp]; None for no limit.

    Returns:
        A tensor of x's shape and dtype; differentiable as often as the activation is.

    Raises:
        TypeError: If `x` is not a floating-point tensor.
        ValueError: If the activation is unknown, x lacks the dimension, the bias does not fit it, or the clamp is
            negative.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a floating-point tensor, not {kind}")
    if act not in ACTIVATIONS:
        raise ValueError(f"act must be one of {', '.join(ACTIVATIONS)}, not {act!r}")
    if clamp is not None and not clamp >= 0:
        raise ValueError(f"clamp must be None or at least 0, not {clamp!r}")
    if b is not None:
        if not 0 <= dim < x.ndim:
            raise ValueError(f"dim must be one of the {x.ndim} dimensions of x, not {dim}")
        if b.shape != (x.shape[dim],):
            raise ValueError(f"b must have shape [{x.shape[dim]}] for x {list(x.shape)}, not {list(b.shape)}")
    activation = ACTIVATIONS[act]
    alpha = activation.alpha if alpha is None else alpha
    gain = activation.gain if gain is None else gain
    if act == "linear" and gain == 1 and clamp is None:
        return reference.bias_act(x, b, dim, act)  # A single addition, which no kernel does faster.
    if b is not None and b.dtype != x.dtype:
        b = b.to(x.dtype)
    options = (dim, ACT_INDEX[act], alpha, gain, -1.0 if clamp is None else clamp)
    return autograd.run("bias_act", dispatch.route("bias_act", x, b), (x, b), options)
