"""AddressSanitizer and UndefinedBehaviorSanitizer: what code is built with, and how Python runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import stylegan_ops

FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g", "-O1")


def runtimes(compiler: str) -> list[str]:
    """The shared libraries of both; the test is skipped where the compiler comes without them."""
    paths = []
    for name in ("libasan.so", "libubsan.so"):
        found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True)
        paths.append(found.stdout.strip())
    if not all(Path(path).is_file() for path in paths):
        pytest.skip(f"{compiler} comes without its sanitizers libasan.so and libubsan.so")
    return paths


def run_python(compiler: str, code: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a process that may load what was built with FLAGS."""
    environment = os.environ | {
        "LD_PRELOAD": " ".join(runtimes(compiler)),
        # Python leaves memory behind at its end, and fibers have stacks of their own.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "PYTHONPATH": str(Path(stylegan_ops.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
