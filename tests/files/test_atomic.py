from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

import pytest

from refine.errors import UserError
from refine.files.atomic import atomic_write


def test_file_appears_only_when_the_block_ends(tmp_path: Path):
    path = tmp_path / "a.bin"
    with atomic_write(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


def test_previous_content_stays_until_the_block_ends(tmp_path: Path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with atomic_write(str(path)) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("exception", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_any_exception_leaves_everything_as_it_was(tmp_path: Path, exception: type[BaseException]):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(exception), atomic_write(path) as file:
        file.write(b"half")
        raise exception
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_bytes_reach_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    steps = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (steps.append(f"fsync {os.fstat(fd).st_size}"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (steps.append("replace"), replace(a, b)))
    with atomic_write(tmp_path / "a.bin") as file:
        file.write(b"12345")
    assert steps == ["fsync 5", "replace"]


def test_missing_folder(tmp_path: Path):
    path = tmp_path / "missing" / "a.bin"
    with pytest.raises(UserError, match="create that folder first") as caught, atomic_write(path):
        pass
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.ENOSPC, "free some space"), (errno.EACCES, "a folder that you may write to")]
)
def test_failing_disk_is_one_sentence(tmp_path: Path, number: int, remedy: str):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(UserError, match=remedy), atomic_write(path) as file:
        file.write(b"half")
        raise OSError(number, os.strerror(number))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import refine.files.atomic

    real_open = open
    monkeypatch.setattr(refine.files.atomic, "open", lambda *_: real_open("/dev/full", "wb"), raising=False)
    with pytest.raises(UserError, match="No space left"), atomic_write(tmp_path / "a.bin") as file:
        file.write(b"x")
    assert not list(tmp_path.iterdir())


def test_folder_without_permission(tmp_path: Path):
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("needs a user who may not write everywhere")
    with pytest.raises(UserError, match="you may write to"), atomic_write(tmp_path / "a.bin"):
        pass


def test_an_error_about_another_file_is_not_blamed_on_this_one(tmp_path: Path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a.bin"):
        (tmp_path / "other.bin").read_bytes()
    assert not list(tmp_path.iterdir())


def test_a_folder_is_not_replaced(tmp_path: Path):
    with pytest.raises(UserError, match="not a regular file"), atomic_write(tmp_path):
        pytest.fail("must be refused before the work")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions and links")
def test_permissions_are_those_of_any_new_file_and_links_stay_links(tmp_path: Path):
    (tmp_path / "plain").touch()
    (tmp_path / "link").symlink_to(tmp_path / "a.bin")
    with atomic_write(tmp_path / "link") as file:
        file.write(b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a.bin").read_bytes() == b"x"
    mode = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == mode


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "a/b\ud800c"])
def test_impossible_names_are_one_sentence(tmp_path: Path, name: str):
    with pytest.raises(UserError, match="Cannot write") as caught, atomic_write(tmp_path / name):
        pytest.fail("must be refused before the work")
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()
    assert not list(tmp_path.iterdir())


def test_errors_of_the_work_stay_what_they_are(tmp_path: Path):
    for error in (ValueError("x"), MemoryError(), UnicodeEncodeError("ascii", "é", 0, 1, "x")):
        with pytest.raises(type(error)) as caught, atomic_write(tmp_path / "a.bin"):
            raise error
        assert caught.value is error
    assert not list(tmp_path.iterdir())
