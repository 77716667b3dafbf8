"""A run's folder, made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from run_folder import finished_run


@pytest.fixture
def rundir(tmp_path: Path) -> Path:
    return finished_run(tmp_path / "00003-digits-edm-digits-ikl-batch32")


@pytest.fixture
def bare_picture() -> Image.Image:
    """A picture of fakes as earlier versions wrote them, without a layout."""
    return Image.new("L", (160, 96), 77)
