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
from refine.files.dataset import ImageDataset


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


def test_grey_images_and_vector_labels(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("kind", ["zip", "folder"])
@pytest.mark.parametrize(
    ("content", "file", "says"),
    [
        (changed("00000/img2.png", png()[:-30]), "00000/img2.png", "is damaged"),
        (changed("00000/img2.png", b"no png at all"), "00000/img2.png", "is damaged"),
        (changed("00000/img2.png", b""), "00000/img2.png", "is damaged"),
        (changed("00000/img2.png", png(size=(16, 16))), "00000/img2.png", "16x16"),
        (changed("00000/img2.png", png("L")), "00000/img2.png", "grey"),
        (changed("00000/img2.png", png("RGBA")), "00000/img2.png", "alpha"),
        (changed("00000/img2.png", png("P")), "00000/img2.png", "palette"),
        (changed("00000/img0.png", png(size=(8, 12))), "00000/img0.png", "square"),
        (lambda: files(labels=ClassLabels[:3]), "dataset.json", "img3.png"),
        (lambda: files(labels=[[n, [1.0]] if i else [n, 1] for i, (n, _) in enumerate(ClassLabels)]), "json", "mixes"),
        (changed("dataset.json", b'{"labels": 7}'), "dataset.json", "damaged"),
        (changed("dataset.json", b"{"), "dataset.json", "damaged"),
        (lambda: files(labels=[[f"00000/img{i}.png", -1] for i in range(4)]), "dataset.json", "neither"),
        (lambda: files(labels=[[f"00000/img{i}.png", [1.0] * (i + 1)] for i in range(4)]), "dataset.json", "mixes"),
        (lambda: files(labels=[[f"00000/img{i}.png", "cat"] for i in range(4)]), "dataset.json", "mixes"),
        (lambda: {"readme.txt": b""}, "data", "no images"),
    ],
)
def test_one_sentence_naming_the_file(
    tmp_path: Path, kind: str, content: Callable[[], dict[str, bytes]], file: str, says: str
) -> None:
    path = write(tmp_path, content(), kind)
    with pytest.raises(UserError) as caught:
        dataset = ImageDataset(path)
        list(dataset.batches(range(len(dataset)), 3))
    message = str(caught.value)
    assert file in message and str(path) in message and says in message
    assert "\n" not in message and message.endswith(".")


def test_what_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("hello")
    for name, says in (("text.zip", "no ZIP file"), ("missing", "no data set")):
        with pytest.raises(UserError, match=says) as caught:
            ImageDataset(tmp_path / name)
        assert name in str(caught.value)
