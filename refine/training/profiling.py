"""Profile of a step: time and memory of its parts, compared with the machine's peak rates.

Three passes over the same kind of step. The first measures the time of each part and nothing else. The second counts
every operator's floating-point operations and bytes; an operator's floor is the longer of the two times at the rates
of a large matrix product and of a large copy, which are measured in the same run. The third measures the time of every
operator, which slows the step down. The kernels of `stylegan_ops` count as one operator each, such as `norm_conv3x3`.

The share of a part is the sum of its operators' floors divided by its time. Convolutions count as direct convolutions;
element-wise arithmetic counts as bytes only; bytes are every input and result once, so fused operators have fewer.
Times are CPU seconds on a CPU, which depend less on other load, and wall-clock seconds on a GPU.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from refine.diffusion.guidance import parts_of
from refine.runtime.spans import listening
from refine.training.trained import TrainedNetwork
from refine.training.trainer import Trainer

OTHER = "inputs, losses, rest"


# --- operations and bytes of an operator


def _convolution_forward(args: Any, kwargs: Any, out: Any) -> int:
    x, weight, *rest = args
    # [x, weight, bias, stride, padding, dilation, transposed, ...]; a transposed weight is [in, out / groups, ...].
    transposed = bool(rest[4])
    pixels = x if transposed else out
    return 2 * pixels.shape[0] * math.prod(pixels.shape[2:]) * weight.numel()


def _convolution_backward(args: Any, kwargs: Any, out: Any) -> int:
    gradient, x, weight, *rest = args
    transposed, mask = bool(rest[4]), rest[-1]
    pixels = x if transposed else gradient
    return sum(map(bool, mask[:2])) * 2 * pixels.shape[0] * math.prod(pixels.shape[2:]) * weight.numel()


def _attention(args: Any, kwargs: Any, out: Any) -> int:
    query, key = args[:2]
    return 4 * query.numel() * key.shape[-2]


def _attention_backward(args: Any, kwargs: Any, out: Any) -> int:
    _, query, key = args[:3]
    return 10 * query.numel() * key.shape[-2]  # five products: the attention weights are recomputed


def _formulas() -> dict[Any, Callable[..., int]]:
    """Functions that count an operator's multiplications and additions, by overload; `stylegan_ops` registers some."""
    from torch.utils.flop_counter import flop_registry

    aten = torch.ops.aten
    formulas: dict[Any, Callable[..., int]] = {
        packet: (lambda args, kwargs, out, count=count: count(*args, **kwargs, out_val=out))
        for packet, count in flop_registry.items()
        if isinstance(packet, torch._ops.OpOverloadPacket)
    }
    # PyTorch's formulas ignore the groups of a convolution, and lack attention on the CPU.
    formulas[aten.convolution] = formulas[aten._convolution] = _convolution_forward
    formulas[aten.convolution_backward] = _convolution_backward
    formulas[aten._scaled_dot_product_flash_attention_for_cpu] = _attention
    formulas[aten._scaled_dot_product_flash_attention_for_cpu_backward] = _attention_backward
    return formulas


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


@dataclass
class Work:
    """Work of operators.

    Attributes:
        calls: Calls of operators that compute something.
        flop: Multiplications and additions of matrix products and convolutions.
        bytes: Bytes read and written.
        floor: Seconds at the machine's peak rates.
        seconds: Measured seconds.
    """

    calls: int = 0
    flop: int = 0
    bytes: int = 0
    floor: float = 0.0
    seconds: float = 0.0

    def add(self, flop: int, size: int, floor: float, seconds: float, calls: int = 1) -> None:
        """Adds the work of one or more calls."""
        self.calls, self.flop, self.bytes = self.calls + calls, self.flop + flop, self.bytes + size
        self.floor, self.seconds = self.floor + floor, self.seconds + seconds


@dataclass(frozen=True)
class Ceilings:
    """Peak rates of the machine.

    Attributes:
        flop: Floating-point operations per second.
        bytes: Bytes read and written per second.
    """

    flop: float = math.inf
    bytes: float = math.inf

    def floor(self, flop: int, size: int) -> float:
        """Least seconds for `flop` operations and `size` bytes."""
        return max(flop / self.flop, size / self.bytes)


class Counter(TorchDispatchMode):
    """Context in which the work of every operator is counted, by part and by operator.

    Args:
        ceilings: Peak rates of the machine.
        parts: Parts of the step; None to count everything as one part.
        clock: Clock to measure operators with; None to measure no times.
    """

    def __init__(self, ceilings: Ceilings, parts: Parts | None = None, clock: Clock | None = None) -> None:
        super().__init__()
        self.ceilings, self.parts, self.clock, self.formulas = ceilings, parts, clock, _formulas()
        self.by_part: dict[str, Work] = defaultdict(Work)
        self.by_operator: dict[str, Work] = defaultdict(Work)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls an operator and counts its work."""
        start = self.clock.now() if self.clock else 0.0
        out = func(*args, **(kwargs or {}))
        seconds = self.clock.now() - start if self.clock else 0.0
        inputs = list(_tensors([*args, *(kwargs or {}).values()]))
        memory = {t.untyped_storage().data_ptr() for t in inputs}
        mutable = func._schema.is_mutable
        results = [t for t in _tensors(out) if mutable or t.untyped_storage().data_ptr() not in memory]
        if results or (mutable and not list(_tensors(out))):  # otherwise the result is a view of an input
            formula = self.formulas.get(func._overloadpacket)
            flop = formula(args, kwargs or {}, out) if formula else 0
            size = sum(t.numel() * t.element_size() for t in [*inputs, *results])
            floor = self.ceilings.floor(flop, size)
            for works, name in (
                (self.by_part, self.parts.current if self.parts else ""),
                (self.by_operator, str(func._overloadpacket)),
            ):
                works[name].add(flop, size, floor, seconds)
        return out

    @property
    def total(self) -> Work:
        """Sum over all parts."""
        total = Work()
        for work in self.by_part.values():
            total.add(work.flop, work.bytes, work.floor, work.seconds, work.calls)
        return total


# --- time and parts


@dataclass(frozen=True)
class Clock:
    """Clock for work on a device."""

    device: torch.device

    def now(self) -> float:
        """CPU seconds of this process on a CPU; wall-clock seconds on a GPU, after all queued work is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()

    def measure(self, run: Callable[[], object], rounds: int) -> float:
        """Median seconds of `rounds` calls, after one call to warm up."""
        seconds = []
        for _ in range(rounds + 1):
            start = self.now()
            run()
            seconds.append(self.now() - start)
        return statistics.median(seconds[1:])


@dataclass
class Parts:
    """Current part of a step, and the time of each part; of nested parts, the innermost counts."""

    clock: Clock
    stack: list[str] = field(default_factory=lambda: [OTHER])
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    saved: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    since: float = 0.0

    @property
    def current(self) -> str:
        """Name of the innermost part."""
        return self.stack[-1]

    def _account(self) -> None:
        now = self.clock.now()
        self.seconds[self.current] += now - self.since
        self.since = now

    def enter(self, name: str) -> None:
        """Begins a part."""
        self._account()
        self.stack.append(name)

    def leave(self) -> None:
        """Ends the innermost part."""
        self._account()
        self.stack.pop()


def ceilings(device: torch.device, rounds: int = 5) -> Ceilings:
    """Measures a device's peak rates: a large float32 matrix product with the current settings, and a large copy."""
    clock, n = Clock(device), 2048 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device)
    source, target = torch.ones(2, 1 << 26, device=device)
    product = clock.measure(lambda: a @ a, rounds)
    copy = clock.measure(lambda: target.copy_(source), rounds)
    return Ceilings(2 * n**3 / product, 2 * source.nbytes / copy)


# --- the profile


@dataclass(frozen=True)
class Profile:
    """Profile of a step.

    Attributes:
        ceilings: Peak rates of the machine.
        seconds: Median seconds of each part.
        by_part: Work of each part.
        by_operator: Work and time of each operator.
        memory: Bytes by their use.
    """

    ceilings: Ceilings
    seconds: dict[str, float]
    by_part: dict[str, Work]
    by_operator: dict[str, Work]
    memory: dict[str, int]

    @property
    def step_seconds(self) -> float:
        """Seconds of the whole step."""
        return sum(self.seconds.values())


def profile(trainer: Trainer, rounds: int = 3) -> Profile:
    """Profiles a trainer's steps; the steps change its networks.

    Args:
        trainer: Trainer to profile.
        rounds: Steps whose time is measured.
    """
    clock = Clock(trainer.device)
    trainer.step()
    limits = ceilings(trainer.device)
    runs = []
    for _ in range(rounds):
        parts = Parts(clock)
        with listening(parts):
            parts.since = clock.now()
            trainer.step()
            parts._account()
        runs.append(parts.seconds)
    seconds = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    parts = Parts(clock)
    with listening(parts), Counter(limits, parts) as counter, saved_for_backward(trainer, parts):
        trainer.step()
    with Counter(limits, clock=clock) as timed:
        trainer.step()
    memory = _weights_memory(trainer) | {
        f"kept for backward by {name}": size for name, size in parts.saved.items() if size
    }
    return Profile(limits, seconds, dict(counter.by_part), dict(timed.by_operator), memory)


@contextmanager
def saved_for_backward(trainer: Trainer, parts: Parts) -> Iterator[None]:
    """Counts the bytes saved for the backward pass by part, each storage once, without weights."""
    networks = [
        *(module for trained in trainer.networks for module in modules_of(trained).values()),
        *(denoiser.module for denoiser in trainer.frozen_denoisers()),
    ]
    seen = {t.untyped_storage().data_ptr() for n in networks for t in [*n.parameters(), *n.buffers()]}
    alive: list[Tensor] = []  # keeps memory alive: reused addresses would not be counted

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            alive.append(tensor.detach())
            parts.saved[parts.current] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def modules_of(trained: TrainedNetwork[Any]) -> dict[str, torch.nn.Module]:
    """Modules of a trained network and of its moving average, by title."""
    modules = {trained.title: trained.module}
    for name, average in trained.averages().items():
        modules[f"{trained.title}, {name}"] = average.network.module
    return modules


def _weights_memory(trainer: Trainer) -> dict[str, int]:
    def size(tensors: Iterable[Tensor]) -> int:
        return sum(t.numel() * t.element_size() for t in tensors)

    modules = {title: module for trained in trainer.networks for title, module in modules_of(trained).items()}
    for title, denoiser in zip(("teacher", "guide"), parts_of(trainer.teacher), strict=False):
        modules[title] = denoiser.module
    memory = {f"weights of {title}": size([*m.parameters(), *m.buffers()]) for title, m in modules.items()}
    for trained in trainer.networks:
        states = trained.optimizer.adam.state.values()
        memory[f"gradients of {trained.title}"] = size(trained.optimizer.parameters)
        memory[f"Adam's moments of {trained.title}"] = size(
            v for state in states for v in state.values() if isinstance(v, Tensor)
        )
    return memory


def lines(result: Profile, batch: int, operators: int = 12) -> Iterator[str]:
    """Profile, one line of text each.

    Args:
        result: Profile.
        batch: Images per step.
        operators: Number of operators to list, the slowest first.
    """
    limits, total = result.ceilings, result.step_seconds
    yield f"matrix product {limits.flop / 1e9:.1f} GFLOP/s, copy {limits.bytes / 1e9:.1f} GB/s read and written"
    flop = sum(work.flop for work in result.by_part.values())
    yield (
        f"step {total * 1e3:.1f} ms, {batch / total:.2f} img/s, {flop / 1e9:.1f} GFLOP, "
        f"{flop / total / limits.flop:.0%} of the matrix product's rate"
    )
    yield f"\n{'part':<24} {'ms':>9} {'of step':>8} {'GFLOP':>8} {'GB':>7} {'floor ms':>9} {'of floor':>9}"
    for name, seconds in sorted(result.seconds.items(), key=lambda item: -item[1]):
        work = result.by_part.get(name, Work())
        yield (
            f"{name:<24} {seconds * 1e3:9.2f} {seconds / total:8.1%} {work.flop / 1e9:8.2f} {work.bytes / 1e9:7.2f} "
            f"{work.floor * 1e3:9.2f} {work.floor / seconds if seconds else 0:9.0%}"
        )
    yield f"\n{'operator':<42} {'calls':>6} {'ms':>9} {'GFLOP':>8} {'GB':>7} {'floor ms':>9} {'of floor':>9}"
    slowest = sorted(result.by_operator.items(), key=lambda item: -item[1].seconds)
    for name, work in slowest[:operators]:
        yield (
            f"{name[:42]:<42} {work.calls:6} {work.seconds * 1e3:9.2f} {work.flop / 1e9:8.2f} {work.bytes / 1e9:7.2f} "
            f"{work.floor * 1e3:9.2f} {work.floor / work.seconds if work.seconds else 0:9.0%}"
        )
    yield f"\n{'memory':<42} {'MB':>9}"
    for name, size in result.memory.items():
        yield f"{name:<42} {size / 1e6:9.1f}"
