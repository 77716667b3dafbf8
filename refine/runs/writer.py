"""Snapshots and training states of a run, written beside it: a step waits for the copy of the tensors, not for a disk.

At most one such copy exists, and both files are written from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from refine import pickles
from refine.pickles import NetworkPickle
from refine.runs.folder import RunDir, moment
from refine.runtime import distributed
from refine.runtime.background import Background, host_copy
from refine.training.state import state_of
from refine.training.trainer import Trainer

_NETWORKS = {"G": "generator", "G_ema": "generator_ema"}  # entries of the pickle: networks of the trainer


@dataclass(frozen=True)
class Origin:
    """Where a run came from.

    Attributes:
        hashes: sha256 of its pickles, by the option that named them.
        start: weights that it began with, where they are not those of its pickle.
    """

    hashes: dict[str, str]
    start: dict[str, torch.Tensor] | None = None


class Saver(Background):
    """What writes the files. Only the first of several processes does.

    Args:
        trainer: whose networks are saved.
        pickle: that the generator came in.
        run_dir: where files go.
        origin: of the run.
    """

    def __init__(self, trainer: Trainer, pickle: NetworkPickle, run_dir: RunDir, origin: Origin) -> None:
        super().__init__()
        self.trainer, self.pickle, self.run_dir, self.origin = trainer, pickle, run_dir, origin

    def save(self, *, snapshot: bool = False, state: bool = False) -> None:
        """Begins to write files of this moment, after those of an earlier one are written.

        `wait` before anything relies on them. All processes have to call this.

        Args:
            snapshot: the pickle that came in, with the live generator as G and the moving average as G_ema.
            state: the training state.

        Raises:
            UserError: an earlier file could not be written.
        """
        nimg = self.trainer.progress.cur_nimg
        if state:
            content = state_of(self.trainer, self.origin.hashes, self.origin.start)
        else:
            content = {name: getattr(self.trainer, name).state_dict() for name in _NETWORKS.values()}
        if not distributed.is_first():
            return
        self.wait()  # before the copy is made, so that there never are two
        self.start(self._work(content, nimg, snapshot=snapshot, state=state))

    def _work(self, content: dict[str, Any], nimg: int, *, snapshot: bool, state: bool) -> Any:
        path = self.run_dir.snapshot_path(moment(nimg, self.trainer.config.batch))
        copied, arrive = host_copy(content, shared=[self.origin.start])

        def write() -> None:
            arrive()
            if snapshot:
                present = {key: copied[name] for key, name in _NETWORKS.items() if self.pickle.get(key) is not None}
                pickles.save(self.pickle, path, present)
            if state:
                self.run_dir.save_state(nimg, copied)

        return write
