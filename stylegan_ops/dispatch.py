"""Which kernels compute the operators of a tensor: the CPU library's, CUDA's, or none, which means plain PyTorch.

The mode decides, from `set_mode` or the environment variable STYLEGAN_OPS, which is read on first use:

- auto, the default: kernels where they can be built; else plain PyTorch, after one line of warning in the log of
  `stylegan_ops` that tells cause and remedy.
- on: kernels, or `build.BuildError`.
- off: plain PyTorch; nothing is built.
"""

from __future__ import annotations

import logging
import os
from types import ModuleType

import torch
from torch import Tensor

VARIABLE = "STYLEGAN_OPS"
MODES = ("auto", "on", "off")
DOCTOR = "python -m stylegan_ops.doctor"

_logger = logging.getLogger("stylegan_ops")
_mode: str | None = None
_chosen: dict[str, ModuleType | None] = {}
_warnings: set[str] = set()


def mode() -> str:
    """The mode in force: auto, on or off.

    Raises:
        ValueError: STYLEGAN_OPS holds something else.
    """
    chosen = os.environ.get(VARIABLE, "auto") if _mode is None else _mode
    if chosen not in MODES:
        raise ValueError(f"the environment variable {VARIABLE} must be auto, on or off, not {chosen!r}")
    return chosen


def set_mode(mode: str | None) -> None:
    """Choose auto, on or off for this process; None follows STYLEGAN_OPS again. What failed before is tried again.

    Raises:
        ValueError: on another mode.
    """
    global _mode
    if mode is not None and mode not in MODES:
        raise ValueError(f"the mode of the operators must be auto, on or off, not {mode!r}")
    _mode = mode
    _chosen.clear()


def implementation_for(x: Tensor) -> ModuleType | None:
    """The module `cpu` or `cuda`, whose raw operators are then ready to be called, or None for plain PyTorch.

    The first call for a kind of device may build and take its time; later ones only look it up.

    Raises:
        stylegan_ops.build.BuildError: in mode `on`, if the kernels cannot be built or loaded.
        ValueError: STYLEGAN_OPS holds no mode.
    """
    # Each layer of a network comes by here; is_cpu costs a fifth of device.type.
    try:
        return _chosen["cpu" if x.is_cpu else "cuda" if x.is_cuda else x.device.type]
    except KeyError:
        return _choose(x.device)


def load(device: torch.device) -> ModuleType | None:
    """Build and load the kernels for a device, whatever the mode is; None for kinds of devices that have none.

    Raises:
        stylegan_ops.build.BuildError: they cannot be built or loaded.
    """
    from stylegan_ops.build import BuildError  # Costs time that only who builds should pay.

    if device.type not in ("cpu", "cuda"):
        return None
    try:
        if device.type == "cpu":
            from stylegan_ops.backends import cpu

            cpu.library()
            return cpu
        from stylegan_ops.backends import cuda

        if torch.version.hip:
            raise BuildError("there are kernels for NVIDIA GPUs only", f"set {VARIABLE}=off")
        cuda.load(device)
        return cuda
    except BuildError:
        raise
    except (OSError, RuntimeError) as error:  # Of the dynamic loader, and of the CUDA driver.
        raise BuildError(f"the kernels do not load ({error})", f"run `{DOCTOR}`") from error


def _choose(device: torch.device) -> ModuleType | None:
    from stylegan_ops.build import BuildError

    kernels: ModuleType | None = None
    chosen_mode = mode()
    if chosen_mode != "off":
        try:
            kernels = load(device)
        except BuildError as error:
            if chosen_mode == "on":
                raise
            _warn(f"bias_act and upfirdn2d run in plain PyTorch on {device.type}, which is slower, because {error}")
    _chosen[device.type] = kernels
    return kernels


def _warn(line: str) -> None:
    if line not in _warnings:
        _warnings.add(line)
        _logger.warning("%s", line)
