"""The small functions that training scripts and the sources embedded in network pickles call."""

from __future__ import annotations

import functools
import itertools
import re
import warnings
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nan_to_num
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Sampler

__all__ = [
    "InfiniteSampler",
    "assert_shape",
    "check_ddp_consistency",
    "const_like",
    "constant",
    "copy_params_and_buffers",
    "ddp_sync",
    "named_params_and_buffers",
    "nan_to_num",
    "params_and_buffers",
    "print_module_summary",
    "profiled_function",
    "suppress_tracer_warnings",
    "symbolic_assert",
]

_P = ParamSpec("_P")
_R = TypeVar("_R")

symbolic_assert = torch._assert

_constants: dict[tuple[Any, ...], Tensor] = {}


def constant(
    value: Any,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    """Return a tensor of fixed contents, made once and shared from then on: do not change it in place.

    Args:
        value: Number, sequence or array.
        shape: Shape to expand it to; None keeps its own.
        dtype: Dtype; None is the default floating-point type.
        device: Device; None is the CPU.
        memory_format: Memory format as in `Tensor.contiguous`; None is contiguous.
    """
    array = np.asarray(value)
    shape = array.shape if shape is None else tuple(shape)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    device = torch.device("cpu" if device is None else device)
    memory_format = torch.contiguous_format if memory_format is None else memory_format
    key = (array.shape, array.dtype.str, array.tobytes(), shape, dtype, device, memory_format)
    if key not in _constants:
        with torch.inference_mode(False):  # else the shared tensor could never take part in a gradient
            tensor = torch.as_tensor(array.copy(), dtype=dtype, device=device)
            _constants[key] = tensor.expand(shape).contiguous(memory_format=memory_format)
    return _constants[key]


def const_like(
    ref: Tensor,
    value: Any,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    """Return `constant`, by default of the dtype and on the device of `ref`."""
    return constant(value, shape, dtype or ref.dtype, ref.device if device is None else device, memory_format)


@contextmanager
def suppress_tracer_warnings() -> Iterator[None]:
    """Silence the warnings of `torch.jit.trace` about values that it takes for constants."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=torch.jit.TracerWarning)
        yield


def assert_shape(tensor: Tensor, ref_shape: Sequence[int | Tensor | None]) -> None:
    """Raise AssertionError unless `tensor` has that shape; None stands for any size."""
    sizes: list[Any] = list(tensor.shape)
    wanted: list[Any] = list(ref_shape)
    if any(isinstance(size, Tensor) for size in sizes + wanted):  # sizes are tensors while a network is traced
        with suppress_tracer_warnings():
            sizes = [int(size) for size in sizes]
            wanted = [None if size is None else int(size) for size in wanted]
    if len(sizes) != len(wanted):
        raise AssertionError(f"the shape {sizes} has {len(sizes)} dimensions instead of {len(wanted)}")
    for dim, (size, expected) in enumerate(zip(sizes, wanted, strict=True)):
        if expected is not None and size != expected:
            raise AssertionError(f"dimension {dim} of the shape {sizes} is {size} instead of {expected}")


def profiled_function(fn: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorator: the function appears under its name in the profiles of `torch.profiler`."""

    @functools.wraps(fn)
    def profiled(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with torch.autograd.profiler.record_function(fn.__name__):
            return fn(*args, **kwargs)

    return profiled


@dataclass(eq=False)
class InfiniteSampler(Sampler[int]):
    """Endless indices of a data set, shuffled, with a share for each of several processes.

    The order is shuffled once, and then further while it is traversed: an index that was just used changes places with
    one that was used shortly before. So nothing repeats at once, and no two rounds are alike.

    Attributes:
        dataset: Data set, anything with a length of at least 1.
        rank: Index of this process, which gets every `num_replicas`-th index.
        num_replicas: Number of processes.
        shuffle: False traverses the data in its order, again and again.
        seed: Seed of the shuffling, the same in all processes.
        window_size: Distance back to which an index changes places, as a fraction of the data set's length, 0 to 1.

    Raises:
        ValueError: An argument is out of range.
    """

    dataset: Sized = field(repr=False)
    rank: int = 0
    num_replicas: int = 1
    shuffle: bool = True
    seed: int = 0
    window_size: float = 0.5

    def __post_init__(self) -> None:
        """Check all arguments."""
        if not len(self.dataset):
            raise ValueError("InfiniteSampler needs a data set with at least one item")
        if self.rank not in range(self.num_replicas):
            raise ValueError(f"rank must be at least 0 and below num_replicas={self.num_replicas}, not {self.rank}")
        if not 0 <= self.window_size <= 1:
            raise ValueError(f"window_size must be from 0 to 1, not {self.window_size}")

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of one process."""
        return itertools.islice(self._of_all_processes(), self.rank, None, self.num_replicas)

    def _of_all_processes(self) -> Iterator[int]:
        order = list(range(len(self.dataset)))
        if not self.shuffle:
            yield from itertools.cycle(order)
        random = np.random.RandomState(self.seed)
        random.shuffle(order)
        window = round(len(order) * self.window_size)
        for place in itertools.cycle(range(len(order))):
            yield order[place]
            if window > 1:
                earlier = (place - random.randint(window)) % len(order)
                order[place], order[earlier] = order[earlier], order[place]


def params_and_buffers(module: torch.nn.Module) -> list[Tensor]:
    """Return all parameters of a module, then all its buffers."""
    return [tensor for _, tensor in named_params_and_buffers(module)]


def named_params_and_buffers(module: torch.nn.Module) -> list[tuple[str, Tensor]]:
    """All parameters of a module, then all its buffers, with their dotted names."""
    return [*module.named_parameters(), *module.named_buffers()]


def copy_params_and_buffers(
    src_module: torch.nn.Module, dst_module: torch.nn.Module, require_all: bool = False
) -> None:
    """Copy values by name into the parameters and buffers of `dst_module`.

    Raises:
        ValueError: The shapes of a tensor differ; or, with `require_all`, `src_module` lacks one. Nothing has
            been copied then.
    """
    source = dict(named_params_and_buffers(src_module))
    target = named_params_and_buffers(dst_module)
    for name, tensor in target:
        if name not in source:
            if require_all:
                raise ValueError(f"the source has no tensor {name!r}")
        elif source[name].shape != tensor.shape:
            raise ValueError(f"{name!r} is {list(source[name].shape)} in the source and {list(tensor.shape)} here")
    with torch.no_grad():
        for name, tensor in target:
            if name in source:
                tensor.copy_(source[name])


def ddp_sync(module: torch.nn.Module, sync: bool) -> AbstractContextManager[None]:
    """For a `with` block around a backward pass: whether a DistributedDataParallel module exchanges its gradients."""
    if isinstance(module, DistributedDataParallel) and not sync:
        return module.no_sync()
    return nullcontext()


def check_ddp_consistency(module: torch.nn.Module, ignore_regex: str | None = None) -> None:
    """Check that all processes hold the same parameters and buffers; all of them have to call it.

    Args:
        module: Torch module, the same architecture everywhere.
        ignore_regex: Tensors to leave out, as `<class of the module>.<dotted name>`, matched entirely.

    Raises:
        AssertionError: A tensor differs; raised in every process, with the name of the first one.
    """
    if not torch.distributed.is_initialized():
        return
    for name, tensor in named_params_and_buffers(module):
        full_name = f"{type(module).__name__}.{name}"
        if ignore_regex is not None and re.fullmatch(ignore_regex, full_name):
            continue
        here = nan_to_num(tensor.detach()) if tensor.is_floating_point() else tensor.detach()
        of_first = here.clone(memory_format=torch.contiguous_format)
        torch.distributed.broadcast(of_first, src=0)
        differs = (here != of_first).any().to(torch.int32)
        torch.distributed.all_reduce(differs, torch.distributed.ReduceOp.MAX)
        if differs:
            raise AssertionError(f"{full_name} is not the same in all processes")


def print_module_summary(
    module: torch.nn.Module, inputs: Sequence[Any], max_nesting: int = 3, skip_redundant: bool = True
) -> Any:
    """Run a module and print a table of its submodules: sizes, output shapes and dtypes.

    Args:
        module: Torch module, not a ScriptModule.
        inputs: Positional arguments of its call.
        max_nesting: Depth of calls down to which submodules are listed.
        skip_redundant: Whether to leave out rows that have no tensors of their own and the output of the row before.

    Returns:
        Return value of the module.
    """
    rows: list[tuple[torch.nn.Module, list[Tensor]]] = []
    depth = 0

    def enter(submodule: torch.nn.Module, args: Any) -> None:
        nonlocal depth
        depth += 1

    def leave(submodule: torch.nn.Module, args: Any, outputs: Any) -> None:
        nonlocal depth
        depth -= 1
        if depth <= max_nesting:
            listed = outputs if isinstance(outputs, tuple | list) else [outputs]
            rows.append((submodule, [output for output in listed if isinstance(output, Tensor)]))

    hooks = [submodule.register_forward_pre_hook(enter) for submodule in module.modules()]
    hooks += [submodule.register_forward_hook(leave) for submodule in module.modules()]
    try:
        outputs = module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()

    names = {submodule: name for name, submodule in module.named_modules()}
    counted: set[int] = set()
    before: list[int] = []

    def count(tensors: Iterator[Tensor]) -> int:
        new = {id(tensor): tensor.numel() for tensor in tensors if id(tensor) not in counted}
        counted.update(new)
        return sum(new.values())

    table = [("Module", "Parameters", "Buffers", "Output shape", "Datatype")]
    totals = [0, 0]
    for submodule, results in rows:
        parameters, buffers = count(submodule.parameters()), count(submodule.buffers())
        totals = [totals[0] + parameters, totals[1] + buffers]
        same_output = [id(result) for result in results] == before
        before = [id(result) for result in results]
        if skip_redundant and same_output and not parameters and not buffers:
            continue
        shapes = ", ".join(str(list(result.shape)) for result in results) or "-"
        dtypes = ", ".join(str(result.dtype).removeprefix("torch.") for result in results) or "-"
        name = names[submodule] or f"<{type(module).__name__}>"
        table.append((name, str(parameters or "-"), str(buffers or "-"), shapes, dtypes))
    table.append(("Total", str(totals[0]), str(totals[1]), "", ""))
    widths = [max(len(row[column]) for row in table) for column in range(5)]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return outputs
