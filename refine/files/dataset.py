"""Data sets as the StyleGAN family stores them: a ZIP or folder of square images, with labels in `dataset.json`."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import zipfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from refine import pickles
from refine.errors import UserError

LABELS_FILE = "dataset.json"


class ImageDataset:
    """Images and labels, in the order of their names.

    Attributes:
        path: ZIP file or folder.
        name: of the file or folder, without suffix.
        file_names: of all images, in their order.
        image_shape: (C, H, W) of every image.
        raw_labels: classes [num_raw] int64, vectors [num_raw, dim] float32, or None.
        raw_indices: for each item, which image it is.
        flips: for each item, whether it is mirrored left to right.
    """

    def __init__(
        self, path: str | Path, *, xflip: bool = False, max_size: int | None = None, random_seed: int = 0
    ) -> None:
        """Opens a data set and reads its names, labels and first image.

        Args:
            path: ZIP file or folder.
            xflip: have each image a second time, mirrored; all originals come first.
            max_size: most images, before mirroring; a random subset, in order of names.
            random_seed: of NumPy's legacy generator, which draws the subset.

        Raises:
            UserError: nothing there, no images, unusable labels or a first image that does not do.
        """
        self.path = Path(os.path.expanduser(path))
        self.name = self.path.stem if self.path.is_file() else self.path.name
        self._zip = _open_zip(self.path)
        Image.init()
        self.file_names = [name for name in self._names() if Path(name).suffix.lower() in Image.EXTENSION]
        if not self.file_names:
            raise UserError(f"There are no images in {self.path}: give a StyleGAN data set, a ZIP or folder of PNGs.")
        self.image_shape: tuple[int, ...] | None = None
        self.image_shape = self._read(0).shape
        if self.image_shape[1] != self.image_shape[2]:
            raise UserError(
                f"{self._full(0)} has {self.image_shape[2]}x{self.image_shape[1]} pixels: images must be square."
            )
        self.raw_labels = self._read_labels()
        self.raw_indices = np.arange(len(self.file_names), dtype=np.int64)
        if max_size is not None and max_size < len(self.raw_indices):
            np.random.RandomState(random_seed).shuffle(self.raw_indices)
            self.raw_indices = np.sort(self.raw_indices[:max_size])
        self.flips = np.zeros(len(self.raw_indices), dtype=bool)
        if xflip:
            self.raw_indices = np.tile(self.raw_indices, 2)
            self.flips = np.concatenate([self.flips, ~self.flips])

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which opens the file itself."""
        return self.__dict__ | {"_zip": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._zip = _open_zip(self.path)
        Image.init()

    def __len__(self) -> int:
        return len(self.raw_indices)

    @property
    def resolution(self) -> int:
        """Pixels along both axes."""
        assert self.image_shape is not None
        return self.image_shape[1]

    @property
    def num_channels(self) -> int:
        """1 (grey) or 3."""
        assert self.image_shape is not None
        return self.image_shape[0]

    @property
    def label_dim(self) -> int:
        """Classes, or the width of label vectors; 0 without labels."""
        if self.raw_labels is None:
            return 0
        return int(self.raw_labels.max()) + 1 if self.raw_labels.ndim == 1 else self.raw_labels.shape[1]

    def image(self, index: int) -> np.ndarray:
        """One item, uint8 [C, H, W].

        Raises:
            UserError: the image is damaged, or of another size or kind than the first.
        """
        image = self._read(int(self.raw_indices[index]))
        return np.ascontiguousarray(image[:, :, ::-1]) if self.flips[index] else image

    def batches(self, indices: Sequence[int], batch: int) -> Iterator[np.ndarray]:
        """The items `indices` as uint8 [N, C, H, W], N <= batch, decoded by two threads ahead of use.

        Raises:
            UserError: as for `image`.
        """
        parts = [indices[first : first + batch] for first in range(0, len(indices), batch)]
        with ThreadPoolExecutor(2) as pool:

            def submit(part: Sequence[int]) -> list[Future[np.ndarray]]:
                return [pool.submit(self.image, index) for index in part]

            ahead = deque(submit(part) for part in parts[:2])
            try:
                for part in itertools.chain(parts[2:], (None, None)):
                    if ahead:
                        ready = ahead.popleft()
                        if part is not None:
                            ahead.append(submit(part))
                        yield np.stack([future.result() for future in ready])
            finally:
                for future in itertools.chain.from_iterable(ahead):
                    future.cancel()

    def sha256(self) -> str:
        """A digest of the content: of the ZIP file, or of the names and contents of a folder's files."""
        if self._zip is not None:
            return pickles.file_sha256(self.path)
        digest = hashlib.sha256()
        for name in (*self.file_names, LABELS_FILE):
            if (self.path / name).is_file():
                digest.update(f"{name}\0{pickles.file_sha256(self.path / name)}\0".encode())
        return digest.hexdigest()

    # -- files ----------------------------------------------------------------------------------------

    def _names(self) -> list[str]:
        if self._zip is not None:
            return sorted(self._zip.namelist())
        files = (Path(folder, name) for folder, _, names in os.walk(self.path) for name in names)
        return sorted(file.relative_to(self.path).as_posix() for file in files)

    def _full(self, raw_index: int) -> str:
        return f"{self.path}/{self.file_names[raw_index]}"

    def _bytes(self, name: str) -> bytes:
        return self._zip.read(name) if self._zip is not None else (self.path / name).read_bytes()

    def _read(self, raw_index: int) -> np.ndarray:
        """One image as stored, [C, H, W]."""
        try:
            with Image.open(io.BytesIO(self._bytes(self.file_names[raw_index]))) as image:
                image.load()
        except Exception as error:  # Pillow and zipfile raise many
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            reason = reason if "<_io" not in reason else "not an image that Pillow knows"
            raise UserError(f"{self._full(raw_index)} is damaged ({reason}): replace or remove it.") from error
        if image.mode not in ("RGB", "L"):
            what = {"RGBA": "has an alpha channel", "LA": "has an alpha channel", "P": "has a palette"}
            raise UserError(
                f"{self._full(raw_index)} {what.get(image.mode, f'has the mode {image.mode}')}: convert the data set "
                "to RGB, or all of it to grey."
            )
        array = np.asarray(image)
        array = np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
        if self.image_shape not in (None, array.shape):
            raise UserError(
                f"{self._full(raw_index)} is {_describe(array.shape)} and the first image "
                f"{_describe(self.image_shape)}: all images must be alike."
            )
        return array

    def _read_labels(self) -> np.ndarray | None:
        if LABELS_FILE not in (self._zip.namelist() if self._zip else self._names()):
            return None
        where = f"{self.path}/{LABELS_FILE}"
        try:
            pairs = json.loads(self._bytes(LABELS_FILE)).get("labels")
            by_name = {str(name).replace("\\", "/"): label for name, label in pairs} if pairs is not None else None
        except (ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise UserError(f"{where} is damaged: its labels must be pairs of a file name and a label.") from error
        if by_name is None:
            return None
        missing = next((name for name in self.file_names if name not in by_name), None)
        if missing is not None:
            raise UserError(f"{where} has no label for {missing}: give every image one, or none.")
        try:
            labels = np.array([by_name[name] for name in self.file_names])
            kind = {"i": np.int64, "u": np.int64, "f": np.float32}[labels.dtype.kind]
        except (ValueError, KeyError) as error:
            raise UserError(f"{where} mixes labels of different kinds: all must be classes or all vectors.") from error
        is_vector = labels.ndim == 2
        if not is_vector and (labels.ndim != 1 or kind is np.float32 or labels.min() < 0):
            raise UserError(f"{where} has labels that are neither classes (0, 1, ...) nor vectors: correct it.")
        return labels.astype(np.float32 if is_vector else kind)


def _open_zip(path: Path) -> zipfile.ZipFile | None:
    if path.is_dir():
        return None
    if not path.is_file():
        raise UserError(f"There is no data set {path}: give a StyleGAN data set, a ZIP or folder of PNGs.")
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path} is no ZIP file, or damaged ({error}): give a StyleGAN data set.") from error


def _describe(shape: Any) -> str:
    return f"{shape[2]}x{shape[1]} {'grey' if shape[0] == 1 else 'RGB'}"
