"""The only place where embedded source is run, and only on the user's word: `--trust-pickle`, `trust=True`."""

from __future__ import annotations

import io
import logging
import pickle
from typing import Any

from refine.pickles.errors import PickleError
from refine.pickles.reader import allowed_record
from refine.pickles.records import InertType, PersistentObject
from refine.pickles.tree import children, walk
from refine.pickles.writer import dump

log = logging.getLogger("refine")


def instantiate(record: PersistentObject) -> Any:
    """Builds the real object behind a record, running the source that travels with it.

    Says first, in one line, which classes and sources are about to run.

    Raises:
        PickleError: the source does not run here.
    """
    log.warning(
        "Running for %s what its pickle brings: %s", record.class_name, ", ".join(_what_runs(record)) or "nothing"
    )
    file = io.BytesIO()
    dump(record, file, protocol=4)
    try:
        return pickle.loads(file.getvalue())
    except Exception as error:  # foreign code can fail in any way
        raise PickleError(
            f"The source embedded for {record.class_name} does not run here "
            f"({type(error).__name__}: {error}); it may need the repository that wrote it: run Refine from there"
        ) from error


def _what_runs(record: PersistentObject) -> list[str]:
    """The embedded sources, and the globals beyond those that Refine allows, each once."""
    found: dict[str, None] = {}
    for value in walk(record):
        if isinstance(value, PersistentObject):
            found[f"source sha256 {value.source_sha256[:16]}..."] = None
        types = [type(value), *(c for c in children(value) if isinstance(c, InertType))]
        for kind in types:
            if isinstance(kind, InertType) and allowed_record(kind.global_module, kind.global_name) is None:
                found[f"{kind.global_module}.{kind.global_name}"] = None
    return list(found)
