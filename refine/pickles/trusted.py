"""The only place where embedded source is run, and only on the user's word: `--trust-pickle`, `trust=True`."""

from __future__ import annotations

import io
import logging
import pickle
from typing import Any

from refine.pickles.errors import PickleError
from refine.pickles.records import PersistentObject
from refine.pickles.tree import walk
from refine.pickles.writer import dump

log = logging.getLogger("refine")


def instantiate(record: PersistentObject) -> Any:
    """Builds the real object behind a record, running the source that travels with it.

    Says first, in one line, which classes and sources are about to run.

    Raises:
        PickleError: the source does not run here.
    """
    sources = {value.source_sha256: value.class_name for value in walk(record) if isinstance(value, PersistentObject)}
    log.warning(
        "Running the source embedded in the pickle for %s (sha256 %s)",
        record.class_name,
        ", ".join(f"{sha256[:16]}..." for sha256 in sources),
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
