"""Known mismatches of generator and teacher, each with a correction that the preflight tries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

SUSPICIOUS = 1.1  # loss ratio from which flips, channel order and color range are tried
BAD = 1.25  # loss ratio from which crops are tried too

Correction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Candidate:
    """A mismatch that a pair may have, and its correction.

    Attributes:
        sentence: Description of the mismatch, with a remedy.
        correct: Correction: the generator's images [N, C, H, W] -> the images without the mismatch.
        needs: Loss ratio from which the correction is tried.
        of_range: Whether the mismatch concerns the color range, which shows in the pixels' mean and deviation too.
    """

    sentence: str
    correct: Correction
    needs: float = SUSPICIOUS
    of_range: bool = False


def _zoomed(share: float) -> Correction:
    """Crop to the central share of each image; above 1, padding by reflection instead."""

    def correct(x: Tensor) -> Tensor:
        size = x.shape[-1]
        border = round(size * (share - 1) / 2)
        if border > 0:
            return functional.pad(x, [border] * 4, mode="reflect")
        return x[:, :, -border : size + border, -border : size + border]

    return correct


CANDIDATES: dict[str, Candidate] = {
    "range 0..1": Candidate(
        "The generator's colors seem to lie in 0..1, and the teacher expects -1..1: use a generator trained on images "
        "in -1..1, or check how its training code read images.",
        lambda x: x * 2 - 1,
        of_range=True,
    ),
    "range 0..255": Candidate(
        "The generator's colors seem to lie in 0..255, and the teacher expects -1..1: use a generator trained on "
        "images in -1..1, or check how its training code read images.",
        lambda x: x / 127.5 - 1,
        of_range=True,
    ),
    "teacher's range 0..1": Candidate(
        "The teacher seems to expect colors in 0..1, and the generator's lie in -1..1: use a teacher trained on images "
        "in -1..1.",
        lambda x: (x + 1) / 2,
        of_range=True,
    ),
    "negative": Candidate(
        "The generator's images look like negatives to the teacher: one of the two was trained on inverted images.",
        torch.neg,
    ),
    "channel order": Candidate(
        "The generator's red and blue channels seem to be swapped (BGR): one of the two was trained on images read in "
        "that order.",
        lambda x: x.flip(1),
    ),
    "horizontal mirror": Candidate(
        "The generator's images look flipped left to right to the teacher: one of the two was trained on flipped "
        "images.",
        lambda x: x.flip(3),
    ),
    "vertical mirror": Candidate(
        "The generator's images look upside down to the teacher: one of the two was trained on flipped images.",
        lambda x: x.flip(2),
    ),
} | {
    f"crop {share:g}": Candidate(
        f"The teacher seems to have been trained on the central {share:.0%} of such images: "
        "use a teacher whose data set was cropped like the generator's."
        if share < 1
        else "The teacher seems to have been trained on images with a wider frame: "
        "use a teacher whose data set was cropped like the generator's.",
        _zoomed(share),
        needs=BAD,
    )
    for share in (0.5, 0.625, 0.75, 0.875, 1.25)
}
