"""What `--dry-run` says: the pair, how it is joined, the options, the memory and the plan. It touches nothing."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from refine.config import RunConfig
from refine.networks.loading import LoadedNetwork, load_gan, load_teacher
from refine.pair.classes import class_notes
from refine.runs.evaluation import metric_names
from refine.runs.run import preflight_of
from refine.runs.start import choose_device, make_trainer, run_name, shape_of
from refine.training.memory import Memory, estimate_memory, format_bytes


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
    gan, teacher = load_gan(config.gan, trust=trust), load_teacher(config.teacher, trust=trust)
    trainer = make_trainer(config, gan, teacher, torch.device("cpu"))
    bridge, shapes = trainer.bridge, (shape_of(gan), shape_of(teacher))
    lines = [_network_line("Generator", gan), _network_line("Teacher", teacher)]
    seen = "as they are"
    if bridge.img_resolution < shapes[0].img_resolution:
        seen = f"reduced to {bridge.img_resolution}x{bridge.img_resolution} ({bridge.resample})"
    classes = "with" if bridge.label_dim else "without"
    lines.append(f"Bridge    The teacher sees the generator's images {seen}, {classes} classes.")
    lines += class_notes(gan.pickle, teacher.pickle, shapes[0].num_classes, shapes[1].num_classes, config.class_map)
    parameters = list(trainer.generator.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    lines.append(f"Trained   {trained:,} of {sum(p.numel() for p in parameters):,} parameters ({config.train_layers})")
    memory = estimate_memory(trainer, config, num_processes)
    lines += memory.lines() + plan_lines(config, gan, teacher, memory)
    if with_preflight:
        on_device = make_trainer(config, gan, teacher, choose_device(config.device))
        lines += preflight_of(on_device).lines()
    return "\n".join([*lines, config.to_json()])


def plan_lines(config: RunConfig, gan: LoadedNetwork, teacher: LoadedNetwork, memory: Memory) -> list[str]:
    """What a run would do, and what it would leave where."""
    steps, warm_up = (math.ceil(kimg * 1000 / config.batch) for kimg in (config.kimg, config.warmup_kimg))
    snap_kimg = config.tick_kimg * config.snap_ticks
    snapshots = 1 + math.ceil(round(config.kimg / snap_kimg, 9))  # the generator as it came, and the last one
    size = gan.pickle.path.stat().st_size
    where = Path(config.outdir) / f"NNNNN-{run_name(config, gan, teacher)}"
    return [
        f"Plan      {config.kimg:g} kimg in {steps:,} steps of {config.batch} images, after "
        f"{config.warmup_kimg:g} kimg of warm-up ({warm_up:,} steps)",
        f"          a status line every {config.tick_kimg:g} kimg; a snapshot every {snap_kimg:g} kimg, "
        f"{snapshots} of {format_bytes(size)} each, and two states of {format_bytes(memory.state)}",
        f"          metrics: {', '.join(metric_names(config, choose_device(config.device))) or 'none'}",
        f"          {format_bytes(snapshots * size + 2 * memory.state)} in {where}",
    ]


def _network_line(title: str, loaded: LoadedNetwork) -> str:
    shape = shape_of(loaded)
    num_parameters = sum(p.numel() for p in loaded.network.parameters())
    return (
        f"{title:<9} {loaded.pickle.path} [{loaded.key}]: {loaded.architecture.name}, "
        f"{shape.img_resolution}x{shape.img_resolution}x{shape.img_channels}, "
        f"{f'{shape.num_classes} classes' if shape.num_classes else 'unconditional'}, {num_parameters:,} parameters"
    )
