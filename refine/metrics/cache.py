"""Cache of references' features and of data sets' digests, under names made of what they were computed from."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refine.errors import UserError
from refine.files import download
from refine.files.atomic import atomic_write
from refine.files.digest import text_sha256
from refine.files.listing import DatasetFiles

log = logging.getLogger("refine")
VERSION = 1  # part of every key: raise it when the same key would mean other numbers


def directory() -> Path:
    """`refine-metrics` beside the downloads: under $DNNLIB_CACHE_DIR, else under `.cache/dnnlib` in the home folder."""
    return download.cache_directory().parent / "refine-metrics"


def key_of(what: Mapping[str, Any]) -> str:
    """A digest of a description, under which its result is kept."""
    return text_sha256(json.dumps({"version": VERSION, **what}, sort_keys=True))[:32]


def exists(key: str) -> bool:
    """True if the cache has an entry under a key."""
    return (directory() / f"{key}.npz").is_file()


def load(key: str) -> dict[str, np.ndarray] | None:
    """Arrays kept under a key; None if there are none, or they cannot be read."""
    path = directory() / f"{key}.npz"
    try:
        with np.load(path, allow_pickle=False) as npz:
            return dict(npz)
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged file, or another program's: recomputing is right in every case
        log.info(f"{path} cannot be read ({type(error).__name__}); recomputing it")
        return None


def store(key: str, arrays: Mapping[str, np.ndarray]) -> bool:
    """Keeps arrays under a key, complete or not at all; if that is impossible, says so and returns False."""
    try:
        directory().mkdir(parents=True, exist_ok=True)
        with atomic_write(directory() / f"{key}.npz") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        return True
    except (UserError, OSError) as error:
        log.warning(f"The reference's features are not kept for the next time: {error}")
        return False


def remembered_sha256(files: DatasetFiles) -> str:
    """Digest of a data set, computed once for as long as its fingerprint stays the same.

    Raises:
        UserError: A file cannot be read.
    """
    fingerprint = files.fingerprint()
    if fingerprint is None:
        return files.sha256()
    note = directory() / f"sha256-{fingerprint[:32]}.json"
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["fingerprint"] == fingerprint and re.fullmatch("[0-9a-f]{64}", known["sha256"]):
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    sha256 = files.sha256()
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(note) as file:
            file.write(json.dumps({"fingerprint": fingerprint, "sha256": sha256}).encode())
    except (UserError, OSError):
        pass
    return sha256
