"""The golden detectors, data set and networks; a cache of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refine.metrics.detectors import Detector, load_detector
from refine.networks.loading import load_generator, load_teacher

FindPath = Callable[[str], Path]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of downloads and features of references in a test."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("REFINE_DETECTOR", "REFINE_VGG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def inception(fixture_path: FindPath) -> Detector:
    return load_detector(str(fixture_path("metrics/tiny_inception_s.pt")))


@pytest.fixture(scope="session")
def vgg(fixture_path: FindPath) -> Detector:
    return load_detector(str(fixture_path("metrics/tiny_vgg_s.pt")))


@pytest.fixture(scope="session")
def detectors(fixture_path: FindPath) -> dict[str, str]:
    """The options that name both."""
    return {
        "detector": str(fixture_path("metrics/tiny_inception_s.pt")),
        "vgg": str(fixture_path("metrics/tiny_vgg_s.pt")),
    }


@pytest.fixture(scope="session")
def data(fixture_path: FindPath) -> str:
    return str(fixture_path("metrics/dataset_s32.zip"))


@pytest.fixture(scope="session")
def generator(fixture_path: FindPath) -> Any:
    """Unconditional, 32 pixels: the one that the golden features were made with."""
    return load_generator(str(fixture_path("sg2ada/a_uncond32.pkl"))).network


@pytest.fixture(scope="session")
def conditional(fixture_path: FindPath) -> Any:
    """Five classes, 16 pixels."""
    return load_generator(str(fixture_path("sg2ada/b_cond16.pkl"))).network


@pytest.fixture(scope="session")
def denoiser(fixture_path: FindPath) -> Any:
    """Unconditional, 16 pixels."""
    return load_teacher(str(fixture_path("edm/s1_edm_ddpmpp_uncond16.pkl"))).network
