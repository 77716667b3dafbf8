"""Imports of a run before its first step, and imports that wait until they are needed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LATER = {
    "scipy": "by a metric",
    "requests": "by a download",
    "torch._dynamo": "by an optimizer",
    "torch.utils.data": "by a large data set",
    "torch.utils.tensorboard": "by a run's events",
    "matplotlib": "by nobody",
    "asyncio": "by a test of what works without a network",
}


def test_what_takes_a_while_is_imported_when_it_is_needed():
    code = (
        "import sys, torch; before = set(sys.modules); import refine.runs.run, refine.commands.run; "
        "print(*sorted(set(sys.modules) - before))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    imported = set(result.stdout.split())
    assert "refine.training.trainer" in imported
    assert not imported & LATER.keys()


@pytest.mark.slow
def test_parts_of_the_benchmark_are_the_whole(tmp_path):
    """It reaches the first step, and every part took some time."""
    benchmark = ROOT / "benchmarks" / "speed" / "startup.py"
    command = [sys.executable, str(benchmark), f"--measure={tmp_path}"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    seconds = json.loads(result.stdout.splitlines()[-1])
    spec = importlib.util.spec_from_file_location("startup", benchmark)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert seconds.keys() == module.PARTS.keys() | module.ASIDE.keys()
    assert all(value > 0 for value in seconds.values())
