"""Values of prdc, torch-fidelity and cmmd-pytorch on recorded features (tests/fixtures/metrics2)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from refine.metrics import cmmd, density_coverage, frechet_distance, kid, precision_recall
from refine.metrics.moments import Moments

RECORD = json.loads((Path(__file__).parents[1] / "fixtures/metrics2/results2_s.json").read_text())
SETS = sorted(RECORD["results"])
NEIGHBORS = ("3", "5", "10")

Arrays = Callable[[str], dict[str, np.ndarray]]


@pytest.fixture(params=SETS)
def case(request: pytest.FixtureRequest, golden: Arrays) -> tuple[str, np.ndarray, np.ndarray, dict[str, Any]]:
    arrays, name = golden("metrics2/features2_s"), request.param
    return name, arrays[f"{name}.real"], arrays[f"{name}.gen"], RECORD["results"][name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("block_bytes", [5_000, 1 << 28])
def test_density_and_coverage(case: Any, dtype: torch.dtype, block_bytes: int) -> None:
    _, real, generated, expected = case
    for k in NEIGHBORS:
        found = density_coverage(real, generated, int(k), dtype=dtype, max_block_bytes=block_bytes)
        assert found.density == pytest.approx(expected["prdc"][k]["density"], rel=1e-12)
        assert found.coverage == pytest.approx(expected["prdc"][k]["coverage"], rel=1e-12)


def test_precision_and_recall(case: Any) -> None:
    name, real, generated, expected = case
    for k in NEIGHBORS if name != "ties" else ():  # which distances by dot products do not settle: see the README
        found = precision_recall(real, generated, int(k), half=False, dtype=torch.float64)
        assert found.precision == pytest.approx(expected["torch_fidelity_prc"][k]["precision"], rel=1e-6)
        assert found.recall == pytest.approx(expected["torch_fidelity_prc"][k]["recall"], rel=1e-6)


@pytest.mark.parametrize("block_bytes", [5_000, 1 << 28])
def test_cmmd(case: Any, block_bytes: int) -> None:
    _, real, generated, expected = case
    value = cmmd(real, generated, max_block_bytes=block_bytes)
    assert value == pytest.approx(expected["cmmd"], rel=1e-9, abs=1e-9)


def test_frechet_distance(case: Any) -> None:
    name, real, generated, expected = case
    value = frechet_distance(Moments.of(real), Moments.of(generated), ddof=1).value
    wanted = expected["frechet"]
    tolerance = {"wide": {"rel": 1e-6}, "identical": {"abs": 1e-6}}.get(name, {"rel": 1e-8})
    assert value == pytest.approx(wanted, **tolerance)


def test_kid_over_the_same_subsets(case: Any) -> None:
    _, real, generated, expected = case
    record = expected["kernel"]
    settings = RECORD["kernel_settings"]
    value = kid(real, generated, settings["kid_subsets"], record["subset_size"], seed=settings["rng_seed"])
    assert value == pytest.approx(record["mean"], rel=1e-9, abs=1e-9)
