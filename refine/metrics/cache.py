"""Features of references, kept between runs under a name made of what they were computed from."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refine.errors import UserError
from refine.files import download
from refine.files.atomic import atomic_write

log = logging.getLogger("refine")
VERSION = 1  # goes into every key: raise it when the same key would mean other numbers


def directory() -> Path:
    """`refine-metrics` beside the downloads: under $DNNLIB_CACHE_DIR, else under `.cache/dnnlib` in the home folder."""
    return download.cache_directory().parent / "refine-metrics"


def key_of(what: Mapping[str, Any]) -> str:
    """A digest of a description: the name that its result is kept under."""
    text = json.dumps({"version": VERSION, **what}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def exists(key: str) -> bool:
    """Whether something is kept under that key."""
    return (directory() / f"{key}.npz").is_file()


def load(key: str) -> dict[str, np.ndarray] | None:
    """The arrays kept under that key; None if there are none, or they cannot be read."""
    path = directory() / f"{key}.npz"
    try:
        with np.load(path, allow_pickle=False) as npz:
            return dict(npz)
    except FileNotFoundError:
        return None
    except Exception as error:  # half a disk block, another program's file: computing anew is right for all
        log.info(f"{path} cannot be read ({type(error).__name__}) and is computed anew")
        return None


def store(key: str, arrays: Mapping[str, np.ndarray]) -> bool:
    """Keeps arrays under a key, complete or not at all; where that is impossible, says so and returns False."""
    try:
        directory().mkdir(parents=True, exist_ok=True)
        with atomic_write(directory() / f"{key}.npz") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        return True
    except (UserError, OSError) as error:
        log.warning(f"The reference's features are not kept for the next time: {error}")
        return False


def remembered_sha256(path: Path, compute: Callable[[], str]) -> str:
    """The digest of a file's or folder's content, computed once for as long as sizes and times stay the same."""
    note = directory() / f"sha256-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]}.json"
    signature = _signature(path)
    try:
        known = json.loads(note.read_text())
        if known["signature"] == signature:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    sha256 = compute()
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(note) as file:
            file.write(json.dumps({"signature": signature, "sha256": sha256}).encode())
    except (UserError, OSError):
        pass
    return sha256


def _signature(path: Path) -> str:
    files = [path] if path.is_file() else sorted(Path(f, n) for f, _, names in os.walk(path) for n in names)
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()
