"""Runs the CUDA kernels on the CPU: slow, for tests and for `doctor` where there is no GPU. See csrc/sim/cusim.h."""

from __future__ import annotations

import ctypes
import itertools
from pathlib import Path

_ERRORS = {
    1: "the library has no such kernel",
    2: "some threads wait at a barrier that others of their block never reach",
    3: "there is not enough memory for its threads",
}


class SimulatorError(RuntimeError):
    """A simulated kernel could not be run, or not to its end."""


class Simulator:
    """The kernels of a library that was built from csrc/sim. Not for several threads at once."""

    def __init__(self, library: Path) -> None:
        self._launch = ctypes.CDLL(str(library)).cusim_launch
        triple = ctypes.c_uint * 3
        self._launch.argtypes = (ctypes.c_char_p, triple, triple, ctypes.c_uint, ctypes.c_char_p, ctypes.c_ulonglong)
        self._triple = triple
        self._seeds = itertools.count()

    def launch(
        self, kernel: str, grid: tuple[int, int, int], block: tuple[int, int, int], shared_bytes: int, args: bytes
    ) -> None:
        """Run a kernel to its end, its threads in an order that differs from call to call.

        Args:
            kernel: Name of the kernel.
            grid: Blocks along x, y and z.
            block: Threads of a block along x, y and z.
            shared_bytes: Size of the dynamic shared memory.
            args: The bytes of the struct that the kernel takes.

        Raises:
            SimulatorError: If there is no such kernel, or its threads disagree about a barrier.
        """
        error = self._launch(
            kernel.encode(), self._triple(*grid), self._triple(*block), shared_bytes, args, next(self._seeds)
        )
        if error:
            raise SimulatorError(f"the simulator cannot run the kernel {kernel}: {_ERRORS[error]}")
