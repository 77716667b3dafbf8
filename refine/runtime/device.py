"""Choice of a device."""

from __future__ import annotations

import torch

from refine.errors import UserError


def choose_device(name: str, index: int | None = None) -> torch.device:
    """The device meant by `auto`, `cpu`, `cuda` or `mps`; of several GPUs the one with that index.

    Raises:
        UserError: This machine does not have it.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, is_there in available.items() if is_there)
    if not available.get(name, False):
        raise UserError(f"--device={name} is not available to PyTorch here: use --device=auto.")
    if name != "cuda" or index is None:
        return torch.device(name)
    if index >= torch.cuda.device_count():
        raise UserError(
            f"Process {index} of this machine has no GPU: there are {torch.cuda.device_count()}. "
            f"Start torchrun with --nproc_per_node={torch.cuda.device_count()}."
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def would_use_cuda(device: str) -> bool:
    """Whether `choose_device` gives a CUDA device."""
    return device in ("auto", "cuda") and torch.cuda.is_available()
