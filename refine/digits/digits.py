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
    """Labelled images.

    Attributes:
        pixels: [N, 1, 16, 16] uint8.
        classes: [N] int64, 0 to 9.
    """

    pixels: torch.Tensor
    classes: torch.Tensor

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def x0(self) -> torch.Tensor:
        """The images as networks see them, [N, 1, 16, 16] float32 in [-1, 1]."""
        return self.pixels.float() / 127.5 - 1

    @property
    def one_hot(self) -> torch.Tensor:
        """The labels as networks see them, [N, 10] float32."""
        return torch.nn.functional.one_hot(self.classes, NUM_CLASSES).float()


def read_dataset(path: Path) -> Images:
    """Reads a dataset zip of the StyleGAN kind: grey PNGs, and their labels in `dataset.json`."""
    with zipfile.ZipFile(path) as archive:
        labels = json.loads(archive.read("dataset.json"))["labels"]
        pixels = [np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name, _ in labels]
    return Images(torch.from_numpy(np.stack(pixels)[:, None]), torch.tensor([number for _, number in labels]))


def shipped_split(name: str) -> Images:
    """The images of "train", "selection" or "test"."""
    return read_dataset(FOLDER / f"digits-{name}.zip")


def shipped_detector() -> torch.jit.ScriptModule:
    """The digit classifier that is called like the Inception network."""
    return torch.jit.load(FOLDER / "digits-detector.pt", map_location="cpu")
