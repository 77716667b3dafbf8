"""TensorBoard events in a run's folder, if TensorBoard is installed (`pip install tensorboard`)."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refine.runs.tracker import Tracker


class TensorBoard(Tracker):
    """Tracker that writes scalars, pictures and options as TensorBoard events, by images of generator updates.

    Args:
        folder: Folder of the run.
        cur_nimg: Images so far. Later events of an earlier process are hidden, because a resumed run writes them again.
    """

    title = "TensorBoard"

    def __init__(self, folder: Path, cur_nimg: int = 0) -> None:
        super().__init__()
        self.folder, self.cur_nimg = folder, cur_nimg
        self._writer: Any = None

    def _start(self) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        _quiet_threads()
        has_events = any(self.folder.glob("events.out.tfevents.*"))
        self._writer = SummaryWriter(str(self.folder), purge_step=self.cur_nimg + 1 if has_events else None)

    def _numbers(self, values: Mapping[str, Any], cur_nimg: int, timestamp: float) -> None:
        for name, value in values.items():
            if value is not None:  # None stands for a number that is not finite
                self._writer.add_scalar(name, value, cur_nimg, walltime=timestamp)
        self._writer.flush()

    def _picture(self, name: str, path: Path, cur_nimg: int, timestamp: float) -> None:
        from PIL import Image
        from torch.utils.tensorboard.summary import Summary

        with Image.open(path) as picture:
            (width, height), channels = picture.size, len(picture.getbands())
        # An event holds a PNG: the file as it is, since `add_image` would compress its pixels once more.
        content = Summary.Image(width=width, height=height, colorspace=channels, encoded_image_string=path.read_bytes())
        summary = Summary(value=[Summary.Value(tag=name, image=content)])
        self._writer.file_writer.add_summary(summary, cur_nimg, timestamp)
        self._writer.flush()

    def _options(self, options: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard.summary import hparams

        lines = [f"    {line}" for line in json.dumps(dict(options), indent=2).splitlines()]  # Markdown's verbatim
        self._writer.add_text("options", "\n".join(lines), self.cur_nimg)
        plain = {
            name: value if isinstance(value, (str, bool, int, float)) else str(value) for name, value in options.items()
        }
        for summary in hparams(plain, {}):
            self._writer.file_writer.add_summary(summary)
        self._writer.flush()

    def _close(self) -> None:
        self._writer.close()


@functools.cache
def _quiet_threads() -> None:
    """Keeps TensorBoard's own thread from printing a traceback on a full disk; `Tracker` says it in one line."""
    otherwise = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if type(arguments.thread).__module__.partition(".")[0] != "tensorboard":
            otherwise(arguments)

    threading.excepthook = hook
