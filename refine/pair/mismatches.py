"""Mistakes that a pair of generator and teacher may have, each with what would undo it, for the preflight to try."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

SUSPICIOUS = 1.1  # a loss ratio from which a mirror, the channels or the range of colours are tried
BAD = 1.25  # one from which the crop is tried too

Correction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Candidate:
    """A mistake that a pair may have, and what would undo it.

    Attributes:
        sentence: what is wrong and what helps.
        correct: generator's images [N, C, H, W] -> what they would be without the mistake.
        needs: the loss ratio from which it is tried.
        of_range: whether it is about the range of colours, which shows in the pixels' mean and deviation too.
    """

    sentence: str
    correct: Correction
    needs: float = SUSPICIOUS
    of_range: bool = False


def _zoomed(share: float) -> Correction:
    """The central share of each image; above 1, more than the image, reflected at its borders."""

    def correct(x: Tensor) -> Tensor:
        size = x.shape[-1]
        border = round(size * (share - 1) / 2)
        if border > 0:
            return functional.pad(x, [border] * 4, mode="reflect")
        return x[:, :, -border : size + border, -border : size + border]

    return correct


CANDIDATES: dict[str, Candidate] = {
    "range 0..1": Candidate(
        "Its colours seem to lie in 0..1 where the teacher expects -1..1: take a generator trained on images in -1..1, "
        "or check how its training read images.",
        lambda x: x * 2 - 1,
        of_range=True,
    ),
    "range 0..255": Candidate(
        "Its colours seem to lie in 0..255 where the teacher expects -1..1: take a generator trained on images in "
        "-1..1, or check how its training read images.",
        lambda x: x / 127.5 - 1,
        of_range=True,
    ),
    "teacher's range 0..1": Candidate(
        "The teacher seems to expect colours in 0..1 where the generator draws -1..1: take a teacher trained on images "
        "in -1..1.",
        lambda x: (x + 1) / 2,
        of_range=True,
    ),
    "negative": Candidate("Its images seem to be negatives: one of the two was trained on inverted images.", torch.neg),
    "channel order": Candidate(
        "Its red and blue channels seem to be swapped (BGR): one of the two was trained on images read in that order.",
        lambda x: x.flip(1),
    ),
    "horizontal mirror": Candidate(
        "Its images seem to be mirrored left to right: one of the two was trained on mirrored images.",
        lambda x: x.flip(3),
    ),
    "vertical mirror": Candidate(
        "Its images seem to be upside down: one of the two was trained on flipped images.", lambda x: x.flip(2)
    ),
} | {
    f"crop {share:g}": Candidate(
        f"The teacher seems to know only the central {share:.0%} of what the generator draws: "
        "take a teacher whose data set was cropped as the generator's was."
        if share < 1
        else "The teacher seems to know a wider frame than the generator draws: "
        "take a teacher whose data set was cropped as the generator's was.",
        _zoomed(share),
        needs=BAD,
    )
    for share in (0.5, 0.625, 0.75, 0.875, 1.25)
}
