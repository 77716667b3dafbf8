"""pkl-ema: the moving average of the generator only, in a pickle that the repository's own tools open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from refine.export.agreement import Probe, images_of_network
from refine.networks.loading import LoadedNetwork, load_gan
from refine.pickles import reader, writer


def write(loaded: LoadedNetwork, file: BinaryIO) -> None:
    """Writes the generator under G and G_ema, one object, and an empty module under D.

    The loader of NVIDIA's repositories wants a module under each of the three names. An empty one fails at once where
    somebody calls it, and copying from it into a discriminator copies nothing.
    """
    root = {
        "training_set_kwargs": None,
        "G": loaded.record,
        "D": reader.inert(torch.nn.ModuleDict()),
        "G_ema": loaded.record,
        "augment_pipe": None,
    }
    writer.write(replace(loaded.pickle, root=root), file)


def images(path: Path, loaded: LoadedNetwork, probe: Probe) -> Tensor:
    """What the network computes that the written pickle describes."""
    return probe.images(images_of_network(load_gan(str(path), trust=loaded.pickle.trusted).network))
