"""Entry point of `python -m refine VERB` and of the console script `refine`."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

import click

# Verb -> (module with the click command `main`, one line for the list). Modules are imported when their verb is used.
VERBS: dict[str, tuple[str, str]] = {
    "run": ("refine.commands.run", "Refine a generator; the same as python refine.py."),
    "zoo": ("refine.commands.zoo", "List checkpoints and files that have a name."),
    "inspect": ("refine.commands.inspect", "Show the contents of a network pickle without running it."),
    "generate": ("refine.commands.generate", "Write images or a video of a generator, by seed."),
    "blend": ("refine.commands.blend", "Interpolate between two generators."),
    "metrics": ("refine.commands.metrics", "Measure FID, KID, precision, recall and others."),
    "export": ("refine.commands.export", "Write a generator in another format."),
    "report": ("refine.commands.report", "Make an HTML page of one or more runs."),
    "profile": ("refine.commands.profile", "Show where the time and memory of a step go."),
    "doctor": ("refine.commands.doctor", "Check compilers and compiled operators."),
    "demo": ("refine.digits.demo", "Refine the built-in digits generator on a CPU and judge the result."),
}


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        try:
            command: click.Command = importlib.import_module(VERBS[cmd_name][0]).main
        except ModuleNotFoundError as error:
            raise click.UsageError(
                f"{ctx.command_path} {cmd_name} needs the package {error.name}, which is not installed: "
                f"python -m pip install {error.name}"
            ) from error
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in VERBS:
            return super().resolve_command(ctx, args)
        close = difflib.get_close_matches(args[0], VERBS, 1)
        remedy = f"did you mean {close[0]}?" if close else f"the verbs are {', '.join(VERBS)}."
        ctx.fail(f"There is no verb {args[0]!r}: {remedy}")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise click.UsageError(
                f"{error.option_name} follows a verb, as in {ctx.command_path} run {error.option_name}.", ctx
            ) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, text) for verb, (_, text) in VERBS.items()])


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        from refine.version import VERSION

        click.echo(f"Refine {VERSION}")
        ctx.exit()


@click.command(
    cls=_Verbs,
    context_settings={"max_content_width": 120, "help_option_names": ["-h", "--help"]},
    subcommand_metavar="VERB [OPTIONS]",
    invoke_without_command=True,
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
@click.pass_context
def main(ctx: click.Context, **given: Any) -> None:
    """Improve a pretrained StyleGAN generator, using nothing but a pretrained diffusion model.

    `python -m refine VERB --help` shows the options of a verb.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


if __name__ == "__main__":
    main(prog_name="python -m refine")
