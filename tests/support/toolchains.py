"""Stand-ins for compilers and sources, for tests of what builds them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stylegan_ops.backends.packing import ABI_VERSION
from stylegan_ops.build import BuildError

ROOT = Path(__file__).resolve().parents[2]
GXX = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
VISIBLE = 'extern "C" __attribute__((visibility("default")))'


def script(path: Path, body: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def version_source(version: int = ABI_VERSION) -> str:
    """The one function that the CPU library must have."""
    return f'#include "../abi.h"\n{VISIBLE} int stylegan_ops_abi_version() {{ return {version}; }}\n'


def write_sources(folder: Path) -> Path:
    """A folder as stylegan_ops/csrc, which compiles in no time."""
    for name in ("cpu", "sim", "cuda"):
        (folder / name).mkdir(parents=True)
    (folder / "abi.h").write_text("// the structs\n")
    (folder / "cpu" / "version.cpp").write_text(version_source())
    (folder / "sim" / "all.cpp").write_text(
        f'#include "cuda/one.cu"\n{VISIBLE} int simulated() {{ return answer(); }}\n'
    )
    (folder / "cuda" / "one.cu").write_text('#include "common.cuh"\n')
    (folder / "cuda" / "common.cuh").write_text("static int answer() { return 42; }\n")
    return folder


def one_sentence(error: pytest.ExceptionInfo[BuildError]) -> str:
    """The message, which must be its cause and remedy on one line."""
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    assert text == f"{error.value.cause}: {error.value.remedy}."
    return text
