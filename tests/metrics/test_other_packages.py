"""Values beside those of torch-fidelity, clean-fid and pytorch-fid, where these are installed.

They need torchvision, which needs a PyTorch of its own choice, so they are no dependencies: `pip install` them to run
these tests. prdc, which needs scikit-learn only, is among the packages for development.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from refine.metrics import density_coverage, fid, frechet_distance
from refine.metrics.inception_score import inception_score
from refine.metrics.kid import kid
from refine.metrics.moments import Moments
from refine.metrics.precision_recall import precision_recall

pytestmark = pytest.mark.slow


def features(count: int, seed: int, smallest: float = 1.0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 64)))[0]
    return draw.normal(size=(count, 64)) * np.geomspace(1, smallest, 64) @ rotation + draw.normal(size=64) * 0.1


@pytest.mark.parametrize("smallest", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("package", ["torch_fidelity", "cleanfid", "pytorch_fid"])
def test_fid(package: str, smallest: float) -> None:
    a, b = (Moments.of(features(n, n, smallest)) for n in (400, 500))
    pytest.importorskip(package, exc_type=ImportError)
    if package == "torch_fidelity":
        from torch_fidelity.metric_fid import fid_statistics_to_metric

        sets = [{"mu": m.mean, "sigma": m.covariance(1)} for m in (a, b)]
        (value,) = fid_statistics_to_metric(*sets, False).values()
    elif package == "cleanfid":
        from cleanfid.fid import frechet_distance as frechet_distance_of_clean_fid

        value = frechet_distance_of_clean_fid(a.mean, a.covariance(1), b.mean, b.covariance(1))
    else:
        from pytorch_fid.fid_score import calculate_frechet_distance

        value = calculate_frechet_distance(a.mean, a.covariance(1), b.mean, b.covariance(1))
    assert frechet_distance(a, b, ddof=1).value == pytest.approx(value, rel=1e-6)
    assert float(fid(a.mean, a.covariance(1), b.mean, b.covariance(1))) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("nhood_size", [1, 3, 5])
def test_precision_recall_density_and_coverage_of_prdc(nhood_size: int) -> None:
    prdc = pytest.importorskip("prdc")
    real, generated = features(300, 1), features(250, 2) * 1.1
    theirs = prdc.compute_prdc(real, generated, nearest_k=nhood_size)
    ours = density_coverage(real, generated, nhood_size)
    assert ours.density == pytest.approx(theirs["density"]) and ours.coverage == pytest.approx(theirs["coverage"])
    found = precision_recall(real, generated, nhood_size, half=False)
    assert found.precision == pytest.approx(theirs["precision"]) and found.recall == pytest.approx(theirs["recall"])


def test_kid_of_clean_fid() -> None:
    fid_module = pytest.importorskip("cleanfid.fid", exc_type=ImportError)
    a, b = features(400, 1), features(500, 2)
    np.random.seed(0)
    value = fid_module.kernel_distance(a, b, num_subsets=50, max_subset_size=100)
    assert kid(a, b, 50, 100, seed=0) == pytest.approx(value, rel=1e-10)


def test_kid_precision_recall_and_inception_score_of_torch_fidelity() -> None:
    pytest.importorskip("torch_fidelity", exc_type=ImportError)
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    generated, real = features(400, 1), features(500, 2)
    first, second = torch.from_numpy(generated), torch.from_numpy(real)
    theirs = kid_features_to_metric(first, second, kid_subsets=50, kid_subset_size=100, rng_seed=0, verbose=False)
    assert kid(real, generated, 50, 100, seed=0) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-10)
    theirs = prc_features_to_metric(
        first.float(), second.float(), prc_neighborhood=3, prc_batch_size=100, verbose=False
    )
    found = precision_recall(real, generated, 3, half=False)
    assert found.precision == pytest.approx(theirs["precision"], abs=1e-7)
    assert found.recall == pytest.approx(theirs["recall"], abs=1e-7)
    logits = torch.from_numpy(features(500, 3))[:, :10] * 2
    theirs = isc_features_to_metric(logits, splits=10, shuffle=False)
    score = inception_score(torch.softmax(logits, dim=1).numpy())
    assert score.mean == pytest.approx(theirs["inception_score_mean"], rel=1e-10)
    assert score.std == pytest.approx(theirs["inception_score_std"], rel=1e-8)
