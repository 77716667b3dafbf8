"""Images of the pair: scikit-learn's handwritten digits, enlarged and split."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from refine.digits.digits import NUM_CLASSES, RESOLUTION, Images
from refine.errors import UserError
from refine.files.atomic import atomic_write

HELD_OUT_PER_CLASS = {"selection": 20, "test": 40}  # the other 114 to 123 of a class are for training
SPLIT_SEED = 0


def load_splits() -> dict[str, Images]:
    """All 1797 digits, enlarged from 8x8 by Lanczos: "train" (1197), "selection" (200) and "test" (400).

    Settings are chosen on "selection"; what is published is measured on "test". Both hold as many images of each class.

    Raises:
        UserError: Scikit-learn, which contains the images, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(
            "The digits are part of scikit-learn, which is not installed: pip install scikit-learn."
        ) from error
    digits = load_digits()
    pixels = np.stack([enlarge(image) for image in digits.images])
    order = np.random.RandomState(SPLIT_SEED).permutation(len(pixels))
    chosen: dict[str, list[int]] = {"train": [], "selection": [], "test": []}
    for number in range(NUM_CLASSES):
        rest = order[digits.target[order] == number].tolist()
        for name, count in HELD_OUT_PER_CLASS.items():
            chosen[name] += rest[:count]
            rest = rest[count:]
        chosen["train"] += rest
    return {
        name: Images(torch.from_numpy(pixels[indices]), torch.from_numpy(digits.target[indices].astype(np.int64)))
        for name, indices in chosen.items()
    }


def enlarge(image: np.ndarray) -> np.ndarray:
    """An image [8, 8] with values 0 to 16 as [1, 16, 16] uint8."""
    small = Image.fromarray((image * (255 / 16)).round().astype(np.uint8))
    return np.asarray(small.resize((RESOLUTION, RESOLUTION), Image.Resampling.LANCZOS))[None]


def write_dataset(images: Images, path: Path) -> None:
    """Writes a ZIP data set in the format of StyleGAN: PNGs, with their labels in `dataset.json`."""
    names = [f"00000/img{index:08d}.png" for index in range(len(images))]
    files = {}
    for name, pixels in zip(names, images.pixels, strict=True):
        png = io.BytesIO()
        Image.fromarray(pixels[0].numpy()).save(png, "PNG", optimize=True)
        files[name] = png.getvalue()
    labels = [[name, int(number)] for name, number in zip(names, images.classes, strict=True)]
    files["dataset.json"] = json.dumps({"labels": labels}).encode()
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)  # ZipInfo's own date: the same bytes every time
