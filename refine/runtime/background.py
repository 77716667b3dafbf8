"""One piece of work at a time in a thread beside the run, and copies of tensors that it can work on meanwhile."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor

JOIN_SECONDS = 0.2  # on Windows, Ctrl-C does not end a wait for a thread that has no limit

T = TypeVar("T")


class Background:
    """A thread for work whose result is needed later; an error in it is raised where somebody waits or asks.

    As a context it waits at the end. The thread is a daemon: a process that is told to end at once, by a second Ctrl-C
    or an error in `wait` itself, does not stay for it.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begins, once what is under way has ended.

        Raises:
            Exception: what the earlier work raised; the new one is not begun then.
        """
        self.wait()

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="refine-background", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Returns when nothing is under way.

        Raises:
            Exception: what the work raised, once.
        """
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(JOIN_SECONDS)
        self.check()

    def check(self) -> None:
        """Raises what work that has ended raised, once; does not wait."""
        if self._thread is not None and not self._thread.is_alive():
            self._thread = None
            error, self._error = self._error, None
            if error is not None:
                raise error

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self.wait()
        except Exception:
            if error is None:  # else the first error is the one to be told
                raise


def host_copy(value: T, shared: Iterable[Any] = ()) -> tuple[T, Callable[[], None]]:
    """A deep copy whose tensors lie in main memory: the only copy that writing them needs.

    From a CUDA device tensors go to pinned memory without waiting; work that is queued afterwards on the same stream,
    such as the next step, cannot change what arrives. Tensors that share memory share it in the copy.

    Args:
        value: tensors in dicts, lists and tuples; other values are copied as `copy.deepcopy` does.
        shared: objects within it that never change, and are not copied.

    Returns:
        The copy, and a function to call before it is read, from any thread: it waits for the tensors to arrive.
    """
    memo: dict[int, Any] = {id(item): item for item in shared}
    storages: dict[int, torch.UntypedStorage] = {}
    on_cuda = None
    for tensor in _tensors(value, set(memo)):
        if tensor.device.type == "cuda":
            memo[id(tensor)] = to_host(tensor, storages, pinned=True)
            on_cuda = tensor.device
        elif tensor.device.type != "cpu":
            memo[id(tensor)] = tensor.detach().cpu()
    copied = copy.deepcopy(value, memo)
    if on_cuda is None:
        return copied, lambda: None
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(on_cuda))
    return copied, arrived.synchronize


def to_host(tensor: Tensor, storages: dict[int, torch.UntypedStorage], *, pinned: bool) -> Tensor:
    """A copy in main memory of a tensor's whole storage, made once for all tensors that share it.

    Args:
        tensor: on any device.
        storages: copies so far, by the address of the original; the copy is added.
        pinned: in memory that a CUDA device writes to by itself; the copy has not arrived yet when this returns.
    """
    source = tensor.untyped_storage()
    if source.data_ptr() not in storages or not source.nbytes():
        raw = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(source)
        target = torch.empty(raw.shape, dtype=torch.uint8, pin_memory=pinned)
        storages[source.data_ptr()] = target.copy_(raw, non_blocking=pinned).untyped_storage()
    place: Any = (storages[source.data_ptr()], tensor.storage_offset(), tensor.shape, tensor.stride())
    return torch.empty(0, dtype=tensor.dtype).set_(*place)


def _tensors(value: Any, left_out: set[int]) -> Iterator[Tensor]:
    if id(value) in left_out:
        return
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item, left_out)
