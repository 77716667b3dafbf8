"""Running means of the values that steps report, by name and noise-level band, over all processes.

Sums stay on the device until they are read, because reading a value makes the step wait for the GPU.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from refine.runtime import distributed

SIGMA_BANDS = (0.0, 0.1, 0.4, 1.5, 6.0, math.inf)  # bounds of the noise-level bands


class RunningMeans:
    """Accumulator of values; values that are not finite are left out.

    Args:
        totals: Totals to start from, as returned by `merged`; None for none.
    """

    def __init__(self, totals: dict[str, Tensor] | None = None) -> None:
        self._totals = dict(totals or {})  # name -> [(sum, count[, sum of squares])], or such a row for each band

    def add(self, name: str, values: Tensor) -> None:
        """Adds the values of a tensor of any shape to `name`."""
        self._accumulate(name, _sums_and_counts(values.detach().reshape(-1)).sum(0, keepdim=True))

    def add_by_band(self, name: str, values: Tensor, sigma: Tensor) -> None:
        """Adds values to `name`, and each value to the noise-level band that it belongs to.

        Args:
            name: Name of the statistic.
            values: Value of each image, [N].
            sigma: Noise level of each image, [N].
        """
        self.add(name, values)
        rows = _sums_and_counts(values.detach())
        totals = rows.new_zeros(len(SIGMA_BANDS) - 1, 2)
        bands = torch.bucketize(sigma, _inner_bounds(sigma.device, sigma.dtype))
        self._accumulate(f"{name}/sigma", totals.index_add_(0, bands, rows))

    def add_terms(self, name: str, terms: Tensor, sigma: Tensor) -> None:
        """Adds terms whose mean estimates an integral over noise levels.

        `means` gives the mean, its standard error as `<name>_stderr`, and the contribution of each band to both.
        Unlike the bands of `add_by_band`, these contributions add up to the whole.

        Args:
            name: Name of the integral.
            terms: Term of each image, [N]; terms have to be independent.
            sigma: Noise level of each image, [N].
        """
        finite = terms.isfinite()
        terms = torch.where(finite, terms.detach(), 0)
        bands = torch.bucketize(sigma, _inner_bounds(sigma.device, sigma.dtype))
        parts = torch.nn.functional.one_hot(bands, len(SIGMA_BANDS) - 1) * terms[:, None]
        for key, columns in ((name, terms[:, None]), (f"{name}/sigma", parts)):
            sums = [columns.sum(0), finite.sum().to(terms.dtype).expand(columns.shape[1]), columns.square().sum(0)]
            self._accumulate(key, torch.stack(sums, dim=1))

    def merged(self) -> dict[str, Tensor]:
        """Totals over all processes, float64 on the CPU. All processes have to call this."""
        merged: dict[str, Tensor] = {}
        for totals in distributed.gather({name: t.cpu().double() for name, t in self._totals.items()}):
            for name, total in totals.items():
                merged[name] = merged[name] + total if name in merged else total
        return merged

    def means(self) -> dict[str, float]:
        """Means over all processes, by name; the same on every process. All processes have to call this.

        `add_by_band("Loss/fake", ...)` gives `Loss/fake` and, for bands with values, `Loss/fake/sigma_0.1_0.4`.
        """
        means = {}
        for name, total in self.merged().items():
            for band, (value, count, *square) in enumerate(total.tolist()):
                bounds = f"_{SIGMA_BANDS[band]:g}_{SIGMA_BANDS[band + 1]:g}" if len(total) > 1 else ""
                if not count or (square and bounds and not square[0]):  # band without values
                    continue
                means[name + bounds] = value / count
                if square and count > 1:
                    base = name.removesuffix("/sigma")
                    variance = max(square[0] / count - (value / count) ** 2, 0.0)
                    means[f"{base}_stderr{name[len(base) :]}{bounds}"] = math.sqrt(variance / (count - 1))
        return means

    def _accumulate(self, name: str, totals: Tensor) -> None:
        # float64 on devices that support it: a tick adds up thousands of values.
        totals = totals if totals.device.type == "mps" else totals.double()
        before = self._totals.get(name)
        self._totals[name] = totals if before is None else before.to(totals.device, totals.dtype) + totals


def _sums_and_counts(values: Tensor) -> Tensor:
    """Value and count of each value, [N] -> [N, 2]; two zeros for a value that is not finite."""
    finite = values.isfinite()
    return torch.stack([torch.where(finite, values, 0), finite.to(values.dtype)], dim=1)


@lru_cache(maxsize=8)
def _inner_bounds(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Inner bounds of the bands, cached: copying them to a GPU makes the step wait."""
    return torch.tensor(SIGMA_BANDS[1:-1], device=device, dtype=dtype)
