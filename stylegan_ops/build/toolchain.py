"""Toolchain to build with: host compiler, nvcc, ninja, and their flags on this machine."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stylegan_ops.build.errors import BuildError, first_error

WINDOWS = sys.platform == "win32"
LIBRARY_SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler of the host, or nvcc.

    Attributes:
        command: Command that starts it.
        version: The line of `--version` that identifies it.
        kind: "gcc", "clang", "msvc" or "nvcc".
        environment: Variables that it needs beyond those of this process.
    """

    command: tuple[str, ...]
    version: str
    kind: str
    environment: Mapping[str, str]

    @property
    def identity(self) -> str:
        """Identity of this compiler among others."""
        return f"{shlex.join(self.command)}\n{self.version}"


def host_compiler() -> Compiler:
    """The C++ compiler: $CXX if that is set, else the first of c++, g++ and clang++ that runs; cl on Windows.

    Raises:
        BuildError: There is none, or $CXX does not run.
    """
    chosen = os.environ.get("CXX", "").strip()
    if chosen:
        # It may hold options too, or a path with spaces.
        compiler = _identify([chosen] if shutil.which(chosen) else shlex.split(chosen, posix=not WINDOWS))
        if compiler is None:
            raise BuildError(
                f"the compiler that the environment variable CXX names, {chosen!r}, does not run",
                f"correct CXX or unset it, or {install_compiler()}",
            )
        return compiler
    if WINDOWS:
        msvc = _find_msvc()
        if msvc is not None:
            return msvc
    for name in ("c++", "g++", "clang++"):
        path = shutil.which(name)
        compiler = _identify([path]) if path else None
        if compiler is not None:
            return compiler
    raise BuildError("there is no working C++ compiler (looked for CXX, c++, g++, clang++)", install_compiler())


def install_compiler() -> str:
    """Instruction to install a host compiler on this operating system."""
    if WINDOWS:
        return "install the Build Tools for Visual Studio with the C++ workload"
    if sys.platform == "darwin":
        return "run `xcode-select --install`"
    return "install one, as by `apt install g++` or `conda install -c conda-forge cxx-compiler`"


def _run(command: Sequence[str]) -> tuple[int, str]:
    """Exit code and output of a command that answers at once; 127 where it cannot be started."""
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=os.environ | {"LC_ALL": "C"},
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 127, str(error)
    return result.returncode, result.stdout


def _identify(command: Sequence[str]) -> Compiler | None:
    program = shutil.which(command[0])
    if program is None:
        return None
    if Path(program).stem.lower() == "cl":
        _, output = _run([program])
        return Compiler((program, *command[1:]), output.splitlines()[0], "msvc", {}) if output else None
    status, output = _run([program, *command[1:], "--version"])
    if status != 0 or not output.strip():
        return None
    version = output.strip().splitlines()[0]
    return Compiler((program, *command[1:]), version, "clang" if "clang" in version else "gcc", {})


def _find_msvc() -> Compiler | None:
    """cl.exe with the environment that its own set-up script makes."""
    if shutil.which("cl"):
        return _identify(["cl"])
    for variable in ("PROGRAMFILES(X86)", "PROGRAMFILES"):
        vswhere = Path(os.environ.get(variable, "")) / "Microsoft Visual Studio" / "Installer" / "vswhere.exe"
        if not vswhere.is_file():
            continue
        component = "Microsoft.VisualStudio.Component.VC.Tools.x86.x64"
        query = ["-latest", "-products", "*", "-requires", component, "-property", "installationPath"]
        _, folder = _run([str(vswhere), *query])
        script = Path(folder.strip()) / "VC" / "Auxiliary" / "Build" / "vcvars64.bat"
        if not script.is_file():
            continue
        listing = subprocess.run(f'"{script}" >nul && set', shell=True, capture_output=True, text=True).stdout
        environment = dict(line.split("=", 1) for line in listing.splitlines() if "=" in line)
        path = next((v for k, v in environment.items() if k.upper() == "PATH"), "")
        cl = shutil.which("cl", path=path)
        if cl:
            return Compiler((cl,), _run([cl])[1].splitlines()[0], "msvc", environment)
    return None


def instruction_set() -> str:
    """Instruction set of the host's processor, because code built for it may not run on another."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    lines = re.findall(r"^(?:flags|Features|isa|cpu)\s*:\s*(.*)$", text, flags=re.MULTILINE)
    return f"{platform.machine()} {' '.join(sorted(set(' '.join(lines).split())))}"


def openmp_resolves(compiler: Compiler) -> bool:
    """True if code compiled with -fopenmp finds its runtime among the libraries that PyTorch loaded globally, on Linux.

    One runtime means one pool of threads; a second one would fight with PyTorch's for the cores.
    """
    entry_point = {"gcc": "GOMP_parallel", "clang": "__kmpc_fork_call"}.get(compiler.kind)
    return sys.platform == "linux" and entry_point is not None and hasattr(ctypes.CDLL(None), entry_point)


def compile_flags(compiler: Compiler, *, openmp: bool) -> list[str]:
    """Flags that compile a C++17 file for this very processor into a shared library."""
    if compiler.kind == "msvc":
        return ["/nologo", "/std:c++17", "/O2", "/EHsc", "/LD"]
    generic_cpu_option = platform.machine().lower() in ("x86_64", "amd64", "aarch64")
    flags = ["-std=c++17", "-O3", "-march=native" if generic_cpu_option else "-mcpu=native"]
    flags += ["-fno-math-errno", "-fno-trapping-math", "-fPIC", "-fvisibility=hidden"]
    if compiler.kind == "gcc":
        flags.append("-fno-gnu-unique")  # Unique symbols would be shared with other libraries and forbid unloading.
    return [*flags, *(["-fopenmp"] if openmp else [])]


def ninja_command() -> str:
    """The program ninja: that of the PyPI package, else the one on PATH.

    Raises:
        BuildError: There is neither.
    """
    try:
        import ninja

        path = shutil.which("ninja", path=ninja.BIN_DIR)
    except ImportError:
        path = None
    path = path or shutil.which("ninja")
    if path is None:
        raise BuildError("ninja is not installed", "run `pip install ninja`")
    return path


def _nvcc_candidates() -> Iterator[Path]:
    program = "nvcc.exe" if WINDOWS else "nvcc"
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            yield Path(os.environ[variable]) / "bin" / program
    on_path = shutil.which("nvcc")
    if on_path:
        yield Path(on_path)
    yield from (folder / "bin" / program for folder in wheel_folders())
    if WINDOWS:
        toolkits = Path(os.environ.get("PROGRAMFILES", "")) / "NVIDIA GPU Computing Toolkit" / "CUDA"
        yield from sorted(toolkits.glob(f"v*/bin/{program}"), reverse=True)
    else:
        yield Path("/usr/local/cuda/bin") / program


def find_nvcc() -> Compiler | None:
    """nvcc: of $CUDA_HOME or $CUDA_PATH, on PATH, from wheels or in the usual folder; None without any.

    Raises:
        BuildError: There is one, and it does not run.
    """
    broken = None
    for path in _nvcc_candidates():
        if not path.is_file():
            continue
        status, output = _run([str(path), "--version"])
        release = re.search(r"release .*", output)
        if status == 0 and release:
            return Compiler((str(path),), f"nvcc {release[0]}", "nvcc", {})
        broken = broken or BuildError(
            f"{path} does not run ({first_error(output)})",
            "reinstall the CUDA toolkit, or let CUDA_HOME name a working one",
        )
    if broken:
        raise broken
    return None


def toolkit_folder(nvcc: Compiler) -> Path:
    """The folder with include/ and lib64/ that belongs to an nvcc, also where that is a script or link elsewhere."""
    _, output = _run([*nvcc.command, "--dryrun", "-cubin", "-x", "cu", os.devnull])
    top = re.search(r"^#\$ TOP=(.+)$", output, flags=re.MULTILINE)
    return Path(top[1].strip()).resolve() if top else Path(nvcc.command[0]).resolve().parents[1]


def wheel_folders() -> list[Path]:
    """The folders of NVIDIA's wheels, which bring PyTorch its CUDA: cu13, or cuda_nvrtc, cuda_runtime and others."""
    spec = importlib.util.find_spec("nvidia")
    locations = (spec.submodule_search_locations or []) if spec else []
    return [folder for location in locations for folder in sorted(Path(location).glob("cu*"), reverse=True)]


def cuda_include_folders() -> list[Path]:
    """Folders of CUDA's own headers (cuda_fp16.h and others): in wheels, else in the toolkit."""
    folders = [folder / "include" for folder in wheel_folders()]
    found = [folder for folder in folders if (folder / "cuda_fp16.h").is_file()]
    if found:
        return found
    try:
        nvcc = find_nvcc()
    except BuildError:
        nvcc = None
    include = toolkit_folder(nvcc) / "include" if nvcc else None
    return [include] if include and include.is_dir() else []


def nvcc_architectures(nvcc: Compiler) -> list[int]:
    """The compute capabilities, as 90 for 9.0, that an nvcc compiles for."""
    _, output = _run([*nvcc.command, "--list-gpu-arch"])
    return [int(number) for number in re.findall(r"^compute_(\d+)\s*$", output, flags=re.MULTILINE)]


def choose_architecture(arch: str, known: Sequence[int], compiler: str) -> tuple[str, int]:
    """Architecture to compile for: `arch` itself, or "compute" and the newest known if the compiler predates the GPU.

    Raises:
        BuildError: The GPU is older than all that the compiler knows.
    """
    kind, number = arch.split("_")
    older = [candidate for candidate in known if candidate <= int(number)]
    if int(number) in known:
        return kind, int(number)
    if not older:
        oldest = f"nothing older than sm_{min(known)}" if known else "no GPU"
        raise BuildError(
            f"{compiler} compiles for {oldest}, not for {arch}",
            "install a PyTorch built for an older CUDA, which supports this GPU",
        )
    return "compute", max(older)
