"""Measuring a generator as the StyleGAN suite does: FID, KID, precision and recall, inception score, path length.

    features (detectors.py) -> statistics (moments.py) -> value (fid.py, kid.py, precision_recall.py, ...)

The values are pure functions of arrays. `sampler.py` draws the generator's images, `dataset.py` and `reference.py`
know what they are compared with, `suite.py` puts all together. A run calls `make_measure` once and what it returns
after each snapshot; `python -m refine metrics` measures a pickle.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refine.metrics.metric import MetricSpec, parse_metric, parse_metrics
    from refine.metrics.options import MetricOptions
    from refine.metrics.reference import Teacher
    from refine.metrics.suite import make_measure

_HOME = {
    "MetricOptions": "options",
    "MetricSpec": "metric",
    "parse_metric": "metric",
    "parse_metrics": "metric",
    "Teacher": "reference",
    "make_measure": "suite",
}
__all__ = ["MetricOptions", "MetricSpec", "Teacher", "make_measure", "parse_metric", "parse_metrics"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"refine.metrics.{_HOME[name]}"), name)
