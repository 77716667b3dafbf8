"""Judgment of a run on the digits pair: `python -m refine.digits.judge RUNDIR`.

Beside the metrics that any run can have, it tells whether images show the wanted class, whether they vary within
classes, and whether a class was lost. It adds the values of the teacher and of real images, which were measured in the
same way and come with the built-in files, and writes the run's report and a picture of before and after.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch
from PIL import Image
from torch import Tensor

from refine import pickles, zoo
from refine.commands.base import Command
from refine.commands.locate import run_folder
from refine.commands.options import OutFile, Whole
from refine.diffusion.sampler import heun_sample
from refine.digits.digits import FOLDER, RESOLUTION, Images, shipped_detector, shipped_split
from refine.digits.figures import Figures, figures, figures_of
from refine.errors import UserError
from refine.files.atomic import atomic_write
from refine.files.image_grid import layout_of, side_by_side
from refine.files.jsonl import to_json
from refine.metrics.fid import frechet_distance
from refine.metrics.moments import Moments
from refine.metrics.options import MetricOptions
from refine.metrics.precision_recall import precision_recall
from refine.metrics.suite import make_measure
from refine.networks.loading import load_generator, load_teacher
from refine.networks.preconditioned import as_denoiser
from refine.report import write_report
from refine.report.read import YARDSTICKS, Run, mapping, read_run
from refine.report.summary import summary
from refine.runs.folder import RunFolder

Measure = Callable[[torch.nn.Module, str], list[dict[str, Any]]]

DATA, DETECTOR, TEACHER = FOLDER / "digits-test.zip", FOLDER / "digits-detector.pt", FOLDER / "edm-digits.pkl"
SHOWN_COLUMNS, SHOWN_ROWS = 10, 6  # images of a grid in the picture of before and after
OWN_FIGURES = ("agreement", "coverage", "variance")  # others are the run's own metrics


def digits_measure(split: str = "test", count: int = 5000, seed: int = 0) -> Measure:
    """A function for `run(config, evaluate=...)` that measures what only a digit classifier can tell.

    Args:
        split: Real images to compare with, "selection" or "test".
        count: Images to draw, the classes in turn.
        seed: Seed of their latents and noise, the same for every snapshot.

    Returns:
        A function from a generator and its snapshot's name to one row of `metric-digits5k_test.jsonl` or its like.
    """

    def measure(generator: torch.nn.Module, snapshot: str) -> list[dict[str, Any]]:
        start = time.time()
        found = figures_of(generator, split, count, seed)
        seconds = time.time() - start
        name = metric_name(split, count)
        row = {
            "results": own_results(found, name),
            "metric": name,
            "total_time": seconds,
            "total_time_str": f"{seconds:.0f}s",
            "num_gpus": 1,
            "snapshot_pkl": snapshot,
            "timestamp": time.time(),
            "provenance": {
                "detector": {"name": DETECTOR.name, "note": "digit-CNN features, not Inception"},
                "reference": {"name": f"digits-{split}", "num_images": len(shipped_split(split))},
                "num_images": count,
                "seed": seed,
                "note": "coverage: k = 5, as many generated images as real ones",
                "class_shares": list(found.class_shares),
            },
        }
        return [row]

    return measure


def metric_name(split: str, count: int) -> str:
    """`digits5k_test`, `digits100_selection`."""
    thousands, rest = divmod(count, 1000)
    return f"digits{count if rest else f'{thousands}k'}_{split}"


def own_results(found: Figures, name: str) -> dict[str, float]:
    """The figures that are not metrics of the suite, under names that begin with the metric's."""
    values = {key: value for key, value in asdict(found).items() if key in OWN_FIGURES}
    values["rarest"] = min(found.class_shares)
    return {f"{name}_{key}": value for key, value in values.items()}


def judge(folder: Path, count: int = 5000) -> Run:
    """Measures all snapshots of a run on the test images, and writes its report and `before-after.png`.

    Args:
        folder: Folder of the run.
        count: Images to draw of each snapshot.

    Returns:
        The run, with what was measured.

    Raises:
        UserError: The folder holds no snapshots, or they do not draw 16x16 gray digits of ten classes.
    """
    paths = sorted(folder.glob("network-snapshot-*.pkl"))
    if not paths:
        raise UserError(f"{folder} contains no network-snapshot-*.pkl: give the folder of a run.")
    measures = [digits_measure("test", count)]
    if missing := missing_metrics(read_run(folder), count):
        measures.append(_suite(_digits_generator(paths[0]), missing))
    rows = [row for path in paths for measure in measures for row in measure(_digits_generator(path), path.name)]
    (folder / f"metric-{metric_name('test', count)}.jsonl").unlink(missing_ok=True)  # from an earlier judgment
    for row in rows:
        RunFolder(folder).add_metric(row)
    write_yardsticks(folder)
    write_report([folder])
    draw_before_and_after(folder)
    return read_run(folder)


def missing_metrics(run: Run, count: int) -> tuple[str, ...]:
    """Metrics of the suite to measure because the run measured no Fréchet distance itself.

    Args:
        run: The run.
        count: Images to draw. Precision and recall have names for multiples of 1000 only.
    """
    if any(name.startswith(("fid", "fdd")) for name in run.metrics):
        return ()
    return tuple(name for name in suite_names(count) if name not in run.metrics)


def suite_names(count: int) -> tuple[str, ...]:
    """`fid5k_full` and `pr5k3_full`, or `fid100_full`."""
    thousands, rest = divmod(count, 1000)
    return (f"fid{count}_full",) if rest else (f"fid{thousands}k_full", f"pr{thousands}k3_full")


def _digits_generator(path: Path) -> torch.nn.Module:
    network: Any = load_generator(str(path)).network
    if (network.img_resolution, network.img_channels, network.c_dim) != (RESOLUTION, 1, 10):
        raise UserError(
            f"{path} does not draw 16x16 gray images of ten classes: the judge knows runs on the digits pair only."
        )
    return network


def _suite(generator: Any, names: tuple[str, ...]) -> Measure:
    """Metrics of the suite against the test images."""
    options = MetricOptions(metrics=names, data=str(DATA), detector=str(DETECTOR))
    measure = make_measure(options, generator, torch.device("cpu"))
    return lambda network, snapshot: list(measure(network, snapshot))


# -- the values of the teacher and of real images ------------------------------------------------------


class TeacherAsGenerator(torch.nn.Module):
    """The built-in teacher in a generator's place: 18 steps of Heun's method from the latents z [N, 256]."""

    z_dim, c_dim, img_resolution, img_channels = RESOLUTION**2, 10, RESOLUTION, 1

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.denoiser = network, as_denoiser(network)

    def forward(self, z: Tensor, c: Tensor, truncation_psi: float = 1, noise_mode: str = "none") -> Tensor:
        """Images [N, 1, 16, 16] for labels c [N, 10]; a diffusion model has no truncation and no noise of its own."""
        return heun_sample(self.denoiser, z.reshape(len(z), 1, RESOLUTION, RESOLUTION), c).float()


def measure_yardsticks(count: int = 5000) -> dict[str, Any]:
    """Values of the demo's metrics for the built-in teacher and for the real training images.

    Args:
        count: Samples of the teacher, a multiple of 1000.

    Returns:
        The content of the built-in `yardsticks.json`.
    """
    network: Any = load_teacher(str(TEACHER)).network
    teacher = TeacherAsGenerator(network)
    rows = [*_suite(teacher, suite_names(count))(teacher, ""), *digits_measure("test", count)(teacher, "")]
    of_teacher = {name: value for row in rows for name, value in row["results"].items()}
    train = shipped_split("train")
    of_reals = compare_reals(train, count)
    return {
        "sha256": {name: pickles.file_sha256(path) for name, path in _compared().items()},
        "yardsticks": [
            {
                "name": "teacher",
                "note": f"{count} samples, 18 steps of Heun's method",
                "results": of_teacher,
            },
            {"name": "real images", "note": f"the {len(train)} training images", "results": of_reals},
        ],
    }


def compare_reals(images: Images, count: int) -> dict[str, float]:
    """The demo's metrics of real images against the test images, under the names that they have for `count` images."""
    reals, detector = shipped_split("test"), shipped_detector()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))  # they are sorted by class
    mixed = Images(images.pixels[order], images.classes[order])
    features, real_features = (detector(part.pixels, return_features=True) for part in (mixed, reals))
    inside = precision_recall(real_features, features, 3)
    thousands = count // 1000
    return {
        f"fid{thousands}k_full": frechet_distance(Moments.of(real_features), Moments.of(features)).value,
        f"pr{thousands}k3_full_precision": inside.precision,
        f"pr{thousands}k3_full_recall": inside.recall,
        **own_results(figures(mixed.pixels, mixed.classes, reals, detector), metric_name("test", count)),
    }


def write_yardsticks(folder: Path) -> None:
    """Copies the built-in values into a run's folder, as far as the run measured the same with the same files."""
    record = json.loads((FOLDER / YARDSTICKS).read_text(encoding="utf-8"))
    run, known = read_run(folder), record["sha256"]
    comparable = {name for name, rows in run.metrics.items() if name.startswith("digits")}
    for name, rows in run.metrics.items():
        used = mapping(rows[-1].get("provenance")) if rows else {}
        hashes = (mapping(used.get(key)).get("sha256") for key in ("detector", "reference"))
        if tuple(hashes) == (known["detector"], known["data"]):
            comparable.add(name)
    rows = []
    for row in record["yardsticks"]:
        results = {key: value for key, value in row["results"].items() if key.startswith(tuple(comparable))}
        if results and (row["name"] != "teacher" or _sha256_of(run.options.get("teacher")) == known["teacher"]):
            rows.append(row | {"results": results})
    with atomic_write(folder / YARDSTICKS) as file:
        file.write(to_json(rows, indent=2).encode())


def _compared() -> dict[str, Path]:
    return {"teacher": TEACHER, "detector": DETECTOR, "data": DATA}


def _sha256_of(spec: Any) -> str | None:
    try:
        return pickles.file_sha256(zoo.resolve(str(spec)).path)
    except UserError:  # the file has moved
        return None


# -- pictures and the command --------------------------------------------------------------------------


def draw_before_and_after(folder: Path) -> Path | None:
    """Puts the first images before refinement and at the end side by side, at the same latents.

    Args:
        folder: Folder of a run.

    Returns:
        `before-after.png` in that folder; None: There are no grids of fakes.
    """
    before, later = folder / "fakes_init.png", sorted(folder.glob("fakes[0-9]*.png"))
    if not before.exists() or not later:
        return None
    path = folder / "before-after.png"
    pictures = [first_images(file) for file in (before, later[-1])]
    with atomic_write(path) as file:
        side_by_side(pictures, ["before", "after"]).save(file, "PNG")
    return path


def first_images(path: Path, zoom: int = 3) -> Image.Image:
    """The first images of a grid without its captions; a picture without a layout is taken whole, and enlarged."""
    with Image.open(path) as picture:
        layout = layout_of(picture)
        if layout is not None:
            return picture.crop(layout.part(SHOWN_ROWS, SHOWN_COLUMNS))
        return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


@click.command(cls=Command)
@click.argument("rundir", required=False, type=click.Path(path_type=Path))
@click.option(
    "--samples", type=Whole(100, 1_000_000), metavar="N", default=5000, show_default=True, help="Images to draw."
)
@click.option(
    "--yardsticks",
    type=OutFile(),
    metavar="FILE",
    help="Measure the teacher and real images instead, which takes minutes, and write FILE.",
)
def main(rundir: Path | None, samples: int, yardsticks: Path | None) -> None:
    """Measure the snapshots of a run on the digits pair, print them before and after, and write the run's report.

    RUNDIR is a run's folder, or training-runs/latest for the newest one in training-runs.
    """
    if yardsticks is not None:
        record = measure_yardsticks(samples - samples % 1000 or 1000)
        with atomic_write(yardsticks) as file:
            file.write((to_json(record, indent=2) + "\n").encode())
        click.echo(f"Wrote {yardsticks}")
        return
    if rundir is None:
        raise UserError("Give RUNDIR, the folder of a run, such as training-runs/latest.")
    print_judgment(run_folder(rundir), samples)


def print_judgment(rundir: Path, samples: int = 5000) -> None:
    """Judges a run as `judge` does, and prints its table of before and after."""
    run = judge(rundir, samples)
    click.echo(summary(run))
    click.echo("Digit-CNN features, not Inception: these values compare runs on the digits with each other only.")
    click.echo(f"Report: {rundir / 'report.html'}")
    if (rundir / "before-after.png").exists():
        click.echo(f"Picture: {rundir / 'before-after.png'}")


if __name__ == "__main__":
    main(prog_name="python -m refine.digits.judge")
