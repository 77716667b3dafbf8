"""Rebuild every built-in network and data set: `python -m refine.digits.make --outdir=FOLDER`."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

import dnnlib
from refine.commands.base import Command
from refine.commands.options import Finite, Folder, Whole
from refine.digits.digits import NUM_CLASSES, RESOLUTION, Images
from refine.digits.figures import Figures, figures, generator_sampler, moments, sample, teacher_sampler
from refine.digits.make.data import load_splits, write_dataset
from refine.digits.make.detector import accuracy, train_detector
from refine.digits.make.gan import Gan, GanOptions, train_gan
from refine.digits.make.teacher import TeacherOptions, train_teacher
from refine.digits.sources.edm import EDMLoss, EDMPrecond
from refine.files.atomic import atomic_write
from refine.networks.preconditioned import as_denoiser

SEED = 0
NUM_SAMPLES = 2000  # images that figures are computed from


def save_datasets(splits: dict[str, Images], folder: Path) -> None:
    """Writes `digits-<split>.zip` for all splits."""
    for name, images in splits.items():
        write_dataset(images, folder / f"digits-{name}.zip")


def save_detector(detector: torch.nn.Module, folder: Path) -> torch.jit.ScriptModule:
    """Writes `digits-detector.pt`, and returns its content."""
    script = torch.jit.script(detector)
    with atomic_write(folder / "digits-detector.pt") as file:
        torch.jit.save(script, file)
    return script


def save_references(splits: dict[str, Images], detector: torch.nn.Module, folder: Path) -> None:
    """Writes `digits-<split>.npz`: mean and covariance of the detector's features, as EDM's `fid-refs` hold them."""
    for name, images in splits.items():
        mu, sigma = moments(detector(images.pixels, return_features=True))
        with atomic_write(folder / f"digits-{name}.npz") as file:
            np.savez(file, mu=mu, sigma=sigma)


def save_gan(gan: Gan, path: Path) -> None:
    """Writes a pickle with the entries of a stylegan2-ada-pytorch snapshot."""
    content = {
        "training_set_kwargs": dataset_kwargs("training.dataset.ImageFolderDataset", gan.G_ema.c_dim),
        "G": gan.G,
        "D": gan.D,
        "G_ema": gan.G_ema,
        "augment_pipe": None,
    }
    save_pickle(content, path)


def save_teacher(teacher: EDMPrecond, path: Path) -> None:
    """Writes a pickle with the entries of an EDM snapshot."""
    content = {
        "ema": teacher,
        "loss_fn": EDMLoss(),
        "augment_pipe": None,
        "dataset_kwargs": dataset_kwargs(
            "training.dataset.ImageFolderDataset", teacher.label_dim, teacher.img_resolution
        ),
    }
    save_pickle(content, path)


def dataset_kwargs(class_name: str, num_labels: int, resolution: int = RESOLUTION) -> dnnlib.EasyDict:
    """Description of the training data in the format of those repositories."""
    return dnnlib.EasyDict(
        class_name=class_name, path="digits-train.zip", use_labels=num_labels > 0, xflip=False, resolution=resolution
    )


def save_pickle(content: dict[str, Any], path: Path) -> None:
    """Writes a network pickle, in which each network carries its source (`torch_utils.persistence`)."""
    with atomic_write(path) as file:
        pickle.dump(content, file, protocol=4)


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Notes the processor time of a block."""
    start = time.process_time()
    yield
    seconds[name] = time.process_time() - start


def described(name: str, result: Figures) -> str:
    """One line of the table."""
    shares = " ".join(f"{share:.2f}" for share in result.class_shares)
    return (
        f"{name:34s} {result.fid:7.1f} {result.precision:9.2f} {result.recall:6.2f} {result.coverage:8.2f} "
        f"{result.agreement:9.3f} {result.variance:8.1f}   {shares}"
    )


@click.command(cls=Command)
@click.option("--outdir", type=Folder(), metavar="DIR", required=True, help="Folder to write.")
@click.option(
    "--teacher-kimg",
    type=Finite(0),
    default=TeacherOptions.kimg,
    show_default=True,
    help="Training length of the teacher.",
)
@click.option(
    "--gan-kimg", type=Finite(0), default=GanOptions.kimg, show_default=True, help="Training length of the GAN."
)
@click.option(
    "--detector-epochs", type=Whole(0, 100_000), default=30, show_default=True, help="Training length of the detector."
)
@click.option(
    "--samples",
    type=Whole(2, 1_000_000),
    default=NUM_SAMPLES,
    show_default=True,
    help="Generated images to compute figures from.",
)
def main(outdir: Path, teacher_kimg: float, gan_kimg: float, detector_epochs: int, samples: int) -> None:
    """Rebuild the built-in digits, detector, generator and teacher, and print their FID and other figures."""
    outdir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    seconds: dict[str, float] = {}
    splits = load_splits()
    save_datasets(splits, outdir)

    torch.manual_seed(SEED)
    with timed(seconds, "detector"):
        detector = save_detector(train_detector(splits["train"], epochs=detector_epochs), outdir)
    save_references(splits, detector, outdir)
    torch.manual_seed(SEED)
    with timed(seconds, "generator"):
        gan = train_gan(splits["train"], GanOptions(kimg=gan_kimg))
    save_gan(gan, outdir / "digits.pkl")
    torch.manual_seed(SEED)
    with timed(seconds, "teacher"):
        teacher = train_teacher(splits["train"], TeacherOptions(kimg=teacher_kimg))
    save_teacher(teacher, outdir / "edm-digits.pkl")

    click.echo("Processor seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
    for name, images in splits.items():
        click.echo(f"Detector: recognizes {accuracy(detector, images):.4f} of {len(images)} {name} images")
    torch.manual_seed(SEED)
    made = {
        "generator": sample(generator_sampler(gan.G_ema), samples),
        "teacher": sample(teacher_sampler(as_denoiser(teacher)), samples),
        "real training images": (splits["train"].pixels, splits["train"].classes),
    }
    click.echo(f"Digit-CNN features, not Inception; {samples} generated images")
    click.echo(
        f"{'':34s} {'FID':>7s} {'precision':>9s} {'recall':>6s} {'coverage':>8s} {'agreement':>9s} {'variance':>8s}"
        f"   recognized as 0 to {NUM_CLASSES - 1}"
    )
    record = {}
    for reference in ("selection", "test"):
        for name, (fakes, classes) in made.items():
            result = figures(fakes, classes, splits[reference], detector)
            click.echo(described(f"{name} against {reference}", result))
            record[f"{name} against {reference}"] = asdict(result)
    with atomic_write(outdir / "figures.json") as file:
        file.write(json.dumps({"processor_seconds": seconds, "figures": record}, indent=2).encode())


if __name__ == "__main__":
    main(prog_name="python -m refine.digits.make")
