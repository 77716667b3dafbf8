"""Device, sizes, time limit and results of a part: what the command hands to each of its processes."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import ROOT

RESULTS = "results.jsonl"


@dataclass
class Setting:
    """Setting in which a part runs.

    Attributes:
        out: Folder of the results.
        rehearse: Tiny sizes on the CPU, with stand-ins where only CUDA will do.
        seconds: Time limit of this process.
    """

    out: Path
    rehearse: bool
    seconds: float
    begun: float = field(default_factory=time.monotonic)

    @classmethod
    def from_arguments(cls, **more: type) -> tuple[Setting, argparse.Namespace]:
        """From the command line of a part; `more` are positional arguments of its own, by type."""
        parser = argparse.ArgumentParser()
        for name, kind in more.items():
            parser.add_argument(name, type=kind)
        parser.add_argument("--out", type=Path, required=True)
        parser.add_argument("--seconds", type=float, required=True)
        parser.add_argument("--rehearse", action="store_true")
        options = parser.parse_args()
        setting = cls(options.out, options.rehearse, options.seconds)
        if not setting.done("machine"):
            setting.emit("machine", **machine(setting))
        return setting, options

    @property
    def device(self) -> Any:
        """`torch.device` of the measurements."""
        import torch

        return torch.device("cpu" if self.rehearse else "cuda:0")

    @property
    def left(self) -> float:
        """Seconds until the limit."""
        return self.seconds - (time.monotonic() - self.begun)

    def emit(self, kind: str, **fields: Any) -> None:
        """Append a result, so that it outlives whatever happens next."""
        emit(self.out, kind, **fields)

    def done(self, kind: str) -> list[dict[str, Any]]:
        """Results of a kind so far, of earlier processes too."""
        return [row for row in read(self.out) if row["kind"] == kind]

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Record an error and go on; leave the block out if no time is left for it."""
        try:
            yield
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            lines = traceback.format_exc().strip().splitlines()
            self.emit("error", section=name, error=f"{type(error).__name__}: {error}"[:500], trace=lines[-12:])


def machine(setting: Setting) -> dict[str, Any]:
    """Description of the machine."""
    import torch

    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    found: dict[str, Any] = {
        "rehearsal": setting.rehearse,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": commit.stdout.strip() if commit.returncode == 0 else "",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "cores": os.cpu_count(),
        "gpu": "none (rehearsal)",
    }
    if setting.device.type == "cuda":
        properties = torch.cuda.get_device_properties(setting.device)
        found |= {
            "gpu": properties.name,
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
        }
    return found


def emit(out: Path, kind: str, **fields: Any) -> None:
    """Append a line of JSON to the results and bring it to the disk."""
    line = json.dumps({"kind": kind, "time": round(time.time(), 3), **fields})
    with (out / RESULTS).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())
    print(line, flush=True)


def read(out: Path) -> list[dict[str, Any]]:
    """All results of a folder; none where there are none yet."""
    path = out / RESULTS
    return rows_of(path) if path.exists() else []


def rows_of(path: Path) -> list[dict[str, Any]]:
    """All results of a file; a line that a killed process left unfinished is skipped."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


# --- clocks


def synchronize(device: Any) -> None:
    """Wait for what the device was asked for."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def wall(run: Callable[[], object], device: Any, calls: int = 1) -> float:
    """Seconds on the clock of a call, until the device is done."""
    synchronize(device)
    begun = time.perf_counter()
    for _ in range(calls):
        run()
    synchronize(device)
    return (time.perf_counter() - begun) / calls


class DeviceClock:
    """Seconds that a call keeps the device busy, from a cold second-level cache.

    On a GPU, events around the call, queued behind a write of more memory than the cache holds: Python has queued the
    call before the device comes to it, so that the time of launches does not count.
    """

    def __init__(self, device: Any, flush_bytes: int) -> None:
        import torch

        self.device = device
        self.flush = torch.empty(flush_bytes, dtype=torch.uint8, device=device)

    def seconds(self, run: Callable[[], object]) -> float:
        """Of one call."""
        import torch

        self.flush.zero_()
        if self.device.type != "cuda":
            begun = time.process_time()
            run()
            return max(time.process_time() - begun, 1e-9)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def median(self, run: Callable[[], object], rounds: int) -> float:
        """The median of some rounds after two that warm up."""
        return statistics.median([self.seconds(run) for _ in range(rounds + 2)][2:])


def matmul_flops(device: Any, dtype: Any, tf32: bool, n: int, rounds: int = 5) -> float:
    """Floating-point operations per second of a large matrix product."""
    import torch

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        seconds = statistics.median([wall(lambda: a @ b, device) for _ in range(rounds + 2)][2:])
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return 2 * n**3 / seconds


def copy_bandwidth(device: Any, num_bytes: int, rounds: int = 7) -> float:
    """Bytes per second, read and written, of a copy between two large tensors."""
    import torch

    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = statistics.median([wall(lambda: target.copy_(source), device) for _ in range(rounds + 2)][2:])
    return 2 * num_bytes / seconds
