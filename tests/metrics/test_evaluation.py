"""`refine.evaluate`: pickles, runs, modules and functions against data sets, statistics and teachers."""

from __future__ import annotations

import importlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import refine
from refine.errors import UserError
from refine.metrics import Teacher, evaluate
from refine.networks.loading import load_generator, load_teacher

FindPath = Callable[[str], Path]
NAMES = "fid60_full,is60"


def results(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [row["results"] for row in rows]


@pytest.fixture
def pickle_path(fixture_path: FindPath) -> Path:
    return fixture_path("sg2ada/a_uncond32.pkl")


def test_it_is_offered_where_a_reader_looks_first() -> None:
    assert refine.evaluate is evaluate
    from refine.diffusion import heun_sample
    from refine.metrics import Moments, fid, frechet_distance, inception_score, kid, precision_recall

    assert all(map(callable, (fid, frechet_distance, inception_score, kid, precision_recall, heun_sample, Moments.of)))
    metrics = importlib.import_module("refine.metrics")
    importlib.import_module("refine.metrics.suite")  # which imports the modules of these names
    assert callable(metrics.fid) and callable(metrics.kid)


def test_every_spelling_of_a_generator(
    pickle_path: Path, data: str, detectors: dict[str, str], generator: Any, tmp_path: Path
) -> None:
    expected = results(evaluate(str(pickle_path), NAMES, data, device="cpu", **detectors))
    assert [list(values) for values in expected] == [["fid60_full"], ["is60_mean", "is60_std"]]
    for given in (pickle_path, load_generator(str(pickle_path)), generator):
        rows = evaluate(given, NAMES.split(","), Path(data), device="cpu", **detectors)
        assert results(rows) == expected and json.loads(json.dumps(rows)) == rows
    run = tmp_path / "00000-run"
    run.mkdir()
    for kimg in (4, 0):
        shutil.copy(pickle_path, run / f"network-snapshot-{kimg:06d}.pkl")
    rows = evaluate(run, NAMES, data, device="cpu", **detectors)
    assert [(row["metric"], row["snapshot_pkl"]) for row in rows] == [
        (metric, f"network-snapshot-{kimg:06d}.pkl") for kimg in (0, 4) for metric in ("fid60_full", "is60")
    ]
    assert results(rows) == expected * 2 and not list(run.glob("metric-*"))


def test_functions_and_modules_of_ones_own(generator: Any, data: str, detectors: dict[str, str]) -> None:
    """Noise is constant, because a function has no layers whose noise could be given by image number."""
    expected = results(evaluate(generator, NAMES, data, noise_mode="const", device="cpu", **detectors))

    def latents_only(z: torch.Tensor) -> torch.Tensor:
        return generator(z, torch.zeros(len(z), 0), noise_mode="const")

    with pytest.raises(UserError, match="z_dim"):
        evaluate(latents_only, NAMES, data, device="cpu", **detectors)
    latents_only.z_dim = generator.z_dim  # type: ignore[attr-defined]

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.z_dim = generator, generator.z_dim

        def forward(self, z: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            assert not self.training
            return self.inner(z, c, noise_mode="const")

    module = Plain().train()
    for given in (latents_only, module):
        assert results(evaluate(given, NAMES, data, device="cpu", **detectors)) == expected
    assert module.training
    module.eval()
    with pytest.raises(UserError, match="truncation_psi"):
        evaluate(latents_only, NAMES, data, truncation_psi=0.5, device="cpu", **detectors)


def test_every_kind_of_reference(
    generator: Any, data: str, detectors: dict[str, str], fixture_path: FindPath, tmp_path: Path
) -> None:
    statistics = tmp_path / "own-32x32.npz"
    np.savez(statistics, mu=np.zeros(48), sigma=np.eye(48))
    path = fixture_path("edm/s1_edm_ddpmpp_uncond16.pkl")
    loaded = load_teacher(str(path))
    unpacked = tmp_path / "unpacked"
    shutil.unpack_archive(data, unpacked)
    edm2 = tmp_path / "img32.pkl"
    edm2.write_bytes(pickle.dumps({"fid": {"mu": np.zeros(48), "sigma": np.eye(48)}}))
    kinds = {}
    for name, reference in {
        "zip": data,
        "folder": unpacked,
        "npz": statistics,
        "edm2": edm2,
        "pickle": path,
        "loaded": loaded,
        "teacher": Teacher(loaded.network, str(path), "0" * 64),  # type: ignore[arg-type]
    }.items():
        (row,) = evaluate(generator, "fid20_full", reference, ref_images=8, batch=8, device="cpu", **detectors)
        kinds[name] = row["provenance"]["reference"]["kind"]
    assert kinds == {
        "zip": "data", "folder": "data", "npz": "statistics", "edm2": "statistics",
        "pickle": "teacher", "loaded": "teacher", "teacher": "teacher",
    }  # fmt: skip
    (row,) = evaluate(generator, "is20", device="cpu", **detectors)
    assert row["provenance"]["reference"] is None
    with pytest.raises(UserError, match="`reference`"):
        evaluate(generator, "fid20_full", device="cpu", **detectors)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "says"),
    [
        ((3, "is20"), {}, TypeError, "3"),
        (("missing.pkl", "is20"), {}, UserError, "missing.pkl"),
        (("G", "fid20_ful"), {}, UserError, "fid20_full"),
        (("G", "fid20_full", 7), {}, TypeError, "7"),
        (("G", "fid20_full", "missing.zip"), {}, UserError, "missing.zip"),
        (("G",), {"seeds": 3}, TypeError, "seeds"),
        (("G",), {"fid_seeds": 0}, UserError, "fid"),
    ],
)
def test_what_cannot_be(
    generator: Any,
    detectors: dict[str, str],
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    error: type[Exception],
    says: str,
) -> None:
    given = tuple(generator if value == "G" else value for value in arguments)
    with pytest.raises(error, match=says):
        evaluate(*given, device="cpu", **detectors, **options)


def test_images_of_the_wrong_shape(data: str, detectors: dict[str, str]) -> None:
    def flat(z: torch.Tensor) -> torch.Tensor:
        return z

    flat.z_dim = 4  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"\[1, 4\]"):
        evaluate(flat, "is20", device="cpu", **detectors)
