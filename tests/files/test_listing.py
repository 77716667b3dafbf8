"""Files of a data set: links, hidden files, names twice, backslashes, and what cannot be read."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from refine.errors import UserError
from refine.files.dataset import ImageDataset, check_dataset
from refine.files.listing import open_files

ON_WINDOWS = pytest.mark.skipif(os.name == "nt", reason="links and permissions of POSIX")
FORK = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "


def png(seed: int = 0) -> bytes:
    import io

    import numpy as np
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def folder(path: Path, names: list[str], content: bytes | None = None) -> Path:
    for number, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(png(number) if content is None else content)
    return path


def zipped(path: Path, entries: list[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries:
            info = zipfile.ZipInfo("x")
            info.filename = name  # as it is, without zipfile's own changes
            archive.writestr(info, content)
    return path


JUNK = [
    "__MACOSX/0/._a.png",
    "0/._a.png",
    ".ipynb_checkpoints/a-checkpoint.png",
    "0/.ipynb_checkpoints/a-checkpoint.png",
    ".hidden.png",
    "$RECYCLE.BIN/a.png",
    "0/@eaDir/a.png",
    ".git/dataset.json",
]


@pytest.mark.parametrize("kind", ["zip", "folder"])
@pytest.mark.parametrize("junk", JUNK)
def test_files_of_systems_are_left_out_and_counted(tmp_path: Path, kind: str, junk: str) -> None:
    names = ["0/a.png", "0/b.png", "1/c.png"]
    if kind == "folder":
        path = folder(tmp_path / "data", names)
        folder(path, [junk], FORK)
    else:
        path = zipped(tmp_path / "data.zip", [*((n, png()) for n in names), (junk, FORK)])
    dataset = ImageDataset(path)
    assert dataset.file_names == names and dataset.raw_labels is None
    (note,) = dataset.notes
    assert str(path) in note and junk in note and "1 file" in note


def test_files_that_are_no_images_are_no_matter(tmp_path: Path) -> None:
    path = folder(tmp_path / "data", ["a.png"])
    folder(path, [".DS_Store", "Thumbs.db", "readme.txt", ".git/config", "__MACOSX/x"], b"")
    assert open_files(path).listing.notes == ()


def test_names_twice_in_a_zip(tmp_path: Path) -> None:
    """Each name counts once, and means its last file, as for the suite."""
    with pytest.warns(UserWarning, match="Duplicate"):
        path = zipped(tmp_path / "a.zip", [("a.png", png(1)), ("b.png", png(2)), ("a.png", png(3)), ("x.txt", b"")])
    dataset = ImageDataset(path)
    assert dataset.file_names == ["a.png", "b.png"]
    assert dataset.files.read("a.png") == png(3)
    assert len(dataset.notes) == 1 and "1 name" in dataset.notes[0] and str(path) in dataset.notes[0]


def test_backslashes_in_a_zip(tmp_path: Path) -> None:
    labels = b'{"labels": [["0/a.png", 1], ["0\\\\b.png", 0]]}'
    entries = [("0\\a.png", png(1)), ("0\\b.png", png(2)), ("__MACOSX\\0\\._a.png", FORK), ("dataset.json", labels)]
    dataset = ImageDataset(zipped(tmp_path / "a.zip", entries))
    assert [name.replace("\\", "/") for name in dataset.file_names] == ["0/a.png", "0/b.png"]
    assert dataset.raw_labels is not None and dataset.raw_labels.tolist() == [1, 0]
    assert dataset.image(1).shape == (3, 8, 8)


def test_folders_in_a_zip_are_no_images(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", [("x.png/", b""), ("x.png/a.png", png())])
    assert ImageDataset(path).file_names == ["x.png/a.png"]


def test_a_zip_travels_to_another_process(tmp_path: Path) -> None:
    files = open_files(zipped(tmp_path / "a.zip", [("a.png", png())]))
    assert pickle.loads(pickle.dumps(files)).read("a.png") == png()


@ON_WINDOWS
def test_links_are_followed(tmp_path: Path) -> None:
    source = folder(tmp_path / "source", ["0/a.png", "1/b.png", "1/deep/c.png", "d.png"])
    data = tmp_path / "data"
    data.mkdir()
    for name in ("0", "1", "d.png"):
        (data / name).symlink_to(source / name)
    (tmp_path / "link").symlink_to(data)
    for path in (data, tmp_path / "link"):
        dataset = ImageDataset(path)
        assert dataset.file_names == ["0/a.png", "1/b.png", "1/deep/c.png", "d.png"] and dataset.notes == ()
        assert dataset.image(2).shape == (3, 8, 8)
    assert ImageDataset(data).sha256() == ImageDataset(source).sha256()


@ON_WINDOWS
def test_links_in_a_circle(tmp_path: Path) -> None:
    path = folder(tmp_path / "data", ["0/a.png", "1/b.png"])
    (path / "0/up").symlink_to(path)
    (path / "0/other").symlink_to(path / "1")
    (path / "1/back").symlink_to(path / "0")
    (path / "self").symlink_to(path / "self")
    listing = open_files(path).listing
    assert listing.images == ("0/a.png", "0/other/b.png", "1/b.png", "1/back/a.png")
    assert len(listing.notes) == 1 and str(path) in listing.notes[0]


@ON_WINDOWS
@pytest.mark.parametrize("target", ["nowhere.png", "z.png"])
def test_a_link_to_nowhere_is_named(tmp_path: Path, target: str) -> None:
    path = folder(tmp_path / "data", ["0/a.png"])
    (path / "0/z.png").symlink_to(target)
    (path / "0/readme.txt").symlink_to("nowhere.txt")  # none of the images
    with pytest.raises(UserError) as caught:
        ImageDataset(path)
    assert f"{path}/0/z.png" in str(caught.value)


@ON_WINDOWS
def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    path = folder(tmp_path / "data", ["a.png"])
    os.mkfifo(path / "b.png")
    with pytest.raises(UserError) as caught:
        ImageDataset(path)
    assert f"{path}/b.png" in str(caught.value)


@pytest.fixture
def no_permission(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Names in this set cannot be opened or listed, for root as well."""
    forbidden: set[str] = set()
    real_open, real_scandir = Path.open, os.scandir

    def refuse(path: object) -> None:
        if Path(str(path)).name in forbidden:
            raise PermissionError(13, "Permission denied", str(path))

    def opened(self: Path, *args: object, **options: object) -> object:
        refuse(self)
        return real_open(self, *args, **options)  # type: ignore[call-overload]

    def listed(path: str = ".") -> object:
        refuse(path)
        return real_scandir(path)

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(os, "scandir", listed)
    yield forbidden


@pytest.mark.parametrize("name", ["1", "c.png", "dataset.json"])
def test_what_may_not_be_read_is_named(tmp_path: Path, no_permission: set[str], name: str) -> None:
    path = folder(tmp_path / "data", ["0/a.png", "0/b.png", "1/c.png"])
    (path / "dataset.json").write_text('{"labels": null}')
    no_permission.add(name)
    with pytest.raises(UserError, match="Permission denied") as caught:
        dataset = ImageDataset(path)
        list(dataset.batches(range(3), 2))
    message = str(caught.value)
    assert str(path) in message and name in message and "\n" not in message


def test_all_that_cannot_be_listed_is_told_at_once(tmp_path: Path, no_permission: set[str]) -> None:
    path = folder(tmp_path / "data", ["0/a.png", "1/c.png", "2/d.png"])
    no_permission |= {"0", "2"}
    with pytest.raises(UserError) as caught:
        ImageDataset(path)
    assert f"{path}/0" in str(caught.value) and f"--check-data={path}" in str(caught.value)
    assert [str(path / name) in problem for name, problem in zip("02", check_dataset(path).problems, strict=True)]


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    path = folder(tmp_path / "data", ["a.png"])
    try:
        os.rename(path / "a.png", os.fsencode(path) + b"/\xff.png")
    except OSError:
        pytest.skip("this file system has no such names")
    dataset = ImageDataset(path)
    assert dataset.image(0).shape == (3, 8, 8) and len(dataset.sha256()) == 64
    assert dataset.files.fingerprint() is None or len(dataset.files.fingerprint() or "") == 64


def test_a_damaged_zip_names_the_entry(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", [("a.png", png(1)), ("b.png", png(2))])
    content = bytearray(path.read_bytes())
    place = content.index(png(2)) + 60
    content[place] ^= 1
    path.write_bytes(content)
    dataset = ImageDataset(path)
    with pytest.raises(UserError) as caught:
        dataset.image(1)
    assert f"{path}/b.png" in str(caught.value)
