"""Dry run: the pair, its files, the memory, time and disk space that a run would need, and its options.

Nothing is written. Everything that a run would open is opened, so that what a run would refuse is refused here.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from refine import zoo
from refine.config import RunConfig, TrainingOptions
from refine.contracts import Denoiser, Generator
from refine.diffusion.guidance import Guided
from refine.errors import OptionError, UserError, template_of
from refine.files.atomic import cannot_write, check_folder
from refine.files.dataset import ImageDataset
from refine.metrics.resolve import dataset_path
from refine.networks.loading import LoadedNetwork
from refine.networks.one_step import LIVE, OneStep
from refine.pair.pair import Pair
from refine.runs.evaluation import evaluation_for, metric_names
from refine.runs.run import preflight_of
from refine.runs.start import distillation_line, pair_for, run_name
from refine.runtime.device import choose_device
from refine.runtime.text import counted, format_bytes, format_time
from refine.training.cost import step_cost
from refine.training.memory import Memory, estimate_memory
from refine.training.state import load_weights, read_state
from refine.training.trained import Progress
from refine.training.trainer import Trainer

TIMED_IMAGES = 4  # in the first step that is timed
MAX_TIMED_IMAGES = 64
ENOUGH_SECONDS = 0.2  # a shorter step is mostly what comes with every step, so more images are tried
MAX_CLASSES_SHOWN = 10


def describe_run(
    config: RunConfig,
    *,
    trust: bool = False,
    trust_detector: bool = False,
    with_preflight: bool = False,
    num_processes: int = 1,
    resume: Path | None = None,
) -> str:
    """The dry run as text.

    Args:
        config: Options of the run.
        trust: Run the source embedded in the pickles where Refine has no network of its own.
        trust_detector: Load a detector from the internet whose digest is not known.
        with_preflight: Also try the pair out, on the device of the run.
        num_processes: Processes that would share the work.
        resume: Training state that the run would continue from; None for a new run.

    Raises:
        UserError: The run would be refused: the pair does not fit, or a file cannot be read or written.
    """
    pair, device = pair_for(config, trust=trust), choose_device(config.device)
    options = config.section(TrainingOptions)
    trainer = Trainer(pair, options, torch.device("cpu"))
    on_device = Trainer(pair, options, device) if device.type != "cpu" else trainer
    progress, outdir, found = Progress(), Path(config.outdir), list[UserError]()

    def tried(check: Callable[[], Any]) -> Any:
        try:
            return check()
        except UserError as error:  # the others are told, too
            found.append(error)

    if resume is not None:
        progress = Progress(**read_state(resume)["progress"])
    else:
        outdir = tried(lambda: writable_folder(config.outdir)) or outdir
    if resume is None and config.init is not None:
        init = config.init
        tried(lambda: load_weights(trainer, zoo.resolve(init).path, trust=trust))
    if config.data is not None:
        data = config.data
        tried(lambda: ImageDataset(dataset_path(data)))
    tried(lambda: evaluation_for(config, pair, on_device, trust_detector=trust_detector))  # detector and reference
    if found:
        raise OptionError(" ".join(dict.fromkeys(map(template_of, found))))
    memory = estimate_memory(trainer, num_processes)
    folder = resume.parent if resume else outdir / f"NNNNN-{run_name(config, pair)}"
    lines = [
        *_pair_lines(config, pair, trainer),
        *memory.lines(),
        *_memory_warnings(memory, device),
        *_plan_lines(config, pair, memory, device, progress),
        f"          {step_cost(trainer)}",
        *_time_lines(config, pair, device, progress, num_processes),
        *_disk_lines(config, pair, memory, folder),
    ]
    if with_preflight and not pair.distills:
        lines += preflight_of(pair, on_device).lines()
    return "\n".join([*lines, config.to_json()])


def writable_folder(outdir: str) -> Path:
    """The folder of runs, which need not exist yet.

    Raises:
        UserError: It is a file, or cannot be made or written.
    """
    path = Path(outdir).expanduser()
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise cannot_write(path, NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))
    check_folder(existing, path)
    return path


def _pair_lines(config: RunConfig, pair: Pair, trainer: Trainer) -> list[str]:
    bridge, generator, teacher = pair.bridge, pair.generator, pair.teacher
    seen = "as they are"
    if bridge.img_resolution < generator.img_resolution:
        seen = f"reduced to {bridge.img_resolution}x{bridge.img_resolution} ({bridge.resample})"
    classes = "with" if bridge.label_dim else "without"
    parameters = list(trainer.generator.module.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    lines = [
        _network_line("Generator", pair.gan_file, generator, generator.c_dim),
        _network_line("Teacher", pair.teacher_file, teacher, teacher.label_dim),
        *_guide_lines(config, pair),
        f"Bridge    The teacher sees the generator's images {seen}, {classes} classes.",
        *pair.notes,
        *([f"Distilled {distillation_line(pair)}"] if pair.distills else []),
        *([f"Warning: {caution}"] if (caution := config.objective.caution()) and not pair.distills else []),
        f"Trained   {trained:,} of {sum(p.numel() for p in parameters):,} parameters ({config.train_layers})",
    ]
    unused = sorted(set(range(bridge.label_dim)) - set(config.class_map or range(bridge.label_dim)))
    if unused:
        shown = ", ".join(map(str, unused[:MAX_CLASSES_SHOWN])) + (", ..." if len(unused) > MAX_CLASSES_SHOWN else "")
        lines.append(f"Warning: --class-map never asks for class {shown} of the teacher.")
    return lines


def _guide_lines(config: RunConfig, pair: Pair) -> list[str]:
    if not isinstance(pair.teacher, Guided):
        return []
    guide = pair.teacher.guide
    fake = "the fake score, too" if config.guide_fake else "not the fake score"
    return [
        _network_line("Guide", pair.guide_file, guide, guide.label_dim),
        f"Guidance  {pair.teacher.weight:g}: the teacher is guided, {fake}.",
    ]


def _plan_lines(config: RunConfig, pair: Pair, memory: Memory, device: torch.device, progress: Progress) -> list[str]:
    """Steps, status lines, snapshots and metrics."""
    steps, warm_up = (math.ceil(kimg * 1000 / config.batch) for kimg in (config.kimg, config.warmup_kimg))
    done = ""
    if progress.step:
        done = f", of which {progress.step:,} are done"
    elif progress.warmup_nimg:
        done = f", of which {progress.warmup_nimg / 1000:g} kimg are done"
    return [
        f"Plan      {config.kimg:g} kimg in {counted(steps, 'step')} of {counted(config.batch, 'image')}, after "
        f"{config.warmup_kimg:g} kimg of warm-up ({counted(warm_up, 'step')}){done}",
        f"          a status line every {config.tick_kimg:g} kimg; a snapshot every "
        f"{config.tick_kimg * config.snap_ticks:g} kimg, {num_snapshots(config)} of {format_bytes(_size(pair))} each, "
        f"and two states of {format_bytes(memory.state)}",
        f"          metrics: {', '.join(metric_names(config, device)) or 'none'}",
    ]


def num_snapshots(config: RunConfig) -> int:
    """Snapshots of a run: the unrefined generator, those at ticks, and the last one."""
    return 1 + math.ceil(round(config.kimg / (config.tick_kimg * config.snap_ticks), 9))


def _size(pair: Pair) -> int:
    if pair.gan_file is None:
        return 2 * sum(tensor.nbytes for tensor in pair.generator.module.state_dict().values())  # live and average
    size = pair.gan_file.pickle.path.stat().st_size
    if not isinstance(pair.gan_file.network, OneStep) or LIVE in pair.gan_file.pickle:
        return size
    return size + 4 * sum(p.numel() for p in pair.gan_file.network.parameters())  # the live weights join


def _memory_warnings(memory: Memory, device: torch.device) -> list[str]:
    """A line where the estimate exceeds what the machine has."""
    if device.type == "cuda":
        there, where = torch.cuda.get_device_properties(device).total_memory, "the GPU has"
    else:
        there, where = psutil.virtual_memory().available, "are free here"
    if memory.total <= there:
        return []
    text = f"{where} {format_bytes(there)}" if device.type == "cuda" else f"{format_bytes(there)} {where}"
    return [f"Warning: the run needs about {format_bytes(memory.total)} and {text}: lower --batch-gpu."]


def _time_lines(
    config: RunConfig, pair: Pair, device: torch.device, progress: Progress, num_processes: int
) -> list[str]:
    """Time of the rest of the run, from a step of a few images."""
    seconds = seconds_per_image(config, pair, device)
    warm_up = max(config.warmup_kimg * 1000 - progress.warmup_nimg, 0) if not progress.step else 0
    rest = max(config.kimg * 1000 - progress.cur_nimg, 0)
    total = (seconds[0] * warm_up + seconds[1] * rest) / num_processes
    rate = 1000 * seconds[1] / num_processes
    return [f"Time      about {format_time(total)} without metrics: {rate:.3g} sec/kimg in a few steps here"]


def seconds_per_image(config: RunConfig, pair: Pair, device: torch.device) -> tuple[float, float]:
    """Seconds per image of the warm-up and of the refinement, each from the faster of two steps after another one.

    Steps of a few images are dominated by what a step costs in any case, so short ones are tried with more images.
    """
    most = min(config.batch_gpu or config.batch, MAX_TIMED_IMAGES)
    images = min(TIMED_IMAGES, most)
    found = _seconds_per_image(config, pair, device, images)
    while images < most and found[-1] * images < ENOUGH_SECONDS:
        images = min(4 * images, most)
        with suppress(torch.OutOfMemoryError):
            found = _seconds_per_image(config, pair, device, images)
    return found


def _seconds_per_image(config: RunConfig, pair: Pair, device: torch.device, images: int) -> tuple[float, float]:
    options = config.section(TrainingOptions)
    options = replace(options, batch=images, batch_gpu=None, compile=False, ratio_samples=2)
    trainer = Trainer(replace(pair, digests={}), options, device)  # without digests no samples are kept
    measured = []
    for step in (trainer.warm_up_step, trainer.step) if trainer.needs_warm_up else (trainer.step,):
        step()
        times = []
        for _ in range(2):
            _synchronize(device)
            start = time.perf_counter()
            step()
            _synchronize(device)
            times.append(time.perf_counter() - start)
        measured.append(min(times) / images)
    return (measured[0] if len(measured) > 1 else 0.0), measured[-1]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _disk_lines(config: RunConfig, pair: Pair, memory: Memory, folder: Path) -> list[str]:
    needed = num_snapshots(config) * _size(pair) + 2 * memory.state
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free
    lines = [f"Disk      {format_bytes(needed)} in {folder}; {format_bytes(free)} are free"]
    if needed > free:
        lines.append("Warning: the disk has too little space: raise --snap, or choose another --outdir.")
    return lines


def _network_line(title: str, file: LoadedNetwork | None, network: Generator | Denoiser, num_classes: int) -> str:
    num_parameters = sum(p.numel() for p in network.module.parameters())
    name = f"{file.pickle.path} [{file.key}]: {file.architecture.name}" if file else type(network.module).__name__
    return (
        f"{title:<9} {name}, {network.img_resolution}x{network.img_resolution}x{network.img_channels}, "
        f"{counted(num_classes, 'class', 'classes') if num_classes else 'unconditional'}, {num_parameters:,} parameters"
    )
