"""The command line of `python refine.py`: click options -> RunConfig; nothing below knows click."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from refine.command_line import Command
from refine.errors import UserError

# Named here, not taken from RunConfig: that would import torch, for which --help should not wait.
_OPTIONS: tuple[tuple[str, Any, str], ...] = (
    ("outdir", str, "Folder in which the run gets a folder of its own."),
    ("desc", str, "Appended to that folder's name."),
    ("kimg", float, "Length of the run, in thousands of images."),
    ("batch", int, "Images of a step."),
    ("batch-gpu", int, "Images that go through the networks at once."),
    ("glr", float, "Learning rate of the generator."),
    ("flr", float, "Learning rate of the fake score."),
    ("lr-rampup-kimg", float, "kimg over which the generator's learning rate rises from 0."),
    ("clip-grad", float, "Largest norm of the generator's gradient."),
    ("weighting", str, "Of the divergence: uniform, dmd or score."),
    ("sigma", str, "Noise levels of generator steps, such as lognormal:-1.2,1.2, or two joined by ->."),
    ("fake-sigma", str, "Noise levels at which the fake score is fitted."),
    ("fake-steps", int, "Updates of the fake score for each of the generator."),
    ("share-forward", bool, "One generator forward pass for both updates."),
    ("fake-dropout", bool, "Fit the fake score with its dropout on."),
    ("noise-mode", str, "The generator's noise while training: random, const or none."),
    ("warmup-kimg", float, "kimg that the fake score is fitted to before the generator moves."),
    ("ema-halflife-kimg", float, "Half-life of the moving average of weights."),
    ("train-layers", str, "auto (freeze what the teacher cannot see), all, or resolutions such as 4,8,16."),
    ("resample", str, "Filter that reduces images to the teacher's size: lanczos, bicubic or box."),
    ("class-map", str, "The teacher's class for each class of the generator, such as 3,0,1."),
    ("tick-kimg", float, "kimg between two status lines."),
    ("snap-ticks", int, "Status lines between two snapshots."),
    ("seed", int, "Of everything that is drawn."),
    ("device", str, "auto, cpu, cuda or mps."),
)


def _with_run_options(command: Any) -> Any:
    for name, kind, text in reversed(_OPTIONS):
        command = click.option(f"--{name}", type=kind, help=text)(command)
    return command


@click.command(cls=Command)
@click.option("--gan", metavar="PKL|URL|NAME", help="StyleGAN pickle to refine.")
@click.option("--teacher", metavar="PKL|URL|NAME", help="EDM pickle that teaches it.")
@click.option("--resume", metavar="latest|DIR|FILE", help="Continue a run with its own options.")
@click.option("-n", "--dry-run", is_flag=True, help="Open and check both, print what a run would do, and stop.")
@click.option(
    "--custom-ops",
    type=click.Choice(["auto", "on", "off"]),
    help="Compiled operators: where they can be built (auto), or else an error (on), or never (off).",
)
@click.option("--trust-pickle", is_flag=True, help="Run embedded source where Refine has no network of its own.")
@_with_run_options
def main(
    gan: str | None,
    teacher: str | None,
    resume: str | None,
    dry_run: bool,
    custom_ops: str | None,
    trust_pickle: bool,
    **given: Any,
) -> None:
    """Make a pretrained StyleGAN generator better with a pretrained diffusion model, and nothing else."""
    context = click.get_current_context()
    given |= {"gan": gan, "teacher": teacher}
    changes = {
        name: value
        for name, value in given.items()
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    if not resume and not (gan and teacher):
        raise click.UsageError(
            f"Give --{'teacher' if gan else 'gan'}, the file to {'learn from' if gan else 'refine'}."
        )

    from refine import run  # torch takes seconds to import
    from refine.config import RunConfig
    from refine.run_dir import find_state

    if "class_map" in changes:
        changes["class_map"] = _parse_class_map(changes["class_map"])
    state: Path | None = None
    if resume:
        state = find_state(resume, changes.get("outdir", RunConfig.outdir))
        changes.pop("outdir", None)
        click.echo(f"Resuming from {state}")
        config = run.resumed_config(state, changes)
    else:
        config = RunConfig(**changes)
    if custom_ops:
        _choose_operators(custom_ops, config.device)
    if dry_run:
        _describe(config, trust_pickle)
        return
    snapshot = run.refine(config, trust=trust_pickle, resume=state)
    click.echo(f"Refined generator: {snapshot}")


def _choose_operators(mode: str, device: str) -> None:
    from refine.setup import choose_device
    from stylegan_ops import select
    from stylegan_ops.build import BuildError

    select.set_mode(mode)
    if mode == "on":
        try:
            select.load(choose_device(device))
        except BuildError as error:
            raise UserError(str(error)) from error


def _parse_class_map(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"--class-map must be class numbers such as 3,0,1, not {text!r}.") from error


def _describe(config: Any, trust_pickle: bool) -> None:
    """What `--dry-run` prints: both networks, how they are joined, and all options. Touches nothing."""
    from refine.bridge import Shape, make_bridge
    from refine.loading import load_gan, load_teacher
    from refine.setup import shape_of

    shapes: list[Shape] = []
    for title, load, spec in (("Generator", load_gan, config.gan), ("Teacher", load_teacher, config.teacher)):
        loaded = load(spec, trust=trust_pickle)
        shape = shape_of(loaded)
        shapes.append(shape)
        num_parameters = sum(p.numel() for p in loaded.network.parameters())
        click.echo(
            f"{title:<9} {loaded.pickle.path} [{loaded.key}]: {loaded.architecture.name}, "
            f"{shape.img_resolution}x{shape.img_resolution}x{shape.img_channels}, "
            f"{f'{shape.num_classes} classes' if shape.num_classes else 'unconditional'}, {num_parameters:,} parameters"
        )
    bridge = make_bridge(shapes[0], shapes[1], config.resample, config.class_map)
    seen = "as they are"
    if bridge.img_resolution < shapes[0].img_resolution:
        seen = f"reduced to {bridge.img_resolution}x{bridge.img_resolution} ({bridge.resample})"
    click.echo(f"The teacher sees the generator's images {seen}, {'with' if bridge.label_dim else 'without'} classes.")
    click.echo(config.to_json(), nl=False)
