"""Resolution of options into things: detectors for metrics, a reference, labels for the generator."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refine import zoo
from refine.errors import OptionError, UserError
from refine.files.arrays import holds_images
from refine.metrics.detectors import WEIGHTS, Detector, DetectorChoices, load_detector
from refine.metrics.metric import Metric
from refine.metrics.options import MetricOptions
from refine.metrics.reference import DatasetReference, Reference, Teacher, TeacherReference
from refine.metrics.reference_file import StatisticsReference
from refine.metrics.sampler import Labels
from refine.zoo_entries import ZooEntry

log = logging.getLogger("refine")


def detector_specs(metrics: Iterable[Metric], options: MetricOptions) -> dict[str, str]:
    """Path, URL or zoo name of each metric's detector, by the metric's name.

    Raises:
        UserError: A metric needs a detector of the user's own, and there is none.
    """
    choices = DetectorChoices.of_options(options.detector, options.vgg)
    return {metric.name: metric.detector(choices) for metric in metrics}


def load_detectors(metrics: Iterable[Metric], options: MetricOptions, device: torch.device) -> dict[str, Detector]:
    """Detector of each metric, by the metric's name; each is loaded once.

    Raises:
        UserError: A detector cannot be had or loaded.
    """
    metrics = tuple(metrics)
    specs = detector_specs(metrics, options)
    roles = {metric.name: metric.role if metric.role in WEIGHTS else "inception" for metric in metrics}
    chosen = {name: (role, specs[name]) for name, role in roles.items()}
    loaded = {
        (role, spec): load_detector(spec, device, trust=options.trust_detector, role=role)
        for role, spec in dict.fromkeys(chosen.values())
    }
    return {name: loaded[which] for name, which in chosen.items()}


def choose_reference(
    options: MetricOptions, detectors: dict[str, Detector], device: torch.device, teacher: Teacher | None
) -> Reference:
    """Reference that `--ref` and `--data` name.

    Raises:
        UserError: There is nothing to compare with, or it cannot be had.
    """
    if options.ref == "data" or (options.ref == "auto" and options.data is not None):
        assert options.data is not None, "checked by MetricOptions"
        return _dataset(options.data, options)
    if options.ref == "auto":
        # The zoo's statistics are of Inception features.
        fits = all(d.official and d.role == "inception" for d in detectors.values())
        entry = statistics_for(teacher) if teacher and fits else None
        if entry is not None:
            log.info(f"Comparing with {entry.name} of the zoo, the statistics of the teacher's data set")
            return StatisticsReference(zoo.resolve(entry.name).path, name=entry.name, resolution=entry.resolution)
        if teacher is None:
            raise OptionError("There is nothing to compare with: give {data}, {ref} or {teacher}.")
        log.info("No data given: comparing with images that the teacher draws; metrics are called ..._teacher")
    if options.ref in ("auto", "teacher"):
        if teacher is None:
            raise OptionError("{ref=teacher} compares with the teacher: name it with {teacher}.")
        return TeacherReference(teacher, device, seed=options.seed, num_images=options.ref_images, batch=options.batch)
    path = Path(options.ref).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix.lower() == ".zip"):
        return _dataset(options.ref, options)
    resolved = zoo.resolve(options.ref)
    if resolved.path.suffix.lower() == ".zip":
        return _dataset(str(resolved.path), options)
    if resolved.path.suffix.lower() == ".npz" and holds_images(resolved.path):
        return _dataset(str(resolved.path), options)
    entry = resolved.entry
    name, resolution = (entry.name, entry.resolution) if entry is not None else (None, None)
    return StatisticsReference(resolved.path, name=name, resolution=resolution)


def warn_of_recorded_data(network_pickle: Mapping[str, Any]) -> None:
    """Says where the data set of a pickle's training lay. It is not opened: a pickle may name any path."""
    for entry in ("training_set_kwargs", "dataset_kwargs"):
        arguments = network_pickle.get(entry)
        path = arguments.get("path") if isinstance(arguments, Mapping) else None
        if isinstance(path, str) and path:
            log.info(f"The pickle was trained on {path}; if you have it, --data={path} compares with it.")


def statistics_for(teacher: Teacher) -> ZooEntry | None:
    """Zoo entry with the statistics of the data set that a teacher of the zoo was trained on; None without one."""
    entry = zoo.find(Path(teacher.spec).name)
    if entry is None or entry.kind != "denoiser" or entry.resolution != int(teacher.network.img_resolution):
        return None
    model, data = entry.name.split("-")[:2]
    wanted = f"{data}-{entry.resolution}x{entry.resolution}"
    names = [f"{wanted}.npz", f"{data}.pkl"]
    if model in ("baseline", "adm"):  # whose images were reduced in another way than EDM's
        names.insert(0, f"{wanted}-baseline.npz")
    found = (zoo.find(name) for name in names)  # `ffhq.pkl` is a generator
    return next((entry for entry in found if entry is not None and entry.kind == "fid-reference"), None)


def dataset_path(spec: str) -> str:
    """Path of a data set: as given if it exists, else the zoo's file of that name."""
    is_name = not Path(spec).expanduser().exists() and ("://" in spec or zoo.find(spec) is not None)
    return str(zoo.resolve(spec).path) if is_name else spec


def _dataset(path: str, options: MetricOptions) -> DatasetReference:
    return DatasetReference(dataset_path(path), mirror=options.mirror, batch=options.batch, workers=options.workers)


def fit(reference: Reference, generator: Any) -> int | None:
    """Resolution that images are reduced to before they are compared; None: as they are.

    Raises:
        UserError: The reference's images are larger, or have other channels.
    """
    own, channels, where = int(generator.img_resolution), int(generator.img_channels), reference.where
    if reference.num_channels not in (None, channels):
        raise UserError(
            f"The reference {where} has images of {reference.num_channels} channels and the generator draws "
            f"{channels}: give a reference with as many channels."
        )
    if reference.resolution is not None and reference.resolution > own:
        raise UserError(
            f"The reference {where} has images of {reference.resolution} pixels and the generator draws {own}: give a "
            "reference of that size or below."
        )
    return None if reference.resolution == own else reference.resolution


def fit_labels(reference: Reference, generator: Any) -> tuple[Labels | None, tuple[str, ...]]:
    """Distribution of the generator's labels (None: uniform), and what the user should know of it, a sentence each.

    Raises:
        UserError: The reference has labels that the generator does not take.
    """
    c_dim, labels = int(generator.c_dim), reference.labels
    if not c_dim:
        return None, ()
    where = reference.where
    if labels is None:
        if reference.kind == "teacher":
            return None, ()
        return None, (f"{where} has no labels: the generator's {c_dim} classes are drawn uniformly.",)
    if labels.counts is None or labels.dim > c_dim:
        if labels.dim != c_dim:
            raise UserError(
                f"The reference {where} has labels of width {labels.dim} and the generator {c_dim}: give the data set "
                "that it was trained on, or one without labels."
            )
        return labels, ()
    labels = labels.widened(c_dim)
    assert labels.counts is not None
    absent = np.flatnonzero(labels.counts == 0)
    if not len(absent):
        return labels, ()
    named = ", ".join(map(str, absent[:10])) + (", ..." if len(absent) > 10 else "")
    note = f"{where} has no images of {len(absent)} of the generator's {c_dim} classes ({named}): they are not drawn."
    return labels, (note,)


def labels_source(reference: Reference | None, labels: Labels | None, generator: Any) -> str | None:
    """Origin of a generator's labels, for the provenance of rows; None for an unconditional generator."""
    if not int(generator.c_dim):
        return None
    if reference is None or labels is None:
        return "uniform"
    return "data" if reference.kind == "data" else "counts" if labels.counts is not None else "vectors"
