"""Entry point of `python -m refine VERB` and of the console script `refine`."""

from __future__ import annotations

import importlib
from typing import Any

import click

# Verb -> (module with the click command `main`, one line for the list). Modules are imported when their verb is used.
VERBS: dict[str, tuple[str, str]] = {
    "run": ("refine.commands.run", "Refine a generator; the same as python refine.py."),
    "zoo": ("refine.commands.zoo", "List checkpoints and files that have a name."),
    "inspect": ("refine.commands.inspect", "Show the contents of a network pickle without running it."),
    "generate": ("refine.commands.generate", "Write images of a generator, by seed."),
    "blend": ("refine.commands.blend", "Interpolate between two generators."),
    "metrics": ("refine.commands.metrics", "Measure FID, KID, precision, recall and others."),
    "export": ("refine.commands.export", "Write a generator in another format."),
    "report": ("refine.commands.report", "Make an HTML page of one or more runs."),
    "profile": ("refine.commands.profile", "Show where the time and memory of a step go."),
    "doctor": ("refine.commands.doctor", "Check compilers and compiled operators."),
    "demo": ("refine.commands.demo", "Refine the built-in digits generator on a CPU and judge the result."),
}


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(VERBS[cmd_name][0]).main
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, text) for verb, (_, text) in VERBS.items()])


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        from refine import __version__

        click.echo(f"Refine {__version__}")
        ctx.exit()


@click.command(cls=_Verbs, context_settings={"max_content_width": 120}, subcommand_metavar="VERB [OPTIONS]")
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def main(**given: Any) -> None:
    """Make a pretrained StyleGAN generator better with a pretrained diffusion model.

    `python -m refine VERB --help` shows the options of a verb.
    """


if __name__ == "__main__":
    main(prog_name="python -m refine")
