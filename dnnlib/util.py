"""Names, files, times and output, as training scripts and network pickles of NVIDIA's repositories share them."""

from __future__ import annotations

import ctypes
import fnmatch
import functools
import importlib
import inspect
import io
import math
import os
import pickle
import shutil
import sys
import types
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO, Any

import numpy as np

from dnnlib import download


class EasyDict(dict[str, Any]):
    """A dict whose keys can also be read, set and deleted as attributes.

    Pickled as `dnnlib.util.EasyDict`, with its items and no other state.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"EasyDict has no item {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(f"EasyDict has no item {name!r}") from None


class Logger:
    """Copy of standard output and standard error in a file.

    From its construction until `close`, or within a `with` block, text for `sys.stdout` and `sys.stderr` goes to the
    `sys.stdout` of before, and to the file.

    Args:
        file_name: Path of the log; None writes none.
        file_mode: Mode as in `open`: "w" starts a new log, "a" appends.
        should_flush: Whether every piece of text is shown and stored at once.
    """

    def __init__(self, file_name: str | None = None, file_mode: str = "w", should_flush: bool = True) -> None:
        self.should_flush = should_flush
        self._terminal = sys.stdout
        self._targets: list[Any] = []
        self._open = ExitStack()
        if file_name is not None:
            file = open(file_name, file_mode, encoding="utf-8")  # noqa: SIM115
            self._targets.append(self._open.enter_context(file))
        self._open.callback(self._targets.clear)  # Whoever still holds this logger goes on writing to the terminal.
        stream: Any = self
        for redirect in (redirect_stdout(stream), redirect_stderr(stream)):
            self._open.enter_context(redirect)

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, text: str | bytes) -> None:
        """Write to the file, and to what was `sys.stdout` before."""
        decoded = text.decode() if isinstance(text, bytes) else text
        if decoded:
            for target in (*self._targets, self._terminal):
                target.write(decoded)
            if self.should_flush:
                self.flush()

    def flush(self) -> None:
        """Show and store the text written so far."""
        for target in (*self._targets, self._terminal):
            target.flush()

    def close(self) -> None:
        """Restore `sys.stdout` and `sys.stderr`, and close the file. Closing twice is harmless."""
        self.flush()
        self._open.close()

    def isatty(self) -> bool:
        """Return whether printed text goes to a terminal."""
        return self._terminal.isatty()


# --- times, questions, types

_cache_dir: str | None = None


def set_cache_dir(path: str) -> None:
    """Choose the cache directory; this choice comes before that of the environment."""
    global _cache_dir
    _cache_dir = path


def make_cache_dir_path(*paths: str) -> str:
    """Return a path in the cache directory: of `set_cache_dir`, else $DNNLIB_CACHE_DIR, else `.cache/dnnlib` at home.

    At home means $HOME, or on Windows the user's profile. Nothing is created.
    """
    chosen = _cache_dir or os.environ.get("DNNLIB_CACHE_DIR")
    home = os.environ.get("HOME") or os.path.expanduser("~")
    return os.path.join(chosen or os.path.join(home, ".cache", "dnnlib"), *paths)


def _whole_parts(seconds: float) -> tuple[int, int, int, int]:
    """Days, hours, minutes and seconds, rounded to a second."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return *divmod(hours, 24), m, s


def format_time(seconds: float) -> str:
    """`12s`, `3m 04s`, `2h 03m 04s` or `1d 02h 03m`."""
    d, h, m, s = _whole_parts(seconds)
    if d:
        return f"{d}d {h:02}h {m:02}m"
    if h:
        return f"{h}h {m:02}m {s:02}s"
    return f"{m}m {s:02}s" if m else f"{s}s"


def format_time_brief(seconds: float) -> str:
    """`12s`, `3m 04s`, `2h 03m` or `1d 02h`: the two largest units."""
    d, h, m, s = _whole_parts(seconds)
    if d:
        return f"{d}d {h:02}h"
    if h:
        return f"{h}h {m:02}m"
    return f"{m}m {s:02}s" if m else f"{s}s"


def ask_yes_no(question: str) -> bool:
    """Ask on the terminal until the answer is yes or no."""
    while True:
        answer = input(f"{question} [y/n] ").strip().lower()
        if answer in ("y", "yes", "t", "true", "on", "1"):
            return True
        if answer in ("n", "no", "f", "false", "off", "0"):
            return False


def tuple_product(t: tuple[Any, ...]) -> Any:
    """Return the product of all elements; 1 for none."""
    return math.prod(t)


_CTYPES: dict[str, Any] = {
    "uint8": ctypes.c_ubyte,
    "uint16": ctypes.c_uint16,
    "uint32": ctypes.c_uint32,
    "uint64": ctypes.c_uint64,
    "int8": ctypes.c_byte,
    "int16": ctypes.c_int16,
    "int32": ctypes.c_int32,
    "int64": ctypes.c_int64,
    "float32": ctypes.c_float,
    "float64": ctypes.c_double,
}


def get_dtype_and_ctype(type_obj: Any) -> tuple[np.dtype[Any], Any]:
    """Return NumPy's and C's type for a name, NumPy or ctypes type, such as "uint8".

    Raises:
        ValueError: There is no such pair.
    """
    for name, c_type in _CTYPES.items():
        if type_obj in (name, c_type) or (isinstance(type_obj, type | np.dtype) and type_obj == getattr(np, name)):
            return np.dtype(name), c_type
    raise ValueError(f"{type_obj!r} names no number type of NumPy and C, such as uint8 or float32")


def is_pickleable(obj: Any) -> bool:
    """Return whether pickle can write the object."""
    try:
        with io.BytesIO() as stream:
            pickle.dump(obj, stream)
    except Exception:  # an object's own way of being pickled can fail in any way
        return False
    return True


# --- objects by name


def get_module_from_obj_name(obj_name: str) -> tuple[types.ModuleType, str]:
    """Split a full name into the module that it begins with, imported, and the rest.

    Raises:
        ImportError: No module can be imported from the beginning of the name, or it lacks the rest of it. What goes
            wrong inside a module that does exist is raised as it is.
    """
    parts = obj_name.split(".")
    if not all(parts):
        raise ImportError(f"{obj_name!r} is not a full name: it has an empty part")
    for length in range(len(parts), 0, -1):
        module_name, rest = ".".join(parts[:length]), ".".join(parts[length:])
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # This name or a package in it does not exist: its last part may be an attribute.
            if f"{module_name}.".startswith(f"{error.name}."):
                continue
            raise
        try:
            get_obj_from_module(module, rest)
        except AttributeError as error:
            raise ImportError(f"{obj_name!r} names nothing: {error}") from error
        return module, rest
    raise ImportError(f"{obj_name!r} names nothing: there is no module {parts[0]!r}")


def get_obj_from_module(module: types.ModuleType, obj_name: str) -> Any:
    """Return the object of a dotted name in a module; the module itself for the empty name.

    Raises:
        AttributeError: There is no such object.
    """
    return functools.reduce(getattr, obj_name.split("."), module) if obj_name else module


def get_obj_by_name(name: str) -> Any:
    """Find an object by its full name, such as `torch.nn.Linear` or `package.module.Class.method`.

    Raises:
        ImportError: As in `get_module_from_obj_name`.
    """
    return get_obj_from_module(*get_module_from_obj_name(name))


def call_func_by_name(*args: Any, func_name: str | None = None, **kwargs: Any) -> Any:
    """Call the function of that full name with the other arguments."""
    if func_name is None:
        raise ValueError("the name of the function to call is missing")
    return get_obj_by_name(func_name)(*args, **kwargs)


def construct_class_by_name(*args: Any, class_name: str | None = None, **kwargs: Any) -> Any:
    """Make an instance of the class of that full name with the other arguments.

    Optimizers get their `betas` as floats: option files say `[0, 0.99]`, which PyTorch refuses since 2.6.
    """
    if class_name is not None and class_name.startswith("torch.optim.") and "betas" in kwargs:
        kwargs["betas"] = tuple(beta if hasattr(beta, "shape") else float(beta) for beta in kwargs["betas"])
    return call_func_by_name(*args, func_name=class_name, **kwargs)


def get_module_dir_by_obj_name(obj_name: str) -> str:
    """Return the folder of the file of the module that a full name begins with."""
    module, _ = get_module_from_obj_name(obj_name)
    return os.path.dirname(inspect.getfile(module))


def is_top_level_function(obj: Any) -> bool:
    """Return whether `obj` is a function that its module holds under its own name, so that the name finds it."""
    if not inspect.isfunction(obj):
        return False
    return vars(sys.modules.get(obj.__module__, types)).get(obj.__name__) is obj


def get_top_level_function_name(obj: Any) -> str:
    """Return the full name of such a function, for `get_obj_by_name`.

    Raises:
        ValueError: It is no top-level function.
    """
    if not is_top_level_function(obj):
        raise ValueError(f"{obj!r} is no function at the top level of a module")
    module = obj.__module__
    if module == "__main__":  # under which another process would find something else
        module = os.path.splitext(os.path.basename(sys.modules[module].__file__ or "__main__"))[0]
    return f"{module}.{obj.__name__}"


# --- files and addresses


def list_dir_recursively_with_ignore(
    dir_path: str, ignores: list[str] | None = None, add_base_to_relative: bool = False
) -> list[tuple[str, str]]:
    """List all files below a folder.

    Args:
        dir_path: Path of the folder.
        ignores: Shell patterns for names of files and folders to leave out.
        add_base_to_relative: Whether the relative paths begin with the folder's own name.

    Returns:
        (absolute path, path relative to the folder) of each file.

    Raises:
        NotADirectoryError: There is no such folder.
    """
    if not os.path.isdir(dir_path):
        raise NotADirectoryError(f"{dir_path} is no folder")
    base = os.path.abspath(dir_path)
    start = os.path.dirname(base) if add_base_to_relative else base

    def wanted(names: list[str]) -> list[str]:
        return sorted(name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in ignores or ()))

    found = []
    for folder, subfolders, files in os.walk(base):
        subfolders[:] = wanted(subfolders)
        paths = [os.path.join(folder, name) for name in wanted(files)]
        found += [(path, os.path.relpath(path, start)) for path in paths]
    return found


def copy_files_and_create_dirs(files: list[tuple[str, str]]) -> None:
    """Copy files, each given as (from, to), and make missing folders."""
    for source, target in files:
        os.makedirs(os.path.dirname(os.path.abspath(target)), exist_ok=True)
        shutil.copyfile(source, target)


def is_url(obj: Any, allow_file_urls: bool = False) -> bool:
    """Return whether `obj` is the text of an http(s) address, or with `allow_file_urls` of a file:// one."""
    return download.is_url(obj, allow_file_urls)


def open_url(
    url: str,
    cache_dir: str | None = None,
    num_attempts: int = 10,
    verbose: bool = True,
    return_filename: bool = False,
    cache: bool = True,
) -> IO[bytes] | str:
    """Open a file for reading, from disk or from the internet.

    Args:
        url: Path, or http, https or file:// address.
        cache_dir: Folder for downloads; None is `make_cache_dir_path("downloads")`.
        num_attempts: Number of attempts for an address.
        verbose: Whether to print that something is downloaded.
        return_filename: Whether to return the path of the file instead.
        cache: False keeps the download in memory only.

    Returns:
        The open file, or its path.

    Raises:
        OSError: The file cannot be read or downloaded.
        ValueError: It is another kind of address.
    """
    folder = Path(cache_dir or make_cache_dir_path("downloads"))
    return download.open_url(url, folder, num_attempts, verbose, return_filename, cache)
