"""NVRTC, NVIDIA's run-time compiler, by ctypes. PyTorch's CUDA builds bring it; it needs neither GPU nor driver."""

from __future__ import annotations

import ctypes
import ctypes.util
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stylegan_ops.build import toolchain
from stylegan_ops.build.errors import BuildError
from stylegan_ops.build.ninja import fail
from stylegan_ops.build.toolchain import WINDOWS

INSTALL = "run `pip install nvidia-cuda-nvrtc`, or install the CUDA toolkit"


@dataclass(frozen=True)
class Nvrtc:
    """A library file of NVRTC.

    Attributes:
        path: Path of the library; a bare name is for the operating system to find.
        major: Major CUDA version in the file name; 0 if it has none.
    """

    path: Path
    major: int

    @property
    def identity(self) -> str:
        """Identity of this library among others, found without loading its 100 MB."""
        return f"{self.path}\n{self.path.stat().st_size if self.path.is_file() else 0}"


@dataclass(frozen=True)
class Image:
    """Compiled kernels, and whether they are a "cubin" or "ptx"."""

    data: bytes
    suffix: str


def find() -> Nvrtc | None:
    """The NVRTC of the CUDA version that PyTorch was built with, else the newest; None where there is none.

    NVIDIA's wheels, PyTorch and the environment are looked through first, then the CUDA toolkit, then the system.
    """
    wanted = int((torch.version.cuda or "0").split(".")[0])
    for look in (_beside_pytorch, _in_toolkit, _in_system):
        found = [Nvrtc(path, _major(path)) for path in look()]
        if found:
            return max(found, key=lambda nvrtc: (nvrtc.major == wanted, nvrtc.major))
    return None


def _beside_pytorch() -> list[Path]:
    folders = [folder / sub for folder in toolchain.wheel_folders() for sub in ("lib", "bin", "bin/x86_64")]
    folders += [Path(torch.__file__).parent / "lib", Path(sys.prefix) / ("Library/bin" if WINDOWS else "lib")]
    return _in_folders(folders)


def _in_toolkit() -> list[Path]:
    try:
        nvcc = toolchain.find_nvcc()
    except BuildError:
        nvcc = None
    toolkit = toolchain.toolkit_folder(nvcc) if nvcc else None
    return _in_folders([toolkit / sub for sub in ("lib64", "lib", "bin", "bin/x64")]) if toolkit else []


def _in_system() -> list[Path]:
    name = ctypes.util.find_library("nvrtc")
    return [Path(name)] if name else []


def _in_folders(folders: Sequence[Path]) -> list[Path]:
    pattern = "nvrtc64_*.dll" if WINDOWS else "libnvrtc[.-]*so*"
    paths = [path for folder in folders for path in sorted(folder.glob(pattern), reverse=True)]
    return [path for path in paths if ".alt." not in path.name and "-builtins" not in path.name]


def _major(path: Path) -> int:
    number = re.search(r"nvrtc64_(\d+)\d_|\.so\.(\d+)", path.name)
    return int(number[1] or number[2]) if number else 0


def _load(nvrtc: Nvrtc) -> ctypes.CDLL:
    # NVRTC looks for its built-in headers by name only, and finds them where they are loaded already.
    if nvrtc.path.is_absolute():
        for builtins in sorted(nvrtc.path.parent.glob("*nvrtc-builtins*")):
            if ".alt." not in builtins.name:
                ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(nvrtc.path))


def compile(nvrtc: Nvrtc, source: str, arch: str, include: Sequence[Path], log: Path) -> Image:
    """Compile CUDA C++17.

    Args:
        nvrtc: Library from `find`.
        source: The text of the kernels.
        arch: Architecture, as in `build.cuda_image`.
        include: Folders where `#include` looks.
        log: File for the output of the compiler if it fails.

    Raises:
        BuildError: The library does not load or does not know such GPUs, or the source does not compile.
    """
    try:
        library = _load(nvrtc)
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        name = f"NVRTC {'.'.join(map(str, _version(library)))}"
        kind, number = toolchain.choose_architecture(arch, _architectures(library), name)
    except (OSError, AttributeError) as error:
        raise BuildError(f"{nvrtc.path} does not load ({error})", INSTALL) from error
    program = ctypes.c_void_p()
    _call(library, "nvrtcCreateProgram", ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
    try:
        options = [
            f"--gpu-architecture={kind}_{number}",
            "--std=c++17",
            *(f"--include-path={path}" for path in include),
        ]
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = library.nvrtcCompileProgram(program, len(options), array)
        if status != 0:
            output = _bytes(library, program, "ProgramLog").decode(errors="replace")
            fail(output.strip("\0\n") or library.nvrtcGetErrorString(status).decode(), log)
        if kind == "sm":
            return Image(_bytes(library, program, "CUBIN"), "cubin")
        return Image(_bytes(library, program, "PTX").rstrip(b"\0"), "ptx")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _call(library: ctypes.CDLL, function: str, *arguments: Any) -> None:
    status = getattr(library, function)(*arguments)
    if status != 0:
        raise BuildError(f"{function} failed with {library.nvrtcGetErrorString(status).decode()}", INSTALL)


def _version(library: ctypes.CDLL) -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call(library, "nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def _architectures(library: ctypes.CDLL) -> list[int]:
    count = ctypes.c_int()
    _call(library, "nvrtcGetNumSupportedArchs", ctypes.byref(count))
    numbers = (ctypes.c_int * count.value)()
    _call(library, "nvrtcGetSupportedArchs", numbers)
    return list(numbers)


def _bytes(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    length = ctypes.c_size_t()
    _call(library, f"nvrtcGet{what}Size", program, ctypes.byref(length))
    buffer = ctypes.create_string_buffer(length.value)
    _call(library, f"nvrtcGet{what}", program, buffer)
    return buffer.raw
