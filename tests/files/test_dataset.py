"""Data sets that are not as they should be, and folders."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refine.errors import UserError
from refine.files.dataset import ImageDataset, check_dataset


def png(mode: str = "RGB", size: tuple[int, int] = (8, 8), seed: int = 0) -> bytes:
    channels = {"RGB": 3, "RGBA": 4, "L": 1, "P": 1}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    image = image.convert("P") if mode == "P" else image
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def files(count: int = 4, **labels: Any) -> dict[str, bytes]:
    made = {f"00000/img{i}.png": png(seed=i) for i in range(count)}
    return made | ({"dataset.json": json.dumps(labels).encode()} if labels else {})


def write(folder: Path, content: dict[str, bytes], kind: str) -> Path:
    if kind == "zip":
        path = folder / "data.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        return path
    path = folder / "data"
    for name, data in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


ClassLabels = [["00000/img0.png", 1], ["00000\\img1.png", 0], ["00000/img2.png", 2], ["00000/img3.png", 2]]


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_zip_and_folder_are_the_same(tmp_path: Path, kind: str) -> None:
    content = files(labels=ClassLabels) | {"readme.txt": b"no image"}
    dataset = ImageDataset(write(tmp_path, content, kind))
    assert dataset.name == "data" and dataset.file_names == [f"00000/img{i}.png" for i in range(4)]
    assert dataset.raw_labels is not None and dataset.raw_labels.tolist() == [1, 0, 2, 2]
    assert (dataset.label_dim, dataset.resolution, dataset.num_channels) == (3, 8, 3)
    for index in range(4):
        with Image.open(io.BytesIO(content[f"00000/img{index}.png"])) as image:
            np.testing.assert_array_equal(dataset.image(index), np.asarray(image).transpose(2, 0, 1))
    together = np.concatenate(list(dataset.batches([3, 1, 0], 2)))
    np.testing.assert_array_equal(together, np.stack([dataset.image(i) for i in (3, 1, 0)]))


def test_mirrored_images_come_after_the_others(tmp_path: Path) -> None:
    dataset = ImageDataset(write(tmp_path, files(), "zip"), xflip=True)
    assert len(dataset) == 8
    np.testing.assert_array_equal(dataset.image(5), dataset.image(1)[:, :, ::-1])


def test_gray_images_and_vector_labels(tmp_path: Path) -> None:
    labels = [[f"{i}.png", [0.5 * i, 1.0]] for i in range(3)]
    content = {f"{i}.png": png("L", seed=i) for i in range(3)} | {
        "dataset.json": json.dumps({"labels": labels}).encode()
    }
    dataset = ImageDataset(write(tmp_path, content, "zip"))
    assert dataset.num_channels == 1 and dataset.label_dim == 2
    assert dataset.raw_labels is not None and dataset.raw_labels.dtype == np.float32


def test_no_labels(tmp_path: Path) -> None:
    assert ImageDataset(write(tmp_path, files(), "zip")).raw_labels is None
    assert ImageDataset(write(tmp_path, files(labels=None), "folder")).raw_labels is None


def test_digest_is_of_the_content(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    a, b = (ImageDataset(write(tmp_path / name, files(), "folder")) for name in ("a", "b"))
    assert a.sha256() == b.sha256()
    (tmp_path / "b/data/00000/img1.png").write_bytes(png(seed=9))
    assert a.sha256() != b.sha256()


def changed(name: str, data: bytes) -> Callable[[], dict[str, bytes]]:
    return lambda: files() | {name: data}


def all_labels(*labels: Any) -> dict[str, bytes]:
    return files(labels=[[f"00000/img{i}.png", label] for i, label in enumerate(labels)])


@pytest.mark.parametrize("kind", ["zip", "folder"])
@pytest.mark.parametrize(
    ("content", "file", "value"),
    [
        (changed("00000/img2.png", png()[:-30]), "00000/img2.png", "damaged"),
        (changed("00000/img2.png", b"no png at all"), "00000/img2.png", "not an image"),
        (changed("00000/img2.png", b""), "00000/img2.png", "not an image"),
        (changed("00000/img2.png", png(size=(16, 16))), "00000/img2.png", "16x16"),
        (changed("00000/img2.png", png("L")), "00000/img2.png", "gray"),
        (changed("00000/img2.png", png("RGBA")), "00000/img2.png", "alpha"),
        (changed("00000/img2.png", png("P")), "00000/img2.png", "palette"),
        (changed("00000/img0.png", png(size=(8, 12))), "00000/img0.png", "8x12"),
        (lambda: files(labels=ClassLabels[:2]), "dataset.json", "img2.png (2 of 4"),
        (lambda: all_labels(1, [1.0], [1.0], [1.0]), "dataset.json", "img1.png"),
        (lambda: all_labels([1.0], 1, [1.0], [1.0]), "dataset.json", "img1.png"),
        (lambda: all_labels([1.0], [1.0, 2.0], [1.0], [1.0]), "dataset.json", "img1.png"),
        (lambda: all_labels([], [], [], []), "dataset.json", "img0.png"),
        (lambda: all_labels([1.0], [None], [1.0], [1.0]), "dataset.json", "[None]"),
        (lambda: all_labels([1.0], [float("nan")], [1.0], [1.0]), "dataset.json", "[nan]"),
        (lambda: all_labels(0, -1, 0, 0), "dataset.json", "-1"),
        (lambda: all_labels(0, 10**12, 0, 0), "dataset.json", "1000000000000"),
        (lambda: all_labels(0, 10**400, 0, 0), "dataset.json", "img1.png"),
        (lambda: all_labels(0, 2.5, 0, 0), "dataset.json", "2.5"),
        (lambda: all_labels(0, float("inf"), 0, 0), "dataset.json", "inf"),
        (lambda: all_labels(0, None, 0, 0), "dataset.json", "None"),
        (lambda: all_labels("0", "cat", "0", "0"), "dataset.json", "'cat'"),
        (changed("dataset.json", b'{"labels": 7}'), "dataset.json", "7"),
        (changed("dataset.json", b'{"labels": [["a.png", 1, 2]]}'), "dataset.json", "number 0"),
        (changed("dataset.json", b'{"label": []}'), "dataset.json", '"labels"'),
        (changed("dataset.json", b"[]"), "dataset.json", '"labels"'),
        (changed("dataset.json", b'{\n "labels": [["a.png", 1],]}'), "dataset.json", "line 2, column 26"),
        (changed("dataset.json", b'{"labels": [["a.png"'), "dataset.json", "line 1, column 21"),
        (changed("dataset.json", b"\xff\xfe\xfd{}"), "dataset.json", "JSON"),
        (changed("dataset.json", b"[" * 10**5), "dataset.json", "JSON"),
        (changed("my/dataset.json", b'{"labels": [["a.png", 1]]}'), "my/dataset.json", "my"),
        (changed("my/dataset.json", b'{"labels": [["a.png", 1]'), "my/dataset.json", "column"),
        (lambda: {"readme.txt": b""}, "data", "no images"),
    ],
)
def test_one_sentence_naming_the_file(
    tmp_path: Path, kind: str, content: Callable[[], dict[str, bytes]], file: str, value: str
) -> None:
    path = write(tmp_path, content(), kind)
    with pytest.raises(UserError) as caught:
        dataset = ImageDataset(path)
        list(dataset.batches(range(len(dataset)), 3))
    message = str(caught.value)
    assert file in message and str(path) in message and value in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["3", "0", "1", "1"], [3, 0, 1, 1]),
        ([3.0, 0.0, 1, 1], [3, 0, 1, 1]),
        ([True, False, True, True], [1, 0, 1, 1]),
        ([2, "1", 0.0, True], [2, 1, 0, 1]),
        ([["1", 2], [0.5, 1], [1, 1], [True, 1]], [[1, 2], [0.5, 1], [1, 1], [1, 1]]),
    ],
)
def test_labels_are_converted_as_the_suite_does(tmp_path: Path, labels: list[Any], expected: list[Any]) -> None:
    found = ImageDataset(write(tmp_path, all_labels(*labels), "zip")).raw_labels
    assert found is not None and found.tolist() == expected
    assert found.dtype == (np.int64 if np.ndim(expected) == 1 else np.float32)


def test_labels_as_a_mapping_and_with_a_byte_order_mark(tmp_path: Path) -> None:
    mapping = json.dumps({"labels": {f"00000/img{i}.png": i for i in range(4)}})
    content = files() | {"dataset.json": b"\xef\xbb\xbf" + mapping.encode()}
    found = ImageDataset(write(tmp_path, content, "zip")).raw_labels
    assert found is not None and found.tolist() == [0, 1, 2, 3]


def test_misplaced_labels_that_are_none_do_not_matter(tmp_path: Path) -> None:
    content = files() | {"00000/dataset.json": b'{"labels": null}'}
    assert ImageDataset(write(tmp_path, content, "folder")).raw_labels is None


def test_what_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("hello")
    whole = write(tmp_path, files(), "zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    for name in ("text.zip", "cut.zip", "missing", "missing.zip"):
        with pytest.raises(UserError) as caught:
            ImageDataset(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


# -- everything at once -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_a_check_lists_every_bad_file(tmp_path: Path, kind: str) -> None:
    """The first image is the one that differs, and it is the one to be named."""
    content = files(6, labels=[[f"00000/img{i}.png", i] for i in range(5)]) | {
        "00000/img0.png": png(size=(16, 16)),
        "00000/img2.png": png()[:-30],
        "00000/img3.png": png("RGBA"),
        ".hidden/img9.png": png(),
    }
    path = write(tmp_path, content, kind)
    found = check_dataset(path)
    assert [p for p in found.problems if not p.startswith(str(path))] == []
    named = [p.removeprefix(f"{path}/").split()[0] for p in found.problems]
    assert named == ["00000/img0.png", "00000/img2.png", "00000/img3.png", "dataset.json"]
    assert "16x16" in found.problems[0] and "img5.png" in found.problems[3]
    assert str(path) in found.summary and "6 images of 8x8 RGB, with unusable labels" in found.summary
    assert len(found.notes) == 1 and ".hidden/img9.png" in found.notes[0]


def test_a_check_of_a_good_data_set(tmp_path: Path) -> None:
    found = check_dataset(write(tmp_path, files(labels=ClassLabels), "zip"))
    assert found.problems == () and found.notes == ()
    assert "4 images of 8x8 RGB" in found.summary and "3 classes (0 to 2)" in found.summary
    unlabelled = check_dataset(write(tmp_path, files(), "folder"))
    assert unlabelled.problems == () and "without labels" in unlabelled.summary
    with pytest.raises(UserError, match="no images"):
        check_dataset(write(tmp_path, {"a.txt": b""}, "zip"))
