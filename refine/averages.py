"""Means of what steps report, by name and by band of noise levels, over all processes.

Sums stay on the device until somebody asks: reading a number there would make every step wait for the GPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from refine import distributed

SIGMA_BANDS = (0.0, 0.1, 0.4, 1.5, 6.0, math.inf)  # what is logged by noise level is averaged over these


class Averages:
    """Accumulates values since it was made."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}  # name -> [(sum, count)], or one such row for each band

    def add(self, name: str, values: Tensor) -> None:
        """Adds the values of a tensor of any shape."""
        self._accumulate(name, torch.stack([values.detach().sum(), values.new_tensor(float(values.numel()))])[None])

    def add_by_band(self, name: str, values: Tensor, sigma: Tensor) -> None:
        """Adds values [N] to `name` and to the band of noise levels, sigma [N], that each belongs to."""
        self.add(name, values)
        inner = torch.tensor(SIGMA_BANDS[1:-1], device=sigma.device, dtype=sigma.dtype)
        rows = torch.stack([values.detach(), torch.ones_like(values)], dim=1)
        totals = rows.new_zeros(len(SIGMA_BANDS) - 1, 2)
        self._accumulate(f"{name}/sigma", totals.index_add_(0, torch.bucketize(sigma, inner), rows))

    def means(self) -> dict[str, float]:
        """The mean of everything that any process added, by name; the same at every process, which all have to ask.

        `add_by_band("Loss/fake", ...)` gives `Loss/fake` and, for bands that occurred, `Loss/fake/sigma_0.1_0.4`.
        """
        merged: dict[str, Tensor] = {}
        for totals in distributed.gather({name: t.cpu().double() for name, t in self._totals.items()}):
            for name, total in totals.items():
                merged[name] = merged[name] + total if name in merged else total
        means = {}
        for name, total in merged.items():
            for band, (value, count) in enumerate(total.tolist()):
                if count:
                    bounds = f"_{SIGMA_BANDS[band]:g}_{SIGMA_BANDS[band + 1]:g}" if len(total) > 1 else ""
                    means[name + bounds] = value / count
        return means

    def _accumulate(self, name: str, totals: Tensor) -> None:
        # float64 where there is such a thing: a tick adds up thousands of values.
        totals = totals if totals.device.type == "mps" else totals.double()
        self._totals[name] = self._totals[name] + totals if name in self._totals else totals
