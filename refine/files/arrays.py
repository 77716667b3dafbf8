"""Images in an .npz file of NumPy, as guided-diffusion (ADM) writes batches of samples: uint8 `arr_0` [N, H, W, 3].

Labels may follow as `arr_1`, whole numbers [N]. Other names do, too: the one array of bytes with four axes is the
images. What is stored without compression is mapped into memory, not read.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np

from refine.errors import UserError
from refine.files.dataset import ImageDataset
from refine.files.digest import file_sha256
from refine.files.listing import DatasetFiles, Listing, counted, one_line
from refine.files.reading import reading

SUFFIX = ".npz"
LEAST_MAPPED = 4096  # bytes
LABELS = ("arr_1", "labels", "y")


class ArrayDataset(ImageDataset):
    """Images of an .npz file, in the order of the array; see `ImageDataset` for the attributes."""

    decodes = False

    def __init__(self, path: str | Path, *, xflip: bool = False) -> None:
        """Opens the file.

        Args:
            path: The .npz file.
            xflip: Have each image a second time, mirrored; all originals come first.

        Raises:
            UserError: It cannot be read, or holds no square images of bytes.
        """
        self.path = Path(os.path.expanduser(path))
        self.name = self.path.stem
        with reading(self.path):
            if not self.path.exists():
                raise UserError(f"There is no file {self.path}: give an .npz of images.")
            self.files = _ArrayFile(self.path)
            entries = self.files.entries
        image_names = [name for name, entry in entries.items() if entry.dtype == np.uint8 and entry.ndim == 4]
        if len(image_names) != 1:
            held = ", ".join(f"{name} {entry.dtype}{list(entry.shape)}" for name, entry in list(entries.items())[:5])
            raise UserError(
                f"{self.path} holds {counted(len(image_names), 'array')} of images, uint8 [N, H, W, 3], where one is "
                f"expected (it has {held or 'no arrays'}): save them as arr_0."
            )
        array = entries[image_names[0]]
        if array.shape[3] not in (1, 3) and array.shape[1] in (1, 3):
            array = array.transpose(0, 2, 3, 1)
        count, height, width, channels = array.shape
        if not count or height != width or channels not in (1, 3):
            raise UserError(
                f"{self.path} holds {image_names[0]!r} {list(array.shape)}: give square images of 1 or 3 channels, "
                "uint8 [N, H, W, 3]."
            )
        self._array = array
        self.image_shape = (channels, height, width)
        self.file_names = [f"{image_names[0]}[{i}]" for i in range(count)]
        self.raw_labels = _labels(self.path, entries, count)
        self.notes = ()
        self.raw_indices = np.tile(np.arange(count, dtype=np.int64), 2 if xflip else 1)
        self.flips = np.arange(len(self.raw_indices)) >= count

    def image(self, index: int) -> np.ndarray:
        """One item, uint8 [C, H, W]."""
        image = np.asarray(self._array[int(self.raw_indices[index])]).transpose(2, 0, 1)
        return np.ascontiguousarray(image[:, :, ::-1] if self.flips[index] else image)


def open_dataset(path: str | Path, *, xflip: bool = False) -> ImageDataset:
    """Images of a StyleGAN data set, a ZIP or folder, or of an .npz file.

    Raises:
        UserError: It cannot be read, or is none of these.
    """
    kind = ArrayDataset if Path(path).suffix.lower() == SUFFIX and not Path(path).is_dir() else ImageDataset
    return kind(path, xflip=xflip)


def holds_images(path: Path) -> bool:
    """True if an .npz file holds images, and no statistics of features."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
        if "mu" in names:
            return False
        return any(entry.ndim == 4 and entry.dtype == np.uint8 for entry in _ArrayFile(path).entries.values())
    except (UserError, OSError, zipfile.BadZipFile):
        return False


def _labels(path: Path, entries: dict[str, np.ndarray], count: int) -> np.ndarray | None:
    name = next((name for name in LABELS if name in entries), None)
    if name is None:
        return None
    labels = entries[name]
    if labels.shape != (count,) or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= 2**31:
        raise UserError(
            f"{path} holds labels {name!r} {labels.dtype}{list(labels.shape)} for {count} images: give whole numbers "
            "from 0, one for each, or leave them out."
        )
    return np.asarray(labels, np.int64)


class _ArrayFile(DatasetFiles):
    """Access to the arrays of an .npz file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listing = Listing((), (), (), ())
        try:
            with zipfile.ZipFile(path) as archive:
                self._infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            self.entries = {info.filename.removesuffix(".npy"): self._open(info) for info in self._infos}
        except OSError:
            raise
        except Exception as error:  # zipfile's and NumPy's many
            raise UserError(
                f"{path} is not an .npz file of numbers, or is damaged ({one_line(error)}): give another."
            ) from error

    def read(self, name: str) -> bytes:
        """Content of an entry."""
        with zipfile.ZipFile(self.path) as archive:
            return archive.read(f"{name}.npy")

    def fingerprint(self) -> str | None:
        """See `DatasetFiles.fingerprint`: from the ZIP's directory, which has a checksum of each array."""
        digest = hashlib.sha256()
        for info in self._infos:
            digest.update(f"{info.filename}\0{(info.file_size, info.CRC, info.header_offset)}\0".encode())
        return digest.hexdigest()

    def sha256(self) -> str:
        """See `DatasetFiles.sha256`."""
        with reading(self.path):
            return file_sha256(self.path)

    def _open(self, info: zipfile.ZipInfo) -> np.ndarray:
        """An array, mapped if it is stored as it is."""
        if info.compress_type != zipfile.ZIP_STORED or info.file_size < LEAST_MAPPED:
            with np.load(self.path, allow_pickle=False) as npz:
                return npz[info.filename.removesuffix(".npy")]
        with self.path.open("rb") as file:
            file.seek(info.header_offset + 26)  # of the local header, after which name, extra field and content follow
            lengths = file.read(4)
            file.seek(int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little"), os.SEEK_CUR)
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            if dtype.hasobject:
                raise ValueError("an array of objects")
            offset = file.tell()
        return np.memmap(self.path, dtype, "r", offset, shape, "F" if fortran else "C")
