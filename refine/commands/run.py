"""The command line of `python refine.py`: click options and presets -> RunConfig; nothing below knows click."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from refine.commands.base import Command
from refine.config import GROUPS, RunConfig
from refine.errors import UserError
from refine.options import Option
from refine.presets import PRESETS, choose_preset


class GroupedOption(click.Option):
    """An option that `--help` lists under the title of its group."""

    def __init__(self, *args: Any, group: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class GroupedCommand(Command):
    """A command whose `--help` shows options by group."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes each group as a section of its own."""
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in (*GROUPS, "Help")}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections[getattr(parameter, "group", "Help")].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records, col_max=34)


class FieldType(click.ParamType):
    """The type of an option that a section declares."""

    def __init__(self, field: Option) -> None:
        self.field, self.name = field, field.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Converts what was typed; raises click's own error. Bounds are checked by the section."""
        if not isinstance(value, str):
            return value
        try:
            return self.field.from_text(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Offers the choices."""
        return [CompletionItem(choice) for choice in self.field.choices if choice.startswith(incomplete)]


def _run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command-line option for each option of a run."""
    for each in reversed(RunConfig.options()):
        settings: dict[str, Any] = {"type": FieldType(each), "metavar": each.metavar, "help": _help_line(each)}
        if each.kind == "bool":
            settings |= {"is_flag": False, "flag_value": "1"}  # `--preflight` alone means 1
        command = _option(each.group, *each.flags, each.name, **settings)(command)
    return command


def _help_line(each: Option) -> str:
    if each.default in (MISSING, None):
        return each.help
    by_preset = any(each.name in preset.options or each.name in preset.unconditional for preset in PRESETS.values())
    default = int(each.default) if each.kind == "bool" else each.default
    return f"{each.help} [{'by preset' if by_preset else default}]"


def _option(group: str, *names: str, **settings: Any) -> Callable[..., Any]:
    return click.option(*names, cls=GroupedOption, group=group, **settings)


@click.command(cls=GroupedCommand, context_settings={"max_content_width": 120})
@_run_options
@_option("Run", "--resume", metavar="latest|DIR|FILE", help="Continue a run with its own options.")
@_option("Run", "-n", "--dry-run", is_flag=True, help="Say what a run would do and need, and stop.")
@_option(
    "Machine",
    "--custom-ops",
    type=click.Choice(["auto", "on", "off"]),
    metavar="MODE",
    help="Compiled operators: auto (where possible), on (or fail) or off.",
)
@_option(
    "Machine", "--gpus", type=int, metavar="N", help="How many you expect; `torchrun` starts one process for each."
)
@_option(
    "Metrics", "--trust-detector", is_flag=True, help="Load a detector from the internet that Refine does not know."
)
@_option(
    "Metrics", "--prefetch", is_flag=True, help="Download all that a run needs, try it with the network off, stop."
)
@_option("Machine", "--trust-pickle", is_flag=True, help="Run embedded source where Refine has no network of its own.")
def main(
    resume: str | None,
    dry_run: bool,
    custom_ops: str | None,
    gpus: int | None,
    trust_pickle: bool,
    trust_detector: bool,
    prefetch: bool,
    **given: Any,
) -> None:
    """Make a pretrained StyleGAN generator better with a pretrained diffusion model, and nothing else.

    python refine.py --gan=ffhq.pkl --teacher=edm-ffhq.pkl
    """
    context = click.get_current_context()
    changes = {
        name: value
        for name, value in given.items()
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    if not resume:
        missing = [name for name in ("gan", "teacher") if name not in changes]
        if missing:
            raise UserError(f"Give --{missing[0]}, the file to {'refine' if missing[0] == 'gan' else 'learn from'}.")
    _check_gpus(gpus)

    from refine.runs import start  # torch takes seconds to import
    from refine.runs.folder import find_state
    from refine.runs.start import resumed_config

    state: Path | None = None
    if resume:
        if "init" in changes:
            raise UserError("--resume goes on with a run and --init begins one: give one of them.")
        state = find_state(resume, changes.get("outdir", RunConfig.outdir))
        changes.pop("outdir", None)
        _say(f"Resuming from {state}")
        config = resumed_config(state, changes)
    else:
        config = make_config(changes, trust_pickle)
    if custom_ops:
        _choose_operators(custom_ops, config.device)
    if dry_run:
        from refine.commands.dry_run import describe_run

        with_preflight = bool(given["preflight"])
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
            _say(f"Here, and tried out with the network off: {line}")
        return
    snapshot = start.run(config, trust=trust_pickle, trust_detector=trust_detector, resume=state)
    _say(f"Refined generator: {snapshot}")


def make_config(changes: dict[str, Any], trust: bool = False) -> Any:
    """The options of a new run: what was given, over the preset that was given or that suits the pair.

    Nothing is loaded before all that was given makes sense.

    Raises:
        UserError: a value makes none, or a file cannot be read.
    """
    name = changes.get("preset")
    if name is not None and name not in PRESETS:
        raise UserError(f"--preset must be one of {', '.join(PRESETS)}, not {name!r}.")
    depends = () if "batch" in changes else ("batch_gpu",)  # on the preset's batch
    known = changes | {"share_unet": False}  # what that needs depends on the preset's noise levels for the pair
    RunConfig(**{field: value for field, value in known.items() if field not in depends})
    if name is not None:
        for conditional in (True, False):
            RunConfig(**(PRESETS[name].options_for(conditional) | known))

    from refine.networks.loading import load_gan, load_teacher

    try:
        teacher: Any = load_teacher(changes["teacher"], trust=trust).network
    except UserError:
        load_gan(changes["gan"], trust=trust)  # what is wrong with the first option is said first
        raise
    conditional = bool(teacher.label_dim)
    chosen = name or choose_preset(int(teacher.img_resolution), changes["gan"], changes["teacher"])
    options = PRESETS[chosen].options_for(conditional)
    kept = {field: value for field, value in options.items() if field not in changes}
    shown = ", ".join(f"{field.replace('_', '-')}={value}" for field, value in kept.items())
    _say(f"Preset {chosen} ({PRESETS[chosen].summary}): {shown}")
    return RunConfig(**(options | changes | {"preset": chosen}))


def _say(line: str) -> None:
    """On stdout, from the first of several processes."""
    if os.environ.get("RANK", "0") == "0":
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
    from stylegan_ops import select
    from stylegan_ops.build import BuildError

    select.set_mode(mode)
    if mode == "on":
        try:
            select.load(choose_device(device))
        except BuildError as error:
            raise UserError(str(error)) from error
