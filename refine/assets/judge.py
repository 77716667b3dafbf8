"""What a run on the digits pair is judged by: the figures of `figures.py` as rows of a metric."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from refine.assets.digits import shipped_detector, shipped_split
from refine.assets.figures import figures, generator_sampler, sample

Measure = Callable[[torch.nn.Module, str], list[dict[str, Any]]]


def digits_measure(split: str = "test", count: int = 5000, seed: int = 0) -> Measure:
    """For `refine(config, measure=...)`: measures a snapshot's moving average.

    Args:
        split: the real images to compare with, "selection" or "test".
        count: images that are drawn, the classes in turn.
        seed: of their latents and noise, the same for every snapshot.

    Returns:
        A function from a generator and its snapshot's name to one row for `metric-digits<count>_<split>.jsonl`.
    """
    detector, reals = shipped_detector(), shipped_split(split)
    name = f"digits{count}_{split}"

    def measure(generator: torch.nn.Module, snapshot: str) -> list[dict[str, Any]]:
        start = time.time()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            images, classes = sample(generator_sampler(generator), count)
        found = asdict(figures(images, classes, reals, detector))
        shares = found.pop("class_shares")
        seconds = time.time() - start
        row = {
            "results": {f"{key}_{name}": value for key, value in found.items()},
            "metric": name,
            "total_time": seconds,
            "total_time_str": f"{seconds:.0f}s",
            "num_gpus": 1,
            "snapshot_pkl": snapshot,
            "timestamp": time.time(),
            "provenance": {
                "detector": "digits-detector.pt (digit-CNN features, not Inception)",
                "data": f"digits-{split}.zip",
                "num_images": count,
                "seed": seed,
                "class_shares": list(shares),
            },
        }
        return [row]

    return measure
