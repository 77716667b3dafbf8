"""Choice of a device."""

from __future__ import annotations

import torch

from refine.errors import OptionError, UserError, literal
from refine.runtime.text import counted


def choose_device(name: str, index: int | None = None) -> torch.device:
    """Device of a name.

    Args:
        name: `auto`, `cpu`, `cuda` or `mps`; `auto` prefers CUDA, then MPS.
        index: Index of the GPU if there are several; None for PyTorch's current GPU.

    Raises:
        UserError: PyTorch cannot use the device on this machine.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, is_there in available.items() if is_there)
    if not available.get(name, False):
        raise OptionError(
            f"{{device={literal(name)}}} is not available to PyTorch on this machine: use {{device=auto}}."
        )
    if name != "cuda" or index is None:
        return torch.device(name)
    if index >= torch.cuda.device_count():
        raise UserError(
            f"Process {index} on this machine has no GPU, because the machine has "
            f"{counted(torch.cuda.device_count(), 'GPU')}: start torchrun with "
            f"--nproc_per_node={torch.cuda.device_count()}."
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def would_use_cuda(device: str) -> bool:
    """True if `choose_device` returns a CUDA device."""
    return device in ("auto", "cuda") and torch.cuda.is_available()
