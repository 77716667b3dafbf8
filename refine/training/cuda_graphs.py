"""CUDA graphs of forward passes without gradients: one launch in place of hundreds, when a GPU waits for Python.

A graph replays kernels with the memory addresses of its capture. Inputs are therefore copied to buffers, the result is
copied out, and weights, which an optimizer changes in place, are always current. Everything that a graph would not
replay faithfully runs as usual: gradients, dropout and other random operations, new shapes, changed settings.

The tests use a stand-in for CUDA; this module has not been run on a GPU yet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from refine.runtime import tf32

log = logging.getLogger("refine")

CALLS_BEFORE = 2  # ordinary calls before a graph is captured: many shapes occur only once
MAX_GRAPHS = 4  # per network; each keeps its buffers
WARM_UPS = 2


class CudaGraphs:
    """Interface to CUDA. All graphs share one memory pool, because they never run at the same time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def usable(self, tensors: Sequence[Tensor]) -> bool:
        """True if the tensors can be inputs of a graph."""
        on_cuda = bool(tensors) and all(tensor.device.type == "cuda" for tensor in tensors)
        return on_cuda and not torch.cuda.is_current_stream_capturing()

    def random_state(self, tensor: Tensor) -> Tensor:
        """State of the default random number generator of a tensor's device."""
        return torch.cuda.get_rng_state(tensor.device)

    def capture(self, run: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """Captures the work of `run` as a graph.

        Args:
            run: Function to capture; it is called `WARM_UPS` times first.

        Returns:
            Result of the captured call, and a function that replays the graph and overwrites that result.

        Raises:
            RuntimeError: The work cannot be captured, or memory ran out.
        """
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                run()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads (NCCL's, and the writer of snapshots) may use CUDA at the same time.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                output = run()
        except RuntimeError:
            torch.cuda.set_stream(current)  # a capture that fails to end leaves its own stream behind
            _release_random_numbers()
            raise
        self._pool = graph.pool()
        return output, graph.replay


def _release_random_numbers() -> None:
    """Makes PyTorch's generator for CUDA usable after a capture that failed.

    Until a capture succeeds, the generator takes itself for being captured and refuses to draw.
    """
    number = torch.zeros(1, device="cuda")
    with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode="thread_local"):
        number.add_(1)


class _Graph(NamedTuple):
    inputs: list[Tensor]
    output: Tensor
    replay: Callable[[], None]
    addresses: list[int]  # of weights


class GraphedForward:
    """Forward function of a network that replays CUDA graphs whenever possible.

    Args:
        network: Network that returns one tensor.
        cuda: Interface to CUDA.
    """

    def __init__(self, network: nn.Module, cuda: CudaGraphs) -> None:
        self.network, self.plain, self.cuda = network, network.forward, cuda
        self.graphs: dict[Any, _Graph] = {}
        self.calls: dict[Any, int] = {}
        self.given_up = False

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Result of the network's own forward function, in newly allocated memory."""
        tensors = [value for value in args if isinstance(value, Tensor)]
        varies = self.network.training or torch.is_grad_enabled() or torch.is_inference_mode_enabled()
        if self.given_up or varies or kwargs or not self.cuda.usable(tensors):
            return self.plain(*args, **kwargs)
        key = _key(args)
        graph = self.graphs.get(key)
        if graph is not None and graph.addresses != self._addresses():  # the network was moved
            self.graphs.clear()
            graph = None
        if graph is None:
            self.calls[key] = self.calls.get(key, 0) + 1
            if self.calls[key] <= CALLS_BEFORE or len(self.graphs) >= MAX_GRAPHS:
                return self.plain(*args)
            graph = self._capture(args)
            if graph is None:
                return self.plain(*args)
            self.graphs[key] = graph
        for buffer, tensor in zip(graph.inputs, tensors, strict=True):
            buffer.copy_(tensor)
        graph.replay()
        return graph.output.clone()

    def _capture(self, args: tuple[Any, ...]) -> _Graph | None:
        buffers = [value.clone() if isinstance(value, Tensor) else value for value in args]
        inputs = [value for value in buffers if isinstance(value, Tensor)]
        before = self.cuda.random_state(inputs[0])
        try:
            with _no_cached_casts():
                self.plain(*buffers)
                if not torch.equal(before, self.cuda.random_state(inputs[0])):
                    self._give_up("it draws random numbers")
                    return None
                output, replay = self.cuda.capture(lambda: self.plain(*buffers))
        except RuntimeError as error:  # CUDA errors, including out of memory
            self._give_up((str(error).splitlines() or [type(error).__name__])[0])
            return None
        return _Graph(inputs, output, replay, self._addresses())

    def _give_up(self, reason: str) -> None:
        self.given_up = True
        self.graphs.clear()
        log.warning(f"{type(self.network).__name__} falls back to running without CUDA graphs: {reason}")

    def _addresses(self) -> list[int]:
        return [tensor.data_ptr() for tensor in (*self.network.parameters(), *self.network.buffers())]


def graph_forward(network: nn.Module, cuda: CudaGraphs) -> GraphedForward:
    """Makes a network replay CUDA graphs in its forward passes without gradients."""
    network.forward = forward = GraphedForward(network, cuda)
    return forward


def _key(args: tuple[Any, ...]) -> Any:
    """Key of everything that determines which kernels run: shapes, strides, dtypes, and settings of PyTorch."""
    values = tuple(
        (value.shape, value.stride(), value.dtype, value.device) if isinstance(value, Tensor) else value
        for value in args
    )
    kind = next(value.device.type for value in args if isinstance(value, Tensor))
    return values, tf32.flags(), torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)


@contextmanager
def _no_cached_casts() -> Iterator[None]:
    """Disables the autocast cache, so that a graph replays the cast of the weights instead of keeping its result."""
    previous = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(previous)
