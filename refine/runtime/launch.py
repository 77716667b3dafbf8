"""Further processes on this machine, for a command that starts its own: what `torchrun` does for others."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from refine.runtime.distributed import place_from_environment

PATIENCE = 30.0  # seconds for a process to end by itself once the first one is done
_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def suitable_processes(device: torch.device, at_most: int) -> int:
    """Number of processes that a command on this machine should share its work among.

    1 with a GPU, where PyTorch's gloo is not dependable (Windows, macOS), and if a launcher has started this process.

    Args:
        device: Device of the work.
        at_most: Number beyond which the work does not get faster.
    """
    if device.type != "cpu" or not sys.platform.startswith("linux") or place_from_environment().world_size > 1:
        return 1
    return max(min(len(os.sched_getaffinity(0)), at_most), 1)


@contextmanager
def processes_beside(count: int, command: Sequence[str]) -> Iterator[None]:
    """Starts processes 1 to `count` - 1, and makes this one process 0, for the duration of a `with` block.

    Each process has one thread, unless OMP_NUM_THREADS says otherwise: threads that wait for each other in the middle
    of small operations cost more than they bring. When the block ends, the others are waited for; if it ends with an
    exception, those that do not end by themselves are stopped.

    Args:
        count: Number of processes, including this one; with 1 there is no effect.
        command: Program and arguments of the others, which do the same work as the block.
    """
    if count == 1:
        yield
        return
    place = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    before, threads_before = {name: os.environ.get(name) for name in _VARIABLES}, torch.get_num_threads()
    others: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(1, count):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": threads}
            others.append(subprocess.Popen(list(command), env=os.environ | place | own))
        os.environ.update(place | {"RANK": "0", "LOCAL_RANK": "0"})
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)
        yield
    except KeyboardInterrupt:  # the others stop with this one, and all save together
        raise
    except BaseException:
        for other in others:  # they would wait for this one
            other.terminate()
        raise
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        torch.set_num_threads(threads_before)
        for other in others:
            _end(other)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Waits for a process, and stops it if it takes long."""
    for stop in (process.terminate, process.kill):
        try:
            process.wait(PATIENCE)
            return
        except subprocess.TimeoutExpired:
            stop()
    process.wait()


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
