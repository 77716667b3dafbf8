"""The metrics of a run: from its options to the function that measures a snapshot, without ever losing a run for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from refine import pickles
from refine.config import RunConfig
from refine.errors import UserError
from refine.files.dataset import ImageDataset
from refine.metrics.options import MetricOptions
from refine.metrics.reference import Teacher
from refine.metrics.resolve import dataset_path, warn_of_recorded_data
from refine.metrics.suite import Measure, make_measure
from refine.networks.loading import LoadedNetwork, load_gan, load_teacher
from refine.runs.start import choose_device
from refine.runtime import distributed

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
        every=config.metric_every,
        resample=config.resample,
    )


def measure_for(
    config: RunConfig,
    gan: LoadedNetwork,
    generator: Any,
    teacher: Teacher,
    *,
    trust_detector: bool = False,
) -> Measure | None:
    """The function that measures the snapshots of a run; None: there is none, and a line has said why.

    All processes call this with the same arguments. What it returns says in one line where it fails, and gives no rows
    then.

    Args:
        config: the options.
        gan: as loaded.
        generator: a copy of it, on the device of the run.
        teacher: on that device.
        trust_detector: load a detector from the internet whose digest is not known.

    Raises:
        UserError: what the user asked for cannot be measured.
    """
    device = next(generator.parameters()).device
    options = metric_options(config, device, trust_detector=trust_detector)
    if options is None:
        if config.metrics.auto:
            _say("No metrics: on a CPU they are computed on request, such as --metrics=fid5k_full")
        return None
    if options.data is None and options.ref == "auto" and distributed.is_first():
        warn_of_recorded_data(gan.pickle)
    try:
        measure = make_measure(options, generator, device, teacher)
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
            network: Any = teacher.network.to(device)
            sha256 = pickles.file_sha256(teacher.pickle.path)
            yardstick = Teacher(network, config.teacher, sha256, config.class_map)
            make_measure(options, gan.network.to(device), device, yardstick)
            lines.append(f"metrics {', '.join(options.metrics)}")
        return lines

    return prefetch(get)


def real_images(data: str, count: int) -> torch.Tensor:
    """The first images of a data set, [N, C, R, R] in [-1, 1], for `reals.png`.

    Raises:
        UserError: it cannot be read.
    """
    dataset = ImageDataset(dataset_path(data))
    images = torch.cat([torch.from_numpy(part) for part in dataset.batches(range(min(count, len(dataset))), 16)])
    return (images.float() - 127.5) / 127.5


def _say(line: str, level: int = logging.INFO) -> None:
    if distributed.is_first():
        log.log(level, line)
