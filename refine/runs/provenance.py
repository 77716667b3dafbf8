"""Provenance of a run, for the report.

`sessions.jsonl` records program, machine and date, in one row per start or resume. `preflight.json` has the result of
the preflight.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch

import refine
from refine.files.atomic import atomic_write, cannot_write
from refine.files.jsonl import to_json
from refine.pair.preflight import Preflight

SESSIONS, PREFLIGHT = "sessions.jsonl", "preflight.json"
GIT_SECONDS = 5  # git takes longer only on a file system that hangs


def session(
    device: torch.device, num_processes: int = 1, hashes: Mapping[str, str] | None = None, cur_nimg: int = 0
) -> dict[str, Any]:
    """Row of `sessions.jsonl`: this process and its machine.

    Args:
        device: Device of the networks.
        num_processes: Number of processes that share the work.
        hashes: SHA-256 of the run's files, keyed by the option that names the file.
        cur_nimg: Images of generator updates so far; 0 or negative for a new run.
    """
    return {
        "timestamp": time.time(),
        "cur_nimg": cur_nimg,
        "refine": refine.__version__,
        "commit": git_commit(Path(refine.__file__).resolve().parents[1]),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "device": device.type,
        "gpu": gpu_name(device),
        "num_processes": num_processes,
        "sha256": dict(hashes or {}),
    }


def add_session(folder: Path, row: Mapping[str, Any]) -> None:
    """Appends a row to `sessions.jsonl`.

    Raises:
        UserError: The file cannot be written.
    """
    path = folder / SESSIONS
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(to_json(row) + "\n")
    except OSError as error:
        raise cannot_write(path, error) from error


def write_preflight(folder: Path, found: Preflight) -> None:
    """Writes `preflight.json`: the fields of the preflight, and its verdict.

    Raises:
        UserError: The file cannot be written.
    """
    row = asdict(found) | {"verdict": found.lines()[-1].strip()}
    with atomic_write(folder / PREFLIGHT) as file:
        file.write(to_json(row, indent=2).encode())


def git_commit(folder: Path) -> str | None:
    """Commit of a checkout, with `+` if files have been changed; None outside a checkout."""
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--exclude=*", "--abbrev=7"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def cpu_name() -> str:
    """Model of the processor, as the system names it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def gpu_name(device: torch.device) -> str | None:
    """Model of the GPU; None without an NVIDIA or AMD GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None
