"""Options and networks to rows: names, provenance, references, caches, errors."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import io
import json
import logging
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gaussian_denoiser import GaussianDenoiser
from PIL import Image

from benchmarks.studies.random_vision_transformers import clip_weights, dinov2_weights
from refine import zoo
from refine.diffusion.guidance import Guided
from refine.diffusion.sampler import heun_sample
from refine.errors import UserError
from refine.files import download
from refine.files.dataset import ImageDataset
from refine.files.images import to_uint8
from refine.files.listing import open_files
from refine.metrics import MetricOptions, Teacher, cache, make_measure
from refine.metrics import collect as features
from refine.metrics import resolve as choices
from refine.metrics.batch_size import BatchSize
from refine.metrics.detectors import Detector, load_detector
from refine.metrics.fid import frechet_distance
from refine.metrics.inception_score import InceptionScore
from refine.metrics.metric import COUNT, Metric, Results, metric_classes, parse_metric
from refine.metrics.moments import Moments
from refine.metrics.reference import TeacherReference
from refine.metrics.reference_file import StatisticsReference
from refine.metrics.sampler import Sampler
from refine.metrics.suite import Suite
from refine.networks.plain_module import as_contract
from refine.networks.preconditioned import as_denoiser
from refine.zoo_entries import ZooEntry

CPU = torch.device("cpu")
Row = dict[str, Any]


def rows_of(generator: Any, teacher: Teacher | None = None, **options: Any) -> list[Row]:
    measure = make_measure(MetricOptions(**options), generator, CPU, teacher)
    return list(measure(generator, "network-snapshot-000004.pkl"))


@pytest.fixture
def teacher(denoiser: Any) -> Teacher:
    return Teacher(denoiser, "teachers/own.pkl", "ab" * 32)


# -- rows ---------------------------------------------------------------------------------------------


def test_a_row(generator: Any, data: str, detectors: dict[str, str]) -> None:
    (row,) = rows_of(generator, metrics=("fid100_full",), data=data, **detectors)
    keys = ["results", "metric", "total_time", "total_time_str", "num_gpus", "snapshot_pkl", "timestamp"]
    assert list(row) == [*keys, "provenance"]
    assert row["metric"] == "fid100_full" and list(row["results"]) == ["fid100_full"]
    assert row["num_gpus"] == 1 and row["snapshot_pkl"] == "network-snapshot-000004.pkl"
    assert json.loads(json.dumps(row)) == row
    about = row["provenance"]
    assert about["detector"]["name"] == "tiny_inception_s.pt" and len(about["detector"]["sha256"]) == 64
    assert about["detector"]["note"] == "not a known official detector"
    assert about["reference"]["kind"] == "data" and about["reference"]["num_images"] == 256
    assert (about["num_images"], about["seed"], about["resize"], about["truncation_psi"]) == (100, 0, None, 1.0)
    assert "does not compare with 50k" in about["note"] and "precision" in about


def test_values_are_those_of_the_parts(
    generator: Any, data: str, detectors: dict[str, str], inception: Detector
) -> None:
    """The FID of a row, put together by hand from images, features and moments."""
    (row,) = rows_of(generator, metrics=("fid100_full",), data=data, seed=3, **detectors)
    dataset = ImageDataset(data)
    real = inception.features(torch.from_numpy(np.stack([dataset.image(i) for i in range(256)])))
    generated = inception.features(Sampler(as_contract(generator), CPU, seed=3).images(range(100)))
    expected = frechet_distance(Moments.of(real), Moments.of(generated)).value
    assert row["results"]["fid100_full"] == pytest.approx(expected, rel=1e-6)


def test_all_metrics_at_once_are_those_one_by_one(generator: Any, data: str, detectors: dict[str, str]) -> None:
    names = ("fid100_full", "kid100_full", "pr1k3_full", "is100", "ppl2_wend20", "fid80", "fdd100_full")
    together = rows_of(generator, metrics=names, data=data, **detectors)
    assert [row["metric"] for row in together] == list(names)
    for name, row in zip(names, together, strict=True):
        (alone,) = rows_of(generator, metrics=(name,), data=data, **detectors)
        assert alone["results"] == pytest.approx(row["results"], rel=1e-6)
    results = {name: value for row in together for name, value in row["results"].items()}
    assert {"pr1k3_full_precision", "pr1k3_full_recall", "is100_mean", "is100_std", "ppl2_wend20"} <= results.keys()
    assert together[2]["provenance"]["detector"]["name"] == "tiny_vgg_s.pt"
    assert together[5]["provenance"]["reference"]["num_images"] == 80
    assert results["fdd100_full"] == results["fid100_full"]


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batches_of_any_size_give_the_same_values(
    generator: Any, data: str, detectors: dict[str, str], batch: int
) -> None:
    names = ("fid70_full", "kid70_full", "is70", "ppl2_wend8")
    expected = {
        k: v for row in rows_of(generator, metrics=names, data=data, **detectors) for k, v in row["results"].items()
    }
    rows = rows_of(generator, metrics=names, data=data, batch=batch, **detectors)
    found = {name: value for row in rows for name, value in row["results"].items()}
    tolerances = {"ppl2_wend8": 3e-3}  # a difference over 1e-8: see the README of the fixtures
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=tolerances.get(name, 1e-4), abs=1e-4), name


def test_several_ranges_of_latents(generator: Any, data: str, detectors: dict[str, str]) -> None:
    (row,) = rows_of(generator, metrics=("fid80_full",), data=data, fid_seeds=3, **detectors)
    values = dict(row["results"])
    ranges = [values[f"fid80_full_seeds{first}-{first + 79}"] for first in (0, 80, 160)]
    assert next(iter(values)) == "fid80_full" and values["fid80_full"] == ranges[0]
    assert values["fid80_full_min_of_3"] == min(ranges) and len(set(ranges)) == 3 and len(values) == 7
    assert values["fid80_full_mean_of_3"] == pytest.approx(np.mean(ranges))
    assert values["fid80_full_std_of_3"] == pytest.approx(np.std(ranges, ddof=1))
    (single,) = rows_of(generator, metrics=("fid80_full",), data=data, **detectors)
    assert single["results"] == {"fid80_full": pytest.approx(ranges[0], rel=1e-9)}


def test_other_distances_over_several_ranges(generator: Any, data: str, detectors: dict[str, str]) -> None:
    (row,) = rows_of(generator, metrics=("kid80_full",), data=data, fid_seeds=2, **detectors)
    first, second = (row["results"][f"kid80_full_seeds{name}"] for name in ("0-79", "80-159"))
    assert row["results"]["kid80_full"] == first and row["results"]["kid80_full_min_of_2"] == min(first, second)


def test_subsets_of_the_kid(generator: Any, data: str, detectors: dict[str, str]) -> None:
    (row,) = rows_of(generator, metrics=("kid80_full",), data=data, **detectors)
    assert row["provenance"]["subset_size"] == 80 and row["provenance"]["warning"].startswith("80 images, fewer than")
    options = {"metrics": ("kid80_full",), "data": data, "kid_subsets": 3, "kid_subset_size": 50, **detectors}
    (row,) = rows_of(generator, **options)
    assert (row["provenance"]["subsets"], row["provenance"]["subset_size"]) == (3, 50)
    assert "warning" not in row["provenance"]
    with pytest.raises(UserError, match="kid_subset_size=80"):
        rows_of(generator, **{**options, "kid_subset_size": 100})


def test_intervals_of_a_bootstrap(generator: Any, data: str, detectors: dict[str, str]) -> None:
    names = ("fid80_full", "kid80_full", "is80")
    plain = rows_of(generator, metrics=names, data=data, **detectors)
    rows = rows_of(generator, metrics=names, data=data, bootstrap=20, **detectors)
    assert [row["results"] for row in rows] == [row["results"] for row in plain]
    for row, name in zip(rows[:2], names, strict=False):
        low, high = row["provenance"]["intervals"][name]
        assert low < row["results"][name] < high and row["provenance"]["bootstrap"]["repetitions"] == 20
    assert "intervals" not in rows[2]["provenance"]


def test_density_coverage_and_spatial_features_in_rows(generator: Any, data: str, detectors: dict[str, str]) -> None:
    (row,) = rows_of(generator, metrics=("dc100_full",), data=data, **detectors)
    assert set(row["results"]) == {"dc100_full_density", "dc100_full_coverage"}
    assert row["provenance"]["detector"]["name"] == "tiny_vgg_s.pt"
    with pytest.raises(UserError, match="mixed_6/conv") as caught:
        rows_of(generator, metrics=("sfid60_full",), data=data, **detectors)
    assert detectors["detector"] in str(caught.value)


def test_fewer_images_than_dimensions_are_said(generator: Any, data: str, detectors: dict[str, str]) -> None:
    (row,) = rows_of(generator, metrics=("fid40_full",), data=data, **detectors)
    assert row["provenance"]["warning"].startswith("40 images for 48 dimensions")
    assert 0 <= row["provenance"]["rounding_error"] < 1e-6


# -- labels -------------------------------------------------------------------------------------------


def test_labels_of_the_data_that_do_not_fit(
    conditional: Any, data: str, detectors: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="32 pixels and the generator draws 16") as caught:
        rows_of(conditional, metrics=("fid20_full",), data=data, **detectors)
    assert data in str(caught.value)
    more = small_copy(data, tmp_path, labels=lambda i: i % 6)
    with pytest.raises(UserError, match="labels of width 6 and the generator 5") as caught:
        rows_of(conditional, metrics=("fid20_full",), data=more, **detectors)
    assert more in str(caught.value)
    gray = tmp_path / "gray"
    gray.mkdir()
    Image.new("L", (16, 16)).save(gray / "0.png")
    with pytest.raises(UserError, match="1 channels and the generator draws 3") as caught:
        rows_of(conditional, metrics=("fid20_full",), data=str(gray), **detectors)
    assert str(gray) in str(caught.value)
    (row,) = rows_of(
        conditional, metrics=("fid20_full",), data=small_copy(data, tmp_path, lambda i: i % 5), **detectors
    )
    assert row["metric"] == "fid20_full"


def small_copy(data: str, folder: Path, labels: Callable[[int], int] | None, size: int = 16, count: int = 60) -> str:
    """The first images at 16 pixels, in a folder of their own."""
    target = folder / f"copy{len(list(folder.iterdir()))}"
    target.mkdir()
    dataset = ImageDataset(data)
    for i in range(count):
        Image.fromarray(dataset.image(i).transpose(1, 2, 0)).resize((size, size)).save(target / f"{i:03d}.png")
    if labels:
        pairs = [[f"{i:03d}.png", labels(i)] for i in range(count)]
        (target / "dataset.json").write_text(json.dumps({"labels": pairs}))
    return str(target)


# -- references ---------------------------------------------------------------------------------------


def test_smaller_reference_reduces_images_and_names_the_metric(
    generator: Any, data: str, detectors: dict[str, str], tmp_path: Path
) -> None:
    small = small_copy(data, tmp_path, None)
    fid_row, is_row = rows_of(generator, metrics=("fid60_full", "is60"), data=small, **detectors)
    assert list(fid_row["results"]) == ["fid60_full_at16"] and fid_row["metric"] == "fid60_full_at16"
    assert fid_row["provenance"]["resize"] == "lanczos to 16"
    assert is_row["metric"] == "is60" and is_row["provenance"]["resize"] is None


def test_teacher_as_reference(generator: Any, teacher: Teacher, detectors: dict[str, str], inception: Detector) -> None:
    options = {"metrics": ("fid60_full", "kid60_full"), "ref": "teacher", "ref_images": 20, **detectors}
    fid_row, kid_row = rows_of(generator, teacher, **options)
    assert list(fid_row["results"]) == ["fid60_full_at16_teacher"] and kid_row["metric"] == "kid60_full_at16_teacher"
    about = fid_row["provenance"]["reference"]
    assert (about["kind"], about["num_images"], about["sha256"]) == ("teacher", 20, "ab" * 32)
    assert "not the data set's" in fid_row["provenance"]["note"]
    # By hand: Heun samples of the same latents.
    reference = TeacherReference(teacher, CPU, seed=0, num_images=20)
    spec = parse_metric("fid60_full")
    images = torch.cat(list(reference._images(spec, range(20), BatchSize(20))))
    from refine.metrics.sampler import draw_latents

    latents = draw_latents(range(20), 3 * 16 * 16, 0, "teacher latents").reshape(20, 3, 16, 16)
    assert torch.equal(images, to_uint8(heun_sample(teacher.network, latents)))
    generated = inception.features(Sampler(as_contract(generator), CPU, resolution=16).images(range(60)))
    expected = frechet_distance(Moments.of(inception.features(images)), Moments.of(generated)).value
    assert fid_row["results"]["fid60_full_at16_teacher"] == pytest.approx(expected, rel=1e-5)


def test_guided_teacher_as_reference(teacher: Teacher) -> None:
    """Its images are those of the guided denoiser; the cache and the row tell them from the plain teacher's."""
    guide = GaussianDenoiser(0.0, 0.8, img_resolution=16)
    network = Guided(as_denoiser(teacher.network), guide, 2.0)  # type: ignore[arg-type]
    guided = dataclasses.replace(teacher, network=network, conditions="guidance=2.0 guide=x")
    plain, other = (TeacherReference(each, CPU, seed=0, num_images=4) for each in (teacher, guided))
    spec = parse_metric("fid60_full")
    images = [torch.cat(list(each._images(spec, range(4), BatchSize(4)))) for each in (plain, other)]
    assert not torch.equal(*images) and plain._identity(spec) != other._identity(spec)
    assert other.provenance(spec)["conditions"] == "guidance=2.0 guide=x" and "conditions" not in plain.provenance(spec)
    from refine.metrics.sampler import draw_latents

    latents = draw_latents(range(4), 3 * 16 * 16, 0, "teacher latents").reshape(4, 3, 16, 16)
    assert torch.equal(images[1], to_uint8(heun_sample(guided.network, latents)))


def test_auto_takes_data_then_the_zoo_then_the_teacher(
    denoiser: Any, data: str, inception: Detector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = Teacher(denoiser, "own.pkl", "0" * 64)
    found = choices.choose_reference(MetricOptions(data=data), {"m": inception}, CPU, own)
    assert found.kind == "data"
    with caplog.at_level(logging.INFO, logger="refine"):
        found = choices.choose_reference(MetricOptions(), {"m": inception}, CPU, own)
    assert found.kind == "teacher" and "No data given" in caplog.text
    with pytest.raises(UserError, match="nothing to compare with"):
        choices.choose_reference(MetricOptions(), {"m": inception}, CPU, None)
    with pytest.raises(UserError, match="ref=teacher"):
        choices.choose_reference(MetricOptions(ref="teacher"), {"m": inception}, CPU, None)


def in_cache(name: str, content: Callable[[Any], None]) -> Path:
    """A file as if it had been downloaded under a name of the zoo."""
    entry = zoo.find(name)
    assert entry is not None and entry.url is not None
    path = download.place_by_hand(entry.url)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        content(file)
    return path


def test_statistics_of_the_zoo_by_name_and_by_teacher(inception: Detector) -> None:
    in_cache("cifar10-32x32.npz", lambda file: np.savez(file, mu=np.zeros(48), sigma=np.eye(48)))
    official = dataclasses.replace(inception, official=True)
    found = choices.choose_reference(MetricOptions(ref="cifar10-32x32.npz"), {"m": official}, CPU, None)
    assert (found.kind, found.name, found.resolution, found.ddof) == ("statistics", "cifar10-32x32.npz", 32, 1)

    class Network:
        img_resolution, img_channels, label_dim = 32, 3, 10

    teacher = Teacher(Network(), "edm-cifar10-32x32-cond-vp.pkl", "")  # type: ignore[arg-type]
    found = choices.choose_reference(MetricOptions(), {"m": official}, CPU, teacher)
    assert (found.kind, found.name) == ("statistics", "cifar10-32x32.npz")
    # They are of Inception features: with another detector it is the teacher.
    assert choices.choose_reference(MetricOptions(), {"m": inception}, CPU, teacher).kind == "teacher"


@pytest.mark.parametrize(
    ("spec", "pixels", "expected"),
    [
        ("edm-cifar10-cond", 32, "cifar10-32x32.npz"),
        ("edm-ffhq-64x64-uncond-ve.pkl", 64, "ffhq-64x64.npz"),
        ("edm-imagenet.pkl", 64, "imagenet-64x64.npz"),
        ("baseline-imagenet-64x64-cond-adm", 64, "imagenet-64x64-baseline.npz"),
        ("baseline-cifar10-32x32-uncond-vp", 32, "cifar10-32x32.npz"),
        ("https://example.org/edm/pretrained/edm-afhqv2-64x64-uncond-vp.pkl", 64, "afhqv2-64x64.npz"),
        ("edm2-img64-s-1073741-0.075", 64, "img64.pkl"),
        ("adm-imagenet-64x64-cond", 64, "imagenet-64x64-baseline.npz"),
        ("adm-imagenet-256x256-cond", 256, None),
        ("p2-ffhq", 256, None),
        ("edm-ffhq.pkl", 128, None),  # a file of that name, but not that network
        ("own.pkl", 64, None),
        ("ffhq.pkl", 1024, None),
    ],
)
def test_statistics_of_the_teachers_data(spec: str, pixels: int, expected: str | None) -> None:
    class Network:
        img_resolution = pixels

    entry = choices.statistics_for(Teacher(Network(), spec, ""))  # type: ignore[arg-type]
    assert (entry.name if entry else None) == expected
    assert entry is None or (entry.kind == "fid-reference" and entry.resolution == pixels)


def test_every_edm_teacher_of_the_zoo_has_statistics() -> None:
    for entry in zoo.ENTRIES:
        if (entry.family, entry.kind) == (
            "edm",
            "denoiser",
        ) and entry.url:  # not the built-in one, whose features are not Inception's

            class Network:
                img_resolution = entry.resolution

            assert choices.statistics_for(Teacher(Network(), entry.name, "")), entry.name  # type: ignore[arg-type]


def test_data_sets_of_the_zoo_have_names(data: str, inception: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = ZooEntry("tiny.zip", "dataset", "tiny", 32, None, path=Path(data))
    monkeypatch.setattr(zoo, "ENTRIES", (entry,))
    for options in (MetricOptions(data="tiny.zip"), MetricOptions(ref="tiny.zip"), MetricOptions(ref=data)):
        reference = choices.choose_reference(options, {"m": inception}, CPU, None)
        assert reference.kind == "data" and reference.name == "dataset_s32"


def npz(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_statistics_of_edm(
    generator: Any, data: str, detectors: dict[str, str], inception: Detector, tmp_path: Path
) -> None:
    """Mu and sigma with n - 1, as EDM publishes them, give the distance with n - 1."""
    dataset = ImageDataset(data)
    real = inception.features(torch.from_numpy(np.stack([dataset.image(i) for i in range(256)]))).double().numpy()
    path = npz(tmp_path / "own-32x32.npz", mu=real.mean(axis=0), sigma=np.cov(real, rowvar=False))
    (row,) = rows_of(generator, metrics=("fid100_full",), ref=path, **detectors)
    generated = Moments.of(inception.features(Sampler(as_contract(generator), CPU).images(range(100))))
    expected = frechet_distance(Moments.of(real), generated, ddof=1).value
    assert row["results"]["fid100_full"] == pytest.approx(expected, rel=1e-6)
    assert row["provenance"]["covariance"] == "n-1" and row["provenance"]["reference"]["kind"] == "statistics"
    for name, says in (("kid100_full", "no features"), ("pr1k3_full", "no features"), ("fid100", "fid100_full")):
        with pytest.raises(UserError, match=says) as caught:
            rows_of(generator, metrics=(name,), ref=path, **detectors)
        assert path in str(caught.value)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_statistics_of_edm2(generator: Any, detectors: dict[str, str], tmp_path: Path, protocol: int) -> None:
    """A pickle with an entry for each kind of features, opened without running anything."""
    statistics = {"mu": np.arange(48.0), "sigma": np.asfortranarray(np.diag(np.arange(1, 49.0)))}
    other = {"mu": np.zeros(8), "sigma": np.eye(8)}
    path = tmp_path / "img32.pkl"
    path.write_bytes(pickle.dumps({"fid": statistics, "fd_dinov2": other}, protocol=protocol))
    (found,) = rows_of(generator, metrics=("fid60_full",), ref=str(path), **detectors)
    (expected,) = rows_of(generator, metrics=("fid60_full",), ref=npz(tmp_path / "a.npz", **statistics), **detectors)
    assert found["results"] == expected["results"] and found["provenance"]["covariance"] == "n-1"
    assert found["provenance"]["reference"]["name"] == "img32.pkl"


def test_statistics_of_edm2_for_either_network(
    generator: Any, detectors: dict[str, str], tmp_path: Path, data: str
) -> None:
    """The entry is that of the metric's features; there is none for CLIP."""
    dino, clip = tmp_path / "dino.pth", tmp_path / "clip.pth"
    torch.save(dinov2_weights(), dino)
    torch.save(clip_weights(), clip)
    option = f"{detectors['detector']},dinov2={dino},clip={clip}"
    real, dataset = load_detector(str(dino), role="dinov2"), ImageDataset(data)
    features = real.features(torch.from_numpy(np.stack([dataset.image(i) for i in range(40)]))).double().numpy()
    inception_statistics = {"mu": np.zeros(48), "sigma": np.eye(48)}
    dino_statistics = {"mu": features.mean(axis=0), "sigma": np.cov(features, rowvar=False)}
    path = tmp_path / "img32.pkl"
    path.write_bytes(pickle.dumps({"fid": inception_statistics, "fd_dinov2": dino_statistics}))
    names = ("fid60_full", "fd_dinov2_20_full")
    rows = rows_of(generator, metrics=names, ref=str(path), detector=option)
    drawn = real.features(Sampler(as_contract(generator), CPU).images(range(20)))
    expected = frechet_distance(Moments.of(features), Moments.of(drawn), ddof=1).value
    assert rows[1]["results"]["fd_dinov2_20_full"] == pytest.approx(expected, rel=1e-5)
    assert rows[0]["results"]["fid60_full"] > 0 and rows[1]["provenance"]["covariance"] == "n-1"
    path.write_bytes(pickle.dumps({"fd_dinov2": dino_statistics}))
    (row,) = rows_of(generator, metrics=names[1:], ref=str(path), detector=option)
    assert row["results"] == rows[1]["results"]
    plain = npz(tmp_path / "plain.npz", **dino_statistics)  # whoever made it did not say with which network
    for name, reference in (
        ("fid60_full", str(path)), ("clip_fid20_full", str(path)), ("fd_dinov2_20_full", plain),
    ):  # fmt: skip
        with pytest.raises(UserError, match=name) as caught:
            rows_of(generator, metrics=(name,), ref=reference, detector=option)
        assert reference in str(caught.value)


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/refine-was-here",)


@pytest.mark.parametrize(
    "content", [{"fid": Evil()}, {"fd_dinov2": {}}, [1], {"fid": {"mu": np.zeros(3)}}, {"fid": {"mu": "x", "sigma": 1}}]
)
def test_other_pickles_are_no_statistics(
    generator: Any, detectors: dict[str, str], tmp_path: Path, content: Any
) -> None:
    path = tmp_path / "ref.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError) as caught:
        rows_of(generator, metrics=("fid60_full",), ref=str(path), **detectors)
    assert str(path) in str(caught.value) and not Path("/tmp/refine-was-here").exists()


def test_statistics_at_fewer_pixels(generator: Any, detectors: dict[str, str], tmp_path: Path) -> None:
    path = npz(tmp_path / "own-16x16.npz", mu=np.zeros(48), sigma=np.eye(48))
    (row,) = rows_of(generator, metrics=("fid60_full",), ref=path, **detectors)
    assert row["metric"] == "fid60_full_at16"


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"mu": np.zeros(7), "sigma": np.eye(7)}, "dimension 7 and the detector"),
        ({"mu": np.zeros(48), "sigma": np.eye(47)}, "not a mean and a covariance"),
        ({"mu": np.full(48, np.nan), "sigma": np.eye(48)}, "not a mean and a covariance"),
        ({"mean": np.zeros(48)}, "no entry"),
        ({"mu": np.zeros(48), "sigma": np.array([{}], dtype=object)}, "reference.npz"),
        (None, "reference.npz"),
        ({"mu": np.zeros(48), "sigma": np.eye(48), "num_images": np.zeros(2)}, "num_images"),
        ({"mu": np.zeros(48), "sigma": np.eye(48), "num_images": -5}, "num_images"),
        ({"mu": np.zeros(48), "sigma": np.eye(48), "features": np.zeros((9, 47))}, "features"),
        ({"mu": np.zeros(48), "sigma": np.eye(48), "label_counts": np.full(3, np.nan)}, "label_counts"),
        ({"mu": np.zeros(48), "sigma": np.eye(48), "num_images": 1}, "at least 2"),
        ({"mu": np.full(48, "x"), "sigma": np.eye(48)}, "mu"),
    ],
)
def test_unusable_statistics(
    generator: Any, detectors: dict[str, str], tmp_path: Path, arrays: dict[str, Any] | None, says: str
) -> None:
    path = tmp_path / "reference.npz"
    if arrays is None:
        path.write_bytes(b"PK\x03\x04 truncated")
    else:
        npz(path, **arrays)
    with pytest.raises(UserError, match=says) as caught:
        rows_of(generator, metrics=("fid60_full",), ref=str(path), **detectors)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# -- cache --------------------------------------------------------------------------------------------


def test_features_of_a_reference_are_kept_by_content(
    generator: Any, data: str, detectors: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []
    original = features.with_progress

    def spy(batches: Any, total: int, title: str) -> Any:
        titles.append(title)
        return original(batches, total, title)

    monkeypatch.setattr(features, "with_progress", spy)
    options: dict[str, Any] = {"metrics": ("fid40_full", "kid40_full"), **detectors}
    first = rows_of(generator, data=data, **options)
    assert [t for t in titles if t.startswith("reference")] == ["reference dataset_s32"]  # one pass for both metrics
    elsewhere = tmp_path / "renamed.zip"
    elsewhere.write_bytes(Path(data).read_bytes())
    titles.clear()
    again = rows_of(generator, data=str(elsewhere), **options)
    assert [row["results"] for row in again] == [row["results"] for row in first]
    assert not [t for t in titles if t.startswith("reference")]
    # Another detector, and damage, mean computing anew.
    rows_of(generator, metrics=("fid40_full",), data=data, detector=detectors["vgg"])
    assert "reference dataset_s32" in titles
    titles.clear()
    kept = sorted(cache.directory().glob("*.npz"))
    assert len(kept) == 3
    for path in kept:
        path.write_bytes(path.read_bytes()[:100])
    assert [row["results"] for row in rows_of(generator, data=data, **options)] == [row["results"] for row in first]
    assert "reference dataset_s32" in titles


def replaced(path: Path, images: list[bytes]) -> None:
    """Writes a ZIP, or files in a folder, of the same size and time whatever the images are."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for i, image in enumerate(images):
                archive.writestr(zipfile.ZipInfo(f"{i}.bmp"), image)
    else:
        path.mkdir(exist_ok=True)
        for i, image in enumerate(images):
            (path / f"{i}.bmp").write_bytes(image)
    for file in (path, *path.glob("*")):
        os.utime(file, (315532800, 315532800))


def bitmaps(seed: int) -> list[bytes]:
    draw = np.random.default_rng(seed)
    files = [io.BytesIO() for _ in range(3)]
    for file in files:
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "BMP")
    return [file.getvalue() for file in files]


@pytest.mark.parametrize("name", ["data.zip", "data"])
def test_a_data_set_is_known_by_its_content(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other images under the same path, of the same size and time, are another data set; a look does not read them."""
    path = tmp_path / name
    digests = []
    for seed in (1, 1, 2):
        replaced(path, bitmaps(seed))
        digests.append(cache.remembered_sha256(open_files(path)))
    assert digests[0] == digests[1] != digests[2]
    files = open_files(path)
    monkeypatch.setattr(type(files), "sha256", lambda self: pytest.fail("read again"))
    if os.name != "nt":
        assert cache.remembered_sha256(files) == digests[2]
    for note in cache.directory().glob("sha256-*.json"):
        note.write_text('{"fingerprint": 7}', encoding="utf-8")
    monkeypatch.undo()
    assert cache.remembered_sha256(open_files(path)) == digests[2]


def test_a_replaced_data_set_has_its_own_fid(generator: Any, detectors: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "data.zip"
    results = []
    for seed in (1, 2, 1):
        replaced(path, bitmaps(seed))
        (row,) = rows_of(generator, metrics=("fid40_full",), data=str(path), **detectors)
        results.append((row["results"], row["provenance"]["reference"]["sha256"]))
    assert results[0] == results[2] and results[0] != results[1]


@pytest.mark.skipif(os.name == "nt", reason="permissions of folders")
def test_a_cache_that_cannot_be_written_is_no_obstacle(
    generator: Any, data: str, detectors: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "file/cache"))
    rows = rows_of(generator, metrics=("fid40_full", "kid40_full"), data=data, **detectors)
    assert all(np.isfinite(value) for row in rows for value in row["results"].values())


# -- what goes wrong ----------------------------------------------------------------------------------


def test_ctrl_c_goes_through_and_nothing_is_kept(
    generator: Any, data: str, detectors: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = make_measure(MetricOptions(metrics=("fid100_full",), data=data, **detectors), generator, CPU)
    drawn: list[int] = []
    original = Sampler.images

    def interrupted(self: Sampler, indices: range) -> torch.Tensor:
        drawn.append(len(indices))
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return original(self, indices)

    monkeypatch.setattr(Sampler, "images", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(generator, "network-snapshot-000000.pkl")
    monkeypatch.undo()
    assert len(measure(generator, "network-snapshot-000000.pkl")) == 1


def test_fdd_needs_a_detector_of_ones_own(generator: Any, data: str) -> None:
    with pytest.raises(UserError, match="give it with detector"):
        rows_of(generator, metrics=("fdd50k_full",), data=data)


def test_detectors_by_metric(detectors: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [parse_metric(name) for name in ("fid50k_full", "pr50k3_full", "ppl2_wend")]

    def chosen(**options: str) -> list[str]:
        return [Path(p).name for p in choices.detector_specs(specs, MetricOptions(**options)).values()]  # type: ignore[arg-type]

    assert chosen() == ["inception-2015-12-05.pt", "vgg16.pt", "vgg16.pt"]
    assert chosen(detector="a.pt") == ["a.pt", "a.pt", "vgg16.pt"]
    assert chosen(detector="a.pt", vgg="b.pt") == ["a.pt", "b.pt", "b.pt"]
    assert chosen(vgg="b.pt") == ["inception-2015-12-05.pt", "b.pt", "b.pt"]
    monkeypatch.setenv("REFINE_DETECTOR", "env.pt")
    assert chosen() == ["env.pt", "env.pt", "vgg16.pt"]


def test_suite_is_tried_out_when_it_is_made(generator: Any, data: str, detectors: dict[str, str]) -> None:
    """The tiny VGG has no class probabilities: said before anything is measured."""
    with pytest.raises(UserError, match=r"tiny_vgg_s\.pt cannot be called with no_output_bias=True"):
        options = MetricOptions(metrics=("is100",), data=data, detector=detectors["vgg"])
        Suite.build(options, generator, CPU, None)


def test_exported_reference(generator: Any, data: str, detectors: dict[str, str], tmp_path: Path) -> None:
    from refine.metrics.reference_file import save_reference

    names = ("fid100_full", "kid100_full", "pr1k3_full")
    only = {"detector": detectors["detector"]}
    expected = rows_of(generator, metrics=names, data=data, **only)
    suite = Suite.build(MetricOptions(metrics=names, data=data, **only), generator, CPU, None)
    assert suite.reference is not None
    path = tmp_path / "exported.npz"
    detector = suite.detectors["fid100_full"]
    save_reference(path, suite.reference, detector, suite.metrics[0], features=True)
    found = rows_of(generator, metrics=names, ref=str(path), **only)
    for a, b in zip(expected, found, strict=True):
        assert b["results"] == pytest.approx(a["results"], rel=1e-9)
        assert b["provenance"].get("covariance") == a["provenance"].get("covariance")
    loaded = StatisticsReference(path)
    assert loaded.labels is not None and suite.reference.labels is not None
    np.testing.assert_array_equal(loaded.labels.counts, suite.reference.labels.counts)
    assert (loaded.resolution, loaded.num_channels, loaded.num_images) == (32, 3, 256)
    with np.load(path, allow_pickle=False) as arrays:  # what EDM's tools read
        assert arrays["mu"].shape == (48,) and arrays["sigma"].shape == (48, 48)
        np.testing.assert_allclose(
            arrays["sigma"], np.cov(arrays["features"].astype(np.float64), rowvar=False), atol=1e-9
        )
    with pytest.raises(UserError, match="another detector"):
        rows_of(generator, metrics=("fid100_full",), ref=str(path), detector=detectors["vgg"])
    save_reference(path, suite.reference, detector, suite.metrics[0], features=False)
    with pytest.raises(UserError, match="no features"):
        rows_of(generator, metrics=("kid100_full",), ref=str(path), **only)


# -- labels and their origin --------------------------------------------------------------------------


def origin(row: Row) -> str | None:
    return row["provenance"].get("labels")


def test_the_origin_of_labels_is_in_the_row_and_in_the_log(
    conditional: Any,
    generator: Any,
    data: str,
    detectors: dict[str, str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    labeled = small_copy(data, tmp_path, lambda i: i % 5 if i < 10 else 0)
    with caplog.at_level(logging.INFO, logger="refine"):
        rows = rows_of(conditional, metrics=("fid20_full", "is20"), data=labeled, **detectors)
    assert [origin(row) for row in rows] == ["data", "data"] and labeled not in caplog.text
    unlabelled = small_copy(data, tmp_path, None)
    with caplog.at_level(logging.INFO, logger="refine"):
        (row,) = rows_of(conditional, metrics=("fid20_full",), data=unlabelled, **detectors)
    assert origin(row) == "uniform" and row["results"] != rows[0]["results"]
    assert f"{unlabelled} has no labels" in caplog.text
    (row,) = rows_of(conditional, metrics=("is20",), **detectors)
    assert origin(row) == "uniform"
    (row,) = rows_of(generator, metrics=("fid20_full",), data=data, **detectors)
    assert "labels" not in row["provenance"]


def test_a_data_set_without_some_of_the_classes(
    conditional: Any, data: str, detectors: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The last class too, which makes the labels narrower than the generator's."""
    partial = small_copy(data, tmp_path, lambda i: (0, 2)[i % 2])
    with caplog.at_level(logging.INFO, logger="refine"):
        suite = Suite.build(MetricOptions(metrics=("fid20_full",), data=partial, **detectors), conditional, CPU, None)
    assert suite.labels is not None and suite.labels.counts is not None
    assert suite.labels.counts.tolist() == [30, 0, 30, 0, 0]
    assert partial in caplog.text and "(1, 3, 4)" in caplog.text
    (row,) = suite.measure(conditional, "a.pkl")
    assert origin(row) == "data"


def test_what_a_data_set_leaves_out_is_said_once(
    generator: Any, data: str, detectors: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(small_copy(data, tmp_path, None, size=32))
    (path / ".ipynb_checkpoints").mkdir()
    shutil.copy(path / "000.png", path / ".ipynb_checkpoints/000-checkpoint.png")
    with caplog.at_level(logging.WARNING, logger="refine"):
        (row,) = rows_of(generator, metrics=("fid60",), data=str(path), mirror=True, **detectors)
    assert row["provenance"]["reference"]["num_images"] == 60
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and "000-checkpoint.png" in said[0] and str(path) in said[0]


# -- too few images, and values that are not finite ---------------------------------------------------


@pytest.mark.parametrize(
    ("count", "metric", "needed"),
    [(1, "kid20_full", 2), (1, "fid20_full", 2), (1, "fdd20", 2), (3, "pr1k3_full", 4), (5, "pr1k7", 8)],
)
def test_metrics_that_so_few_images_do_not_define(
    generator: Any, data: str, detectors: dict[str, str], tmp_path: Path, count: int, metric: str, needed: int
) -> None:
    few = small_copy(data, tmp_path, None, size=32, count=count)
    with pytest.raises(UserError) as caught:
        make_measure(MetricOptions(metrics=(metric,), data=few, **detectors), generator, CPU)  # before images are drawn
    message = str(caught.value)
    assert metric in message and few in message and str(needed) in message and f"{count} image" in message


@pytest.mark.parametrize(("count", "metric"), [(2, "kid20_full"), (2, "fid20_full"), (4, "pr1k3_full")])
def test_metrics_that_so_few_images_do_define(
    generator: Any, data: str, detectors: dict[str, str], tmp_path: Path, count: int, metric: str
) -> None:
    few = small_copy(data, tmp_path, None, size=32, count=count)
    (row,) = rows_of(generator, metrics=(metric,), data=few, **detectors)
    assert all(np.isfinite(value) for value in row["results"].values())


def test_a_warning_of_few_images_is_logged_too(
    generator: Any, data: str, detectors: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    measure = make_measure(MetricOptions(metrics=("fid40_full",), data=data, **detectors), generator, CPU)
    with caplog.at_level(logging.WARNING, logger="refine"):
        (row,) = measure(generator, "a.pkl")
        measure(generator, "b.pkl")
    assert [r.getMessage() for r in caplog.records] == [f"fid40_full: {row['provenance']['warning']}"]


def test_a_teacher_that_draws_nothing_finite(
    generator: Any, denoiser: Any, detectors: dict[str, str], own_cache: Path
) -> None:
    broken = copy.deepcopy(denoiser)
    with torch.no_grad():
        next(p for p in broken.parameters() if p.ndim == 4).view(-1)[0] = float("nan")
    with pytest.raises(UserError, match=r"teachers/own\.pkl"):
        rows_of(
            generator, Teacher(broken, "teachers/own.pkl", "0" * 64), metrics=("fid20_full",), ref="teacher",
            ref_images=4, **detectors
        )  # fmt: skip
    assert not list(cache.directory().glob("*.npz"))


def test_values_that_are_not_finite_are_no_rows(
    generator: Any, data: str, detectors: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    huge = npz(tmp_path / "huge.npz", mu=np.full(48, 1e200), sigma=np.eye(48))
    with pytest.raises(UserError, match="fid20_full"):
        rows_of(generator, metrics=("fid20_full",), ref=huge, **detectors)
    module = importlib.import_module("refine.metrics.inception_score")
    monkeypatch.setattr(module, "inception_score", lambda _: InceptionScore(2.0, float("nan")))
    with pytest.raises(UserError, match="is20_std is nan"):
        rows_of(generator, metrics=("is20",), **detectors)


# -- a metric of one's own ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Spread(Metric):
    """Mean distance of the generator's features from their mean, over the reference's."""

    forms = (rf"spread{COUNT}",)
    examples = ("spread50k",)

    def results(self, label: str, measured: Any) -> Results:
        real, (generated,) = measured.real, measured.generated
        value = np.trace(generated.covariance()) / np.trace(real.covariance())
        return Results({label: float(value)}, {"dimension": real.dimension})


def test_a_metric_is_one_class_and_one_entry(
    generator: Any, data: str, detectors: dict[str, str], inception: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = metric_classes()
    monkeypatch.setattr("refine.metrics.metric.metric_classes", lambda: (*known, Spread))
    fid_row, row = rows_of(generator, metrics=("fid100", "spread100"), data=data, **detectors)
    dataset = ImageDataset(data)
    real = inception.features(torch.from_numpy(np.stack([dataset.image(i) for i in range(100)])))
    generated = inception.features(Sampler(as_contract(generator), CPU).images(range(100)))
    expected = np.trace(Moments.of(generated).covariance()) / np.trace(Moments.of(real).covariance())
    assert row["results"] == {"spread100": pytest.approx(expected, rel=1e-5)}
    assert row["provenance"]["dimension"] == 48 and row["metric"] == "spread100"
    assert row.keys() == fid_row.keys()
    with pytest.raises(UserError, match="spread5k"):
        MetricOptions(metrics=("spred5k",))
