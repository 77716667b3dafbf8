"""Native code, compiled on first use and kept: `cpu_library`, `sim_library` and `cuda_image` return finished files.

A build is named by a digest of all that it depends on: the sources, the operating system, the processor's
instruction set (the code is made for it), the flags and the compiler. PyTorch's version is not among it, because no
source includes a PyTorch header: a library serves every version. The argument structs are versioned instead
(csrc/abi.h), and a library that reports another version is built again.

Nothing is compiled at import. A build that was finished while there was a compiler is used when there is none.
"""

from __future__ import annotations

import ctypes
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from stylegan_ops.backends.packing import ABI_VERSION
from stylegan_ops.build import cache, ninja, nvrtc, toolchain
from stylegan_ops.build.errors import BuildError
from stylegan_ops.build.toolchain import Compiler

__all__ = ["CSRC", "BuildError", "cpu_library", "cuda_image", "sim_library"]

CSRC = Path(__file__).resolve().parents[1] / "csrc"
_logger = logging.getLogger("stylegan_ops")


def cpu_library(csrc: Path = CSRC, extra_flags: Sequence[str] = ()) -> Path:
    """The shared library of `csrc/cpu`, for this processor. `ctypes.CDLL` loads it once torch is imported.

    Args:
        csrc: The folder of the sources.
        extra_flags: Given to the compiler and the linker, as `-fsanitize=address`; what they make is not loaded here.

    Raises:
        BuildError: It cannot be built, or does not load once built.
    """
    check = (lambda path: None) if extra_flags else _check_cpu_library
    return _host_library("cpu", csrc, ["cpu"], check, extra_flags)


def sim_library(csrc: Path = CSRC, extra_flags: Sequence[str] = ()) -> Path:
    """The shared library of `csrc/sim`, which runs the CUDA sources on the CPU, thread by thread, for tests.

    Args:
        csrc: The folder of the sources; it and its folder `sim` are where `#include` looks.
        extra_flags: Given to the compiler and the linker, as `-fsanitize=address`.

    Raises:
        BuildError: It cannot be built.
    """
    return _host_library("sim", csrc, ["sim", "cuda"], lambda path: None, extra_flags, openmp=False)


def cuda_image(arch: str, csrc: Path = CSRC) -> Path:
    """The kernels of `csrc/cuda`, all in one file for `cuModuleLoadData`.

    PyTorch's own run-time compiler (NVRTC) makes it, or nvcc where that is missing or fails.

    Args:
        arch: "sm_90" makes a .cubin for GPUs of compute capability 9.0, or, with a compiler too old to know them, a
            .ptx of the newest that it knows, which the driver translates; "compute_90" makes a .ptx for 9.0 or later.
        csrc: The folder of the sources; it and its folder `cuda` are where `#include` looks.

    Raises:
        BuildError: There is no compiler, or none that knows such GPUs, or compiling failed.
        ValueError: `arch` does not read so.
    """
    if not re.fullmatch(r"(sm|compute)_\d+", arch):
        raise ValueError(f"arch must be as sm_90 or compute_90, not {arch!r}")
    kernels = "".join(f'#include "cuda/{path.name}"\n' for path in sorted((csrc / "cuda").glob("*.cu")))
    prefix = f"cuda-{arch}-{cache.digest(arch, kernels, *_source_bytes(csrc, ['cuda']))}-"
    include = [csrc, csrc / "cuda"]
    failure = BuildError("there is neither NVRTC nor nvcc to compile the CUDA kernels", nvrtc.INSTALL)
    rtc = nvrtc.find()
    if rtc is not None:
        name = prefix + cache.digest(rtc.identity)

        def by_nvrtc(folder: Path) -> Path:
            folders = [*include, *toolchain.cuda_include_folders()]
            image = nvrtc.compile(rtc, kernels, arch, folders, cache.log_file(name))
            product = folder / f"kernels.{image.suffix}"
            product.write_bytes(image.data)
            return product

        try:
            return cache.get(name, by_nvrtc, lambda path: None)
        except BuildError as error:
            failure = error
    try:
        nvcc = toolchain.find_nvcc()
    except BuildError as error:
        nvcc, failure = None, error if rtc is None else failure
    if nvcc is None:
        finished = cache.find(prefix, lambda path: None)
        if finished is None:
            raise failure
        return finished
    name = prefix + cache.digest(nvcc.identity)
    return cache.get(name, lambda folder: _run_nvcc(nvcc, kernels, arch, include, folder, name), lambda path: None)


def _source_bytes(csrc: Path, folders: Sequence[str]) -> list[str | bytes]:
    files = [csrc / "abi.h", *(path for folder in folders for path in sorted((csrc / folder).iterdir()))]
    return [part for path in files if path.is_file() for part in (path.name, path.read_bytes())]


def _host_library(
    target: str,
    csrc: Path,
    folders: Sequence[str],
    check: cache.Check,
    extra_flags: Sequence[str] = (),
    openmp: bool = True,
) -> Path:
    """Compile `csrc/<target>/*.cpp`; `folders` are those whose content it depends on."""
    instructions = toolchain.instruction_set()
    parts = (*_source_bytes(csrc, folders), sys.platform, instructions, str(ABI_VERSION), *extra_flags)
    prefix = f"{target}-{cache.digest(*parts)}-"
    try:
        compiler = toolchain.host_compiler()
    except BuildError:
        finished = cache.find(prefix, check)
        if finished is None:
            raise
        return finished
    openmp = openmp and toolchain.openmp_resolves(compiler)
    flags = toolchain.compile_flags(compiler, openmp=openmp) + list(extra_flags)
    name = prefix + cache.digest(compiler.identity, *flags)

    def make(folder: Path) -> Path:
        product = folder / f"stylegan_ops_{target}{toolchain.LIBRARY_SUFFIX}"
        sources = sorted((csrc / target).glob("*.cpp"))
        objects = [folder / f"{source.stem}.o" for source in sources]
        include = [csrc, csrc / target]
        steps = [
            ninja.Step(output, [source], _compile_command(compiler, flags, include, source, output))
            for source, output in zip(sources, objects, strict=True)
        ]
        steps.append(ninja.Step(product, objects, _link_command(compiler, extra_flags, objects, product)))
        _logger.info("Compiling the %s operators with %s, once", target, compiler.version)
        ninja.run(folder, steps, compiler.environment, cache.log_file(name), " or name another compiler by CXX")
        return product

    return cache.get(name, make, check)


def _compile_command(
    compiler: Compiler, flags: Sequence[str], include: Sequence[Path], source: Path, output: Path
) -> list[str]:
    if compiler.kind == "msvc":
        return [*compiler.command, *flags, *(f"/I{folder}" for folder in include), "/c", str(source), f"/Fo{output}"]
    return [*compiler.command, *flags, *(f"-I{folder}" for folder in include), "-c", str(source), "-o", str(output)]


def _link_command(compiler: Compiler, extra_flags: Sequence[str], objects: Sequence[Path], product: Path) -> list[str]:
    names = [str(path) for path in objects]
    if compiler.kind == "msvc":
        return [*compiler.command, "/nologo", "/LD", *extra_flags, *names, f"/Fe{product}"]
    # Without -fopenmp, which would bring a second OpenMP runtime beside PyTorch's.
    return [*compiler.command, "-shared", *extra_flags, *names, "-o", str(product)]


def _check_cpu_library(path: Path) -> str | None:
    """Problem with a library, or None; a library with a problem is not kept loaded."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return f"does not load ({error})"
    if not hasattr(library, "stylegan_ops_abi_version"):
        problem = "lacks stylegan_ops_abi_version"
    elif (version := library.stylegan_ops_abi_version()) != ABI_VERSION:
        problem = f"reports ABI version {version} instead of {ABI_VERSION}"
    else:
        return None
    _unload(library)
    return problem


def _unload(library: ctypes.CDLL) -> None:
    """Lets a new file of the same name be loaded in its place."""
    import _ctypes

    getattr(_ctypes, "FreeLibrary" if sys.platform == "win32" else "dlclose")(library._handle)


def _run_nvcc(nvcc: Compiler, kernels: str, arch: str, include: Sequence[Path], folder: Path, name: str) -> Path:
    kind, number = toolchain.choose_architecture(arch, toolchain.nvcc_architectures(nvcc), nvcc.version)
    suffix = "cubin" if kind == "sm" else "ptx"
    # By relative paths, since nvcc hands paths to a shell without care.
    source, product = Path("kernels.cu"), Path(f"kernels.{suffix}")
    (folder / source).write_text(kernels, encoding="utf-8")
    options = [f"-{suffix}", f"-arch={kind}_{number}", "-std=c++17", "-allow-unsupported-compiler"]
    command = [*nvcc.command, *options, *(f"-I{path}" for path in include), str(source), "-o", str(product)]
    ninja.run(folder, [ninja.Step(product, [source], command)], nvcc.environment, cache.log_file(name))
    return folder / product
