"""The built-in images: scikit-learn's handwritten digits at 16x16, in the split that ships."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

RESOLUTION = 16
NUM_CLASSES = 10
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Images:
    """Labeled images.

    Attributes:
        pixels: Images [N, 1, 16, 16] uint8.
        classes: Class of each image [N] int64, 0 to 9.
    """

    pixels: torch.Tensor
    classes: torch.Tensor

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def x0(self) -> torch.Tensor:
        """Images as network inputs, [N, 1, 16, 16] float32 in [-1, 1]."""
        return self.pixels.float() / 127.5 - 1

    @property
    def one_hot(self) -> torch.Tensor:
        """Labels as network inputs, one-hot [N, 10] float32."""
        return torch.nn.functional.one_hot(self.classes, NUM_CLASSES).float()


def read_dataset(path: Path) -> Images:
    """Reads a ZIP data set in the format of StyleGAN: gray PNGs, with their labels in `dataset.json`."""
    with zipfile.ZipFile(path) as archive:
        labels = json.loads(archive.read("dataset.json"))["labels"]
        pixels = [np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name, _ in labels]
    return Images(torch.from_numpy(np.stack(pixels)[:, None]), torch.tensor([number for _, number in labels]))


def shipped_split(name: str) -> Images:
    """The images of "train", "selection" or "test"."""
    return read_dataset(FOLDER / f"digits-{name}.zip")


def shipped_detector() -> torch.jit.ScriptModule:
    """The digit classifier, with the calling convention of the Inception network."""
    return torch.jit.load(FOLDER / "digits-detector.pt", map_location="cpu")
