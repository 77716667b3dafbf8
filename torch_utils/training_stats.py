"""Statistics that any code reports by name, and that the training loop collects over all processes.

`report("Loss/G", losses)` costs a few small operations on the device of its values and never waits for it. A
`Collector` reads, once a tick, the number, mean and standard deviation of what was reported since the last time.
"""

from __future__ import annotations

import math
import re
import weakref
from typing import Any

import torch
import torch.distributed
from torch import Tensor

import dnnlib
from torch_utils.misc import profiled_function

_rank = 0
_sync_device: torch.device | None = None

# Moments are [number, sum, sum of squares], added up in float64 where the device has it.
_reported: dict[str, dict[torch.device, Tensor]] = {}  # since the last exchange, in this process
_collectors: weakref.WeakSet[Collector] = weakref.WeakSet()


def init_multiprocessing(rank: int, sync_device: torch.device | None) -> None:
    """Says that there are several processes, which `torch.distributed` has joined.

    Args:
        rank: Rank of this process.
        sync_device: Device for tensors that the processes exchange: CUDA for NCCL, the CPU for gloo. None
            means that there is one process only.
    """
    global _rank, _sync_device
    _rank, _sync_device = rank, sync_device


@profiled_function
def report(name: str, value: Any) -> Any:
    """Adds all elements of `value` to the statistics of that name.

    Args:
        name: Name, by convention with a slash, such as "Loss/fake".
        value: Tensor, array, number or nested list; an empty one only makes the name known.

    Returns:
        `value`, so that a call can be put around an expression.
    """
    by_device = _reported.setdefault(name, {})
    with torch.no_grad():
        elements = value.detach() if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)
        if elements.numel():
            elements = elements.flatten().to(torch.float32 if elements.device.type == "mps" else torch.float64)
            moments = torch.stack([torch.ones_like(elements).sum(), elements.sum(), elements.square().sum()])
            before = by_device.get(moments.device)
            by_device[moments.device] = moments if before is None else before + moments
    return value


def report0(name: str, value: Any) -> Any:
    """`report` in the process of rank 0; the others only make the name known. Returns `value` everywhere."""
    report(name, value if _rank == 0 else [])
    return value


class Collector:
    """Number, mean and standard deviation of what all processes have reported, from one `update` to the next.

    With several processes, all of them have to make it and to call `update` at the same points. Collectors do not
    disturb each other.

    Args:
        regex: The names that it collects, which it has to match entirely.
        keep_previous: Whether a name that was not reported since the last update keeps its old values.
    """

    def __init__(self, regex: str = ".*", keep_previous: bool = True) -> None:
        self._regex = re.compile(regex)
        self._keep_previous = keep_previous
        self._names: dict[str, None] = {}
        self._pending: dict[str, Tensor] = {}
        self._current: dict[str, Tensor] = {}
        _exchange()  # what was reported before belongs to the older collectors
        _collectors.add(self)

    def names(self) -> list[str]:
        """All names up to the last update that match, in the order in which they became known."""
        return list(self._names)

    def update(self) -> None:
        """Takes over what all processes have reported since the last call."""
        self._names |= {name: None for name in _exchange() if self._regex.fullmatch(name)}
        if not self._keep_previous:
            self._current = {}
        self._current |= self._pending
        self._pending = {}

    def num(self, name: str) -> int:
        """Count of the numbers reported under a name; 0 if none."""
        return int(self._moments(name)[0])

    def mean(self, name: str) -> float:
        """Their mean; NaN if there are none."""
        count, total, _ = self._moments(name).tolist()
        return total / count if count else math.nan

    def std(self, name: str) -> float:
        """Their standard deviation (of the population, so 0 for a single number); NaN if there are none."""
        count, total, squares = self._moments(name).tolist()
        if not count or not math.isfinite(total) or not math.isfinite(squares):
            return math.nan
        return math.sqrt(max(squares / count - (total / count) ** 2, 0)) if count > 1 else 0.0

    def as_dict(self) -> dnnlib.EasyDict:
        """`{name: {num, mean, std}}` for every name."""
        return dnnlib.EasyDict(
            (name, dnnlib.EasyDict(num=self.num(name), mean=self.mean(name), std=self.std(name)))
            for name in self.names()
        )

    def __getitem__(self, name: str) -> float:
        """The mean."""
        return self.mean(name)

    def _moments(self, name: str) -> Tensor:
        return self._current.get(name, torch.zeros(3, dtype=torch.float64))

    def _add(self, name: str, moments: Tensor) -> None:
        if self._regex.fullmatch(name) and moments[0] > 0:
            self._pending[name] = self._pending[name] + moments if name in self._pending else moments


_known_names: dict[str, None] = {}


def _exchange() -> list[str]:
    """Adds up over all processes what was reported, hands it to every collector, and starts over.

    Returns:
        Every name that any process has reported so far.
    """
    _known_names.update(dict.fromkeys(_reported))
    if _sync_device is not None:
        # Not every process reports every name: a class or a noise level may occur in one only.
        of_all: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(of_all, list(_known_names))
        for names in of_all:
            _known_names.update(dict.fromkeys(names))
    table = torch.zeros(len(_known_names), 3, dtype=torch.float64)
    names = sorted(_known_names)  # the same order everywhere
    for row, name in zip(table, names, strict=True):
        for moments in _reported.get(name, {}).values():
            row += moments.to("cpu", torch.float64)
    if _sync_device is not None and names:
        shared = table.to(_sync_device)
        torch.distributed.all_reduce(shared)
        table = shared.cpu()
    for name in _reported:
        _reported[name] = {}
    for collector in _collectors:
        for name, moments in zip(names, table, strict=True):
            collector._add(name, moments)
    return list(_known_names)


default_collector = Collector()
