"""Batches of a data set's images, decoded by threads if that takes seconds and by processes if it takes minutes."""

from __future__ import annotations

import logging
import os
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from refine.errors import UserError
from refine.files.dataset import ImageDataset
from refine.files.listing import one_line

log = logging.getLogger("refine")

# A process takes some seconds to import PyTorch. A core decodes 30 million pixels of PNG in a second: so many take a
# quarter of a minute.
MANY_PIXELS = 2**29
MOST_WORKERS = 8
PART_BYTES = 2**24  # size of what a process sends at once: some of it waits in memory, for each process


def read_batches(
    dataset: ImageDataset, indices: Sequence[int], batch: int, workers: int | None = None
) -> Iterator[np.ndarray]:
    """Items of a data set as uint8 [N, C, H, W], N <= batch, decoded ahead of use.

    Args:
        dataset: Data set to read.
        indices: Numbers of its items, in any order.
        batch: Items in a batch.
        workers: Processes that decode; 0: threads of this process; None: by the number of pixels and cores.

    Raises:
        UserError: An image cannot be read, or is of another size or kind than the first; the sentence names the file.
    """
    if not dataset.decodes:
        workers = 0
    if workers is None:
        workers = suitable_workers(len(indices) * dataset.resolution**2)
    if not workers:
        yield from dataset.batches(indices, batch)
        return
    size = min(max(PART_BYTES // (dataset.num_channels * dataset.resolution**2), 1), batch)
    together = [indices[first : first + batch] for first in range(0, len(indices), batch)]
    parts = [[part[first : first + size] for first in range(0, len(part), size)] for part in together]
    arrays = _from_processes(dataset, [part for group in parts for part in group], workers)
    for group in parts:
        yield np.concatenate([next(arrays) for _ in group])


def suitable_workers(num_pixels: int) -> int:
    """Number of processes that is fastest for so many pixels, on the cores that this process may use."""
    local_processes = os.environ.get("LOCAL_WORLD_SIZE", "1")  # torchrun's
    share = num_cores() // max(int(local_processes) if local_processes.isdecimal() else 1, 1)
    return min(share, MOST_WORKERS) if share > 1 and num_pixels >= MANY_PIXELS else 0


def num_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Parts:
    """Parts of a data set's images: item i is uint8 [n, C, H, W], or the sentence that says why it cannot be read."""

    def __init__(self, dataset: ImageDataset, parts: Sequence[Sequence[int]]) -> None:
        self.dataset, self.parts = dataset, parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, number: int) -> np.ndarray | str:
        try:
            return np.stack([self.dataset.image(index) for index in self.parts[number]])
        except UserError as error:  # as text: PyTorch would wrap the error in the worker's traceback
            return str(error)


def _from_processes(dataset: ImageDataset, parts: Sequence[Sequence[int]], workers: int) -> Iterator[np.ndarray]:
    source = _Parts(dataset, parts)
    iterator: Any = None
    for number in range(len(parts)):
        result = None
        try:
            if number == 0:
                iterator = start_workers(source, workers)
            result = next(iterator) if iterator is not None else None
        except (OSError, RuntimeError) as error:  # no more processes or memory, or somebody ended one
            iterator = None
            log.info(f"Processes that decode images ended ({one_line(error)}); continuing in this one")
        result = source[number] if result is None else result
        if isinstance(result, str):
            raise UserError(result)
        yield result


def start_workers(source: _Parts, workers: int) -> Iterator[Any]:
    """Items of a data set in their order, from so many new processes.

    Processes are spawned on every system: a fork would copy locks that threads of this process hold. Arrays come
    through pipes, because shared memory is scarce in containers.
    """
    from torch.utils.data import DataLoader  # here, because a run starts without it

    data: Any = source
    loader: DataLoader[Any] = DataLoader(
        data,
        batch_size=None,
        num_workers=min(workers, len(source)),
        collate_fn=_as_it_is,
        multiprocessing_context="spawn",
        generator=torch.Generator(),  # one of its own, so that the default one is not advanced
    )
    with _main_hidden():
        return iter(loader)


def _as_it_is(value: Any) -> Any:
    return value


@contextmanager
def _main_hidden() -> Iterator[None]:
    """Processes that start meanwhile do not run the user's script, which may lack `if __name__ == "__main__"`."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
