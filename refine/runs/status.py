"""Status line in StyleGAN's form, and row of `stats.jsonl`, for each tick of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from refine.runtime.text import format_time
from refine.training.divergence import NATS, STDERR


@dataclass(frozen=True)
class Tick:
    """Stretch of a run between two status lines.

    Attributes:
        number: Number of the tick since the start of the run.
        cur_nimg: Images of generator updates so far.
        nimg: Images in this tick.
        seconds: Seconds of this tick, without saving and measuring.
        maintenance_seconds: Seconds of saving and measuring after the previous tick.
        total_seconds: Seconds since the process started.
        remaining_nimg: Images to the end of the run.
    """

    number: int
    cur_nimg: int
    nimg: int
    seconds: float
    maintenance_seconds: float
    total_seconds: float
    remaining_nimg: float

    @property
    def kimg(self) -> str:
        """Thousands of images so far, with as many digits as tell two ticks apart."""
        return f"{self.cur_nimg / 1000:.{1 if self.nimg >= 100 else 3}f}"

    @property
    def sec_per_kimg(self) -> float:
        """Seconds per thousand images."""
        return self.seconds / max(self.nimg, 1) * 1000


def resources(device: torch.device) -> dict[str, float]:
    """Memory in use by this process, in GiB; resets the GPU's peak counters."""
    gpu = reserved = 0.0
    if device.type == "cuda":
        gpu, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        torch.cuda.reset_peak_memory_stats(device)
    return {
        "Resources/cpu_mem_gb": psutil.Process().memory_info().rss / 2**30,
        "Resources/peak_gpu_mem_gb": gpu / 2**30,
        "Resources/peak_gpu_mem_reserved_gb": reserved / 2**30,
    }


def tick_row(tick: Tick, values: Mapping[str, float], num_nonfinite: int) -> dict[str, Any]:
    """Row of `stats.jsonl`: position, times, then `values` by name."""
    return {
        "Progress/tick": tick.number,
        "Progress/kimg": tick.cur_nimg / 1000,
        "Progress/cur_nimg": tick.cur_nimg,
        "Progress/num_nonfinite": num_nonfinite,
        "Timing/total_sec": tick.total_seconds,
        "Timing/sec_per_tick": tick.seconds,
        "Timing/sec_per_kimg": tick.sec_per_kimg,
        "Timing/img_per_sec": tick.nimg / max(tick.seconds, 1e-9),
        "Timing/maintenance_sec": tick.maintenance_seconds,
        **values,
    }


def warm_up_row(cur_nimg: int, values: Mapping[str, float]) -> dict[str, Any]:
    """Row of `stats.jsonl` for the warm-up, at a negative `cur_nimg`, because the generator is unchanged."""
    return {"Progress/kimg": cur_nimg / 1000, "Progress/cur_nimg": cur_nimg, **values}


def tick_line(tick: Tick, values: Mapping[str, float], num_nonfinite: int) -> str:
    """Status line: StyleGAN's fields in StyleGAN's order, then Refine's."""
    return (
        f"tick {tick.number:<5d} kimg {tick.kimg:<8s} time {format_time(tick.total_seconds):<12s} "
        f"sec/tick {tick.seconds:<7.1f} sec/kimg {tick.sec_per_kimg:<7.2f} "
        f"maintenance {tick.maintenance_seconds:<6.1f} cpumem {values['Resources/cpu_mem_gb']:<6.2f} "
        f"gpumem {values['Resources/peak_gpu_mem_gb']:<6.2f} "
        f"reserved {values['Resources/peak_gpu_mem_reserved_gb']:<6.2f} augment 0.000 "
        f"gap {values.get('Score/gap', 0):<8.5f} fake {values.get('Loss/fake', 0):<8.3f} "
        f"{_divergence(values)}drift {values.get('Drift/image', 0):<7.4f} nonfinite {num_nonfinite} "
        f"eta {format_time(tick.sec_per_kimg * tick.remaining_nimg / 1000)}"
    )


def _divergence(values: Mapping[str, float]) -> str:
    """Estimate of KL(generator, teacher) in nats with its standard error; empty if there is none."""
    if NATS not in values or STDERR not in values:
        return ""
    return f"nats {f'{values[NATS]:.4g}+-{values[STDERR]:.2g}':<14s} "
