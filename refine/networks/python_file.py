"""Networks that a function in a Python file makes: `module.py:function`, only with the user's trust."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
import traceback
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from refine.errors import OptionError, UserError

_SPEC = re.compile(r"(.+\.py):([^\W\d]\w*)")


class PythonSpec(NamedTuple):
    """A function in a Python file.

    Attributes:
        path: Python file.
        function: Name of a function without arguments that returns a network, of a class, or of a network.
    """

    path: Path
    function: str

    def __str__(self) -> str:
        return f"{self.path}:{self.function}"


def parse_python_spec(spec: str | None) -> PythonSpec | None:
    """Parses `module.py:function`; None for other text."""
    found = _SPEC.fullmatch(spec or "")
    return PythonSpec(Path(found[1]).expanduser(), found[2]) if found else None


def make_network(spec: PythonSpec, option: str, *, trust: bool) -> Any:
    """The network that a Python file makes. The file is executed.

    Args:
        spec: File and function.
        option: Option that named them, for messages: `gan` or `teacher`.
        trust: Permission to execute the file.

    Raises:
        UserError: There is no permission, no such file or function, or the file or function fails.
    """
    if not trust:
        raise OptionError(
            f"{{{option}={spec}}} is a Python file, which would be executed: if you trust it, add --trust-pickle "
            "(in Python trust=True)."
        )
    if not spec.path.is_file():
        raise OptionError(f"{{{option}={spec}}} names no file: give the path of a Python file and a function in it.")
    path = spec.path.resolve()
    name = f"refine_own_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    before = list(sys.path)
    sys.path.insert(0, str(path.parent))  # so that the file imports its neighbors, as a script does
    try:
        module = sys.modules.get(name) or _executed(name, path)
        found = getattr(module, spec.function, None)
        if found is None:
            raise OptionError(f"{{{option}={spec}}}: {path} has no {spec.function}: name a function that it defines.")
        if isinstance(found, nn.Module):
            return found
        return found()
    except UserError:
        raise
    except Exception as error:  # foreign code can fail in any way
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else (lines or [None])[-1]
        where = f"line {line} of {path}" if line else str(path)
        raise OptionError(
            f"{{{option}={spec}}} fails at {where} with {type(error).__name__}: {error}. Mend the file."
        ) from error
    finally:
        sys.path[:] = before


def _executed(name: str, path: Path) -> Any:
    described = importlib.util.spec_from_file_location(name, path)
    assert described is not None and described.loader is not None
    module = importlib.util.module_from_spec(described)
    sys.modules[name] = module  # where the classes of the network are looked up when it is copied
    try:
        described.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
