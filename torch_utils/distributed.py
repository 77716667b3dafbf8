"""The few functions by which EDM's scripts deal with several processes, over `torch.distributed`."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import torch.distributed

from torch_utils import training_stats


def init() -> None:
    """Joins the processes that `torchrun` started; a script that was started without it is the only process.

    Uses NCCL where there are NVIDIA GPUs, one for each process of a machine (LOCAL_RANK), else gloo.
    """
    cuda = torch.cuda.is_available()
    backend = "nccl" if cuda and torch.distributed.is_nccl_available() and sys.platform != "win32" else "gloo"
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        os.environ.setdefault("MASTER_ADDR", "localhost")
        os.environ.setdefault("MASTER_PORT", "29500")
        torch.distributed.init_process_group(backend)
    else:  # a group all the same, since scripts call barriers; without a port that a second run could not have
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    sync_device = torch.device("cuda" if backend == "nccl" else "cpu") if get_world_size() > 1 else None
    training_stats.init_multiprocessing(rank=get_rank(), sync_device=sync_device)


def get_rank() -> int:
    """Number of this process among all, from 0."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def get_world_size() -> int:
    """Number of processes."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def should_stop() -> bool:
    """True if something outside asks the script to end; nothing does."""
    return False


def update_progress(cur: int, total: int) -> None:
    """Takes notice of the progress, for systems that show it; nothing here does."""


def print0(*args: Any, **kwargs: Any) -> None:
    """`print` in the process of rank 0."""
    if get_rank() == 0:
        print(*args, **kwargs)
