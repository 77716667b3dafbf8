"""The demo of distillation: the built-in teacher, made into a generator of one step on a CPU, judged and pictured."""

from __future__ import annotations

from pathlib import Path

import click
import torch
from PIL import Image

from refine.config import RunConfig
from refine.diffusion.sampler import heun_sample
from refine.digits.judge import SHOWN_COLUMNS, SHOWN_ROWS, first_images, print_judgment
from refine.errors import UserError
from refine.files.atomic import atomic_write
from refine.files.image_grid import layout_of, save_grid, side_by_side
from refine.files.images import to_uint8
from refine.networks.loading import load_teacher
from refine.networks.preconditioned import as_denoiser
from refine.networks.sampling import labels_in_turn
from refine.runs import start
from refine.runtime.random import stream_generator

TEACHER, PICTURE = "teacher.png", "teacher-start-end.png"


def distill(outdir: str, seed: int) -> Path:
    """Distills the built-in teacher, and prints the judgment of the run.

    Args:
        outdir: Folder that gets a folder for the run.
        seed: Seed of the run.

    Returns:
        Folder of the run, with the report and `teacher-start-end.png` in it.
    """
    config = RunConfig.from_preset("distill-digits", teacher="edm-digits", outdir=outdir, seed=seed)
    folder = start.run(config).parent
    print_judgment(folder)
    click.echo(f"Picture: {draw_three(folder, seed)}")
    return folder


def draw_three(folder: Path, seed: int) -> Path:
    """Puts samples of the teacher beside the generator's images at the start and at the end, at the same latents.

    Args:
        folder: Folder of a run that distilled the built-in teacher.
        seed: Seed of the run.

    Returns:
        `teacher-start-end.png` in that folder.
    """
    grids = [folder / "fakes_init.png", max(folder.glob("fakes[0-9]*.png"), key=lambda path: path.name)]
    draw_teacher(folder / TEACHER, grids[0], seed)
    pictures = [first_images(path) for path in (folder / TEACHER, *grids)]
    path = folder / PICTURE
    with atomic_write(path) as file:
        captions = ["teacher: 35 evaluations each", "start: one evaluation", "end: one evaluation"]
        side_by_side(pictures, captions).save(file, "PNG")
    return path


@torch.no_grad()
def draw_teacher(path: Path, grid: Path, seed: int) -> None:
    """Draws the first samples of the teacher, by 18 steps of Heun's method, from the latents of a run's grid.

    Args:
        path: PNG to write.
        grid: A grid of the run, whose columns are those of the latents.
        seed: Seed of the run.
    """
    with Image.open(grid) as picture:
        layout = layout_of(picture)
    if layout is None:
        raise UserError(f"{grid} is not a grid of a run: distill again.")
    teacher = as_denoiser(load_teacher("edm-digits").network)
    size = teacher.img_resolution
    z = torch.randn(layout.columns * layout.rows, 1, size, size, generator=stream_generator(seed, "grid", 0))
    c = labels_in_turn(len(z), teacher.label_dim, layout.columns)
    columns, rows = min(layout.columns, SHOWN_COLUMNS), min(layout.rows, SHOWN_ROWS)
    chosen = [row * layout.columns + column for row in range(rows) for column in range(columns)]
    samples = heun_sample(teacher, z[chosen], c[chosen]).float()
    save_grid(path, to_uint8(samples).numpy(), columns, "samples of the teacher")
