"""What `--dry-run` says: the pair, how it is joined, the options, the memory and the plan. It touches nothing."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from refine.config import RunConfig, TrainingOptions
from refine.contracts import Denoiser, Generator
from refine.networks.loading import LoadedNetwork
from refine.pair.pair import Pair
from refine.runs.evaluation import metric_names
from refine.runs.run import preflight_of
from refine.runs.start import pair_for, run_name
from refine.runtime.device import choose_device
from refine.runtime.text import format_bytes
from refine.training.memory import Memory, estimate_memory
from refine.training.trainer import Trainer


def describe_run(
    config: RunConfig, *, trust: bool = False, with_preflight: bool = False, num_processes: int = 1
) -> str:
    """The text, ready to be printed.

    Args:
        config: the options.
        trust: run the source embedded in the pickles where Refine has no network of its own.
        with_preflight: also try the pair out, on the device that a run would take.
        num_processes: that would share the work.

    Raises:
        UserError: the pair does not fit, or a file cannot be read.
    """
    pair = pair_for(config, trust=trust)
    options = config.section(TrainingOptions)
    trainer = Trainer(pair, options, torch.device("cpu"))
    bridge, generator, teacher = pair.bridge, pair.generator, pair.teacher
    lines = [
        _network_line("Generator", pair.gan_file, generator, generator.c_dim),
        _network_line("Teacher", pair.teacher_file, teacher, teacher.label_dim),
    ]
    seen = "as they are"
    if bridge.img_resolution < generator.img_resolution:
        seen = f"reduced to {bridge.img_resolution}x{bridge.img_resolution} ({bridge.resample})"
    classes = "with" if bridge.label_dim else "without"
    lines.append(f"Bridge    The teacher sees the generator's images {seen}, {classes} classes.")
    lines += pair.notes
    parameters = list(trainer.generator.module.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    lines.append(f"Trained   {trained:,} of {sum(p.numel() for p in parameters):,} parameters ({config.train_layers})")
    memory = estimate_memory(trainer, num_processes)
    lines += memory.lines() + plan_lines(config, pair, memory)
    if with_preflight:
        lines += preflight_of(pair, Trainer(pair, options, choose_device(config.device))).lines()
    return "\n".join([*lines, config.to_json()])


def plan_lines(config: RunConfig, pair: Pair, memory: Memory) -> list[str]:
    """What a run would do, and what it would leave where."""
    steps, warm_up = (math.ceil(kimg * 1000 / config.batch) for kimg in (config.kimg, config.warmup_kimg))
    snap_kimg = config.tick_kimg * config.snap_ticks
    snapshots = 1 + math.ceil(round(config.kimg / snap_kimg, 9))  # the generator as it came, and the last one
    size = pair.gan_file.pickle.path.stat().st_size if pair.gan_file else 0
    where = Path(config.outdir) / f"NNNNN-{run_name(config, pair)}"
    return [
        f"Plan      {config.kimg:g} kimg in {steps:,} steps of {config.batch} images, after "
        f"{config.warmup_kimg:g} kimg of warm-up ({warm_up:,} steps)",
        f"          a status line every {config.tick_kimg:g} kimg; a snapshot every {snap_kimg:g} kimg, "
        f"{snapshots} of {format_bytes(size)} each, and two states of {format_bytes(memory.state)}",
        f"          metrics: {', '.join(metric_names(config, choose_device(config.device))) or 'none'}",
        f"          {format_bytes(snapshots * size + 2 * memory.state)} in {where}",
    ]


def _network_line(title: str, file: LoadedNetwork | None, network: Generator | Denoiser, num_classes: int) -> str:
    num_parameters = sum(p.numel() for p in network.module.parameters())
    name = f"{file.pickle.path} [{file.key}]: {file.architecture.name}" if file else type(network.module).__name__
    return (
        f"{title:<9} {name}, {network.img_resolution}x{network.img_resolution}x{network.img_channels}, "
        f"{f'{num_classes} classes' if num_classes else 'unconditional'}, {num_parameters:,} parameters"
    )
