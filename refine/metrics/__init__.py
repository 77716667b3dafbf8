"""Metrics of generators: those of the StyleGAN suite under its names, density and coverage, CMMD, DINOv2's distance.

    features (detectors.py) -> kept features (collect.py, moments.py) -> value (fid.py, kid.py, ...)

Values are pure functions of arrays: `fid`, `frechet_distance`, `kid`, `precision_recall`, `density_coverage`, `cmmd`,
`inception_score`; `fid_interval` and `kid_interval` say how well they are known.
`evaluate` measures a generator or a run's snapshots; a run calls `make_measure` once, and its result after each
snapshot; `python -m refine metrics` does the same from the command line.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# At once, because these functions have the names of their modules, which importing the module would bind here instead.
from refine.metrics.cmmd import cmmd
from refine.metrics.copies import Copies, copies
from refine.metrics.density_coverage import DensityCoverage, density_coverage
from refine.metrics.fid import FrechetDistance, fid, fid_interval, frechet_distance
from refine.metrics.inception_score import InceptionScore, inception_score
from refine.metrics.kid import kid, kid_interval
from refine.metrics.moments import Moments
from refine.metrics.precision_recall import PrecisionRecall, precision_recall

if TYPE_CHECKING:
    from refine.metrics.evaluation import evaluate
    from refine.metrics.metric import Metric, parse_metric, parse_metrics
    from refine.metrics.options import MetricOptions
    from refine.metrics.reference import Teacher
    from refine.metrics.stored_images import StoredImages
    from refine.metrics.suite import make_measure

_HOME = {
    "Metric": "metric",
    "MetricOptions": "options",
    "StoredImages": "stored_images",
    "Teacher": "reference",
    "evaluate": "evaluation",
    "make_measure": "suite",
    "parse_metric": "metric",
    "parse_metrics": "metric",
}
__all__ = [
    "Copies",
    "DensityCoverage",
    "FrechetDistance",
    "InceptionScore",
    "Metric",
    "MetricOptions",
    "Moments",
    "PrecisionRecall",
    "StoredImages",
    "Teacher",
    "cmmd",
    "copies",
    "density_coverage",
    "evaluate",
    "fid",
    "fid_interval",
    "frechet_distance",
    "inception_score",
    "kid",
    "kid_interval",
    "make_measure",
    "parse_metric",
    "parse_metrics",
    "precision_recall",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"refine.metrics.{_HOME[name]}"), name)
