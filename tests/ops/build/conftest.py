"""Places, sources and a compiler for builds."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from toolchains import GXX, script, write_sources


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the cache, at a difficult path."""
    folder = tmp_path / "a cache: with $signs"
    monkeypatch.setenv("STYLEGAN_OPS_CACHE", str(folder))
    return folder


@pytest.fixture
def csrc(tmp_path: Path) -> Path:
    """Sources that compile in no time, at a difficult path."""
    return write_sources(tmp_path / "some $sources: here")


@pytest.fixture
def compilations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Makes the compiler count; returns how often it was asked for the file version.cpp."""
    record = tmp_path / "record"
    body = f'case "$*" in *version.cpp*) echo compiled >> {shlex.quote(str(record))};; esac\nexec {GXX} "$@"'
    monkeypatch.setenv("CXX", str(script(tmp_path / "c++ counting", body)))
    return lambda: len(record.read_text().splitlines()) if record.exists() else 0
