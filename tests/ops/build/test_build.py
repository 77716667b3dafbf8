"""The library of the CPU: what it depends on, and what happens without the means to build it.

The compiler is a script that writes down each compilation, the library one of a single function.
"""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from toolchains import GXX, ROOT, one_sentence, script, version_source

from stylegan_ops import build
from stylegan_ops.backends.packing import ABI_VERSION
from stylegan_ops.build import BuildError, ninja, toolchain

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="the compilers of these tests are shell scripts"),
    pytest.mark.skipif(GXX is None, reason="there is no C++ compiler"),
]


def test_library_is_built_once_and_kept(csrc: Path, cache_folder: Path, compilations: Callable[[], int]) -> None:
    path = build.cpu_library(csrc)
    assert path.is_relative_to(cache_folder)
    assert ctypes.CDLL(str(path)).stylegan_ops_abi_version() == ABI_VERSION
    times = {file: file.stat().st_mtime_ns for file in [cache_folder, *cache_folder.rglob("*")]}
    assert build.cpu_library(csrc) == path
    assert compilations() == 1
    # A finished library is found without writing anything, so that the cache may be read-only by then.
    assert {file: file.stat().st_mtime_ns for file in [cache_folder, *cache_folder.rglob("*")]} == times


def change_source(csrc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (csrc / "cpu" / "version.cpp").write_text(version_source() + "\n")


def change_header(csrc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (csrc / "abi.h").write_text("// the structs, changed\n")


def add_file(csrc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (csrc / "cpu" / "element.h").write_text("")


def change_flags(csrc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = toolchain.compile_flags
    monkeypatch.setattr(toolchain, "compile_flags", lambda compiler, openmp: [*flags(compiler, openmp=openmp), "-g"])


def change_compiler(csrc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f'case "$*" in *--version*) echo g++ 99.0;; *) exec {GXX} "$@";; esac'
    Path(os.environ["CXX"]).write_text(f"#!/bin/sh\n{text}\n")


def change_processor(csrc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instructions = toolchain.instruction_set()
    monkeypatch.setattr(toolchain, "instruction_set", lambda: instructions + " amx")


def change_abi(csrc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "ABI_VERSION", 77)
    (csrc / "cpu" / "version.cpp").write_text(version_source(77))


@pytest.mark.parametrize(
    "change",
    [change_source, change_header, add_file, change_flags, change_compiler, change_processor, change_abi],
)
def test_what_a_library_depends_on(
    change: Callable[[Path, pytest.MonkeyPatch], None],
    csrc: Path,
    compilations: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = build.cpu_library(csrc)
    change(csrc, monkeypatch)
    assert build.cpu_library(csrc) != before


def test_library_of_another_pytorch_is_used(
    csrc: Path, compilations: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build.cpu_library(csrc)
    monkeypatch.setattr(torch, "__version__", "2.6.0")
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    assert build.cpu_library(csrc) == path
    assert compilations() == 1


def test_instruction_set_is_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    instructions = toolchain.instruction_set()
    if sys.platform == "linux":
        line = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line[:5] in ("flags", "Featu"))
        assert set(line.split(":")[1].split()) <= set(instructions.split())

    def refuse(path: Path, **options: str) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", refuse)  # As where there is no /proc.
    assert toolchain.instruction_set().split()


def test_only_what_is_meant_for_others_is_visible(csrc: Path) -> None:
    (csrc / "cpu" / "other.cpp").write_text('extern "C" int internal() { return 1; }\n')
    library = ctypes.CDLL(str(build.cpu_library(csrc)))
    assert hasattr(library, "stylegan_ops_abi_version") and not hasattr(library, "internal")


PARALLEL = """
extern "C" __attribute__((visibility("default"))) int run_parallel() {
    int count = 0;
    #pragma omp parallel for num_threads(2) reduction(+ : count)
    for (int i = 0; i < 100; i++) count++;
    return count;
}
#ifdef _OPENMP
extern "C" __attribute__((visibility("default"))) int with_openmp;
int with_openmp = 1;
#endif
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_library_shares_the_openmp_of_pytorch(csrc: Path) -> None:
    (csrc / "cpu" / "parallel.cpp").write_text(PARALLEL)
    program = f"""
import ctypes, pathlib, re, torch
from stylegan_ops import build
library = ctypes.CDLL(str(build.cpu_library(pathlib.Path({str(csrc)!r}))))
assert library.run_parallel() == 100
print(len(set(re.findall(r"/.*lib[gi]?omp\\S*", pathlib.Path("/proc/self/maps").read_text()))))
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(result.stdout) <= 1


def test_openmp_is_left_out_where_its_runtime_is_missing(csrc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def has_openmp() -> bool:
        return hasattr(ctypes.CDLL(str(build.cpu_library(csrc))), "with_openmp")

    (csrc / "cpu" / "parallel.cpp").write_text(PARALLEL)
    compiler = toolchain.host_compiler()
    if compiler.kind == "gcc" and sys.platform == "linux":
        assert toolchain.openmp_resolves(compiler) is hasattr(ctypes.CDLL(None), "GOMP_parallel")
    assert has_openmp() is toolchain.openmp_resolves(compiler)
    monkeypatch.setattr(toolchain, "openmp_resolves", lambda compiler: False)
    assert not has_openmp()


# No compiler, no ninja, broken compilers


def test_no_compiler(csrc: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError) as error:
        build.cpu_library(csrc)
    assert "no working C++ compiler" in one_sentence(error)
    assert "install" in error.value.remedy or "xcode-select" in error.value.remedy


def test_finished_library_needs_no_compiler(csrc: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = build.cpu_library(csrc)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.cpu_library(csrc) == path
    change_source(csrc, monkeypatch)
    with pytest.raises(BuildError):
        build.cpu_library(csrc)


def test_compiler_that_does_not_run_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    script(tmp_path / "bin" / "c++", "exit 1")
    working = script(tmp_path / "bin" / "g++", "echo g++ 12")
    assert toolchain.host_compiler().command == (str(working),)
    script(tmp_path / "bin" / "c++", "echo Apple clang version 15")
    assert toolchain.host_compiler().kind == "clang"


def test_cxx_may_hold_options_and_names_nothing(csrc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", f"{GXX} -DTHE_VERSION={ABI_VERSION}")
    (csrc / "cpu" / "version.cpp").write_text(version_source().replace(f"return {ABI_VERSION}", "return THE_VERSION"))
    build.cpu_library(csrc)
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    change_source(csrc, monkeypatch)
    with pytest.raises(BuildError) as error:
        build.cpu_library(csrc)
    assert "CXX" in one_sentence(error) and "'no-such-compiler -O2'" in str(error.value)


def test_no_ninja(csrc: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", str(GXX))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ninja", None)
    with pytest.raises(BuildError) as error:
        build.cpu_library(csrc)
    assert one_sentence(error) == "ninja is not installed: run `pip install ninja`."


def test_ninja_on_path_serves_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ninja", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    program = script(tmp_path / "ninja", "")
    assert toolchain.ninja_command() == str(program)


def test_at_most_four_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(64), raising=False)
    assert ninja.jobs() == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(1), raising=False)
    assert ninja.jobs() == 1


def test_broken_compiler(csrc: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    line = "version.cpp:1:2: error: this compiler is broken"
    failure = f"echo noise; echo {shlex.quote(line)}; echo error: later; exit 1"
    body = f'case "$*" in *--version*) echo g++ 12;; *) {failure};; esac'
    monkeypatch.setenv("CXX", str(script(tmp_path / "broken", body)))
    with pytest.raises(BuildError) as error:
        build.cpu_library(csrc)
    (log,) = cache_folder.glob("*.log")
    assert f"`{line}`" in one_sentence(error) and str(log) in str(error.value)
    assert "noise" in log.read_text()
    assert not list(cache_folder.glob("*.tmp*")) and not list(cache_folder.glob("*/build.json"))


def test_errors_are_asked_for_in_english(csrc: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    body = 'case "$*" in *--version*) echo g++ 12;; *) echo "error: $LC_ALL"; exit 1;; esac'
    monkeypatch.setenv("CXX", str(script(tmp_path / "g++", body)))
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    with pytest.raises(BuildError, match="`error: C`"):
        build.cpu_library(csrc)


def test_source_that_does_not_compile(csrc: Path) -> None:
    (csrc / "cpu" / "version.cpp").write_text("int f() { return missing; }\n")
    with pytest.raises(BuildError) as error:
        build.cpu_library(csrc)
    assert "version.cpp:1:" in one_sentence(error) and "missing" in str(error.value)


def test_commands_for_microsofts_compiler() -> None:
    compiler = toolchain.Compiler(("cl.exe",), "Version 19", "msvc", {})
    flags = toolchain.compile_flags(compiler, openmp=False)
    command = build._compile_command(compiler, flags, [Path("inc")], Path("a.cpp"), Path("a.o"))
    assert command == ["cl.exe", "/nologo", "/std:c++17", "/O2", "/EHsc", "/LD", "/Iinc", "/c", "a.cpp", "/Foa.o"]
    command = build._link_command(compiler, [], [Path("a.o")], Path("lib.dll"))
    assert command == ["cl.exe", "/nologo", "/LD", "a.o", "/Felib.dll"]


def test_import_builds_nothing(cache_folder: Path, compilations: Callable[[], int]) -> None:
    program = "import pkgutil, importlib, stylegan_ops\n"
    program += "for m in pkgutil.walk_packages(stylegan_ops.__path__, 'stylegan_ops.'): importlib.import_module(m.name)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    assert compilations() == 0 and not cache_folder.exists()


def test_sources_are_installed_with_the_package() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("stylegan_ops = ["))
    patterns = json.loads(line[line.index("[") : line.index("]") + 1])
    package = ROOT / "stylegan_ops"
    files = [str(path.relative_to(package)) for path in (package / "csrc").rglob("*") if path.is_file()]
    assert files
    for file in files:
        assert any(fnmatch(file, pattern) and file.count("/") == pattern.count("/") for pattern in patterns), file
