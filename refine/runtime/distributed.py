"""Several processes, one to a GPU: who is who, sums over all of them, and time-outs that say what was going on.

`torchrun` (or SLURM with the same variables) tells each process its place in RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR and MASTER_PORT. Without them there is one process, and every function here does the obvious thing.

Two groups are made: one that moves tensors (NCCL on CUDA, else gloo), and a gloo group for signs between processes,
which needs no GPU and whose time-outs can be caught.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from refine.errors import UserError

TIMEOUT = timedelta(minutes=30)
WAIT_SECONDS = 5.0  # torchrun's processes find each other sooner

log = logging.getLogger("refine")

_control_group: Any = None
_phase = "start-up"


@dataclass(frozen=True)
class Place:
    """Where a process stands.

    Attributes:
        rank: among all processes; 0 writes files and speaks.
        size: number of processes.
        local_rank: on this machine; the index of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0


def place_from_environment() -> Place:
    """What the launcher says; one process where there is none.

    Raises:
        UserError: the variables contradict each other.
    """
    try:
        place = Place(
            rank=int(os.environ.get("RANK", "0")),
            size=int(os.environ.get("WORLD_SIZE", "1")),
            local_rank=int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0"))),
        )
    except ValueError as error:
        raise UserError(f"RANK, WORLD_SIZE and LOCAL_RANK must be numbers ({error}): start with torchrun.") from error
    if not 0 <= place.rank < place.size or place.local_rank < 0:
        raise UserError(
            f"RANK={place.rank} of WORLD_SIZE={place.size} cannot be: start with torchrun, or clear both variables."
        )
    return place


@contextmanager
def processes(backend: str = "gloo", timeout: timedelta = TIMEOUT) -> Iterator[Place]:
    """Joins the processes that the launcher started, for the time of a `with` block.

    Args:
        backend: of the group that moves tensors, "nccl" or "gloo".
        timeout: how long a process waits for the others.

    Raises:
        UserError: they do not find each other.
    """
    global _control_group
    place = place_from_environment()
    if place.size == 1 or _control_group is not None:
        yield place
        return
    joined_here = not dist.is_initialized()
    try:
        with _said_after(WAIT_SECONDS, place):
            if joined_here:
                dist.init_process_group(backend, rank=place.rank, world_size=place.size, timeout=timeout)
            _control_group = dist.new_group(backend="gloo", timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"Process {place.rank} of {place.size} did not find the others at "
            f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} ({_first_line(error)}): "
            "start all of them with one torchrun."
        ) from error
    try:
        yield place
    finally:
        _control_group = None
        if joined_here:
            dist.destroy_process_group()


@contextmanager
def _said_after(seconds: float, place: Place) -> Iterator[None]:
    """Says that a process waits for the others: one that was started by itself would wait for minutes in silence."""
    timer = threading.Timer(
        seconds,
        lambda: log.warning(
            f"Process {place.rank} waits for {place.size - 1} more at {os.environ.get('MASTER_ADDR')}:"
            f"{os.environ.get('MASTER_PORT')}, since WORLD_SIZE={place.size}. To run alone, clear WORLD_SIZE and RANK."
        ),
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def rank() -> int:
    """The number of this process; 0 if it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes files and speaks."""
    return rank() == 0


def share(count: int) -> slice:
    """The part of `count` things that is this process's: contiguous, equal but for one, in the order of ranks."""
    return slice(count * rank() // size(), count * (rank() + 1) // size())


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Names what goes on, for the message when a process waits in vain."""
    global _phase
    previous, _phase = _phase, name
    try:
        yield
    finally:
        _phase = previous


def sum_in_place(tensors: Sequence[torch.Tensor]) -> None:
    """Adds tensors of one dtype and device over all processes, in one message."""
    if size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with _waiting():
        dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def gather(value: Any) -> list[Any]:
    """Every process's value (a picklable object on the CPU), by rank, at every process."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    with _waiting():
        dist.all_gather_object(values, value, group=_control_group)
    return values


def broadcast(value: Any) -> Any:
    """The first process's value, a picklable object on the CPU."""
    if size() == 1:
        return value
    values = [value if is_first() else None]
    with _waiting():
        dist.broadcast_object_list(values, src=0, group=_control_group)
    return values[0]


def any_process(condition: bool) -> bool:
    """Whether the condition holds at any process; all of them get the same answer."""
    if size() == 1:
        return condition
    flag = torch.tensor(float(condition))
    with _waiting():
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=_control_group)
    return bool(flag)


def barrier() -> None:
    """Waits until all processes are here."""
    any_process(False)


@contextmanager
def _waiting() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            f"Process {rank()} of {size()} lost the others during {_phase} ({_first_line(error)}): "
            "look at their output for what ended them, then go on with --resume=latest."
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
