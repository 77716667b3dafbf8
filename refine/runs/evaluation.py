"""Evaluation of a run's snapshots: metrics, the best snapshot, and early stopping.

A failing metric never ends a run.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import numpy as np
import torch

from refine import pickles
from refine.config import RunConfig
from refine.errors import OptionError, UserError
from refine.files.dataset import ImageDataset
from refine.files.matched_images import matching_images
from refine.metrics.metric import FRECHET_DISTANCES
from refine.metrics.options import MetricOptions
from refine.metrics.reference import Teacher
from refine.metrics.resolve import dataset_path, warn_of_recorded_data
from refine.metrics.suite import Measure as Evaluate
from refine.metrics.suite import make_measure
from refine.networks.loading import as_one_step, load_generator, load_teacher
from refine.networks.one_step import DEFAULT_SIGMA_INIT
from refine.pair.pair import Pair, conditions, guided_denoiser
from refine.runs.folder import RunFolder
from refine.runtime import distributed
from refine.runtime.device import choose_device
from refine.runtime.logs import ALL_RANKS
from refine.runtime.text import counted
from refine.training.divergence import best_snapshot, is_flat, readings
from refine.training.trainer import Trainer

__all__ = ["Evaluate", "evaluation_for"]

log = logging.getLogger("refine")

DEFAULT = "fid50k_full"


def asked_for(config: RunConfig) -> bool:
    """True if the user gave an option that makes sense only with metrics."""
    return not config.metrics.auto or config.ref != "auto" or any((config.data, config.detector, config.vgg))


def metric_names(config: RunConfig, device: torch.device) -> tuple[str, ...]:
    """Names of the metrics; `auto` means none on a CPU, where 50,000 images take hours, unless they are asked for."""
    if not config.metrics.auto:
        return config.metrics.names
    return () if device.type == "cpu" and not asked_for(config) else (DEFAULT,)


def metric_options(config: RunConfig, device: torch.device, *, trust_detector: bool = False) -> MetricOptions | None:
    """Options of the metrics; None if nothing is measured."""
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
        bootstrap=config.bootstrap,
        resample=config.resample,
    )


def evaluation_for(config: RunConfig, pair: Pair, trainer: Trainer, *, trust_detector: bool = False) -> Evaluate | None:
    """Makes the function that measures the snapshots of a run. All processes have to call this.

    Args:
        config: Options of the run.
        pair: Pair of the run.
        trainer: Trainer of the run.
        trust_detector: Permission to load a downloaded detector whose digest is not known.

    Returns:
        Function from a network and a file name to rows; if a measurement fails, it logs a warning and returns no rows.
        None if nothing is measured; a log line says why.

    Raises:
        UserError: A metric that the user asked for cannot be measured.
    """
    options = metric_options(config, trainer.device, trust_detector=trust_detector)
    if options is None:
        if config.stop_if_worse is not None:
            raise OptionError(
                f"{{stop_if_worse={config.stop_if_worse}}} watches the FID, and on a CPU {{metrics=auto}} measures "
                "none: name one, such as fid5k_full."
            )
        if config.metrics.auto:
            log.info("No metrics: on a CPU, ask for them, for example with --metrics=fid5k_full")
        return None
    if options.data is None and options.ref == "auto" and pair.gan_file is not None:
        warn_of_recorded_data(pair.gan_file.pickle)
    assert trainer.generator.average is not None
    generator = _drawn(trainer, trainer.generator.average.network.module)
    # What a teacher without a file draws depends on code, too, so none of it is kept for other runs.
    sha256 = pair.digests.get("teacher") or distributed.broadcast(uuid4().hex)
    more = conditions(trainer.teacher, pair.digests)
    yardstick = Teacher(trainer.teacher, config.teacher, sha256, config.class_map, more)
    try:
        measure = make_measure(options, generator, trainer.device, yardstick)
    except UserError as error:
        if asked_for(config):
            raise
        log.warning(f"Continuing without metrics: {error}", extra=ALL_RANKS)
        return None

    def guarded(network: torch.nn.Module, snapshot_pkl: str) -> Sequence[dict[str, Any]]:
        try:
            return measure(_drawn(trainer, network), snapshot_pkl)
        except Exception as error:  # hours of training are worth more than a metric
            about = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            log.warning(f"Could not measure {snapshot_pkl}: {about}", extra=ALL_RANKS)
            return []

    return guarded


def _drawn(trainer: Trainer, module: torch.nn.Module) -> Any:
    """What draws the images of a module: the module itself, unless its adapter is the user's own."""
    for average in trainer.generator.averages().values():
        if average.network.module is module and not type(average.network).__module__.startswith("refine."):
            return average.network
    return module


def prefetch_for(config: RunConfig, *, trust: bool = False, trust_detector: bool = False) -> list[str]:
    """Downloads everything that a run needs, and tests it with the network off.

    Args:
        config: Options of the run.
        trust: Permission to run source code embedded in the pickles, for networks that Refine does not know.
        trust_detector: Permission to load a downloaded detector whose digest is not known.

    Returns:
        Line of text for each file.

    Raises:
        UserError: A file cannot be downloaded or used.
    """
    from refine.metrics.offline import prefetch

    device = choose_device(config.device)

    def get() -> list[str]:
        teacher = load_teacher(config.teacher, trust=trust, settings=config.teacher_settings)
        sigma_init = config.sigma_init
        if config.gan is None:
            gan = as_one_step(teacher, DEFAULT_SIGMA_INIT if sigma_init is None else sigma_init)
        else:
            gan = load_generator(config.gan, trust=trust, sigma_init=sigma_init)
        lines = [f"generator {gan.pickle.path}", f"teacher {teacher.pickle.path}"]
        guide = None
        if config.guide is not None:
            guide = load_teacher(config.guide, trust=trust, settings=config.teacher_settings)
            lines.append(f"guide {guide.pickle.path}")
        options = metric_options(config, device, trust_detector=trust_detector)
        if options is not None:
            denoiser = guided_denoiser(teacher, guide, config.guidance, device)
            sha256 = pickles.file_sha256(teacher.pickle.path)
            digests = {} if guide is None else {"guide": pickles.file_sha256(guide.pickle.path)}
            yardstick = Teacher(denoiser, config.teacher, sha256, config.class_map, conditions(denoiser, digests))
            make_measure(options, gan.network.to(device), device, yardstick)
            lines.append(f"metrics {', '.join(options.metrics)}")
        return lines

    return prefetch(get)


def real_images(data: str, classes: Sequence[int | None], seed: int) -> np.ndarray:
    """Random images of a data set, for `reals.png`, uint8 [N, C, R, R].

    Args:
        data: ZIP, folder or zoo name of the data set.
        classes: Class at each place of the grid; None for any image.
        seed: Seed of the choice.

    Raises:
        UserError: The data set cannot be read.
    """
    return matching_images(ImageDataset(dataset_path(data)), classes, seed)


def is_measured(folder: RunFolder, snapshot_pkl: str) -> bool:
    """True if a snapshot already has a row; a resumed run reaches it again."""
    return any(
        row["snapshot_pkl"] == snapshot_pkl for name in folder.metric_names() for row in folder.metric_rows(name)
    )


def record(folder: RunFolder, rows: Sequence[dict[str, Any]], patience: int | None) -> str | None:
    """Writes the rows of one snapshot, and links `network-best.pkl` to the best snapshot by the first FID in the rows.

    Args:
        folder: Folder of the run.
        rows: Rows of `metric-<name>.jsonl`.
        patience: Number of rises of the FID in a row that ends the run; None for no limit.

    Returns:
        Reason to end the run; None to continue.
    """
    for row in rows:
        folder.add_metric(row)
    name = next((row["metric"] for row in rows if row["metric"].startswith(FRECHET_DISTANCES)), None)
    if name is None:
        return None
    history = folder.metric_rows(name)
    values = [value_of(row) for row in history]
    best = history[values.index(min(values))]
    folder.link_best(folder.path / best["snapshot_pkl"])
    if patience is None or not rising(values, patience):
        return None
    rises = counted(patience, "snapshot")
    return f"Ending the run: {name} has risen for {rises} in a row; the best snapshot is {best['snapshot_pkl']}"


def record_average(folder: RunFolder, decay: str, rows: Sequence[dict[str, Any]]) -> None:
    """Writes the metrics of a further moving average, and links `network-best.pkl` to it if its FID is the lowest.

    Args:
        folder: Folder of the run.
        decay: Decay of the average.
        rows: Rows of the metrics of its file.
    """
    for row in rows:
        folder.add_average({"decay": decay, **row})
    fid = next((row for row in rows if row["metric"].startswith(FRECHET_DISTANCES)), None)
    if fid is None:
        return
    others = [row for row in folder.average_rows() if row["metric"] == fid["metric"]]
    values = map(value_of, [*folder.metric_rows(fid["metric"]), *others])
    if value_of(fid) <= min(values):
        folder.link_best(folder.path / fid["snapshot_pkl"])


def link_best_by_divergence(folder: RunFolder, batch: int) -> None:
    """Links `network-best.pkl` to the snapshot with the least estimated divergence, if no FID is measured.

    Args:
        folder: Folder of the run.
        batch: Images per step, by which the positions in the names of snapshots may be too small.
    """
    if any(name.startswith(FRECHET_DISTANCES) for name in folder.metric_names()):
        return
    history = readings(folder.stats_rows())
    now = history[-1].cur_nimg if history else 0  # a resumed run may find snapshots that it has yet to reach
    snapshots = {nimg + batch - 1: path for path, nimg in folder.snapshots().items() if nimg <= now}
    best = best_snapshot(history, list(snapshots))
    if best is not None:
        folder.link_best(snapshots[best])


def flat(folder: RunFolder, patience: int | None) -> str | None:
    """Reason to end the run because its estimated divergence no longer falls; None to continue.

    Args:
        folder: Folder of the run.
        patience: Number of status lines to look at; None for no limit.
    """
    if patience is None or not is_flat(readings(folder.stats_rows()), patience):
        return None
    return f"Ending the run: the estimated divergence has not fallen over {counted(patience, 'status line')}"


def value_of(row: dict[str, Any]) -> float:
    """Value of the metric: the first of a row's results."""
    return float(next(iter(row["results"].values())))


def rising(values: Sequence[float], patience: int) -> bool:
    """True if each of the last `patience` values is larger than its predecessor."""
    last = list(values)[-patience - 1 :]
    return len(last) == patience + 1 and all(a < b for a, b in itertools.pairwise(last))
