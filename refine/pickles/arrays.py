"""Reader of pickles that hold arrays and nothing else, such as EDM2's reference statistics. Nothing is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refine.pickles.errors import PickleError
from refine.pickles.numpy_records import NumpyArray, NumpyBuffer, NumpyScalar
from refine.pickles.records import Inert
from refine.pickles.scan import scan_pickle
from refine.pickles.tree import walk
from refine.pickles.unpickler import InertUnpickler


def load_arrays(path: str | Path) -> dict[str, Any]:
    """Nested dicts of NumPy arrays, numbers and text.

    Args:
        path: A local file.

    Raises:
        PickleError: The file cannot be read, is damaged, or holds anything else.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if scan_pickle(file, size).end != size:
                raise PickleError("has bytes after the end of its pickle: download it again")
            file.seek(0)
            root = InertUnpickler(file, trust=False).load()
        for value in walk(root):
            if isinstance(value, Inert):
                value.check()
        if not isinstance(root, dict):
            raise PickleError("holds no dict of arrays")
        return {str(name): _plain(value) for name, value in root.items()}
    except OSError as error:
        raise PickleError(f"{path} cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise PickleError(f"{path} does not fit in memory") from None
    except PickleError as error:
        raise PickleError(f"{path} {error}") from None
    except Exception as error:  # damaged bytes can fail in any of the unpickler's ways
        raise PickleError(f"{path} is damaged or not a pickle ({type(error).__name__}); download it again") from error


def _plain(value: Any, depth: int = 0) -> Any:
    if isinstance(value, dict) and depth < 8:
        return {str(name): _plain(item, depth + 1) for name, item in value.items()}
    if isinstance(value, (NumpyArray, NumpyBuffer)):
        return value.array()
    if isinstance(value, NumpyScalar):
        return value.plain()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise PickleError("holds more than arrays and numbers")
