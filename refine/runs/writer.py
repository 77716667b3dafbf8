"""Writer of snapshots and training states: a step waits for the copy of the tensors, not for a disk.

At most one such copy exists, and both files are written from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from refine.files.atomic import atomic_write
from refine.pair.pair import Pair
from refine.runs.folder import RunFolder, snapshot_tag
from refine.runtime import distributed
from refine.runtime.background import Background, host_copy
from refine.training.state import state_of
from refine.training.trainer import Trainer


@dataclass(frozen=True)
class Origin:
    """Start of a run.

    Attributes:
        digests: SHA-256 of its files, by the option that named them.
        start: Weights that it began with, where they are not those of its pickle.
    """

    digests: Mapping[str, str]
    start: dict[str, torch.Tensor] | None = None


class Writer(Background):
    """Writes a run's snapshots and states in a thread. Only the first of several processes does.

    Args:
        trainer: Trainer whose networks are saved.
        pair: Pair that knows what a snapshot holds.
        folder: Folder of the run.
        origin: Start of the run.
    """

    def __init__(self, trainer: Trainer, pair: Pair, folder: RunFolder, origin: Origin) -> None:
        super().__init__()
        self.trainer, self.pair, self.folder, self.origin = trainer, pair, folder, origin

    def save(self, *, snapshot: bool = False, state: bool = False) -> None:
        """Begins to write files of this moment, after those of an earlier one are written.

        `wait` before anything relies on them. All processes have to call this.

        Args:
            snapshot: Write the pickle that came in, with the live generator as G and the moving average as G_ema.
            state: Write the training state.

        Raises:
            UserError: An earlier file could not be written.
        """
        nimg = self.trainer.progress.cur_nimg
        if state:
            content = state_of(self.trainer, self.origin.digests, self.origin.start)
        else:
            content = {"networks": {"generator": self.trainer.generator.weights()}}
        if not distributed.is_first():
            return
        self.wait()  # before the copy is made, so that there never are two
        self.start(self._work(content, nimg, snapshot=snapshot, state=state))

    def _work(self, content: dict[str, Any], nimg: int, *, snapshot: bool, state: bool) -> Any:
        path = self.folder.snapshot_path(snapshot_tag(nimg, self.trainer.options.batch))
        copied, arrive = host_copy(content, shared=[self.origin.start])

        def write() -> None:
            arrive()
            if snapshot:
                weights = copied["networks"]["generator"]
                self.pair.write_snapshot(path, weights["module"], weights["average"])
            if state:
                with atomic_write(self.folder.state_path(nimg)) as file:
                    torch.save(copied, file)
                self.folder.remove_old_states()

        return write
