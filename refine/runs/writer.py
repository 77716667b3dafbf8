"""Background writer of snapshots and training states: a step waits for a copy of the tensors, not for the disk.

At most one copy exists at a time, and both files are written from it.
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
        digests: SHA-256 of the run's files, keyed by the option that names the file.
        start: Weights of the generator before the first step; None if they are in the run's pickle.
    """

    digests: Mapping[str, str]
    start: dict[str, torch.Tensor] | None = None


class Writer(Background):
    """Background thread that writes a run's snapshots and states, on rank 0 only.

    Args:
        trainer: Trainer whose networks are saved.
        pair: Pair that knows the contents of a snapshot.
        folder: Folder of the run.
        origin: Start of the run.
    """

    def __init__(self, trainer: Trainer, pair: Pair, folder: RunFolder, origin: Origin) -> None:
        super().__init__()
        self.trainer, self.pair, self.folder, self.origin = trainer, pair, folder, origin

    def save(self, *, snapshot: bool = False, state: bool = False) -> None:
        """Starts to write the current networks, after earlier files are complete. All processes have to call this.

        Call `wait` before relying on the files.

        Args:
            snapshot: Whether to write a snapshot, with the live generator as G and the moving average as G_ema.
            state: Whether to write a training state.

        Raises:
            UserError: An earlier file could not be written.
        """
        nimg = self.trainer.progress.cur_nimg
        if state:
            content = state_of(self.trainer, self.origin.digests, self.origin.start)
        else:
            content = {"networks": {"generator": self.trainer.generator.weights()}}
        if not distributed.is_rank0():
            return
        self.wait()  # before making the copy, so that there are never two
        self.start(self._work(content, nimg, snapshot=snapshot, state=state))

    def _work(self, content: dict[str, Any], nimg: int, *, snapshot: bool, state: bool) -> Any:
        path = self.folder.snapshot_path(snapshot_tag(nimg, self.trainer.options.batch))
        objective = str(self.trainer.objective)
        copied, arrive = host_copy(content, shared=[self.origin.start])

        def write() -> None:
            arrive()
            if snapshot:
                weights = copied["networks"]["generator"]
                self.pair.write_snapshot(path, weights["module"], weights["average"], objective)
            if state:
                with atomic_write(self.folder.state_path(nimg)) as file:
                    torch.save(copied, file)
                self.folder.remove_old_states()

        return write
