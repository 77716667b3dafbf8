"""Precision of the U-Nets' computations: chosen by device, and float32 where accuracy requires it.

Weights, preconditioning, losses and optimizers are always float32. With `bf16` and `fp16`, convolutions and matrix
products of the two U-Nets run in that dtype; with `fp16`, the generator also uses the float16 blocks that its pickle
specifies, and losses are scaled.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from refine.runtime import tf32


def choose_precision(name: str, device: torch.device) -> str:
    """Precision of a name: `auto` is bf16 on NVIDIA GPUs since Ampere, fp16 on older ones, and fp32 elsewhere."""
    if name != "auto":
        return name
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Context in which convolutions and matrix products run in a precision: `fp32`, `bf16` or `fp16`."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


def prepare(precision: str, device: torch.device) -> None:
    """Sets PyTorch's process-wide options: cuDNN benchmarking, and TF32 in convolutions unless the precision is fp32.

    TF32 stays off in matrix products, because one of them resizes images to the teacher's resolution and must be exact.
    """
    if device.type == "cuda":
        tf32.allow_in_convolutions(precision != "fp32")
        torch.backends.cudnn.benchmark = True
