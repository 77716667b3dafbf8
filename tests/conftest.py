"""Fixtures shared by all tests: the golden files, and one torch thread (more starve a busy machine)."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from refine.runs import grids
from stylegan_ops import dispatch

FIXTURES = Path(__file__).parent / "fixtures"

torch.set_num_threads(1)

# A shell has its background jobs ignore Ctrl-C, and so would their children, to which tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests marked `cuda`, aloud, where there is no GPU."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, and torch.cuda.is_available() is False"))


@pytest.fixture(autouse=True)
def mode_of_the_operators() -> Iterator[None]:
    """Undoes what a command line chooses for the whole process."""
    before = dispatch._mode
    yield
    if dispatch._mode != before:
        dispatch.set_mode(before)


@pytest.fixture(autouse=True)
def small_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws 64 images of 32 pixels for each snapshot instead of 224, which take as long as a short run.

    Runs in processes of their own draw all.
    """
    monkeypatch.setattr(grids, "MAX_IMAGES_ON_CPU", 64)


@pytest.fixture(scope="session")
def fixture_path() -> Callable[[str], Path]:
    """`fixture_path("sg2ada/b_cond16.pkl")` -> its path."""

    def find(name: str) -> Path:
        path = FIXTURES / name
        assert path.is_file(), path
        return path

    return find


@pytest.fixture
def pair(fixture_path: Callable[[str], Path]) -> dict[str, str]:
    """The options that name a small conditional generator and its teacher."""
    return {
        "gan": str(fixture_path("sg2ada/b_cond16.pkl")),
        "teacher": str(fixture_path("edm/s4_sid_ddpmpp_cond16.pkl")),
    }


@pytest.fixture(scope="session")
def golden(fixture_path: Callable[[str], Path]) -> Callable[[str], dict[str, np.ndarray]]:
    """`golden("sg2ada/b_cond16")` -> the arrays of that .npz."""
    cache: dict[str, dict[str, np.ndarray]] = {}

    def arrays(name: str) -> dict[str, np.ndarray]:
        if name not in cache:
            with np.load(fixture_path(name + ".npz")) as npz:
                cache[name] = dict(npz)
        return dict(cache[name])

    return arrays
