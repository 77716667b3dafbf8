"""Runs and networks as users name them: a run's folder, `latest`, or a pickle."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from refine.errors import UserError

log = logging.getLogger("refine")

_RUN = re.compile(r"\d+-")
SUFFIXES = (".pkl", ".safetensors")
BEST, SNAPSHOTS = "network-best", "network-snapshot-*"


def run_folder(spec: str | Path) -> Path:
    """A run's folder as it was named; `latest` in place of its name is the newest one there.

    Raises:
        UserError: There is no run.
    """
    path = Path(spec).expanduser()
    if path.name != "latest" or path.exists():
        return path
    parent = path.parent if path.parent != Path() else Path("training-runs")
    folders = [each for each in parent.glob("*") if _RUN.match(each.name) and each.is_dir()]
    if not folders:
        raise UserError(f"There is no run in {parent}: name the folder of one.")
    return max(folders, key=lambda each: (int(each.name.split("-")[0]), each.name))


def network_file(spec: str) -> str:
    """Network that `--network` names: a file, URL or zoo name as given; for a run's folder its best or last snapshot.

    Raises:
        UserError: The folder holds no snapshot.
    """
    path = run_folder(spec) if Path(spec).name == "latest" else Path(spec).expanduser()
    if not path.is_dir():
        return spec
    best = [path / f"{BEST}{suffix}" for suffix in SUFFIXES]
    found = next((each for each in best if each.is_file()), None) or max(_snapshots(path), default=None)
    if found is None:
        raise UserError(f"{path} is a folder without {SNAPSHOTS}.pkl: give a pickle, or the folder of a run.")
    log.info(f"Taking {found}{f' ({found.resolve().name})' if found.is_symlink() else ''}")
    return str(found)


def snapshots(spec: str) -> list[str]:
    """The file, or all snapshots of a run's folder in their order.

    Raises:
        UserError: The folder holds no snapshot.
    """
    path = run_folder(spec) if Path(spec).name == "latest" else Path(spec).expanduser()
    if not path.is_dir():
        return [spec]
    found = [str(each) for each in _snapshots(path)]
    if not found:
        raise UserError(f"{path} holds no {SNAPSHOTS}.pkl: give a run's folder or a pickle.")
    return found


def _snapshots(folder: Path) -> list[Path]:
    return sorted(each for each in folder.glob(SNAPSHOTS) if each.suffix in SUFFIXES)
