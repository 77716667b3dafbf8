"""pkl-ema: the moving average of the generator only, in a pickle that the repository's own tools open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from refine.export.agreement import Probe, images_of_network
from refine.networks import one_step
from refine.networks.loading import LoadedNetwork, load_generator
from refine.pickles import writer


def write(loaded: LoadedNetwork, file: BinaryIO) -> None:
    """Writes the generator under G and G_ema, one object, and an empty module under D; a one-step generator as ema."""
    if isinstance(loaded.network, one_step.OneStep):
        alone = replace(loaded.pickle, root={one_step.AVERAGE: loaded.record}, layout=None)
        objective = (one_step.recorded(loaded.pickle) or {}).get("objective")
        writer.write(one_step.described(alone, loaded.network.sigma_init, objective), file)
        return
    root = writer.snapshot_of({"G_ema": loaded.record})
    writer.write(replace(loaded.pickle, root=root, layout=None), file)


def images(path: Path, loaded: LoadedNetwork, probe: Probe) -> Tensor:
    """Images of the network that the written pickle describes."""
    return probe.images(images_of_network(load_generator(str(path), trust=loaded.pickle.trusted).network))
