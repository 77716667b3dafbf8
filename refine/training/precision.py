"""In which precision the U-Nets compute: chosen for the device, float32 wherever it matters.

Master weights, preconditioning, losses and optimisers are float32 always. With `bf16` and `fp16` convolutions and
matrix products of the two U-Nets run in that type; with `fp16` the generator also uses the float16 blocks that its
pickle asks for, and losses are scaled.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def choose_precision(name: str, device: torch.device) -> str:
    """What `auto` means on a device: bf16 on NVIDIA GPUs since Ampere, fp16 on older ones, fp32 elsewhere."""
    if name != "auto":
        return name
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """A context in which convolutions and matrix products run in that precision."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


def prepare(precision: str, device: torch.device) -> None:
    """Process-wide settings of PyTorch: cuDNN's search for fast kernels, and TF32 in convolutions unless in fp32.

    Not in matrix products, one of which reduces images to the teacher's size and has to be exact.
    """
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = precision != "fp32"
        torch.backends.cudnn.benchmark = True
