"""The choice of what computes an operator: kernels for the CPU or for CUDA, registered operators, or plain PyTorch.

`route` takes one of three ways:

- plain PyTorch where there are no kernels (also for other devices, dtypes and subclasses of tensors, and with the
  mode off) or where something looks inside an operator: torch.func, forward-mode autograd, torch.jit.trace;
- the registered operators where something looks at operators: torch.compile, torch.export, torch dispatch modes;
- otherwise the kernels themselves, since the dispatcher's way takes longer than a small layer's arithmetic.

The mode comes from `set_mode` or from the environment variable STYLEGAN_OPS, which is read on first use:

- auto, the default: kernels where they can be built; else plain PyTorch, after one line of warning in the log of
  `stylegan_ops` with cause and remedy;
- on: kernels, or `build.BuildError`;
- off: plain PyTorch; nothing is built.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from stylegan_ops import internals
from stylegan_ops.backends import cpu, packing, pytorch

VARIABLE = "STYLEGAN_OPS"
MODES = ("auto", "on", "off")
DOCTOR = "python -m stylegan_ops.doctor"

_logger = logging.getLogger("stylegan_ops")
_mode: str | None = None
_chosen: dict[str, ModuleType | None] = {}
_warnings: set[str] = set()


# --- the way to take


Route: TypeAlias = tuple[Any, bool]
"""What holds the raw operators to call (a module of `backends`, or `registered`), and whether PyTorch itself can
differentiate them. A plain tuple, since each layer of a network makes one."""


class _Registered:
    """The raw operators as PyTorch's dispatcher knows them; `registration` defines them."""

    def __getattr__(self, name: str) -> Any:
        operator = getattr(torch.ops.stylegan_ops, name).default
        setattr(self, name, operator)
        return operator


registered = _Registered()
PLAIN: Route = (pytorch, True)
REGISTERED: Route = (registered, True)


def route(name: str, x: Tensor, *others: Tensor | None) -> Route:
    """Choose what computes a raw operator of these tensors.

    Args:
        name: Name of the raw operator.
        x: Tensor whose device and dtype decide.
        others: All further tensors of the call, in its order; None stands for one that is left out.
    """
    if torch.compiler.is_compiling():
        return _route_of_compilers(name, x, others)
    hooks = internals.hooks
    if hooks.looks_inside():
        return PLAIN
    kernels = implementation_for(x)
    if not hasattr(kernels, name) or x.dtype not in packing.DTYPES:
        return PLAIN
    if name in cpu.REQUIREMENTS and not cpu.REQUIREMENTS[name](True, x, *others):
        return PLAIN
    if not hooks.readable(x, others):
        return PLAIN
    return REGISTERED if hooks.observed() else (kernels, False)


def kernels_for(name: str, x: Tensor, *others: Tensor | None) -> Any:
    """Return the module whose kernel computes a raw operator of these tensors fastest, or None for plain PyTorch."""
    kernels = implementation_for(x)
    if not hasattr(kernels, name) or x.dtype not in packing.DTYPES:
        return None
    return kernels if name not in cpu.REQUIREMENTS or cpu.REQUIREMENTS[name](True, x, *others) else None


def _route_of_compilers(name: str, x: Tensor, others: tuple[Tensor | None, ...]) -> Route:
    hooks = internals.hooks
    # If ONNX has no operator for something, it can only take a graph of PyTorch's own operators.
    if hooks.transforms_active() or torch.onnx.is_in_onnx_export():
        return PLAIN
    # Finding kernels may build them, which torch.compile must not trace into.
    traced = torch.compiler.is_dynamo_compiling() and not hooks.marks_constants
    if not traced and not _has_kernels(name, x.device, x.dtype):
        return PLAIN
    # Sizes may be symbols; the operator looks at them when it runs.
    served = name not in cpu.REQUIREMENTS or cpu.REQUIREMENTS[name](False, x, *others)
    return REGISTERED if served else PLAIN


@internals.run_while_compiling
def _has_kernels(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    return dtype in packing.DTYPES and hasattr(implementation_for(torch.empty(0, device=device)), name)


# --- the kernels of a device


def mode() -> str:
    """Return the mode in force: auto, on or off.

    Raises:
        ValueError: STYLEGAN_OPS holds something else.
    """
    chosen = os.environ.get(VARIABLE, "auto") if _mode is None else _mode
    if chosen not in MODES:
        raise ValueError(f"the environment variable {VARIABLE} must be auto, on or off, not {chosen!r}")
    return chosen


def set_mode(mode: str | None) -> None:
    """Choose auto, on or off for this process; None follows STYLEGAN_OPS again. Builds that failed are tried again.

    Raises:
        ValueError: There is no such mode.
    """
    global _mode
    if mode is not None and mode not in MODES:
        raise ValueError(f"the mode of the operators must be auto, on or off, not {mode!r}")
    _mode = mode
    _chosen.clear()


@contextmanager
def temporary_mode(mode: str | None) -> Iterator[None]:
    """Choose a mode as `set_mode` does, for the body of a `with` statement.

    Raises:
        ValueError: There is no such mode.
    """
    previous = _mode
    set_mode(mode)
    try:
        yield
    finally:
        set_mode(previous)


def implementation_for(x: Tensor) -> ModuleType | None:
    """Return the module `cpu` or `cuda`, its raw operators ready to be called, or None for plain PyTorch.

    The first call for a kind of device may build and take its time; later calls only look the module up.

    Raises:
        stylegan_ops.build.BuildError: In mode `on`, the kernels cannot be built or loaded.
        ValueError: STYLEGAN_OPS holds no mode.
    """
    # Each layer of a network comes by here; is_cpu costs a fifth of device.type.
    try:
        return _chosen["cpu" if x.is_cpu else "cuda" if x.is_cuda else x.device.type]
    except KeyError:
        return _choose(x.device)


def load(device: torch.device) -> ModuleType | None:
    """Build and load the kernels for a device, in any mode; return None for kinds of devices that have none.

    Raises:
        stylegan_ops.build.BuildError: They cannot be built or loaded.
    """
    from stylegan_ops.build import BuildError  # Its import takes time, which only a build is worth.

    if device.type not in ("cpu", "cuda"):
        return None
    try:
        if device.type == "cpu":
            cpu.library()
            return cpu
        from stylegan_ops.backends import cuda

        if torch.version.hip:
            raise BuildError("there are kernels for NVIDIA GPUs only", f"set {VARIABLE}=off")
        cuda.load(device)
        return cuda
    except BuildError:
        raise
    except (OSError, RuntimeError) as error:  # From the dynamic loader, and from the CUDA driver.
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
            _warn(f"the operators run in plain PyTorch on {device.type}, which is slower, because {error}")
    _chosen[device.type] = kernels
    return kernels


def _warn(line: str) -> None:
    if line not in _warnings:
        _warnings.add(line)
        _logger.warning("%s", line)
