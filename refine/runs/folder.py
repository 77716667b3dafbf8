"""Folder of a run: the names of its files, and their atomic writing.

    00000-<gan>-<teacher>-<objective>-batch<N>[-desc]/
        training_options.json   log.txt   stats.jsonl   fakes_init.png   fakes<kimg>.png
        network-snapshot-<kimg>.pkl   network-best.pkl   training-state-<kimg>.pt   metric-<name>.jsonl

Snapshots of a network without a pickle end in `.safetensors`.

<kimg> has six digits, as in the StyleGAN repositories. If a kimg has more than one snapshot, as in short runs, the
images beyond it follow: `network-snapshot-000003_520.pkl`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from refine.errors import UserError
from refine.files.atomic import atomic_write, cannot_write
from refine.files.jsonl import read_rows, to_json

OPTIONS, STATS, LOG, BEST = "training_options.json", "stats.jsonl", "log.txt", "network-best"
AVERAGES = "averages.jsonl"
_SNAPSHOT = re.compile(r"network-snapshot-(\d{6,})(?:_(\d{3}))?\.(?:pkl|safetensors)")
_STATE = re.compile(r"training-state-(\d{6,})\.pt")
NUM_STATES_KEPT = 2


class RunFolder:
    """Folder of one run.

    Args:
        path: Path of the folder.
        suffix: End of the names of snapshots to write.
    """

    def __init__(self, path: Path, suffix: str = ".pkl") -> None:
        self.path, self.suffix = path, suffix

    @classmethod
    def create(cls, outdir: str | Path, name: str) -> RunFolder:
        """Makes the folder `<outdir>/<number>-<name>` with the next free number.

        Raises:
            UserError: The folder cannot be made.
        """
        outdir = Path(outdir)
        try:
            outdir.mkdir(parents=True, exist_ok=True)
            numbers = [int(m[1]) for p in outdir.iterdir() if (m := re.match(r"(\d+)-", p.name))]
            number = max(numbers, default=-1) + 1
            while True:
                path = outdir / f"{number:05d}-{name}"
                try:
                    path.mkdir()
                    return cls(path)
                except FileExistsError:  # another run took the number a moment ago
                    number += 1
        except OSError as error:
            raise cannot_write(outdir, error) from error

    def write_options(self, text: str) -> None:
        """Writes `training_options.json`."""
        with atomic_write(self.path / OPTIONS) as file:
            file.write(text.encode())

    def read_options(self) -> dict[str, Any]:
        """Reads `training_options.json`.

        Raises:
            UserError: The file is missing, or is not a JSON object.
        """
        path = self.path / OPTIONS
        try:
            options = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}): give the folder of a run.") from error
        if not isinstance(options, dict):
            raise UserError(f"{path} contains no options: give the folder of a run.")
        return options

    def log(self, line: str) -> None:
        """Appends a line to `log.txt`."""
        self._append(LOG, line)

    def add_stats(self, row: Mapping[str, Any]) -> None:
        """Appends a row to `stats.jsonl`."""
        self._append(STATS, to_json(row))

    def stats_rows(self) -> list[dict[str, Any]]:
        """Rows of `stats.jsonl`, oldest first."""
        return read_rows(self.path / STATS).rows

    def snapshots(self) -> dict[Path, int]:
        """Snapshots in the folder, oldest first, with the images in each name, rounded down."""
        paths = (path for path in self.path.glob("network-snapshot-*") if _SNAPSHOT.fullmatch(path.name))
        return dict(sorted(((path, _snapshot_nimg({"snapshot_pkl": path.name})) for path in paths), key=lambda p: p[1]))

    def add_metric(self, row: Mapping[str, Any]) -> None:
        """Appends a row to `metric-<name>.jsonl`."""
        self._append(f"metric-{row['metric']}.jsonl", to_json(row))

    def metric_rows(self, name: str) -> list[dict[str, Any]]:
        """Rows of `metric-<name>.jsonl`, oldest first."""
        return read_rows(self.path / f"metric-{name}.jsonl").rows

    def metric_names(self) -> list[str]:
        """Names of the metrics with rows in the folder."""
        return [path.name.removeprefix("metric-").removesuffix(".jsonl") for path in self.path.glob("metric-*.jsonl")]

    def cut_rows(self, cur_nimg: int) -> None:
        """Removes rows of all jsonl files that are newer than a state, because a resumed run writes them again.

        Args:
            cur_nimg: Images at the state; negative in the warm-up, as in its rows.
        """
        self._cut(self.path / STATS, lambda row: row["Progress/cur_nimg"] <= cur_nimg)
        for path in self.path.glob("metric-*.jsonl"):
            self._cut(path, lambda row: _snapshot_nimg(row) <= max(cur_nimg, 0))

    def set_aside(self, cur_nimg: int) -> None:
        """Renames states newer than the resumed state, and removes temporary files of a killed process."""
        for path in self.states():
            if _kimg(path) > cur_nimg // 1000:
                os.replace(path, path.with_name(f"{path.name}.superseded"))
        for path in self.path.glob(".*.tmp"):
            path.unlink()

    def _cut(self, path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
        if path.exists():
            rows = [to_json(row) for row in read_rows(path).rows if keep(row)]
            with atomic_write(path) as file:
                file.write("".join(f"{row}\n" for row in rows).encode())

    def link_best(self, snapshot: Path) -> None:
        """Links `network-best.pkl` to a snapshot; copies the snapshot if the system has no links."""
        link = self.path / f"{BEST}{snapshot.suffix}"
        temporary = link.with_name(f".{link.name}.tmp")
        temporary.unlink(missing_ok=True)
        try:
            temporary.symlink_to(snapshot.name)
        except OSError:  # Windows, without the privilege
            with atomic_write(temporary) as file:
                file.write(snapshot.read_bytes())
        os.replace(temporary, link)

    def snapshot_path(self, tag: str) -> Path:
        """Path of the snapshot with a tag."""
        return self.path / f"network-snapshot-{tag}{self.suffix}"

    def average_path(self, tag: str, decay: str) -> Path:
        """Path of a further moving average at the end of a run, such as `network-average-000030-power_0.1.pkl`."""
        return self.path / f"network-average-{tag}-{decay.replace(':', '_')}{self.suffix}"

    def add_average(self, row: Mapping[str, Any]) -> None:
        """Appends a row to `averages.jsonl`."""
        self._append(AVERAGES, to_json(row))

    def average_rows(self) -> list[dict[str, Any]]:
        """Rows of `averages.jsonl` whose files are there, oldest first."""
        rows = read_rows(self.path / AVERAGES).rows
        return [row for row in rows if (self.path / str(row["snapshot_pkl"])).is_file()]

    def last_snapshot(self) -> Path | None:
        """Path of the newest snapshot; None if there is none."""
        snapshots = [path for path in self.path.glob("network-snapshot-*") if _SNAPSHOT.fullmatch(path.name)]
        return max(snapshots, key=lambda path: path.name, default=None)

    def state_path(self, cur_nimg: int) -> Path:
        """Path of the training state after `cur_nimg` images."""
        return self.path / f"training-state-{cur_nimg // 1000:06d}.pt"

    def remove_old_states(self) -> None:
        """Removes all but the newest two training states."""
        for old in self.states()[:-NUM_STATES_KEPT]:
            old.unlink()

    def states(self) -> list[Path]:
        """Training states in the folder, oldest first."""
        return sorted((p for p in self.path.iterdir() if _STATE.fullmatch(p.name)), key=_kimg)

    def _append(self, name: str, line: str) -> None:
        path = self.path / name
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise cannot_write(path, error) from error


def snapshot_tag(cur_nimg: int, batch: int) -> str:
    """Unique tag of a position in the names of snapshots and pictures.

    The tag of the first step in a kimg is six digits, and ordinary runs save only there. Other tags include the images
    beyond the kimg: the end of a run of 0.5 kimg is `000000_500`.

    Args:
        cur_nimg: Images so far, a multiple of the batch size.
        batch: Images per step.
    """
    kimg, images = divmod(cur_nimg, 1000)
    return f"{kimg:06d}" if images < batch else f"{kimg:06d}_{images:03d}"


def _kimg(state: Path) -> int:
    match = _STATE.fullmatch(state.name)
    assert match
    return int(match[1])


def _snapshot_nimg(row: Mapping[str, Any]) -> int:
    """Images in the name of a metric row's snapshot, such as `network-snapshot-000123.pkl`, rounded down."""
    match = _SNAPSHOT.search(str(row["snapshot_pkl"]))
    return int(match[1]) * 1000 + int(match[2] or 0) if match else 0


def find_state(spec: str, outdir: str | Path) -> Path:
    """Training state that `--resume` names.

    Args:
        spec: Path of a run's folder or of a state; `latest` for the newest state in `outdir`.
        outdir: Folder of all runs.

    Raises:
        UserError: There is no such state.
    """
    if spec == "latest":
        return _newest_state(Path(outdir).expanduser())
    path = Path(spec).expanduser()
    if path.is_dir():
        if states := RunFolder(path).states():
            return states[-1]
        if not (path / OPTIONS).exists() and any(re.match(r"\d+-", p.name) for p in path.iterdir()):
            raise UserError(f"{path} contains runs: give one of its folders, or --resume=latest --outdir={path}.")
        raise UserError(
            f"{path} contains no training-state-*.pt, because the run was stopped before its first state: start a new "
            "run."
        )
    if not path.is_file():
        raise UserError(
            f"{spec} is neither a run nor a training state: give a folder, a training-state-*.pt or latest."
        )
    if path.suffix != ".pt":
        raise UserError(
            f"{path} is not a training-state-*.pt: continue the run with --resume={path.parent}, or start a new run "
            f"from these weights with --init={path}."
        )
    return path


def _newest_state(outdir: Path) -> Path:
    """Newest state of all runs in a folder."""
    folders = [p for p in outdir.glob("*") if p.is_dir() and re.match(r"\d+-", p.name)]
    states = [states[-1] for folder in folders if (states := RunFolder(folder).states())]
    if not states:
        raise UserError(f"There is no run with a training state in {outdir}: start one without --resume.")
    return max(states, key=lambda path: (path.stat().st_mtime_ns, path.parent.name))
