"""`python -m refine demo --distill`: the run that it makes, and the picture of teacher, start and end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from refine import load_teacher
from refine.config import RunConfig
from refine.diffusion.sampler import heun_sample
from refine.digits import demo, distill_demo
from refine.files.image_grid import layout_of
from refine.networks.preconditioned import as_denoiser
from refine.runs import start
from refine.runtime.random import stream_generator


def test_the_run_is_that_of_the_built_in_teacher_and_is_judged(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(start, "run", lambda config: seen.append(config) or tmp_path / "run" / "network.pkl")
    monkeypatch.setattr(distill_demo, "print_judgment", lambda folder: seen.append(folder))
    monkeypatch.setattr(distill_demo, "draw_three", lambda folder, seed: seen.append(seed) or folder / "picture.png")
    outdir = str(tmp_path / "runs")
    result = CliRunner().invoke(demo.main, ["--distill", f"--outdir={outdir}", "--seed=3"])
    assert result.exit_code == 0, result.output
    assert seen == [RunConfig.from_preset(teacher="edm-digits", outdir=outdir, seed=3), tmp_path / "run", 3]
    assert seen[0].preset == "distill-digits" and seen[0].gan is None and "picture.png" in result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of two steps."""
    sizes = {"batch": 4, "kimg": 0.008, "warmup_kimg": 0.004, "tick_kimg": 0.004, "metrics": "none"}
    files = {"data": None, "detector": None, "outdir": str(tmp_path_factory.mktemp("runs"))}
    return start.run(RunConfig.from_preset(teacher="edm-digits", seed=5, **sizes, **files)).parent


def test_the_picture_shows_the_same_latents(folder):
    path = distill_demo.draw_three(folder, 5)
    assert path.parent == folder
    with Image.open(folder / "teacher.png") as picture:
        layout = layout_of(picture)
        assert layout is not None and (layout.columns, layout.rows) == (10, 6)
        tile = np.asarray(picture.crop((*layout.corner(1, 3), *(at + layout.tile for at in layout.corner(1, 3)))))
    with Image.open(folder / "fakes_init.png") as grid:
        columns, rows = layout_of(grid).columns, layout_of(grid).rows
    z = torch.randn(columns * rows, 1, 16, 16, generator=stream_generator(5, "grid", 0))[columns + 3 : columns + 4]
    expected = heun_sample(as_denoiser(load_teacher("edm-digits").network), z, torch.eye(10)[3:4])
    pixels = (expected[0, 0] * 127.5 + 128).clamp(0, 255).to(torch.uint8).numpy().astype(int)
    assert np.abs(tile[::4, ::4].astype(int) - pixels).max() <= 1
    with Image.open(path) as three, Image.open(folder / "fakes_init.png") as grid:
        assert three.width > 3 * 10 * 64 and three.mode == grid.mode
