"""Data sets as the StyleGAN family stores them: a ZIP or folder of square images, with labels in `dataset.json`."""

from __future__ import annotations

import io
import itertools
import os
import zlib
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from refine.errors import UserError
from refine.files.labels import labels_in, parse_labels
from refine.files.listing import LABELS_FILE, DatasetFiles, counted, one_line, open_files, with_slashes

_UNUSABLE_MODES = {"RGBA": "has an alpha channel", "LA": "has an alpha channel", "P": "has a palette"}


class ImageDataset:
    """Images and labels, in the order of their names.

    Attributes:
        path: ZIP file or folder.
        name: Its name, without suffix.
        files: Access to the files.
        file_names: Names of all images, in their order.
        image_shape: (C, H, W) of every image; C is 1 (gray) or 3.
        raw_labels: Classes [num_raw] int64, vectors [num_raw, dim] float32, or None.
        raw_indices: Number of the image, for each item.
        flips: Whether an item is mirrored left to right.
        notes: Files that were left out or are there twice, a sentence each.
        decodes: Whether an image takes work to read, which processes may share.
    """

    decodes = True

    def __init__(
        self, path: str | Path, *, xflip: bool = False, max_size: int | None = None, random_seed: int = 0
    ) -> None:
        """Opens a data set and reads its names, labels and first image.

        Args:
            path: ZIP file or folder.
            xflip: Have each image a second time, mirrored; all originals come first.
            max_size: Most images, before mirroring; a random subset, in order of names.
            random_seed: Seed of NumPy's legacy generator, which draws the subset.

        Raises:
            UserError: There are no images, some file cannot be read, or the labels or the first image are unusable.
        """
        self.path = Path(os.path.expanduser(path))
        self.files = open_files(self.path)
        self.name = self.path.name if self.path.is_dir() else self.path.stem
        listing = self.files.listing
        if listing.problems:
            more = len(listing.problems) - 1
            remedy = f" For the {more} more: python -m refine metrics --check-data={self.path}" if more else ""
            raise UserError(listing.problems[0] + remedy)
        if not listing.images:
            raise UserError(f"There are no images in {self.path}: give a StyleGAN data set, a ZIP or folder of PNGs.")
        self.file_names, self.notes = list(listing.images), listing.notes
        self.image_shape = decode(self.files, self.file_names[0]).shape
        if problem := _shape_problem(self.image_shape, self.image_shape):
            raise UserError(f"{self.path}/{self.file_names[0]} {problem}")
        self.raw_labels = read_labels(self.files)
        self.raw_indices = np.arange(len(self.file_names), dtype=np.int64)
        if max_size is not None and max_size < len(self.raw_indices):
            np.random.RandomState(random_seed).shuffle(self.raw_indices)
            self.raw_indices = np.sort(self.raw_indices[:max_size])
        self.flips = np.zeros(len(self.raw_indices), dtype=bool)
        if xflip:
            self.raw_indices = np.tile(self.raw_indices, 2)
            self.flips = np.concatenate([self.flips, ~self.flips])

    def __len__(self) -> int:
        return len(self.raw_indices)

    @property
    def resolution(self) -> int:
        """Pixels along both axes."""
        return self.image_shape[1]

    @property
    def num_channels(self) -> int:
        """1 (gray) or 3."""
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
            UserError: The image cannot be read, or is of another size or kind than the first.
        """
        name = self.file_names[int(self.raw_indices[index])]
        image = decode(self.files, name)
        if problem := _shape_problem(image.shape, self.image_shape):
            raise UserError(f"{self.path}/{name} {problem}")
        return np.ascontiguousarray(image[:, :, ::-1]) if self.flips[index] else image

    def batches(self, indices: Sequence[int], batch: int) -> Iterator[np.ndarray]:
        """Items `indices` as uint8 [N, C, H, W], N <= batch, decoded by two threads ahead of use.

        Raises:
            UserError: As for `image`.
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
        return self.files.sha256()


def decode(files: DatasetFiles, name: str) -> np.ndarray:
    """One image as stored, uint8 [C, H, W], C = 1 (gray) or 3 (RGB).

    Raises:
        UserError: It cannot be read, is damaged, or is neither RGB nor gray.
    """
    where = f"{files.path}/{name}"
    content = files.read(name)
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except UnidentifiedImageError as error:
        raise UserError(f"{where} is not an image that Pillow knows: replace or remove it.") from error
    except MemoryError as error:
        raise UserError(f"{where} does not fit in memory: replace or remove it.") from error
    except (Exception, zlib.error) as error:  # Pillow's plugins raise many
        raise UserError(f"{where} is damaged ({one_line(error)}): replace or remove it.") from error
    if image.mode not in ("RGB", "L"):
        what = _UNUSABLE_MODES.get(image.mode, f"has the mode {image.mode}")
        raise UserError(f"{where} {what}: convert the data set to RGB, or all of it to gray.")
    array = np.asarray(image)
    return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def read_labels(files: DatasetFiles) -> np.ndarray | None:
    """Labels of all images in a data set, in the order of their names; None if it has none.

    Raises:
        UserError: Labels lie where they are not looked for, or cannot be read.
    """
    if LABELS_FILE in files.listing.labels:
        return parse_labels(files.read(LABELS_FILE), f"{files.path}/{LABELS_FILE}", files.listing.images)
    for name in files.listing.labels:
        where = f"{files.path}/{name}"
        if labels_in(files.read(name), where) is not None:
            folder = with_slashes(name).rpartition("/")[0]
            raise UserError(
                f"{where} holds labels, which are looked for in {files.path}/{LABELS_FILE} only: make {folder} itself "
                f"the data set, or rename the file to have no labels."
            )
    return None


@dataclass(frozen=True)
class DatasetCheck:
    """Result of reading a whole data set.

    Attributes:
        summary: Content of the data set, in a line.
        notes: Files that were left out or are there twice, a sentence each.
        problems: Every file that cannot be used, a sentence each.
    """

    summary: str
    notes: tuple[str, ...]
    problems: tuple[str, ...]


def check_dataset(path: str | Path) -> DatasetCheck:
    """Reads every image and label of a data set and lists everything that is wrong.

    Images are compared with the most frequent size and number of channels, whatever the first image is.

    Raises:
        UserError: There is no such data set, or no image in it.
    """
    files = open_files(Path(os.path.expanduser(path)))
    names = files.listing.images
    if not names and not files.listing.problems:
        raise UserError(f"There are no images in {files.path}: give a StyleGAN data set, a ZIP or folder of PNGs.")

    def look(name: str) -> tuple[int, ...] | str:
        try:
            return decode(files, name).shape
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        seen = list(tqdm(pool.map(look, names), "images", len(names), leave=False, disable=None))
    shapes = Counter(shape for shape in seen if not isinstance(shape, str))
    usual = shapes.most_common(1)[0][0] if shapes else None
    problems = list(files.listing.problems)
    for name, found in zip(names, seen, strict=True):
        problem = found if isinstance(found, str) else _shape_problem(found, usual)
        if problem:
            problems.append(problem if isinstance(found, str) else f"{files.path}/{name} {problem}")
    try:
        about = _describe_labels(read_labels(files))
    except UserError as error:
        problems.append(str(error))
        about = "with unusable labels"
    size = "" if usual is None else f" of {_describe(usual)}"
    return DatasetCheck(
        f"{files.path}: {counted(len(names), 'image')}{size}, {about}", files.listing.notes, tuple(problems)
    )


def _shape_problem(shape: tuple[int, ...], wanted: tuple[int, ...] | None) -> str | None:
    """Problem with an image's (C, H, W), as the end of a sentence; None if there is none."""
    if shape[1] != shape[2]:
        return f"has {shape[2]}x{shape[1]} pixels: images must be square."
    if wanted is not None and shape != wanted:
        return f"is {_describe(shape)} and the others are {_describe(wanted)}: all images must be alike."
    return None


def _describe_labels(labels: np.ndarray | None) -> str:
    if labels is None:
        return "without labels"
    if labels.ndim == 2:
        return f"with labels of {counted(labels.shape[1], 'number')}"
    classes = np.unique(labels)
    return f"with labels of {len(classes)} classes ({classes.min()} to {classes.max()})"


def _describe(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}x{shape[1]} {'gray' if shape[0] == 1 else 'RGB'}"
