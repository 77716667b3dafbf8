"""The part of the CUDA driver API that loads an image of kernels and launches them, by ctypes.

It needs the driver alone: neither CUDA's toolkit nor its runtime, nor a compiler, nor PyTorch's C++ interface.
Source: "CUDA Driver API" by NVIDIA, https://docs.nvidia.com/cuda/cuda-driver-api/.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from ctypes import byref, c_char_p, c_int, c_uint, c_void_p

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


class DriverError(RuntimeError):
    """The CUDA driver is missing or refused a call; the message is one sentence."""


class Driver:
    """The driver's library; any thread may use it."""

    def __init__(self, library: str = LIBRARY) -> None:
        """Load and start the driver.

        Raises:
            DriverError: If it cannot be loaded, is too old or finds no device.
        """
        try:
            functions = ctypes.CDLL(library)
        except OSError as error:
            raise DriverError(f"the CUDA driver {library} cannot be loaded, install NVIDIA's driver: {error}") from None

        def function(name: str, *types: type) -> Callable[..., int]:
            try:
                result = functions[name]
            except AttributeError:
                raise DriverError(f"the CUDA driver lacks {name}, install a newer NVIDIA driver") from None
            result.argtypes = types
            result.restype = c_int
            return result

        out = c_void_p  # Where a function writes its result.
        self._error_string = function("cuGetErrorString", c_int, out)
        self._initialise = function("cuInit", c_uint)
        self._device = function("cuDeviceGet", out, c_int)
        self._retain_context = function("cuDevicePrimaryCtxRetain", out, c_int)
        self._push_context = function("cuCtxPushCurrent_v2", c_void_p)
        self._pop_context = function("cuCtxPopCurrent_v2", out)
        self._load_module = function("cuModuleLoadData", out, c_char_p)
        self._kernel = function("cuModuleGetFunction", out, c_void_p, c_char_p)
        self._launch = function("cuLaunchKernel", c_void_p, *[c_uint] * 7, c_void_p, c_void_p, c_void_p)
        self._check(self._initialise(0), "start")

    def _check(self, error: int, action: str) -> None:
        if error:
            text = c_char_p()
            self._error_string(error, byref(text))
            reason = text.value.decode() if text.value else "unknown error"
            raise DriverError(f"the CUDA driver cannot {action}: {reason} (error {error})")

    def load(self, device: int, image: bytes) -> DeviceKernels:
        """Load kernels onto a device.

        Args:
            device: Its index, as PyTorch counts.
            image: Contents of a cubin file, or of a PTX file.

        Raises:
            DriverError: If the device does not exist, or cannot run the image.
        """
        handle, context, module = c_int(), c_void_p(), c_void_p()
        self._check(self._device(byref(handle), device), f"find device {device}")
        # The primary context is the one that PyTorch allocates and computes in.
        self._check(self._retain_context(byref(context), handle), f"use device {device}")
        self._check(self._push_context(context), f"use device {device}")
        try:
            self._check(self._load_module(byref(module), image), f"load the kernels onto device {device}")
        finally:
            self._pop_context(byref(c_void_p()))
        return DeviceKernels(self, context, module)


class DeviceKernels:
    """Kernels on a device, made by `Driver.load`; they stay there until the process ends."""

    def __init__(self, driver: Driver, context: c_void_p, module: c_void_p) -> None:
        self._driver = driver
        self._context = context
        self._module = module
        self._kernels: dict[str, c_void_p] = {}

    def _find(self, name: str) -> c_void_p:
        if name not in self._kernels:
            kernel = c_void_p()
            error = self._driver._kernel(byref(kernel), self._module, name.encode())
            self._driver._check(error, f"find the kernel {name}")
            self._kernels[name] = kernel
        return self._kernels[name]

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared_bytes: int,
        args: bytes,
        stream: int,
    ) -> None:
        """Put a kernel into a stream.

        Args:
            kernel: Name of the kernel.
            grid: Blocks along x, y and z.
            block: Threads of a block along x, y and z.
            shared_bytes: Size of the dynamic shared memory.
            args: The bytes of the struct that the kernel takes.
            stream: Handle of a stream of this device; 0 is the default stream.

        Raises:
            DriverError: If there is no such kernel or the driver refuses the launch; also if an earlier kernel failed.
        """
        driver = self._driver
        function = self._find(kernel)
        parameters = (c_void_p * 1)(ctypes.cast(c_char_p(args), c_void_p))
        # The thread may be one that has never used this device, such as autograd's.
        driver._check(driver._push_context(self._context), "use the device")
        try:
            error = driver._launch(function, *grid, *block, shared_bytes, stream, parameters, None)
        finally:
            driver._pop_context(byref(c_void_p()))
        driver._check(error, f"launch the kernel {kernel}")
