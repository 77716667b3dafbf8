"""Metrics that are measured for several ranges of latents, so that their spread over seeds shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refine.metrics.metric import Metric, Results


@dataclass(frozen=True)
class Seeded(Metric):
    """A metric that is computed for several ranges of latents on request."""

    def ranges(self, fid_seeds: int) -> tuple[range, ...]:
        """See `Metric.ranges`."""
        return tuple(range(i * self.num_gen, (i + 1) * self.num_gen) for i in range(fid_seeds))

    def over_ranges(self, label: str, values: Sequence[float]) -> Results:
        """The first value; with several, also each, their minimum, as EDM gives it, mean and standard deviation."""
        found = {label: values[0]}
        if len(values) > 1:
            for number, value in enumerate(values):
                first = number * self.num_gen
                found[f"{label}_seeds{first}-{first + self.num_gen - 1}"] = value
            found[f"{label}_min_of_{len(values)}"] = min(values)
            found[f"{label}_mean_of_{len(values)}"] = float(np.mean(values))
            found[f"{label}_std_of_{len(values)}"] = float(np.std(values, ddof=1))
        return Results(found)
