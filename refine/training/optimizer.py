"""Optimizer of one network: gradients are summed over processes, checked, clipped and applied."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from refine.runtime import distributed


class Optimizer:
    """Adam in float32 (Kingma & Ba, arXiv 1412.6980), with gradient reduction, clipping and loss scaling.

    Args:
        parameters: Parameters to train.
        betas: Adam beta1 and beta2.
        clip_grad: Largest norm of the gradient; None for no limit.
        scale_loss: Whether to scale losses adaptively, so that float16 gradients do not underflow.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        betas: tuple[float, float],
        clip_grad: float | None = None,
        scale_loss: bool = False,
    ) -> None:
        self.parameters = list(parameters)
        self.clip_grad = clip_grad
        device = self.parameters[0].device.type if self.parameters else "cpu"
        # One kernel for all tensors, on devices that have it.
        fused = True if self.parameters and device in ("cpu", "cuda") else None
        self.adam = torch.optim.Adam(self.parameters, lr=1.0, betas=betas, eps=1e-8, fused=fused)
        self.scaler = torch.amp.GradScaler(device, init_scale=2.0**8, enabled=scale_loss)

    def zero_grad(self) -> None:
        """Clears the gradients."""
        self.adam.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Accumulates the gradient of a scalar loss, which is this process's part of a sum over all processes."""
        self.scaler.scale(loss).backward()

    def step(self, lr: float) -> Tensor | None:
        """Applies the gradient, summed over all processes.

        Args:
            lr: Learning rate.

        Returns:
            Norm of the gradient before clipping; None if the norm was not finite, in which case the step was skipped.
        """
        for parameter in self.parameters:
            if parameter.grad is None and distributed.world_size() > 1:  # all processes have to reduce the same tensors
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        distributed.all_reduce_sum_(gradients)
        self.scaler.unscale_(self.adam)
        norm = torch.nn.utils.get_total_norm(gradients)
        finite = math.isfinite(norm)
        if finite:
            if self.clip_grad is not None:
                torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip_grad, norm)
            for group in self.adam.param_groups:
                group["lr"] = lr
            self.scaler.step(self.adam)
        if self.scaler.is_enabled():
            self.scaler.update()
        return norm if finite else None

    def state_dict(self) -> dict[str, Any]:
        """Adam moments and the state of the loss scale."""
        return {"adam": self.adam.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the result of `state_dict`."""
        self.adam.load_state_dict(state["adam"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


def learning_rate(
    base: float, cur_nimg: int, *, rampup_nimg: float, decay: str = "none", total_nimg: float = math.inf
) -> float:
    """Learning rate after `cur_nimg` images.

    Args:
        base: Learning rate between ramp-up and decay.
        cur_nimg: Images so far.
        rampup_nimg: Images over which the rate rises linearly from 0; 0 for no ramp-up.
        decay: Decay of the rate: `none`, or `cosine` for half a cosine down to 0 at the end of the run.
        total_nimg: Images of the whole run.
    """
    rate = base * min(cur_nimg / rampup_nimg, 1.0) if rampup_nimg else base
    if decay == "cosine":
        rate *= (1 + math.cos(math.pi * min(cur_nimg / total_nimg, 1.0))) / 2
    return rate
