"""What the options mean: which detector for which metric, and what images are compared with."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from refine import zoo
from refine.errors import UserError
from refine.metrics.detectors import INCEPTION, VGG, Detector, choose, load_detector
from refine.metrics.metric import MetricSpec
from refine.metrics.options import MetricOptions
from refine.metrics.reference import DatasetReference, Reference, Teacher, TeacherReference
from refine.metrics.reference_file import StatisticsReference

log = logging.getLogger("refine")


def detector_specs(specs: Iterable[MetricSpec], options: MetricOptions) -> dict[str, str]:
    """For each metric, the path, URL or zoo name of its detector.

    Raises:
        UserError: `fdd` without a detector of one's own.
    """
    chosen = {}
    inception = choose(options.detector, INCEPTION)
    vgg = choose(options.vgg, VGG)
    for spec in specs:
        if spec.kind == "ppl":
            chosen[spec.name] = vgg
        elif spec.kind == "pr":
            chosen[spec.name] = inception if vgg == VGG and inception != INCEPTION else vgg
        elif spec.kind == "fdd" and inception == INCEPTION:
            raise UserError(
                f"{spec.name} is the Fréchet distance with a detector of your own: give it with --detector."
            )
        else:
            chosen[spec.name] = inception
    return chosen


def load_detectors(specs: Iterable[MetricSpec], options: MetricOptions, device: torch.device) -> dict[str, Detector]:
    """For each metric its detector; each is loaded once.

    Raises:
        UserError: one of them cannot be had or loaded.
    """
    chosen = detector_specs(specs, options)
    loaded = {
        spec: load_detector(spec, device, trust=options.trust_detector) for spec in dict.fromkeys(chosen.values())
    }
    return {name: loaded[spec] for name, spec in chosen.items()}


def choose_reference(
    options: MetricOptions, detectors: dict[str, Detector], device: torch.device, teacher: Teacher | None
) -> Reference:
    """What `--ref` and `--data` mean.

    Raises:
        UserError: nothing to compare with, or it cannot be had.
    """
    if options.ref == "data" or (options.ref == "auto" and options.data is not None):
        assert options.data is not None, "checked by MetricOptions"
        return _dataset(options.data, options)
    if options.ref == "auto":
        # The zoo's statistics are of Inception features.
        entry = statistics_for(teacher) if teacher and all(d.official for d in detectors.values()) else None
        if entry is not None:
            log.info(f"Compared with {entry.name} of the zoo: the statistics of the teacher's data set")
            return StatisticsReference(zoo.resolve(entry.name).path, name=entry.name, resolution=entry.resolution)
        if teacher is None:
            raise UserError("There is nothing to compare with: give --data, --ref or --teacher.")
        log.info("Compared with images that the teacher draws, for want of data: metrics are called ..._teacher")
    if options.ref in ("auto", "teacher"):
        if teacher is None:
            raise UserError("--ref=teacher compares with the teacher: name it with --teacher.")
        return TeacherReference(teacher, device, seed=options.seed, num_images=options.ref_images, batch=options.batch)
    path = Path(options.ref).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix.lower() == ".zip"):
        return _dataset(options.ref, options)
    resolved = zoo.resolve(options.ref)
    if resolved.path.suffix.lower() == ".zip":
        return _dataset(str(resolved.path), options)
    entry = resolved.entry
    name, resolution = (entry.name, entry.resolution) if entry is not None else (None, None)
    return StatisticsReference(resolved.path, name=name, resolution=resolution)


def warn_of_recorded_data(network_pickle: Mapping[str, Any]) -> None:
    """Says where the data set lay that a pickle was trained on. It is not opened: a pickle may name any path."""
    for entry in ("training_set_kwargs", "dataset_kwargs"):
        arguments = network_pickle.get(entry)
        path = arguments.get("path") if isinstance(arguments, Mapping) else None
        if isinstance(path, str) and path:
            log.info(f"The pickle was trained on {path}; --data={path} compares with that, if you have it.")


def statistics_for(teacher: Teacher) -> zoo.ZooEntry | None:
    """The zoo's statistics of the data set that a teacher of the zoo was trained on; None if there are none."""
    entry = zoo.find(Path(teacher.spec).name)
    if entry is None or entry.kind != "denoiser" or entry.resolution != int(teacher.network.img_resolution):
        return None
    model, data = entry.name.split("-")[:2]
    wanted = f"{data}-{entry.resolution}x{entry.resolution}"
    names = [f"{wanted}-baseline.npz", f"{wanted}.npz"] if model == "baseline" else [f"{wanted}.npz"]
    return next((found for name in names if (found := zoo.find(name)) is not None), None)


def dataset_path(spec: str) -> str:
    """A data set's path: what was given, or the zoo's file of that name where there is nothing else."""
    is_name = not Path(spec).expanduser().exists() and ("://" in spec or zoo.find(spec) is not None)
    return str(zoo.resolve(spec).path) if is_name else spec


def _dataset(path: str, options: MetricOptions) -> DatasetReference:
    return DatasetReference(dataset_path(path), mirror=options.mirror, batch=options.batch, workers=options.workers)


def fit(reference: Reference, generator: Any) -> int | None:
    """The resolution that images are reduced to before they are compared; None: as they are.

    Raises:
        UserError: the reference's images are larger or of other channels, or its labels of another width.
    """
    own, channels = int(generator.img_resolution), int(generator.img_channels)
    where = getattr(reference, "path", reference.name)
    if reference.num_channels not in (None, channels):
        raise UserError(
            f"The reference {where} has images of {reference.num_channels} channels and the generator draws "
            f"{channels}: give a reference with the generator's."
        )
    if reference.resolution is not None and reference.resolution > own:
        raise UserError(
            f"The reference {where} has images of {reference.resolution} pixels and the generator draws {own}: give a "
            "reference of that size or below."
        )
    width, c_dim = reference.labels.dim if reference.labels else 0, int(generator.c_dim)
    if width and c_dim and width != c_dim:
        raise UserError(
            f"The reference {where} has labels of width {width} and the generator {c_dim}: give the data set that it "
            "was trained on, or one without labels."
        )
    return None if reference.resolution == own else reference.resolution
