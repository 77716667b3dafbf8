"""Means of what steps report, by name and by band of noise levels, over all processes.

Sums stay on the device until somebody asks: reading a number there would make every step wait for the GPU.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from refine.runtime import distributed

SIGMA_BANDS = (0.0, 0.1, 0.4, 1.5, 6.0, math.inf)  # what is logged by noise level is averaged over these


class RunningMeans:
    """Accumulates values since it was made; what is not finite is left out.

    Args:
        totals: what an earlier process had accumulated, from `merged`.
    """

    def __init__(self, totals: dict[str, Tensor] | None = None) -> None:
        self._totals = dict(totals or {})  # name -> [(sum, count[, sum of squares])], or such a row for each band

    def add(self, name: str, values: Tensor) -> None:
        """Adds the values of a tensor of any shape."""
        self._accumulate(name, _sums_and_counts(values.detach().reshape(-1)).sum(0, keepdim=True))

    def add_by_band(self, name: str, values: Tensor, sigma: Tensor) -> None:
        """Adds values [N] to `name` and to the band of noise levels, sigma [N], that each belongs to."""
        self.add(name, values)
        rows = _sums_and_counts(values.detach())
        totals = rows.new_zeros(len(SIGMA_BANDS) - 1, 2)
        bands = torch.bucketize(sigma, _inner_bounds(sigma.device, sigma.dtype))
        self._accumulate(f"{name}/sigma", totals.index_add_(0, bands, rows))

    def add_terms(self, name: str, terms: Tensor, sigma: Tensor) -> None:
        """Adds terms [N] of an integral over noise levels that their mean estimates.

        `means` gives that mean, its standard error as `<name>_stderr`, and what each band contributes to both: unlike
        those of `add_by_band`, the parts of the bands add up to the whole.

        Args:
            name: Name of the integral.
            terms: Value of each image, independent of each other.
            sigma: Noise levels, [N].
        """
        finite = terms.isfinite()
        terms = torch.where(finite, terms.detach(), 0)
        bands = torch.bucketize(sigma, _inner_bounds(sigma.device, sigma.dtype))
        parts = torch.nn.functional.one_hot(bands, len(SIGMA_BANDS) - 1) * terms[:, None]
        for key, columns in ((name, terms[:, None]), (f"{name}/sigma", parts)):
            sums = [columns.sum(0), finite.sum().to(terms.dtype).expand(columns.shape[1]), columns.square().sum(0)]
            self._accumulate(key, torch.stack(sums, dim=1))

    def merged(self) -> dict[str, Tensor]:
        """What all processes accumulated, float64 on the CPU; they all have to ask."""
        merged: dict[str, Tensor] = {}
        for totals in distributed.gather({name: t.cpu().double() for name, t in self._totals.items()}):
            for name, total in totals.items():
                merged[name] = merged[name] + total if name in merged else total
        return merged

    def means(self) -> dict[str, float]:
        """The mean of everything that any process added, by name; the same at every process, which all have to ask.

        `add_by_band("Loss/fake", ...)` gives `Loss/fake` and, for bands that occurred, `Loss/fake/sigma_0.1_0.4`.
        """
        means = {}
        for name, total in self.merged().items():
            for band, (value, count, *square) in enumerate(total.tolist()):
                bounds = f"_{SIGMA_BANDS[band]:g}_{SIGMA_BANDS[band + 1]:g}" if len(total) > 1 else ""
                if not count or (square and bounds and not square[0]):  # nothing was seen there
                    continue
                means[name + bounds] = value / count
                if square and count > 1:
                    base = name.removesuffix("/sigma")
                    variance = max(square[0] / count - (value / count) ** 2, 0.0)
                    means[f"{base}_stderr{name[len(base) :]}{bounds}"] = math.sqrt(variance / (count - 1))
        return means

    def _accumulate(self, name: str, totals: Tensor) -> None:
        # float64 where there is such a thing: a tick adds up thousands of values.
        totals = totals if totals.device.type == "mps" else totals.double()
        before = self._totals.get(name)
        self._totals[name] = totals if before is None else before.to(totals.device, totals.dtype) + totals


def _sums_and_counts(values: Tensor) -> Tensor:
    """[N] -> [N, 2]: each value and 1, or two zeros for what is not finite."""
    finite = values.isfinite()
    return torch.stack([torch.where(finite, values, 0), finite.to(values.dtype)], dim=1)


@lru_cache(maxsize=8)
def _inner_bounds(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Made once: a tensor that is copied to a GPU makes the step wait for it."""
    return torch.tensor(SIGMA_BANDS[1:-1], device=device, dtype=dtype)
