"""Background thread for one piece of work at a time, and host copies of tensors for it to work on."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor

JOIN_SECONDS = 0.2  # on Windows, Ctrl-C does not interrupt a join without a timeout

T = TypeVar("T")


class Background:
    """Thread for work whose result is needed later; `wait` and `check` raise the errors of the work.

    As a context manager, it waits at the end of the `with` block, unless that ends with KeyboardInterrupt: a second
    Ctrl-C means now. The thread is a daemon, so the end of the process does not wait for it.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Starts new work, after waiting for the earlier work to end.

        Raises:
            Exception: The earlier work failed; its exception is raised once, and the new work is not started.
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
        """Waits until no work is running.

        Raises:
            Exception: The work failed; its exception is raised once.
        """
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(JOIN_SECONDS)
        self.check()

    def check(self) -> None:
        """Raises the exception of work that has failed, once, without waiting.

        Raises:
            Exception: The work failed.
        """
        if self._thread is not None and not self._thread.is_alive():
            self._thread = None
            error, self._error = self._error, None
            if error is not None:
                raise error

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if isinstance(error, KeyboardInterrupt):
            return
        try:
            self.wait()
        except Exception:
            if error is None:  # otherwise the first error matters more
                raise


def host_copy(value: T, shared: Iterable[Any] = ()) -> tuple[T, Callable[[], None]]:
    """Deep copy with all tensors in host memory, ready to be written to a file.

    Tensors on a CUDA device are copied to pinned memory asynchronously; work that is queued later on the same stream,
    such as the next step, cannot change the copy. Tensors that share memory also share memory in the copy.

    Args:
        value: Tensors in dicts, lists and tuples; other values are copied with `copy.deepcopy`.
        shared: Objects inside `value` that never change; they are not copied.

    Returns:
        The copy, and a function that waits for its tensors to arrive; call it, from any thread, before reading them.
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
    """Copies a tensor's whole storage to host memory, once for all tensors that share the storage.

    Args:
        tensor: Tensor on any device.
        storages: Copies of storages so far, by the address of the original; the new copy is added.
        pinned: Whether to copy asynchronously to pinned memory; the copy is then not complete on return.

    Returns:
        Tensor of the same shape and strides in host memory.
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
