"""Weights & Biases, if it is asked for and installed (`pip install wandb`).

Its usual environment variables apply, such as WANDB_API_KEY, WANDB_PROJECT and WANDB_MODE=offline.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refine.errors import OptionError
from refine.runs.tracker import Tracker

PROJECT = "refine"
ID_FILE = "wandb-id.txt"  # lets a resumed run continue the same W&B run


def require_wandb() -> None:
    """Checks that Weights & Biases is installed.

    Raises:
        OptionError: Weights & Biases is not installed.
    """
    if importlib.util.find_spec("wandb") is None:
        raise OptionError(
            "{wandb} needs the package wandb, which is not installed: pip install wandb, or leave {wandb} out."
        )


class WeightsAndBiases(Tracker):
    """Tracker that sends numbers, pictures and options to Weights & Biases, by images of generator updates.

    Args:
        folder: Folder of the run; its name becomes the name of the W&B run.
    """

    title = "Weights & Biases"
    optional = False

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self._run: Any = None

    def _start(self) -> None:
        import wandb  # takes a second to import

        path = self.folder / ID_FILE
        if not path.exists():
            path.write_text(secrets.token_hex(4), encoding="utf-8")
        self._run = wandb.init(
            dir=str(self.folder),
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=self.folder.resolve().name,
            id=path.read_text(encoding="utf-8").strip(),
            resume="allow",
            # Metadata would record the command line, which may contain secrets that the stored options leave out.
            settings=wandb.Settings(console="off", silent=True, x_disable_meta=True),
        )
        self._run.define_metric("cur_nimg", hidden=True)
        self._run.define_metric("*", step_metric="cur_nimg")

    def _numbers(self, values: Mapping[str, Any], cur_nimg: int, timestamp: float) -> None:
        self._run.log({**values, "cur_nimg": cur_nimg, "_timestamp": timestamp})

    def _picture(self, name: str, path: Path, cur_nimg: int, timestamp: float) -> None:
        import wandb

        self._run.log({name: wandb.Image(str(path)), "cur_nimg": cur_nimg, "_timestamp": timestamp})

    def _options(self, options: Mapping[str, Any]) -> None:
        self._run.config.update(dict(options), allow_val_change=True)  # a resumed run may change some options

    def _close(self) -> None:
        self._run.finish()
