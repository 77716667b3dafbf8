"""Collective operations over several processes, one per GPU, with timeouts that name the phase of the run.

`torchrun` (or SLURM, with the same variables) tells each process its place in RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR and MASTER_PORT. Without these variables there is one process, and every operation is trivial.

There are two process groups: one for tensors (NCCL on CUDA, otherwise gloo), and a gloo group for control messages,
which needs no GPU and whose timeouts can be caught.
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
from refine.runtime.logs import ALL_RANKS, RankFilter

TIMEOUT = timedelta(minutes=30)
WAIT_SECONDS = 5.0  # torchrun's processes find each other sooner

log = logging.getLogger("refine")

_control_group: Any = None
_phase = "start-up"


@dataclass(frozen=True)
class Place:
    """Place of a process among all processes.

    Attributes:
        rank: Index among all processes; rank 0 writes files and logs.
        world_size: Number of processes.
        local_rank: Index among the processes of this machine, which is the index of the GPU.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


def place_from_environment() -> Place:
    """Place given by the launcher's environment variables; a single process without them.

    Raises:
        UserError: The variables are not numbers, or contradict each other.
    """
    try:
        place = Place(
            rank=int(os.environ.get("RANK", "0")),
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
            local_rank=int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0"))),
        )
    except ValueError as error:
        raise UserError(f"RANK, WORLD_SIZE and LOCAL_RANK must be numbers ({error}): start with torchrun.") from error
    if not 0 <= place.rank < place.world_size or place.local_rank < 0:
        raise UserError(
            f"RANK={place.rank} with WORLD_SIZE={place.world_size} and LOCAL_RANK={place.local_rank} is impossible: "
            "start with torchrun, or unset these variables."
        )
    return place


@contextmanager
def processes(backend: str = "gloo", timeout: timedelta = TIMEOUT) -> Iterator[Place]:
    """Joins the processes that the launcher started, for the duration of a `with` block. Only rank 0 logs in it.

    Args:
        backend: Backend of the process group for tensors, "nccl" or "gloo".
        timeout: Longest time that a process waits for the others.

    Raises:
        UserError: The processes do not find each other.
    """
    global _control_group
    place = place_from_environment()
    if place.world_size == 1 or _control_group is not None:
        yield place
        return
    joined_here = not dist.is_initialized()
    only_rank0 = RankFilter(rank)
    try:
        with _said_after(WAIT_SECONDS, place):
            if joined_here:
                dist.init_process_group(backend, rank=place.rank, world_size=place.world_size, timeout=timeout)
            _control_group = dist.new_group(backend="gloo", timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"Process {place.rank} of {place.world_size} did not find the others at "
            f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} ({_first_line(error)}): "
            "start all processes with one torchrun."
        ) from error
    log.addFilter(only_rank0)
    try:
        yield place
    finally:
        log.removeFilter(only_rank0)
        _control_group = None
        if joined_here:
            dist.destroy_process_group()


@contextmanager
def _said_after(seconds: float, place: Place) -> Iterator[None]:
    """Logs a warning if a process has waited that long for the others, which may never have been started."""
    timer = threading.Timer(
        seconds,
        lambda: log.warning(
            f"Process {place.rank} is waiting for {place.world_size - 1} more at {os.environ.get('MASTER_ADDR')}:"
            f"{os.environ.get('MASTER_PORT')}, because WORLD_SIZE={place.world_size}. To run a single process, unset "
            "WORLD_SIZE and RANK.",
            extra=ALL_RANKS,
        ),
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def rank() -> int:
    """Index of this process among all processes; 0 if there is one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_rank0() -> bool:
    """True on rank 0, the process that writes files and logs."""
    return rank() == 0


def share(count: int) -> slice:
    """Share of `count` items for this process: contiguous, in the order of ranks, equal in size up to one item."""
    return slice(count * rank() // world_size(), count * (rank() + 1) // world_size())


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Names the work of a `with` block, for the error message if a process loses the others."""
    global _phase
    previous, _phase = _phase, name
    try:
        yield
    finally:
        _phase = previous


def all_reduce_sum_(tensors: Sequence[torch.Tensor]) -> None:
    """Sums tensors over all processes, in place and in a single all-reduce.

    Args:
        tensors: Tensors of one dtype on one device, of the same shapes on all processes.
    """
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with _waiting():
        dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def gather(value: Any) -> list[Any]:
    """Collects the values of all processes on every process.

    Args:
        value: Picklable object on the CPU.

    Returns:
        Values by rank.
    """
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with _waiting():
        dist.all_gather_object(values, value, group=_control_group)
    return values


def broadcast(value: Any) -> Any:
    """Value of rank 0, a picklable object on the CPU, on every process."""
    if world_size() == 1:
        return value
    values = [value if is_rank0() else None]
    with _waiting():
        dist.broadcast_object_list(values, src=0, group=_control_group)
    return values[0]


def any_process(condition: bool) -> bool:
    """True if the condition holds on any process; the result is the same on all processes."""
    if world_size() == 1:
        return condition
    flag = torch.tensor(float(condition))
    with _waiting():
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=_control_group)
    return bool(flag)


def barrier() -> None:
    """Waits until all processes have arrived."""
    any_process(False)


@contextmanager
def _waiting() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            f"Process {rank()} of {world_size()} lost the others during {_phase} ({_first_line(error)}): "
            "look in their output for the cause, then resume with --resume=latest."
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
