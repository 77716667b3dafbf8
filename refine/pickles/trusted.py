"""Execution of embedded source, here only, and only with the user's permission: `--trust-pickle`, `trust=True`."""

from __future__ import annotations

import io
import logging
import pickle
from typing import Any

from refine.pickles.errors import PickleError
from refine.pickles.records import InertType, NetworkRecord, PersistentObject
from refine.pickles.tree import children, walk
from refine.pickles.unpickler import allowed_record
from refine.pickles.writer import dump

log = logging.getLogger("refine")


def instantiate(record: NetworkRecord) -> Any:
    """Builds the real object behind a record, running the source that travels with it.

    One line says beforehand which classes and sources are about to run.

    Raises:
        PickleError: The source does not run here.
    """
    running = ", ".join(_what_runs(record)) or "nothing"
    log.warning("Running the code that the pickle of %s brings: %s", record.class_name, running)
    file = io.BytesIO()
    dump(record, file, protocol=4)
    try:
        return pickle.loads(file.getvalue())
    except Exception as error:  # foreign code can fail in any way
        raise PickleError(
            f"the source embedded for {record.class_name} does not run here ({type(error).__name__}: {error}); "
            f"{_remedy(error)}"
        ) from error


def _remedy(error: Exception) -> str:
    """The next thing to try where embedded source does not run."""
    missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if missing == "pkg_resources":  # in stylegan3's torch_utils/ops, with a setuptools of 2026
        return (
            "setuptools has dropped pkg_resources, which this checkout's torch_utils needs: copy Refine's torch_utils "
            "and dnnlib over the checkout's (see docs/drop-in.md), or install an older setuptools with "
            "`pip install 'setuptools<81'`"
        )
    if missing and missing not in ("torch_utils", "dnnlib", "training"):
        return f"install the package of the module {missing}, or run Refine from the repository that wrote the file"
    return "run Refine from a checkout of the repository that wrote the file"


def _what_runs(record: NetworkRecord) -> list[str]:
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
