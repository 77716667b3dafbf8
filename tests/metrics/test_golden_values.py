"""Values of the StyleGAN suite's own functions on recorded features (tests/fixtures/metrics)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from refine.metrics.fid import frechet_distance
from refine.metrics.inception_score import inception_score
from refine.metrics.kid import kid
from refine.metrics.moments import Moments
from refine.metrics.precision_recall import precision_recall

RESULTS = json.loads((Path(__file__).parents[1] / "fixtures/metrics/results_s.json").read_text())
PREFIXES = {"main": "", "singular": "singular_", "close": "close_"}

Arrays = Callable[[str], dict[str, np.ndarray]]


def records(metric: str) -> list[Any]:
    found = [
        pytest.param(group, record, id=f"{group}-{'-'.join(str(v) for v in record['args'].values())}")
        for group in PREFIXES
        for record in RESULTS[group]
        if record["metric"] == metric
    ]
    assert found
    return found


def features(golden: Arrays, group: str, kind: str = "inc") -> tuple[np.ndarray, np.ndarray]:
    arrays, prefix = golden("metrics/features_s"), PREFIXES[group]
    return arrays[f"{prefix}real_{kind}"], arrays[f"{prefix}gen_{kind}"]


@pytest.mark.parametrize(("group", "record"), records("fid"))
def test_fid(golden: Arrays, group: str, record: dict[str, Any]) -> None:
    real, generated = features(golden, group)
    args = record["args"]
    result = frechet_distance(Moments.of(real[: args["max_real"]]), Moments.of(generated[: args["num_gen"]]))
    assert result.value == pytest.approx(record["value"], rel=1e-6)
    assert result.value == pytest.approx(record["independent_float64"], rel=1e-6 if group == "singular" else 1e-11)
    assert result.error < 1e-6 * result.value


@pytest.mark.parametrize("group", ["main", "close"])
def test_fid_with_the_covariance_of_edm(golden: Arrays, group: str) -> None:
    (record,) = (r for r in RESULTS[group] if r["metric"] == "fid_unbiased_cov")
    real, generated = (Moments.of(f) for f in features(golden, group))
    assert frechet_distance(real, generated, ddof=1).value == pytest.approx(record["value"], rel=1e-10)


@pytest.mark.parametrize(("group", "record"), records("kid"))
def test_kid(golden: Arrays, group: str, record: dict[str, Any]) -> None:
    args = record["args"]
    real, generated = features(golden, group)
    value = kid(real, generated[: args["num_gen"]], args["num_subsets"], args["max_subset_size"], seed=0)
    assert value == pytest.approx(record["value_in_float64_arithmetic"], rel=1e-9)
    assert value == pytest.approx(record["value"], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("block_bytes", [10_000, 1 << 28])
@pytest.mark.parametrize(("group", "record"), records("pr"))
def test_precision_recall(
    golden: Arrays, group: str, record: dict[str, Any], dtype: torch.dtype, block_bytes: int
) -> None:
    real, generated = features(golden, group, "vgg" if group == "main" else "inc")
    scale = np.float32(3 if group == "singular" else 1)  # see the README of the fixtures
    nhood_size = record["args"]["nhood_size"]
    found = precision_recall(real * scale, generated * scale, nhood_size, dtype=dtype, max_block_bytes=block_bytes)
    expected = record["float32_distances"]
    assert abs(found.precision - expected["precision"]) * len(generated) < 1.01
    assert abs(found.recall - expected["recall"]) * len(real) < 1.01
    for name, count in (("precision", len(generated)), ("recall", len(real))):
        assert abs(getattr(found, name) - record["value"][name]) * count < 3.01


@pytest.mark.parametrize(("group", "record"), records("is"))
def test_inception_score(golden: Arrays, group: str, record: dict[str, Any]) -> None:
    probabilities = golden("metrics/features_s")[f"{PREFIXES[group]}gen_probs"]
    score = inception_score(probabilities, record["args"]["num_splits"])
    assert score.mean == pytest.approx(record["value"]["mean"], rel=1e-5)
    assert score.std == pytest.approx(record["value"]["std"], rel=1e-5, abs=1e-6)
