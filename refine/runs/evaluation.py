"""Evaluation of a run's snapshots: metrics, the best snapshot, and whether the FID keeps rising.

A run is never lost for a metric.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from refine import pickles
from refine.config import RunConfig
from refine.errors import UserError
from refine.files.dataset import ImageDataset
from refine.files.matched_images import matching_images
from refine.metrics.options import MetricOptions
from refine.metrics.reference import Teacher
from refine.metrics.resolve import dataset_path, warn_of_recorded_data
from refine.metrics.suite import Measure as Evaluate
from refine.metrics.suite import make_measure
from refine.networks.loading import load_gan, load_teacher
from refine.networks.preconditioned import as_denoiser
from refine.pair.pair import Pair
from refine.runs.folder import RunFolder
from refine.runtime import distributed
from refine.runtime.device import choose_device
from refine.training.trainer import Trainer

__all__ = ["Evaluate", "evaluation_for"]

log = logging.getLogger("refine")

DEFAULT = "fid50k_full"


def asked_for(config: RunConfig) -> bool:
    """Whether the user said anything that only makes sense with metrics."""
    return not config.metrics.auto or config.ref != "auto" or any((config.data, config.detector, config.vgg))


def metric_names(config: RunConfig, device: torch.device) -> tuple[str, ...]:
    """What `auto` means on a device: nothing on a CPU, where fifty thousand images take hours, unless asked for."""
    if not config.metrics.auto:
        return config.metrics.names
    return () if device.type == "cpu" and not asked_for(config) else (DEFAULT,)


def metric_options(config: RunConfig, device: torch.device, *, trust_detector: bool = False) -> MetricOptions | None:
    """What to measure and how; None: nothing."""
    names = metric_names(config, device)
    if not names:
        return None
    return MetricOptions(
        metrics=names,
        data=config.data,
        ref=config.ref,
        detector=config.detector,
        vgg=config.vgg,
        trust_detector=trust_detector,
        seed=config.metric_seed,
        fid_seeds=config.fid_seeds,
        resample=config.resample,
    )


def evaluation_for(config: RunConfig, pair: Pair, trainer: Trainer, *, trust_detector: bool = False) -> Evaluate | None:
    """The function that measures the snapshots of a run; None where nothing is measured, and a line has said why.

    All processes call this with the same arguments. Where the function fails it says so in one line and gives no rows.

    Args:
        config: Options of the run.
        pair: The pair.
        trainer: Its networks, on the device of the run.
        trust_detector: Load a detector from the internet whose digest is not known.

    Raises:
        UserError: What the user asked for cannot be measured.
    """
    options = metric_options(config, trainer.device, trust_detector=trust_detector)
    if options is None:
        if config.metrics.auto:
            _say("No metrics: on a CPU they are computed on request, such as --metrics=fid5k_full")
        return None
    if options.data is None and options.ref == "auto" and distributed.is_first() and pair.gan_file is not None:
        warn_of_recorded_data(pair.gan_file.pickle)
    assert trainer.generator.average is not None
    generator = trainer.generator.average.network.module
    yardstick = Teacher(trainer.teacher, config.teacher, pair.digests.get("teacher", ""), config.class_map)
    try:
        measure = make_measure(options, generator, trainer.device, yardstick)
    except UserError as error:
        if asked_for(config):
            raise
        _say(f"No metrics, and the run goes on without: {error}", logging.WARNING)
        return None

    def guarded(network: torch.nn.Module, snapshot_pkl: str) -> Sequence[dict[str, Any]]:
        try:
            return measure(network, snapshot_pkl)
        except Exception as error:  # whatever it is: hours of training are worth more than a metric
            about = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            _say(f"{snapshot_pkl} is not measured: {about}", logging.WARNING)
            return []

    return guarded


def prefetch_for(config: RunConfig, *, trust: bool = False, trust_detector: bool = False) -> list[str]:
    """Downloads all that a run with these options needs, and tries it out with the network off.

    Returns:
        A line for each thing that is there.

    Raises:
        UserError: something cannot be had.
    """
    from refine.metrics.offline import prefetch

    device = choose_device(config.device)

    def get() -> list[str]:
        gan, teacher = load_gan(config.gan, trust=trust), load_teacher(config.teacher, trust=trust)
        lines = [f"generator {gan.pickle.path}", f"teacher {teacher.pickle.path}"]
        options = metric_options(config, device, trust_detector=trust_detector)
        if options is not None:
            network = as_denoiser(teacher.network.to(device))
            sha256 = pickles.file_sha256(teacher.pickle.path)
            yardstick = Teacher(network, config.teacher, sha256, config.class_map)
            make_measure(options, gan.network.to(device), device, yardstick)
            lines.append(f"metrics {', '.join(options.metrics)}")
        return lines

    return prefetch(get)


def real_images(data: str, classes: Sequence[int | None], seed: int) -> np.ndarray:
    """Images of a data set for `reals.png`, uint8 [N, C, R, R].

    Args:
        data: Data set: ZIP, folder or zoo name.
        classes: Class of each place; None for any image.
        seed: Seed of the choice.

    Raises:
        UserError: The data set cannot be read.
    """
    return matching_images(ImageDataset(dataset_path(data)), classes, seed)


def is_measured(folder: RunFolder, snapshot_pkl: str) -> bool:
    """Whether there is a row of that snapshot already: a run that was resumed comes by it again."""
    return any(
        row["snapshot_pkl"] == snapshot_pkl for name in folder.metric_names() for row in folder.metric_rows(name)
    )


def record(folder: RunFolder, rows: Sequence[dict[str, Any]], patience: int | None) -> str | None:
    """Writes the rows of one snapshot and lets `network-best.pkl` mean the best one by the first FID among them.

    Args:
        folder: Folder of the run.
        rows: Rows of `metric-<name>.jsonl`.
        patience: Largest number of rises of the FID in a row; None for no limit.

    Returns:
        Why the run should end; None: it should not.
    """
    for row in rows:
        folder.add_metric(row)
    name = next((row["metric"] for row in rows if row["metric"].startswith(("fid", "fdd"))), None)
    if name is None:
        return None
    history = folder.metric_rows(name)
    values = [value_of(row) for row in history]
    best = history[values.index(min(values))]
    folder.link_best(folder.path / best["snapshot_pkl"])
    if patience is None or not rising(values, patience):
        return None
    return f"{name} rose for {patience} snapshots in a row, {best['snapshot_pkl']} is the best one: the run ends here"


def value_of(row: dict[str, Any]) -> float:
    """The first of a row's results, which is the metric itself."""
    return float(next(iter(row["results"].values())))


def rising(values: Sequence[float], patience: int) -> bool:
    """Whether each of the last `patience` values is above the one before it."""
    last = list(values)[-patience - 1 :]
    return len(last) == patience + 1 and all(a < b for a, b in itertools.pairwise(last))


def _say(line: str, level: int = logging.INFO) -> None:
    if distributed.is_first():
        log.log(level, line)
