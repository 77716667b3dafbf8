"""Arrays that a user gives: latents, labels and projected ws, typed or in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from refine.errors import UserError

if TYPE_CHECKING:
    import numpy as np

MAX_ROWS = 1_000_000


def read_rows(spec: str, shape: int | tuple[int, ...], option: str, *names: str) -> np.ndarray:
    """Rows [N, *shape] in float32, from a .npy, from the array of that name in an .npz, or typed as `0.2,0.8`.

    Nothing in a file is executed. Only rows of one axis may be typed, and a row in a file may stand alone.

    Args:
        spec: The file or the numbers.
        shape: Shape of a row.
        option: The option that gave it, for messages.
        names: Names of the array in an .npz; an .npz with a single array may name it otherwise.

    Raises:
        UserError: The file cannot be read, or the array is of another shape, empty, or not finite.
    """
    import numpy as np

    shape = (shape,) if isinstance(shape, int) else shape
    path = Path(spec).expanduser()
    is_file = path.suffix.lower() in (".npy", ".npz")
    array = _read(path, option, names) if is_file else _typed(spec, option, shape)
    source = str(path) if is_file else f"{option}={spec}"
    if array.dtype.kind not in "fiub":
        raise UserError(f"{source} holds {array.dtype}, not numbers: give {option} numbers.")
    if array.shape == shape:
        array = array[None]
    if array.ndim != len(shape) + 1 or array.shape[1:] != shape or not 1 <= len(array) <= MAX_ROWS:
        wanted = ", ".join(str(size) for size in shape)
        is_w = names[:1] == ("w",)
        hint = ": give a w that was projected with it or with what it was refined from." if is_w else "."
        raise UserError(f"{source} has shape {list(array.shape)}, and this generator needs [N, {wanted}]{hint}")
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(rows).all():
        raise UserError(f"{source} holds values that are not finite: give {option} finite numbers.")
    return rows


def _typed(spec: str, option: str, shape: tuple[int, ...]) -> Any:
    import numpy as np

    try:
        if len(shape) > 1:
            raise ValueError
        return np.array([float(part) for part in spec.split(",")])
    except ValueError:
        typed = f"{shape[0]} numbers such as 0.2,0.8, or " if len(shape) == 1 else ""
        raise UserError(f"{option} takes {typed}a .npy or .npz file, not {spec!r}.") from None


def _read(path: Path, option: str, names: tuple[str, ...]) -> Any:
    import numpy as np

    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            found = [name for name in names if name in content.files] or (
                content.files if len(content.files) == 1 else []
            )
            if not found:
                held = ", ".join(content.files[:5]) or "nothing"
                raise UserError(f"{path} holds {held}, and {option} reads an array named {names[0]}.")
            return content[found[0]]
    except UserError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        AttributeError,
        MemoryError,
        NotImplementedError,
    ) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise UserError(f"{path} cannot be read ({reason}): give {option} a .npy or .npz file of numbers.") from error
    except Exception as error:  # zipfile and zlib have errors of their own
        raise UserError(f"{path} is damaged ({error}): give {option} a .npy or .npz file of numbers.") from error
