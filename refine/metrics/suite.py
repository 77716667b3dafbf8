"""All together: from options and networks to the rows of `metric-<name>.jsonl`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from refine.diffusion import Denoiser
from refine.metrics.options import MetricOptions

# (generator, snapshot's file name) -> rows of metric-<name>.jsonl. All processes call it and get the same rows.
Measure = Callable[[torch.nn.Module, str], Sequence[dict[str, Any]]]


@dataclass(frozen=True)
class Teacher:
    """A teacher as a yardstick, for `ref=teacher` and for finding its data set's statistics.

    Attributes:
        network: the denoiser, on any device.
        spec: what the user called it: path, URL or zoo name.
        sha256: of its file.
    """

    network: Denoiser
    spec: str
    sha256: str


def make_measure(options: MetricOptions, device: torch.device, teacher: Teacher | None = None) -> Measure:
    """Gets detectors and the reference ready, so that what cannot work is known before a run begins.

    All processes call this with the same arguments.

    Args:
        options: what to measure and how.
        device: where generators, detectors and the teacher run.
        teacher: needed for `ref=teacher`, and for `ref=auto` without `data`.

    Returns:
        A function that measures one snapshot: (generator, snapshot's file name) -> rows. It raises `UserError` where
        the generator does not fit the reference, and lets KeyboardInterrupt through: nothing is half-written.

    Raises:
        UserError: a detector or reference cannot be had, or does not fit the other. A run for which the user asked for
            no metric in particular should say so in one line and go on without.
    """
    raise NotImplementedError("the suite comes with one of the next commits")
