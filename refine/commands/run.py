"""The command line of `python refine.py`: click options and presets -> RunConfig; nothing below knows click."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from refine.commands.base import Command
from refine.errors import UserError
from refine.presets import PRESETS, choose_preset

GROUPS = (
    "What", "Output", "Length", "Method", "Noise levels", "Optimisation", "Networks", "Metrics", "Machine", "Help",
)  # fmt: skip


class GroupedOption(click.Option):
    """An option that `--help` lists under the title of its group."""

    def __init__(self, *args: Any, group: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class GroupedCommand(Command):
    """A command whose `--help` shows options by group."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes each group as a section of its own."""
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in GROUPS}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections[getattr(parameter, "group", "Help")].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records, col_max=34)


class _OrNone(click.ParamType):
    """A number, or `none` to undo what a preset says."""

    def __init__(self, kind: Any) -> None:
        self.kind, self.name = kind, f"{kind.name}|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Converts what was given; raises click's own error."""
        return None if str(value).lower() == "none" else self.kind.convert(value, param, ctx)


class _Classes(click.ParamType):
    name = "k,k,.."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Converts `3,0,1` to numbers; raises click's own error."""
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"must be class numbers such as 3,0,1, not {value!r}.", param, ctx)


_INT, _FLOAT, _BOOL, _TEXT = click.INT, click.FLOAT, click.BOOL, click.STRING

# Fields of RunConfig: (group, spellings, type, metavar, help). Spelled out, not taken from RunConfig: that would import
# torch, for which --help should not wait. A test compares.
RUN_OPTIONS: tuple[tuple[str, tuple[str, ...], Any, str, str], ...] = (
    ("What", ("gan",), _TEXT, "PKL|URL|NAME", "StyleGAN pickle to refine."),
    ("What", ("teacher",), _TEXT, "PKL|URL|NAME", "EDM pickle that teaches it."),
    ("What", ("preset",), _TEXT, "NAME", f"Settings that go together: {', '.join(PRESETS)}. Default: by the teacher."),
    ("What", ("init",), _TEXT, "PKL|PT", "Start from these weights, with a history of its own."),
    ("What", ("class-map",), _Classes(), "K,K,..", "The teacher's class for each of the generator's: 3,0,1."),
    ("What", ("preflight",), _BOOL, "0|1", "Try the pair out before the first step."),
    ("Output", ("outdir",), _TEXT, "DIR", "Where the run gets a folder of its own."),
    ("Output", ("desc",), _TEXT, "TEXT", "Appended to that folder's name."),
    ("Output", ("tick", "tick-kimg"), _FLOAT, "KIMG", "kimg between two status lines."),
    ("Output", ("snap", "snap-ticks"), _INT, "TICKS", "Status lines between two snapshots."),
    ("Length", ("kimg",), _FLOAT, "KIMG", "Length of the run, in thousands of images."),
    ("Length", ("warmup-kimg",), _FLOAT, "KIMG", "What the fake score sees before the generator moves."),
    ("Length", ("stop-if-worse",), _OrNone(_INT), "N", "End when FID rose for N snapshots in a row."),
    ("Method", ("objective",), _TEXT, "NAME", "ikl, or another one in refine/objectives."),
    ("Method", ("weighting",), _TEXT, "NAME", "Of the divergence: uniform, dmd or score."),
    ("Method", ("fake-steps",), _INT, "N", "Updates of the fake score for each of the generator."),
    ("Method", ("share-forward",), _BOOL, "0|1", "One generator pass for both updates."),
    ("Method", ("share-unet",), _BOOL, "0|1", "One pass of the fake score for both updates as well."),
    ("Method", ("fake-dropout",), _BOOL, "0|1", "Fit the fake score with its dropout on."),
    ("Method", ("fake-augment",), _FLOAT, "P", "Fit it to augmented images, each way with probability P."),
    ("Method", ("paired-dropout",), _BOOL, "0|1", "Same dropout in both U-Nets for the generator's step."),
    ("Method", ("noise-mode",), _TEXT, "MODE", "The generator's own noise: random, const or none."),
    ("Noise levels", ("sigma",), _TEXT, "LAW", "Of generator steps: lognormal:-1.2,1.2, karras:0.002,80,7, A->B."),
    ("Noise levels", ("fake-sigma",), _TEXT, "LAW", "Those at which the fake score is fitted."),
    ("Optimisation", ("batch",), _INT, "N", "Images of a step, over all processes."),
    ("Optimisation", ("batch-gpu",), _OrNone(_INT), "N", "Images that go through the networks at once."),
    ("Optimisation", ("glr",), _FLOAT, "RATE", "Learning rate of the generator."),
    ("Optimisation", ("flr",), _FLOAT, "RATE", "Learning rate of the fake score."),
    ("Optimisation", ("lr-rampup-kimg",), _FLOAT, "KIMG", "Over which the generator's rate rises from 0."),
    ("Optimisation", ("lr-decay",), _TEXT, "NAME", "none, or cosine: the rate falls to 0 at the end."),
    ("Optimisation", ("beta1",), _FLOAT, "BETA", "Of Adam."),
    ("Optimisation", ("beta2",), _FLOAT, "BETA", "Of Adam."),
    ("Optimisation", ("clip-grad",), _OrNone(_FLOAT), "NORM", "Largest norm of a gradient."),
    ("Optimisation", ("ema-halflife-kimg",), _FLOAT, "KIMG", "Of the moving average of weights."),
    ("Optimisation", ("ema-rampup",), _OrNone(_FLOAT), "SHARE", "Half-life is at most this share of the run so far."),
    ("Networks", ("train-layers",), _TEXT, "WHICH", "auto (not what the teacher cannot see), all, or 4,8,16."),
    ("Networks", ("anchor",), _FLOAT, "WEIGHT", "Holds detail that the teacher cannot see."),
    ("Networks", ("resample",), _TEXT, "FILTER", "To the teacher's size: lanczos, bicubic or box."),
    ("Metrics", ("metrics",), _TEXT, "NAMES", "Such as fid50k_full,pr50k3_full or fid5k_full; none; auto: by device."),
    ("Metrics", ("data",), _TEXT, "ZIP|DIR", "StyleGAN data set to compare with."),
    ("Metrics", ("ref",), _TEXT, "auto|teacher|NPZ", "What to compare with: auto is data, statistics or teacher."),
    ("Metrics", ("detector",), _TEXT, "PATH|URL", "TorchScript module instead of the official Inception."),
    ("Metrics", ("vgg",), _TEXT, "PATH|URL", "The same instead of the official VGG."),
    ("Metrics", ("metric-seed",), _INT, "N", "Of latents, labels and noise: the same for every snapshot."),
    ("Metrics", ("fid-seeds",), _INT, "N", "3: the FID of three ranges of latents and the minimum, as EDM."),
    ("Metrics", ("metric-every",), _INT, "N", "Measure each N-th snapshot, and the last one."),
    ("Machine", ("precision",), _TEXT, "TYPE", "Of the U-Nets: auto, fp32, bf16 or fp16."),
    ("Machine", ("compile",), _BOOL, "0|1", "Run the networks' blocks through torch.compile."),
    (
        "Machine",
        ("cuda-graphs",),
        _BOOL,
        "0|1",
        "CUDA graphs of passes without gradients; not yet run on a GPU.",
    ),
    ("Machine", ("checkpoint",), _BOOL, "0|1", "Compute activations twice instead of keeping them: less memory."),
    ("Machine", ("device",), _TEXT, "NAME", "auto, cpu, cuda or mps."),
    ("Machine", ("seed",), _INT, "N", "Of everything that is drawn."),
)


def _run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for group, spellings, kind, metavar, text in reversed(RUN_OPTIONS):
        field = spellings[-1].replace("-", "_")
        names = [f"--{spelling}" for spelling in spellings]
        bare: dict[str, Any] = (
            {"is_flag": False, "flag_value": True} if kind is _BOOL else {}
        )  # `--preflight` alone means 1
        settings: dict[str, Any] = {
            "cls": GroupedOption,
            "group": group,
            "type": kind,
            "metavar": metavar,
            "help": text,
        }
        command = click.option(*names, field, **settings, **bare)(command)
    return command


def _option(group: str, *names: str, **settings: Any) -> Callable[..., Any]:
    return click.option(*names, cls=GroupedOption, group=group, **settings)


@click.command(cls=GroupedCommand, context_settings={"max_content_width": 120})
@_run_options
@_option("What", "--resume", metavar="latest|DIR|FILE", help="Continue a run with its own options.")
@_option("What", "-n", "--dry-run", is_flag=True, help="Say what a run would do and need, and stop.")
@_option(
    "Machine",
    "--custom-ops",
    type=click.Choice(["auto", "on", "off"]),
    metavar="MODE",
    help="Compiled operators: auto (where possible), on (or fail) or off.",
)
@_option(
    "Machine", "--gpus", type=_INT, metavar="N", help="How many you expect; `torchrun` starts one process for each."
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

    from refine.config import RunConfig
    from refine.runs import run  # torch takes seconds to import
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
            describe_run(config, trust=trust_pickle, with_preflight=with_preflight, num_processes=_num_processes())
        )
        return
    if prefetch:
        from refine.runs.evaluation import prefetch_for

        for line in prefetch_for(config, trust=trust_pickle, trust_detector=trust_detector):
            _say(f"Here, and tried out with the network off: {line}")
        return
    snapshot = run.refine(config, trust=trust_pickle, trust_detector=trust_detector, resume=state)
    _say(f"Refined generator: {snapshot}")


def make_config(changes: dict[str, Any], trust: bool = False) -> Any:
    """The options of a new run: what was given, over the preset that was given or that suits the pair.

    Nothing is loaded before all that was given makes sense.

    Raises:
        UserError: a value makes none, or a file cannot be read.
    """
    from refine.config import RunConfig

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
    from refine.runs.start import choose_device
    from stylegan_ops import dispatch
    from stylegan_ops.build import BuildError

    dispatch.set_mode(mode)
    if mode == "on":
        try:
            dispatch.load(choose_device(device))
        except BuildError as error:
            raise UserError(str(error)) from error
