"""Images of the CUDA kernels and their simulator, with stand-ins for NVIDIA's compilers."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toolchains import GXX, one_sentence, script, write_sources

from stylegan_ops import build
from stylegan_ops.build import BuildError, nvrtc, toolchain

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="the compilers of these tests are shell scripts"),
    pytest.mark.skipif(GXX is None, reason="there is no C++ compiler"),
]


def test_simulator(csrc: Path) -> None:
    assert ctypes.CDLL(str(build.sim_library(csrc))).simulated() == 42
    (csrc / "cuda" / "common.cuh").write_text("static int answer() { return 41; }\n")
    assert ctypes.CDLL(str(build.sim_library(csrc))).simulated() == 41
    (csrc / "cuda" / "common.cuh").write_text("static int answer() { return ANSWER; }\n")
    assert ctypes.CDLL(str(build.sim_library(csrc, ["-DANSWER=43"]))).simulated() == 43
    assert ctypes.CDLL(str(build.sim_library(csrc, ["-DANSWER=44"]))).simulated() == 44


NVCC = shutil.which("nvcc")
FAKE_NVCC = """
case "$*" in
  *--version*) echo "Cuda compilation tools, release 12.9, V12.9.1";;
  *--list-gpu-arch*) printf 'compute_75\\ncompute_90\\n';;
  *--dryrun*) echo '#$ _HERE_=/x/bin'; echo '#$ TOP=/opt/toolkit/bin/..';;
  *) for last; do :; done; echo "$*" > "$last"
     while [ "$1" != "-o" ]; do source="$1"; shift; done; cat "$source" >> "$last";;
esac
"""


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine without nvcc and NVRTC."""
    monkeypatch.setattr(toolchain, "_nvcc_candidates", lambda: iter([tmp_path / "toolkit" / "bin" / "nvcc"]))
    monkeypatch.setattr(toolchain, "wheel_folders", list)
    monkeypatch.setattr(nvrtc, "find", lambda: None)


@pytest.mark.usefixtures("no_cuda")
def test_no_cuda_compiler(csrc: Path) -> None:
    with pytest.raises(BuildError) as error:
        build.cuda_image("sm_90", csrc)
    assert "neither NVRTC nor nvcc" in one_sentence(error) and "pip install nvidia-cuda-nvrtc" in error.value.remedy


@pytest.mark.usefixtures("no_cuda")
def test_nvcc_gets_all_kernels(csrc: Path, tmp_path: Path) -> None:
    script(tmp_path / "toolkit" / "bin" / "nvcc", FAKE_NVCC)
    (csrc / "cuda" / "two.cu").touch()
    path = build.cuda_image("sm_90", csrc)
    command, *source = path.read_text().splitlines()
    assert path.suffix == ".cubin" and "-cubin" in command and "-arch=sm_90 " in command
    assert source == ['#include "cuda/one.cu"', '#include "cuda/two.cu"']
    assert f"-I{csrc}" in command
    assert build.cuda_image("sm_75", csrc) != path
    assert build.cuda_image("compute_75", csrc).suffix == ".ptx"
    newer = build.cuda_image("sm_120", csrc)
    assert newer.suffix == ".ptx" and "-arch=compute_90 " in newer.read_text()
    with pytest.raises(BuildError) as error:
        build.cuda_image("sm_52", csrc)
    assert "nothing older than sm_75, not for sm_52" in one_sentence(error)
    with pytest.raises(ValueError, match="sm_90 or compute_90, not '9"):
        build.cuda_image("9.0", csrc)
    (tmp_path / "toolkit" / "bin" / "nvcc").unlink()
    assert build.cuda_image("sm_90", csrc) == path  # Without any compiler.


@pytest.mark.usefixtures("no_cuda")
def test_broken_nvcc(csrc: Path, cache_folder: Path, tmp_path: Path) -> None:
    nvcc = script(tmp_path / "toolkit" / "bin" / "nvcc", "echo nvcc: cicc is missing; exit 1")
    with pytest.raises(BuildError) as error:
        build.cuda_image("sm_90", csrc)
    assert f"{nvcc} does not run (nvcc: cicc is missing)" in one_sentence(error)
    assert "CUDA_HOME" in error.value.remedy
    script(
        nvcc,
        FAKE_NVCC.replace("*) for last", "*) echo 'kernels.cu(3): error: no such host compiler'; exit 1; for last"),
    )
    with pytest.raises(BuildError) as error:
        build.cuda_image("sm_90", csrc)
    (log,) = cache_folder.glob("*.log")
    assert "`kernels.cu(3): error: no such host compiler`" in one_sentence(error) and str(log) in str(error.value)


def test_where_nvcc_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    site = tmp_path / "site"
    monkeypatch.setattr(toolchain, "wheel_folders", lambda: [site / "nvidia" / "cu13"])
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    for place in (
        site / "nvidia" / "cu13" / "bin",
        tmp_path / "bin",
        tmp_path / "path" / "bin",
        tmp_path / "home" / "bin",
    ):
        expected = script(place / "nvcc", FAKE_NVCC)
        if place.parent.name in ("path", "home"):
            monkeypatch.setenv(f"CUDA_{place.parent.name.upper()}", str(place.parent))
        found = toolchain.find_nvcc()
        assert found is not None and found.command == (str(expected),)
    script(expected, "exit 1")  # A broken one is passed over if another works.
    found = toolchain.find_nvcc()
    assert found is not None and found.command == (str(tmp_path / "path" / "bin" / "nvcc"),)


def test_toolkit_of_a_wrapper(tmp_path: Path) -> None:
    wrapper = toolchain.Compiler((str(script(tmp_path / "bin" / "nvcc", FAKE_NVCC)),), "", "nvcc", {})
    assert toolchain.toolkit_folder(wrapper) == Path("/opt/toolkit")
    silent = script(tmp_path / "other" / "bin" / "nvcc", "exit 0")
    (tmp_path / "link").symlink_to(silent)
    link = toolchain.Compiler((str(tmp_path / "link"),), "", "nvcc", {})
    assert toolchain.toolkit_folder(link) == (tmp_path / "other").resolve()


def test_folders_of_wheels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("cu13/include", "cuda_runtime/include", "cudnn/include", "nccl"):
        (tmp_path / "nvidia" / name).mkdir(parents=True)
    (tmp_path / "nvidia" / "cu13" / "include" / "cuda_fp16.h").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("nvidia", None)
    assert {"cu13", "cuda_runtime"} <= {folder.name for folder in toolchain.wheel_folders()}
    assert tmp_path / "nvidia" / "cu13" / "include" in toolchain.cuda_include_folders()


# A library with NVRTC's functions: it "compiles" by noting its options and source.
FAKE_NVRTC = r"""
#include <cstring>
#include <string>
extern "C" {
struct Program { std::string source, options; };
int fake_builtins();
int nvrtcVersion(int* major, int* minor) { *major = 12; *minor = fake_builtins(); return 0; }
const char* nvrtcGetErrorString(int status) { return "NVRTC_ERROR_OF_A_TEST"; }
int nvrtcGetNumSupportedArchs(int* count) { *count = 2; return 0; }
int nvrtcGetSupportedArchs(int* archs) { archs[0] = 75; archs[1] = 90; return 0; }
int nvrtcCreateProgram(Program** p, const char* source, const char* name, int n, const char**, const char**) {
    if (strstr(source, "refuse.cu")) return 4;
    *p = new Program{source, ""};
    return n || strcmp(name, "kernels.cu");
}
int nvrtcDestroyProgram(Program** p) { delete *p; *p = nullptr; return 0; }
int nvrtcCompileProgram(Program* p, int count, const char** options) {
    for (int i = 0; i < count; i++) p->options += std::string(options[i]) + "\n";
    return p->source.find("wrong.cu") != std::string::npos ? 6 : 0;
}
static const char LOG[] = "kernels.cu(1): warning: hm\nkernels.cu(2): error: this is wrong\n";
int nvrtcGetProgramLogSize(Program* p, size_t* n) { *n = sizeof LOG; return 0; }
int nvrtcGetProgramLog(Program* p, char* out) { memcpy(out, LOG, sizeof LOG); return 0; }
static std::string text(Program* p, const char* kind) { return std::string(kind) + "\n" + p->options + p->source; }
int nvrtcGetCUBINSize(Program* p, size_t* n) { *n = text(p, "CUBIN").size(); return 0; }
int nvrtcGetCUBIN(Program* p, char* out) { memcpy(out, text(p, "CUBIN").data(), text(p, "CUBIN").size()); return 0; }
int nvrtcGetPTXSize(Program* p, size_t* n) { *n = text(p, "PTX").size() + 1; return 0; }
int nvrtcGetPTX(Program* p, char* out) { strcpy(out, text(p, "PTX").c_str()); return 0; }
}
"""


@pytest.fixture(scope="session")
def fake_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel") / "nvidia" / "cuda_nvrtc"
    (folder / "lib").mkdir(parents=True)
    (folder / "nvrtc.cpp").write_text(FAKE_NVRTC)
    (folder / "builtins.cpp").write_text('extern "C" int fake_builtins() { return 8; }\n')
    for name, library in (("nvrtc", "libnvrtc.so.12"), ("builtins", "libnvrtc-builtins.so.12.8")):
        output = str(folder / "lib" / library)
        subprocess.run([str(GXX), "-shared", "-fPIC", str(folder / f"{name}.cpp"), "-o", output], check=True)
    for name in ("libnvrtc.alt.so.12", "libnvrtc-builtins.alt.so.12.8", "libnvrtc.txt"):
        (folder / "lib" / name).write_text("not this one")
    return folder


@pytest.fixture
def fake_nvrtc(fake_wheel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(toolchain, "_nvcc_candidates", lambda: iter([tmp_path / "toolkit" / "bin" / "nvcc"]))
    monkeypatch.setattr(toolchain, "wheel_folders", lambda: [fake_wheel])
    monkeypatch.setattr(torch.version, "cuda", "12.8")


@pytest.mark.skipif(sys.platform != "linux", reason="the stand-in for NVRTC is a Linux library")
@pytest.mark.usefixtures("fake_nvrtc")
def test_nvrtc(csrc: Path, cache_folder: Path) -> None:
    path = build.cuda_image("sm_90", csrc)
    lines = path.read_text().splitlines()
    assert path.suffix == ".cubin" and lines[:3] == ["CUBIN", "--gpu-architecture=sm_90", "--std=c++17"]
    assert f"--include-path={csrc}" in lines and lines[-1] == '#include "cuda/one.cu"'
    older = build.cuda_image("sm_89", csrc)
    assert older.suffix == ".ptx" and older.read_bytes().startswith(b"PTX\n--gpu-architecture=compute_75\n")
    assert not older.read_bytes().endswith(b"\0")
    with pytest.raises(BuildError, match=r"^NVRTC 12\.8 compiles for nothing older than sm_75, not for sm_60"):
        build.cuda_image("sm_60", csrc)
    (csrc / "cuda" / "wrong.cu").touch()
    with pytest.raises(BuildError) as error:
        build.cuda_image("sm_90", csrc)
    (log,) = cache_folder.glob("*.log")
    assert "`kernels.cu(2): error: this is wrong`" in one_sentence(error) and str(log) in str(error.value)
    assert "hm" in log.read_text()
    (csrc / "cuda" / "refuse.cu").touch()
    with pytest.raises(BuildError, match="nvrtcCreateProgram failed with NVRTC_ERROR_OF_A_TEST"):
        build.cuda_image("sm_90", csrc)


@pytest.mark.skipif(sys.platform != "linux", reason="the stand-in for NVRTC is a Linux library")
@pytest.mark.usefixtures("fake_nvrtc")
def test_nvcc_steps_in_for_nvrtc(csrc: Path, tmp_path: Path) -> None:
    (csrc / "cuda" / "wrong.cu").touch()
    broken = script(tmp_path / "toolkit" / "bin" / "nvcc", "exit 1")
    with pytest.raises(BuildError, match="this is wrong"):  # And not that nvcc, which was second choice, is broken.
        build.cuda_image("sm_90", csrc)
    script(broken, FAKE_NVCC)
    assert "-arch=sm_90" in build.cuda_image("sm_90", csrc).read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="the stand-in for NVRTC is a Linux library")
@pytest.mark.usefixtures("fake_nvrtc")
def test_which_nvrtc_is_taken(fake_wheel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = tmp_path / "nvidia" / "cu13" / "lib" / "libnvrtc.so.13"
    library.parent.mkdir(parents=True)
    library.write_text("broken")
    monkeypatch.setattr(toolchain, "wheel_folders", lambda: [library.parents[1], fake_wheel])
    found = nvrtc.find()
    assert found is not None and found.path == fake_wheel / "lib" / "libnvrtc.so.12"  # PyTorch's version
    monkeypatch.setattr(torch.version, "cuda", None)
    found = nvrtc.find()
    assert found is not None and found.path == library and found.major == 13
    with pytest.raises(BuildError) as error:
        nvrtc.compile(found, "", "sm_90", [], tmp_path / "log")
    assert f"{library} does not load" in one_sentence(error)


@pytest.mark.usefixtures("fake_nvrtc")
def test_nvrtc_of_toolkit_and_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nvrtc, "_beside_pytorch", list)
    monkeypatch.setattr(ctypes.util, "find_library", {"nvrtc": "libnvrtc.so.12"}.get)
    assert nvrtc.find() == nvrtc.Nvrtc(Path("libnvrtc.so.12"), 12)
    nvcc = script(tmp_path / "toolkit" / "bin" / "nvcc", FAKE_NVCC.replace("/opt/toolkit", str(tmp_path / "toolkit")))
    library = tmp_path / "toolkit" / "lib64" / "libnvrtc.so.13"
    library.parent.mkdir()
    library.touch()
    assert nvrtc.find() == nvrtc.Nvrtc(library, 13)
    script(nvcc, "exit 1")
    assert nvrtc.find() == nvrtc.Nvrtc(Path("libnvrtc.so.12"), 12)
    monkeypatch.setattr(ctypes.util, "find_library", {}.get)
    assert nvrtc.find() is None


def test_version_in_the_name_of_nvrtc() -> None:
    names = {"libnvrtc.so.13": 13, "libnvrtc-08c4863f.so.11.2": 11, "nvrtc64_120_0.dll": 12, "libnvrtc.so": 0}
    assert {name: nvrtc._major(Path(name)) for name in names} == names


@pytest.mark.skipif(NVCC is None, reason="there is no nvcc")
def test_real_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "find", lambda: None)
    csrc = write_sources(tmp_path / "my sources")  # nvcc itself cannot do with $ in the path of a header.
    (csrc / "cuda" / "one.cu").write_text('extern "C" __global__ void twice(float* x) { *x *= 2; }\n')
    assert build.cuda_image("sm_90", csrc).read_bytes().startswith(b"\x7fELF")
    assert b".entry twice(" in build.cuda_image("compute_90", csrc).read_bytes()


@pytest.mark.skipif(nvrtc.find() is None, reason="there is no NVRTC")
def test_real_nvrtc(csrc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "_nvcc_candidates", lambda: iter(()))
    (csrc / "cuda" / "one.cu").write_text('extern "C" __global__ void twice(float* x) { *x *= 2; }\n')
    assert build.cuda_image("sm_90", csrc).read_bytes().startswith(b"\x7fELF")
    assert b".entry twice(" in build.cuda_image("compute_90", csrc).read_bytes()
    (csrc / "cuda" / "one.cu").write_text("nonsense")
    with pytest.raises(BuildError, match="error"):
        build.cuda_image("sm_90", csrc)
