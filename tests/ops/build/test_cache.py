"""Builds are kept, found again, locked and cleared away."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import filelock
import platformdirs
import platformdirs.windows
import psutil
import pytest
from platformdirs.api import PlatformDirsABC
from platformdirs.macos import MacOS
from platformdirs.windows import Windows
from toolchains import GXX, ROOT, one_sentence, script, version_source

from stylegan_ops import build
from stylegan_ops.backends.packing import ABI_VERSION
from stylegan_ops.build import BuildError, cache

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="the compilers of these tests are shell scripts"),
    pytest.mark.skipif(GXX is None, reason="there is no C++ compiler"),
]


NAME = "cpu-0123456789abcdef-0123456789abcdef"


@pytest.mark.skipif(sys.platform != "linux", reason="the folders are those of Linux")
def test_cache_folder_without_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STYLEGAN_OPS_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache.cache_directory() == tmp_path / "x" / "stylegan_ops"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_directory() == tmp_path / ".cache" / "stylegan_ops"
    assert cache.former_directories() == []


@pytest.mark.parametrize(
    ("windows_or_macos", "folder"),
    [(Windows, "stylegan_ops"), (MacOS, "Library/Caches/stylegan_ops")],
)
def test_cache_folders_elsewhere_are_those_of_earlier_versions(
    windows_or_macos: type[PlatformDirsABC], folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(platformdirs.windows, "get_win_folder", lambda name: str(tmp_path), raising=False)
    directory = windows_or_macos("stylegan_ops", appauthor=False, opinion=False).user_cache_path
    assert directory == tmp_path / folder


def test_builds_of_an_earlier_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On macOS, where only the newer one follows XDG_CACHE_HOME: they are found, and cleaned away."""
    monkeypatch.delenv("STYLEGAN_OPS_CACHE")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_, **__: tmp_path / "xdg" / "stylegan_ops")
    former = tmp_path / "Library" / "Caches" / "stylegan_ops"
    assert cache.former_directories() == []
    (former / NAME).mkdir(parents=True)
    (former / NAME / "build.json").write_text("{}")
    (former / "thesis.txt").touch()
    assert cache.former_directories() == [former] and cache.builds() == []
    monkeypatch.setenv("STYLEGAN_OPS_CACHE", str(tmp_path / "chosen"))
    assert cache.former_directories() == []
    monkeypatch.delenv("STYLEGAN_OPS_CACHE")
    assert cache.clean() == 1
    assert [path.name for path in former.iterdir()] == ["thesis.txt"] and cache.former_directories() == []


def fail_to_expand(*arguments: object, **options: object) -> Path:
    raise RuntimeError("could not determine the home directory for '~/.cache'")


@pytest.mark.parametrize("user_cache_path", [fail_to_expand, lambda *_, **__: Path("~/.cache/stylegan_ops")])
def test_user_without_home(user_cache_path: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """As later and as earlier versions of platformdirs answer."""
    monkeypatch.delenv("STYLEGAN_OPS_CACHE")
    monkeypatch.setattr(platformdirs, "user_cache_path", user_cache_path)
    with pytest.raises(BuildError) as error:
        cache.cache_directory()
    assert "STYLEGAN_OPS_CACHE" in one_sentence(error) and "home" in error.value.cause


@pytest.mark.skipif(sys.platform != "linux", reason="/sys refuses folders even to root")
def test_read_only_cache(csrc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STYLEGAN_OPS_CACHE", "/sys/stylegan_ops")
    with pytest.raises(BuildError) as error:
        build.cpu_library(csrc)
    assert "the cache folder /sys/stylegan_ops cannot be written" in one_sentence(error)
    assert "STYLEGAN_OPS_CACHE" in error.value.remedy


def test_cache_below_a_file(csrc: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("STYLEGAN_OPS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(BuildError) as error:
        build.cpu_library(csrc)
    assert str(tmp_path / "file" / "cache") in one_sentence(error)


def refuse_to_replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, destination: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)


def refuse_to_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "Fatal error: cannot write 263 bytes to section .text: No space left on device"
    body = f'case "$*" in *--version*) echo g++ 12;; *) echo "{line}"; exit 1;; esac'
    monkeypatch.setenv("CXX", str(script(tmp_path / "g++", body)))


@pytest.mark.parametrize("refuse", [refuse_to_replace, refuse_to_compile])
def test_full_disk(
    refuse: Callable[[Path, pytest.MonkeyPatch], None],
    csrc: Path,
    cache_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    refuse(tmp_path, monkeypatch)
    with pytest.raises(BuildError) as error:
        build.cpu_library(csrc)
    assert f"{cache_folder} cannot be written (No space left on device)" in one_sentence(error)
    assert not list(cache_folder.glob("*.tmp*"))


def test_temporary_files_of_compilers(
    csrc: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They lie in the folder of the build too, which is deleted whatever happens."""
    body = f'case "$*" in *--version*) ;; *) (cd "$TMPDIR" && pwd >> {tmp_path}/folders);; esac\nexec {GXX} "$@"'
    monkeypatch.setenv("CXX", str(script(tmp_path / "g++", body)))
    build.cpu_library(csrc)
    folders = set((tmp_path / "folders").read_text().splitlines())
    assert len(folders) == 1 and Path(folders.pop()).parent == cache_folder


def test_file_system_without_locks(csrc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: filelock.FileLock) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with pytest.raises(BuildError, match="does not appear to support flock"):
        build.cpu_library(csrc)


def make(folder: Path) -> Path:
    (folder / "product").write_text("made")
    return folder / "product"


def accept(path: Path) -> None:
    return None


def test_stale_lock(cache_folder: Path) -> None:
    """The lock of a process that is gone; its number is that of a process that has just ended."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    cache_folder.mkdir()
    (cache_folder / f"{NAME}.lock").touch()
    owner = {"pid": gone.pid, "started": 1.0, "host": socket.gethostname()}
    (cache_folder / f"{NAME}.owner").write_text(json.dumps(owner))
    assert cache.get(NAME, make, accept, timeout=5).read_text() == "made"


@pytest.mark.parametrize(
    ("owner", "said"),
    [
        ({"pid": os.getpid(), "started": psutil.Process().create_time()}, f"process {os.getpid()} holds"),
        ({"pid": os.getpid(), "started": 1.0}, "(the lock is stale)"),  # Another process had this number before.
        ({"pid": 2**22 + 1, "started": 1.0}, "(the lock is stale)"),
        ({"pid": 7, "started": 1.0, "host": "elsewhere"}, "process 7 on elsewhere holds"),
        ({}, "a process that left no name holds"),
    ],
)
def test_waiting_ends(owner: dict[str, object], said: str, cache_folder: Path) -> None:
    cache_folder.mkdir()
    lock = cache_folder / f"{NAME}.lock"
    (cache_folder / f"{NAME}.owner").write_text(json.dumps({"host": socket.gethostname()} | owner if owner else owner))
    with filelock.FileLock(lock), pytest.raises(BuildError) as error:
        cache.get(NAME, make, accept, timeout=0.2)
    assert str(lock) in one_sentence(error) and said in str(error.value)
    assert "python -m stylegan_ops.doctor --clean" in error.value.remedy
    assert cache.get(NAME, make, accept, timeout=5).read_text() == "made"


def test_owner_of_the_lock_is_named_while_it_builds(cache_folder: Path) -> None:
    def look(folder: Path) -> Path:
        about = json.loads((cache_folder / f"{NAME}.owner").read_text())
        assert about == {"pid": os.getpid(), "started": psutil.Process().create_time(), "host": socket.gethostname()}
        with pytest.raises(BuildError, match=f"process {os.getpid()} holds"):
            cache.get(NAME, make, accept, timeout=0.1)
        return make(folder)

    cache.get(NAME, look, accept)
    assert not (cache_folder / f"{NAME}.owner").exists()


PROGRAM = """
import pathlib, sys
from stylegan_ops import build
print(build.cpu_library(pathlib.Path(sys.argv[1])))
"""


def start(csrc: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(csrc)], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_killed_builder(csrc: Path, cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = shlex.quote(str(tmp_path / "compiling"))
    body = f'case "$*" in *--version*) ;; *) [ -e {marker} ] || {{ touch {marker}; exec sleep 30; }} ;; esac'
    monkeypatch.setenv("CXX", str(script(tmp_path / "c++", f'{body}\nexec {GXX} "$@"')))
    builder = start(csrc)
    while not (tmp_path / "compiling").exists():
        assert builder.poll() is None
        time.sleep(0.02)
    children = psutil.Process(builder.pid).children(recursive=True)
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    try:
        assert list(cache_folder.glob("*.tmp*")) and list(cache_folder.glob("*.owner"))
        path = build.cpu_library(csrc)
    finally:
        for child in children:
            child.kill()
    assert ctypes.CDLL(str(path)).stylegan_ops_abi_version() == ABI_VERSION
    assert sorted(cache_folder.iterdir()) == [path.parent, Path(f"{path.parent}.lock")]


def test_two_processes_at_once(csrc: Path, compilations: Callable[[], int]) -> None:
    processes = [start(csrc) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0] == outputs[1] and Path(outputs[0].strip()).is_file()
    assert compilations() == 1


def test_who_has_waited_does_not_build_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second thread has seen that there is no build, and comes to the lock, before the first is done."""
    locked, arrivals = cache._locked, threading.Semaphore(0)
    builds = []

    @contextmanager
    def arrive(entry: Path, timeout: float) -> Iterator[None]:
        arrivals.release()
        with locked(entry, timeout):
            yield

    def wait_for_both(folder: Path) -> Path:
        builds.append(folder)
        assert arrivals.acquire(timeout=30) and arrivals.acquire(timeout=30)
        return make(folder)

    monkeypatch.setattr(cache, "_locked", arrive)
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: cache.get(NAME, wait_for_both, accept, timeout=30), range(2)))
    assert paths[0] == paths[1] and paths[0].read_text() == "made"
    assert len(builds) == 1


def forge(path: Path, content: bytes) -> None:
    """Exchange a library and what the cache knows of it."""
    path.write_bytes(content)
    about = json.loads((path.parent / "build.json").read_text())
    about["sha256"] = hashlib.sha256(content).hexdigest()
    (path.parent / "build.json").write_text(json.dumps(about))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])  # Loading this as it is may kill the process.


def delete_the_record(path: Path) -> None:
    (path.parent / "build.json").unlink()


def garble_the_record(path: Path) -> None:
    (path.parent / "build.json").write_text("[]")


def put_something_else(path: Path) -> None:
    forge(path, b"this is no library")


def put_another_version(path: Path) -> None:
    source = path.parent / "other.cpp"
    source.write_text(version_source(ABI_VERSION + 1).replace("../", "./"))
    (path.parent / "abi.h").touch()
    subprocess.run([str(GXX), "-shared", "-fPIC", str(source), "-o", str(source) + ".so"], check=True)
    forge(path, Path(f"{source}.so").read_bytes())


def put_one_without_the_function(path: Path) -> None:
    source = path.parent / "other.cpp"
    source.write_text("int nothing;\n")
    subprocess.run([str(GXX), "-shared", "-fPIC", str(source), "-o", str(source) + ".so"], check=True)
    forge(path, Path(f"{source}.so").read_bytes())


@pytest.mark.parametrize(
    "spoil",
    [
        truncate,
        delete_the_record,
        garble_the_record,
        put_something_else,
        put_another_version,
        put_one_without_the_function,
    ],
)
def test_corrupt_library_is_built_again(
    spoil: Callable[[Path], None], csrc: Path, compilations: Callable[[], int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:  # A library that is loaded must not change, so do not load it yet.
        patch.setattr(build, "_check_cpu_library", accept)
        path = build.cpu_library(csrc)
    spoil(path)
    assert build.cpu_library(csrc) == path
    assert ctypes.CDLL(str(path)).stylegan_ops_abi_version() == ABI_VERSION
    assert compilations() == 2


def test_library_that_is_wrong_anew(csrc: Path, compilations: Callable[[], int]) -> None:
    (csrc / "cpu" / "version.cpp").write_text(version_source(ABI_VERSION + 5))
    for builds in (1, 2):  # The second call finds it wrong and tries once more, not for ever.
        with pytest.raises(BuildError) as error:
            build.cpu_library(csrc)
        assert f"ABI version {ABI_VERSION + 5} instead of {ABI_VERSION}" in one_sentence(error)
        assert compilations() == builds


def test_clean_deletes_only_builds(csrc: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.clean() == 0
    path = build.cpu_library(csrc)
    (csrc / "cpu" / "version.cpp").write_text("error")
    with pytest.raises(BuildError):
        build.cpu_library(csrc)
    for name in ("thesis.txt", "cpu-notes"):
        (cache_folder / name).touch()
    (cache_folder / f"{NAME}.tmpabc").mkdir()
    assert cache.builds() == [path.parent]
    assert cache.size() == sum(file.stat().st_size for file in path.parent.iterdir()) > 0
    assert cache.clean() == 1
    assert sorted(file.name for file in cache_folder.iterdir()) == ["cpu-notes", "thesis.txt"]
