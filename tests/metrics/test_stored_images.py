"""Images and teachers in the place of a generator: files, arrays, samples."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import refine
from refine.commands.metrics import main
from refine.diffusion.sampler import heun_sample
from refine.errors import UserError
from refine.files.arrays import ArrayDataset, holds_images, open_dataset
from refine.files.dataset import ImageDataset
from refine.files.images import to_uint8
from refine.metrics import Moments, copies, frechet_distance
from refine.metrics.detectors import Detector
from refine.metrics.evaluation import Measurable
from refine.metrics.sampler import draw_latents
from refine.metrics.stored_images import StoredImages
from refine.metrics.teacher_samples import TeacherSamples
from refine.networks.preconditioned import as_denoiser


@pytest.fixture(scope="module")
def pictures(data: str) -> np.ndarray:
    """The data set's images, uint8 [N, H, W, C]."""
    dataset = ImageDataset(data)
    return np.stack([dataset.image(i) for i in range(len(dataset))]).transpose(0, 2, 3, 1)


@pytest.fixture
def other(pictures: np.ndarray) -> np.ndarray:
    """Other images: dark ones."""
    return (pictures[:120] // 2).astype(np.uint8)


def order(count: int) -> np.ndarray:
    """The order in which stored images are taken."""
    return np.random.RandomState(0).permutation(count)


def distance(inception: Detector, real: np.ndarray, generated: np.ndarray) -> float:
    moments = [
        Moments.of(inception.features(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))))
        for images in (real, generated)
    ]
    return frechet_distance(*moments).value


def as_folder(images: np.ndarray, folder: Path) -> str:
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:04d}.png")
    return str(folder)


def as_npz(images: np.ndarray, path: Path, *, save: Any = np.savez, **more: Any) -> str:
    save(path, images, **more)
    return str(path)


@pytest.mark.parametrize("form", ["folder", "npz", "compressed", "channels first", "array", "images of one array"])
def test_images_of_every_form_have_the_same_distance(
    form: str, pictures: np.ndarray, other: np.ndarray, data: str, detectors: dict[str, str], inception: Detector,
    tmp_path: Path,
) -> None:  # fmt: skip
    given: Any = {
        "folder": lambda: as_folder(other, tmp_path / "images"),
        "npz": lambda: as_npz(other, tmp_path / "a.npz"),
        "compressed": lambda: as_npz(other, tmp_path / "a.npz", save=np.savez_compressed),
        "channels first": lambda: as_npz(np.ascontiguousarray(other.transpose(0, 3, 1, 2)), tmp_path / "a.npz"),
        "array": lambda: other,
        "images of one array": lambda: as_npz(other, tmp_path / "a.npz", arr_1=np.arange(120)),
    }[form]()
    rows = refine.evaluate(given, "fid120_full,fid100_full", data, **detectors)
    assert rows[0]["results"]["fid120_full"] == pytest.approx(distance(inception, pictures, other), rel=1e-6)
    assert rows[1]["results"]["fid100_full"] == pytest.approx(
        distance(inception, pictures, other[order(120)[:100]]), rel=1e-6
    )
    about = rows[0]["provenance"]
    assert about["images"]["num_images"] == 120 and "truncation_psi" not in about
    assert form == "array" or len(about["images"]["sha256"]) == 64


def test_images_of_the_zoo() -> None:
    (row,) = refine.evaluate("digits-test.zip", "fid400_full", "digits-train.zip", detector="digits-detector.pt")
    assert row["snapshot_pkl"] == "digits-test.zip" and row["results"]["fid400_full"] < 30
    with pytest.raises(UserError, match=r"missing\.zip"):
        refine.evaluate("missing.zip", "fid400_full", "digits-train.zip", detector="digits-detector.pt")


def test_arrays_as_a_reference(
    pictures: np.ndarray, other: np.ndarray, generator: Any, detectors: dict[str, str], inception: Detector,
    tmp_path: Path,
) -> None:  # fmt: skip
    path = as_npz(other, tmp_path / "ref.npz", arr_1=np.arange(120) % 4)
    (row,) = refine.evaluate(pictures, "fid200_full", path, **detectors)
    assert row["results"]["fid200_full"] == pytest.approx(
        distance(inception, other, pictures[order(256)[:200]]), rel=1e-6
    )
    assert row["provenance"]["reference"]["kind"] == "data"
    assert open_dataset(path).label_dim == 4
    (row,) = refine.evaluate(generator, "fid30_full", path, mirror=True, **detectors)  # any other source, too
    assert row["results"]["fid30_full"] > 0


def test_items_of_arrays_are_those_of_files(pictures: np.ndarray, tmp_path: Path) -> None:
    path = as_npz(pictures[:20], tmp_path / "a.npz", y=np.arange(20))
    folder = ImageDataset(as_folder(pictures[:20], tmp_path / "images"), xflip=True)
    arrays = ArrayDataset(path, xflip=True)
    assert len(arrays) == len(folder) == 40 and arrays.image_shape == folder.image_shape
    for index in (0, 7, 20, 39):
        assert np.array_equal(arrays.image(index), folder.image(index))
    assert isinstance(arrays._array, np.memmap)
    assert arrays.raw_labels is not None and arrays.raw_labels.tolist() == list(range(20))
    gray = ArrayDataset(as_npz(pictures[:5, :, :, :1], tmp_path / "gray.npz"))
    assert gray.image_shape == (1, 32, 32) and gray.raw_labels is None
    assert holds_images(Path(path)) and not holds_images(tmp_path / "missing.npz")


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.zeros(3)}, "x float64"),
        ({"a": np.zeros((2, 4, 4, 3), np.uint8), "b": np.zeros((2, 4, 4, 3), np.uint8)}, "2 arrays"),
        ({"arr_0": np.zeros((2, 4, 5, 3), np.uint8)}, "[2, 4, 5, 3]"),
        ({"arr_0": np.zeros((2, 4, 4, 4), np.uint8)}, "[2, 4, 4, 4]"),
        ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, "[0, 4, 4, 3]"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8), "arr_1": np.zeros(3, int)}, "arr_1"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8), "arr_1": np.zeros(2)}, "arr_1"),
        ({"arr_0": np.array([{}])}, "own.npz"),
        (b"PK\x03\x04 cut", "own.npz"),
        (b"", "own.npz"),
        (None, "own.npz"),
    ],
)
def test_unusable_arrays(arrays: Any, says: str, tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    if isinstance(arrays, bytes):
        path.write_bytes(arrays)
    elif arrays is not None:
        np.savez(path, **arrays)
    with pytest.raises(UserError) as caught:
        StoredImages(path)
    assert says in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_cut_off_file_of_arrays_is_named(pictures: np.ndarray, tmp_path: Path) -> None:
    path = Path(as_npz(pictures, tmp_path / "cut.npz"))
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(UserError, match="cut"):
        StoredImages(path)


def test_more_images_than_there_are(other: np.ndarray, data: str, detectors: dict[str, str]) -> None:
    for name, instead in (
        ("fid50k_full", "fid120_full"), ("pr1k3_full", "pr120_full"), ("kid500", "kid120"), ("is1k", "is120"),
        ("fd_dinov2_2k_full", "fd_dinov2_120_full"), ("ppl2_wend", "leave it out"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=instead) as caught:
            refine.evaluate(other, name, data, detector="missing.pt")
        assert name in str(caught.value)
    with pytest.raises(UserError, match="fid60_full"):
        refine.evaluate(other, "fid100_full", data, fid_seeds=2, **detectors)
    for wrong in (other.astype(float), other[:, :5], other[0]):
        with pytest.raises(UserError, match="uint8"):
            refine.evaluate(wrong, "fid10_full", data, **detectors)


def test_smaller_references_of_images(other: np.ndarray, detectors: dict[str, str], tmp_path: Path) -> None:
    small = np.stack([np.asarray(Image.fromarray(image).resize((16, 16))) for image in other])
    (row,) = refine.evaluate(other, "fid100_full", as_npz(small, tmp_path / "small.npz"), **detectors)
    assert row["metric"] == "fid100_full_at16" and row["results"]["fid100_full_at16"] >= 0


# -- the teacher ------------------------------------------------------------------------------------------


def test_a_teacher_is_measured_by_its_sampler(
    denoiser: Any, detectors: dict[str, str], inception: Detector, tmp_path: Path, fixture_path: Any, data: str
) -> None:
    small = np.random.default_rng(0).integers(256, size=(60, 16, 16, 3)).astype(np.uint8)
    reference = as_npz(small, tmp_path / "small.npz")
    path = str(fixture_path("edm/s1_edm_ddpmpp_uncond16.pkl"))
    (row,) = refine.evaluate(path, "fid20_full", reference, seed=4, **detectors)
    z = draw_latents(range(20), 3 * 16 * 16, 4).reshape(20, 3, 16, 16)
    samples = to_uint8(heun_sample(as_denoiser(denoiser), z).float()).permute(0, 2, 3, 1).numpy()
    assert row["results"]["fid20_full"] == pytest.approx(distance(inception, small, samples), rel=1e-5)
    assert row["provenance"]["sampler"] == "Heun, 18 steps" and row["snapshot_pkl"] == Path(path).name
    with pytest.raises(UserError, match=r"0\.7"):
        refine.evaluate(path, "fid20_full", reference, truncation_psi=0.7, **detectors)
    with pytest.raises(UserError, match="32 pixels"):
        refine.evaluate(path, "fid20_full", data, **detectors)


def test_a_teacher_with_classes(fixture_path: Any) -> None:
    loaded = refine.load_teacher(str(fixture_path("edm/s2_edm_adm_cond16.pkl")))
    samples = TeacherSamples(as_denoiser(loaded.network))
    z, c = torch.randn(2, *samples.z_shape), torch.eye(5)[:2]
    with torch.no_grad():
        assert samples.c_dim == 5 and samples(z, c).images.shape == (2, 3, 16, 16)
        assert not torch.equal(samples(z, c).images, samples(z, c.flip(0)).images)


def test_a_denoiser_that_draws_by_itself_is_a_generator(fixture_path: Any) -> None:
    """A one-step generator is a denoiser in its file."""

    class OneStep(torch.nn.Module):
        z_shape, c_dim, img_channels, img_resolution = (3, 16, 16), 0, 3, 16

        def forward(self, z: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            return z

    loaded = refine.load_teacher(str(fixture_path("edm/s1_edm_ddpmpp_uncond16.pkl")))
    assert isinstance(Measurable.of(loaded).generator, TeacherSamples)
    drawn = Measurable.of(dataclasses.replace(loaded, network=OneStep())).generator
    assert isinstance(drawn, OneStep)


# -- the command --------------------------------------------------------------------------------------------


def run(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(main, [*arguments, "--device=cpu"])
    assert result.exit_code == code, result.output
    return result


def test_the_command(
    other: np.ndarray, pictures: np.ndarray, data: str, detectors: dict[str, str], tmp_path: Path, inception: Detector
) -> None:
    path, sheet, neighbors = as_npz(other, tmp_path / "own.npz"), tmp_path / "s.png", tmp_path / "n.png"
    options = [f"--detector={detectors['detector']}", f"--data={data}"]
    result = run(f"--images={path}", f"--contact-sheet={sheet}", f"--neighbors={neighbors}", *options)
    (row,) = [json.loads(line) for line in result.stdout.splitlines()]
    expected = distance(inception, pictures, other)
    assert row["results"] == {"fid120_full": pytest.approx(expected, rel=1e-6)}  # all of them, if nobody says how many
    assert row["snapshot_pkl"] == "own.npz"
    with Image.open(neighbors) as image:
        assert image.size == (32 + 4 + 7 * 32, 12 * 32)
    for wrong, says in (
        ([f"--images={path}", f"--network={path}"], "--network"),
        ([f"--images={path}", "--trunc=0.5"], "--trunc"),
        (["--images=missing"], "missing"),
    ):
        assert says in run(*wrong, *options, code=2).stderr


def test_neighbors_in_the_picture(pictures: np.ndarray, data: str, detectors: dict[str, str], tmp_path: Path) -> None:
    """Copies of images of the data come first, each beside its original."""
    mixed = np.concatenate([255 - pictures[:40], pictures[100:103]])
    path, picture = as_npz(mixed, tmp_path / "own.npz"), tmp_path / "n.png"
    run(f"--images={path}", f"--data={data}", f"--neighbors={picture}", f"--detector={detectors['detector']}")
    pixels = np.asarray(Image.open(picture))
    rows = [pixels[i * 32 : (i + 1) * 32] for i in range(3)]
    for row in rows:
        assert np.array_equal(row[:, :32], row[:, 36:68]) and not np.array_equal(row[:, :32], row[:, 68:100])
    originals = {image.tobytes() for image in pictures[100:103]}
    assert {np.ascontiguousarray(row[:, :32]).tobytes() for row in rows} == originals


def test_neighbors_need_a_data_set(detectors: dict[str, str], fixture_path: Any, tmp_path: Path) -> None:
    network = f"--network={fixture_path('sg2ada/a_uncond32.pkl')}"
    arguments = [network, f"--detector={detectors['detector']}", f"--neighbors={tmp_path / 'n.png'}"]
    assert "--data" in run(*arguments, "--metrics=is20", code=2).stderr
    np.savez(tmp_path / "ref.npz", mu=np.zeros(48), sigma=np.eye(48))
    assert "--data" in run(*arguments, f"--ref={tmp_path / 'ref.npz'}", "--metrics=fid60_full", code=2).stderr


# -- copies -------------------------------------------------------------------------------------------------


def test_near_copies_by_hand() -> None:
    draw = np.random.default_rng(0)
    real = draw.normal(size=(200, 16)).astype(np.float32)
    generated = draw.normal(size=(90, 16)).astype(np.float32)
    generated[:6] = real[10:16]
    generated[6:9] = real[20:23] + 0.05
    distances = np.sort(np.linalg.norm(generated[:, None].astype(float) - real[None].astype(float), axis=2), axis=1)
    ratio = distances[:, 0] / distances[:, 1]
    for block_bytes in (1000, 1 << 28):
        found = copies(real, generated, max_block_bytes=block_bytes)
        assert found.share == (ratio < 1 / 3).mean() == 0.1
        assert found.exact == 6 and found.median_ratio == pytest.approx(np.median(ratio), rel=1e-5)
    with pytest.raises(ValueError, match="second neighbor"):
        copies(real[:1], generated)


def test_copies_in_a_row(pictures: np.ndarray, data: str, detectors: dict[str, str]) -> None:
    mixed = np.concatenate([255 - pictures[:30], pictures[40:50]])
    (row,) = refine.evaluate(mixed, "copies40_full", data, **detectors)
    assert row["results"]["copies40_full"] >= 0.25 and row["provenance"]["exact_copies"] == 10
    assert list(row["results"]) == ["copies40_full", "copies40_full_ratio"]
