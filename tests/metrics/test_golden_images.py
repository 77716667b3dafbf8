"""From images to features and values: what the StyleGAN suite made of the same images and networks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from refine.files.dataset import ImageDataset
from refine.files.images import to_uint8
from refine.metrics.detectors import Detector
from refine.metrics.fid import frechet_distance
from refine.metrics.inception_score import inception_score
from refine.metrics.kid import kid
from refine.metrics.metric import parse_metric
from refine.metrics.moments import Moments
from refine.metrics.ppl import PPL, path_distances, trimmed_mean
from refine.metrics.precision_recall import precision_recall
from refine.networks.plain_module import as_contract

FIXTURES = Path(__file__).parents[1] / "fixtures/metrics"
EXPECTED = json.loads((FIXTURES / "dataset_expected.json").read_text())
RESULTS = json.loads((FIXTURES / "results_s.json").read_text())
Arrays = Callable[[str], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def arrays(golden: Arrays) -> dict[str, np.ndarray]:
    return golden("metrics/features_s")


@pytest.fixture(scope="module")
def real_images(data: str) -> torch.Tensor:
    dataset = ImageDataset(data)
    return torch.from_numpy(np.concatenate(list(dataset.batches(range(len(dataset)), 50))))


@pytest.fixture(scope="module")
def generated_images(generator: Any, arrays: dict[str, np.ndarray]) -> torch.Tensor:
    z = torch.from_numpy(arrays["gen_z"])
    with torch.no_grad():
        return torch.cat([to_uint8(generator(part, torch.zeros(64, 0), noise_mode="const")) for part in z.split(64)])


# -- the data set -------------------------------------------------------------------------------------


def digest(image: np.ndarray) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def test_labels_and_images(data: str) -> None:
    dataset = ImageDataset(data)
    assert len(dataset) == EXPECTED["length"] and dataset.name == EXPECTED["name"]
    assert list(dataset.image_shape or ()) == EXPECTED["image_shape"] and dataset.label_dim == EXPECTED["label_dim"]
    assert dataset.raw_labels is not None and dataset.raw_labels.tolist() == EXPECTED["labels"]
    assert [digest(dataset.image(i)) for i in range(4)] == EXPECTED["first_images_sha256"]


@pytest.mark.parametrize("subset", EXPECTED["subsets"], ids=lambda s: str({k: s[k] for k in list(s)[:3]}))
def test_subsets(data: str, subset: dict[str, Any]) -> None:
    options = {name: subset[name] for name in ("max_size", "random_seed", "xflip") if name in subset}
    dataset = ImageDataset(data, **options)
    assert len(dataset) == subset["length"]
    assert digest(dataset.image(len(dataset) - 1)) == subset["image_sha256_last"]
    assert dataset.raw_labels is not None
    for index, item in enumerate(subset["details"]):
        raw_index = int(dataset.raw_indices[index])
        assert (raw_index, bool(dataset.flips[index])) == (item["raw_idx"], item["xflip"])
        assert int(dataset.raw_labels[raw_index]) == item["raw_label"]


# -- features -----------------------------------------------------------------------------------------


def test_features_of_the_data(
    real_images: torch.Tensor, arrays: dict[str, np.ndarray], inception: Detector, vgg: Detector
) -> None:
    for detector, name in ((inception, "real_inc"), (vgg, "real_vgg")):
        np.testing.assert_allclose(detector.features(real_images).numpy(), arrays[name], rtol=0, atol=2e-5)


def test_images_and_features_of_the_generator(
    generated_images: torch.Tensor, arrays: dict[str, np.ndarray], inception: Detector, vgg: Detector
) -> None:
    first = generated_images[:32].numpy().astype(int)
    off = np.abs(first - arrays["gen_images_first32"].astype(int))
    assert off.max() <= 1 and (off > 0).mean() < 1e-3  # truncation of what rounding moved across an integer
    np.testing.assert_allclose(inception.features(generated_images).numpy(), arrays["gen_inc"], rtol=0, atol=5e-3)
    np.testing.assert_allclose(vgg.features(generated_images).numpy(), arrays["gen_vgg"], rtol=0, atol=5e-3)
    np.testing.assert_allclose(inception.probabilities(generated_images).numpy(), arrays["gen_probs"], atol=1e-3)


def test_values_from_images(
    real_images: torch.Tensor, generated_images: torch.Tensor, inception: Detector, vgg: Detector
) -> None:
    """The whole way. Single pixels may be off by one, so the tolerance is wider than from recorded features."""
    records = {r["metric"]: r for r in reversed(RESULTS["main"])}
    records |= {"fid": RESULTS["main"][0]}
    real, generated = inception.features(real_images), inception.features(generated_images)
    assert frechet_distance(Moments.of(real), Moments.of(generated)).value == pytest.approx(
        records["fid"]["value"], rel=1e-5
    )
    value = kid(real.numpy(), generated.numpy(), 100, 1000, seed=0)
    assert value == pytest.approx(records["kid"]["value_in_float64_arithmetic"], rel=1e-5)
    score = inception_score(inception.probabilities(generated_images).numpy())
    assert score.mean == pytest.approx(records["is"]["value"]["mean"], rel=1e-5)
    assert score.std == pytest.approx(records["is"]["value"]["std"], rel=1e-3)
    found = precision_recall(vgg.features(real_images), vgg.features(generated_images), 3)
    expected = records["pr"]["float32_distances"]
    assert abs(found.precision - expected["precision"]) * 512 < 1.01
    assert abs(found.recall - expected["recall"]) * 256 < 1.01


# -- path length --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ppl2_wend", "ppl_zfull"])
def test_path_length(name: str, generator: Any, vgg: Detector, arrays: dict[str, np.ndarray]) -> None:
    """The recorded draws come from one seed, batch by batch: positions, latents, noise (of the first four batches)."""
    record = next(r for r in RESULTS["ppl"] if r["metric"] == name)
    spec = parse_metric(name)
    assert isinstance(spec, PPL)
    assert (spec.space, spec.sampling, spec.crop) == tuple(record["args"][k] for k in ("space", "sampling", "crop"))
    noise_names = [k.split(".noise.")[1] for k in arrays if k.startswith("ppl2_wend_uncond.noise.")]
    assert noise_names == [k for k, _ in generator.named_buffers() if k.endswith("noise_const")]
    torch.manual_seed(record["seed"])
    distances = []
    for batch in range(20):
        t, z = torch.rand([2]), torch.randn([4, 64])
        np.testing.assert_array_equal(t.numpy(), arrays[f"{name}_uncond.t"][2 * batch : 2 * batch + 2])
        np.testing.assert_array_equal(z.numpy(), arrays[f"{name}_uncond.z"][batch])
        noise = []
        for key in noise_names:
            recorded = arrays[f"ppl2_wend_uncond.noise.{key}"]
            layer = torch.randn(recorded.shape[1:])
            if batch < 4:
                np.testing.assert_array_equal(layer.numpy(), recorded[batch])
            noise.append(layer.expand(2, 1, *layer.shape))  # both paths of a batch have the same
        z0, z1 = z.chunk(2)
        t = t if spec.sampling == "full" else t * 0
        distances.append(
            path_distances(
                as_contract(generator),
                vgg.lpips,
                (z0, z1),
                torch.zeros(2, 0),
                t,
                noise,
                space=spec.space,
                crop=spec.crop,
            )
        )
    found = torch.cat(distances).numpy()
    np.testing.assert_allclose(found, arrays[f"{name}_uncond.dist"], rtol=2e-2)
    assert trimmed_mean(found) == pytest.approx(record["results"]["ppl"], rel=3e-3)
    assert trimmed_mean(arrays[f"{name}_uncond.dist"]) == pytest.approx(record["results"]["ppl"], rel=1e-6)
