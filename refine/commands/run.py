"""`python refine.py`, which is `python -m refine run`: options and presets become a `RunConfig`, and a run begins."""

from __future__ import annotations

import os
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from refine.commands.base import is_rank0
from refine.commands.options import GroupedCommand, GroupedOption, field_option
from refine.config import RunConfig
from refine.errors import OptionError, UserError
from refine.options import Option
from refine.presets import PRESETS


def _run_options(command: Any) -> Any:
    """A command-line option for each option of a run."""
    for each in reversed(RunConfig.options()):
        command = field_option(each, cls=GroupedOption, group=each.group, help=_help_line(each))(command)
    return command


def _help_line(each: Option) -> str:
    """The help with the default, which for many options is the preset's."""
    if any(each.name in (*preset.options, *preset.unconditional) for preset in PRESETS.values()):
        return f"{each.help} [by preset]"
    if not isinstance(each.default, str | int | float):
        return each.help
    return f"{each.help} [{int(each.default) if each.kind == 'bool' else each.default}]"


def _option(group: str, *names: str, **settings: Any) -> Any:
    return click.option(*names, cls=GroupedOption, group=group, **settings)


@click.command(cls=GroupedCommand)
@_run_options
@_option("Run", "--resume", metavar="latest|DIR|FILE", help="Continue a run with its own options.")
@_option(
    "Run",
    "--config",
    "config_file",
    metavar="FILE",
    help="Options in JSON or YAML, such as a training_options.json; options typed here win.",
)
@_option("Run", "-n", "--dry-run", is_flag=True, help="Say what a run would do and need, and stop.")
@_option(
    "Machine",
    "--custom-ops",
    type=click.Choice(["auto", "on", "off"]),
    metavar="MODE",
    help="Compiled operators: auto (where possible), on (or fail) or off.",
)
@_option(
    "Machine", "--gpus", type=int, metavar="N", help="Number of GPUs to expect; torchrun starts a process for each."
)
@_option(
    "Machine",
    "--trust-pickle",
    is_flag=True,
    help="Run embedded source where Refine has no network of its own, and a --gan or --teacher of FILE.py:FUNCTION.",
)
@_option("Metrics", "--trust-detector", is_flag=True, help="Load a downloaded detector whose digest is not known.")
@_option("Metrics", "--prefetch", is_flag=True, help="Download what a run needs, try it with the network off, stop.")
def main(
    resume: str | None,
    config_file: str | None,
    dry_run: bool,
    custom_ops: str | None,
    gpus: int | None,
    trust_pickle: bool,
    trust_detector: bool,
    prefetch: bool,
    **given: Any,
) -> None:
    """Improve a pretrained StyleGAN generator, using nothing but a pretrained diffusion model.

    python refine.py --gan=ffhq.pkl --teacher=edm-ffhq.pkl

    Without --gan, distill the diffusion model into a generator of one step.
    """
    changes = _typed(given)
    with_preflight = bool(changes.get("preflight"))
    if resume is not None:
        for name in ("init", "preset"):
            if name in changes:
                raise OptionError(f"{{resume}} continues a run and {{{name}}} begins one: give one of them.")
        if config_file is not None:
            raise OptionError("{resume} continues a run with its own options: leave out {config}.")
    elif config_file is not None:
        from refine.commands.config_file import read_config  # needs a package that nothing else does

        changes = read_config(Path(config_file).expanduser()) | changes
    _check_gpus(gpus)
    if resume is None:
        needed = [each for each in RunConfig.options() if each.default is MISSING and each.name not in changes]
        if needed:
            raise click.UsageError(f"Give {needed[0].flags[0]}, the {needed[0].help}")
        config, state = RunConfig.from_preset(trust=trust_pickle, **changes), None
    else:
        config, state = _resumed(os.path.expanduser(resume), changes)
    if custom_ops:
        _choose_operators(custom_ops, config.device)
    if config.preset is not None and state is None:
        _say(f"Preset {config.preset}: {PRESETS[config.preset].summary}")
    if dry_run:
        from refine.commands.dry_run import describe_run

        click.echo(
            describe_run(
                config,
                trust=trust_pickle,
                trust_detector=trust_detector,
                with_preflight=with_preflight,
                num_processes=_num_processes(),
                resume=state,
            )
        )
        return
    if prefetch:
        from refine.runs.evaluation import prefetch_for

        for line in prefetch_for(config, trust=trust_pickle, trust_detector=trust_detector):
            _say(f"Downloaded, and tested with the network off: {line}")
        return
    from refine.runs import start

    snapshot = start.run(config, trust=trust_pickle, trust_detector=trust_detector, resume=state)
    _say(f"{'One-step' if config.gan is None else 'Refined'} generator: {snapshot}")


def _typed(given: dict[str, Any]) -> dict[str, Any]:
    """The options that were typed, or came from an environment."""
    context = click.get_current_context()
    return {
        name: value
        for name, value in given.items()
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }


def _resumed(spec: str, changes: dict[str, Any]) -> tuple[RunConfig, Path]:
    from refine.runs.folder import find_state
    from refine.runs.start import resumed_config

    state = find_state(spec, changes.pop("outdir", RunConfig.outdir))
    config = resumed_config(state, changes)
    _say(f"Resuming from {state}")
    return config, state


def _say(line: str) -> None:
    """On stdout, from the first of several processes."""
    if is_rank0():
        click.echo(line)


def _num_processes() -> int:
    size = os.environ.get("WORLD_SIZE", "1")
    return int(size) if size.isdecimal() and int(size) > 0 else 1


def _check_gpus(gpus: int | None) -> None:
    """`--gpus` starts nothing, unlike in the StyleGAN suite; whoever gives it should know."""
    if gpus is None:
        return
    if gpus < 1:
        raise UserError(f"--gpus must be at least 1, not {gpus}.")
    size = _num_processes()
    if gpus != size:
        running = "1 process runs" if size == 1 else f"{size} processes run"
        start = f"torchrun --standalone --nproc_per_node={gpus} refine.py ..." if gpus > 1 else "python refine.py ..."
        raise UserError(f"--gpus={gpus}, but {running}: start one for each GPU with `{start}`.")


def _choose_operators(mode: str, device: str) -> None:
    from refine.runtime.device import choose_device
    from stylegan_ops import dispatch
    from stylegan_ops.build import BuildError

    dispatch.set_mode(mode)
    if mode == "on":
        try:
            dispatch.load(choose_device(device))
        except BuildError as error:
            raise UserError(str(error)) from error
