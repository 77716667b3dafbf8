"""Finished builds, each in a folder of its own that comes into being at once and is never changed.

`<cache>/<name>/` holds one build and `build.json`, which has its SHA-256. Beside it lie `<name>.lock`, which the
process that builds has locked, `<name>.owner`, which tells who that is, `<name>.log` after a failure, and while a
build is going on `<name>.tmp*`.

The lock is the operating system's, which releases it when its owner ends in whatever way: it cannot go stale, except
on a network file system that has lost track. What the owner wrote beside it serves to name it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import platformdirs
import psutil

from stylegan_ops.build.errors import BuildError

VARIABLE = "STYLEGAN_OPS_CACHE"
LOCK_TIMEOUT = 600.0  # seconds
CLEAN = "python -m stylegan_ops.doctor --clean"

# What is ours in the cache folder, which may have been set to a folder with other things in it.
_OURS = re.compile(r"(?P<name>[a-z]\w*(-\w+)?-[0-9a-f]{16}-[0-9a-f]{16})(\.lock|\.owner|\.log|\.tmp\w*)?")

Check = Callable[[Path], str | None]
Make = Callable[[Path], Path]


def cache_directory() -> Path:
    """Return $STYLEGAN_OPS_CACHE, else the operating system's place for what can be made again.

    Raises:
        BuildError: The user has no home.
    """
    chosen = os.environ.get(VARIABLE)
    try:
        if chosen:
            return Path(chosen).expanduser().absolute()
        # Without "opinion", Windows has the folder where it has always been.
        directory = platformdirs.user_cache_path("stylegan_ops", appauthor=False, opinion=False)
        if not directory.is_absolute():  # Earlier versions of platformdirs leave "~" there.
            raise RuntimeError("the home directory is unknown")
    except RuntimeError as error:
        raise BuildError(f"there is no place for a cache ({error})", f"let {VARIABLE} name a folder") from error
    return directory


def former_directories() -> list[Path]:
    """Return folders of earlier versions that still hold builds and are not the cache now.

    Up to version 0.1 the place did not follow XDG_CACHE_HOME on macOS, nor the folder that Windows itself names.
    """
    if os.environ.get(VARIABLE):  # Whoever chooses a folder looks after all of them.
        return []
    try:
        home = Path.home()
    except RuntimeError:
        return []
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    former = base.absolute() / "stylegan_ops"
    return [former] if former != cache_directory() and _builds_in(former) else []


def digest(*parts: str | bytes) -> str:
    """Hexadecimal digits that differ if any part differs."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:16]


def log_file(name: str) -> Path:
    """File in which a failed build of this name leaves the compiler's output."""
    return cache_directory() / f"{name}.log"


def find(prefix: str, check: Check) -> Path | None:
    """A finished build whose name begins so and which passes the check."""
    for entry in sorted(cache_directory().glob(f"{prefix}*/build.json")):
        path = _finished(entry.parent, check)
        if path is not None:
            return path
    return None


def get(name: str, make: Make, check: Check, timeout: float | None = None) -> Path:
    """The finished build of this name, made now if need be.

    A build that is altered or fails its check is made again, once.

    Args:
        name: Name of the build, with the digest of everything that it depends on.
        make: Builds into the folder that it is given and returns the file in it that is wanted.
        check: Returns what is wrong with that file, or None.
        timeout: Seconds to wait for another process that builds it; None for `LOCK_TIMEOUT`.

    Raises:
        BuildError: If `make` raises it, the cache cannot be written, the wait was too long, or a fresh build fails
            its check.
    """
    entry = cache_directory() / name
    path = _finished(entry, check)
    if path is not None:
        return path
    with _writing(entry.parent):
        entry.parent.mkdir(parents=True, exist_ok=True)
        with _locked(entry, LOCK_TIMEOUT if timeout is None else timeout):
            path = _finished(entry, check)
            if path is not None:  # The process that was waited for has made it.
                return path
            _remove_leftovers(entry)
            with tempfile.TemporaryDirectory(prefix=f"{name}.tmp", dir=entry.parent) as temporary:
                product = make(Path(temporary))
                _publish(product, entry)
    problem = check(entry / product.name)
    if problem:
        raise BuildError(f"{entry / product.name} has just been built and {problem}", f"run `{CLEAN}` and report it")
    return entry / product.name


def builds() -> list[Path]:
    """Return the folders of all finished builds."""
    return _builds_in(cache_directory())


def size() -> int:
    """Return the bytes that the finished builds take."""
    return sum(path.stat().st_size for build in builds() for path in build.iterdir())


def clean() -> int:
    """Delete all builds, locks and logs, those of earlier versions too; return how many builds there were.

    Raises:
        BuildError: The operating system does not permit it.
    """
    count = 0
    for directory in (cache_directory(), *former_directories()):
        count += len(_builds_in(directory))
        with _writing(directory):
            for path in _ours_in(directory):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
    return count


def _builds_in(directory: Path) -> list[Path]:
    return [path for path in _ours_in(directory) if (path / "build.json").is_file()]


def _ours_in(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if _OURS.fullmatch(path.name)] if directory.is_dir() else []


def _finished(entry: Path, check: Check) -> Path | None:
    try:
        about = json.loads((entry / "build.json").read_bytes())
        path = entry / about["file"]
        # Loading a truncated library can kill the process, so its bytes are looked at first.
        intact = hashlib.sha256(path.read_bytes()).hexdigest() == about["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return path if intact and check(path) is None else None


def _publish(product: Path, entry: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="publish", dir=product.parent))
    folder.chmod(0o755)
    data = product.read_bytes()
    os.replace(product, folder / product.name)
    about = {"file": product.name, "sha256": hashlib.sha256(data).hexdigest(), "pid": os.getpid(), "time": time.time()}
    (folder / "build.json").write_text(json.dumps(about), encoding="utf-8")
    os.replace(folder, entry)


def _remove_leftovers(entry: Path) -> None:
    """Delete what a killed or failed builder left, and an entry that is no good. Only under the lock."""
    log_file(entry.name).unlink(missing_ok=True)
    for folder in entry.parent.glob(f"{entry.name}.tmp*"):
        shutil.rmtree(folder, ignore_errors=True)
    if entry.exists():
        shutil.rmtree(entry)


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, NotImplementedError) as error:  # The latter where a file system has no locks.
        reason = getattr(error, "strerror", None) or error
        raise BuildError(
            f"the cache folder {directory} cannot be written ({reason})",
            f"let the environment variable {VARIABLE} name a folder that can and has 50 MB free",
        ) from error


@contextmanager
def _locked(entry: Path, timeout: float) -> Iterator[None]:
    lock = filelock.FileLock(f"{entry}.lock", timeout=timeout)
    owner = Path(f"{entry}.owner")
    try:
        lock.acquire()
    except filelock.Timeout:
        raise BuildError(
            f"waited {timeout:g} seconds for {lock.lock_file}, which {_describe_owner(owner)}",
            f"let it finish, or end it and run `{CLEAN}`",
        ) from None
    try:
        owner.write_text(json.dumps(_this_process()), encoding="utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _this_process() -> dict[str, Any]:
    return {"pid": os.getpid(), "started": psutil.Process().create_time(), "host": socket.gethostname()}


def _describe_owner(owner: Path) -> str:
    try:
        about = json.loads(owner.read_bytes())
        pid, started, host = int(about["pid"]), float(about["started"]), str(about["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return "a process that left no name holds"
    if host != socket.gethostname():
        return f"process {pid} on {host} holds"
    try:
        # Another process may have been given the number; times of the same one differ by rounding at most.
        alive = abs(psutil.Process(pid).create_time() - started) < 1
    except psutil.NoSuchProcess:
        alive = False
    return f"process {pid} holds" if alive else f"process {pid} held, which is gone (the lock is stale)"
