"""`python -m refine doctor`: the same as `python -m stylegan_ops.doctor`, with the exit codes of Refine."""

from __future__ import annotations

import click

from refine.commands.base import Command


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@click.option("--clean", is_flag=True, help="Delete all builds and locks, and stop.")
@click.pass_context
def main(ctx: click.Context, as_json: bool, clean: bool) -> None:
    """Check what the compiled operators need and have, build them, compare them with plain PyTorch and time them.

    The exit code is 0 if everything that can work on this machine works, else 2.
    """
    from stylegan_ops.doctor import main as doctor

    try:
        doctor([*(["--json"] if as_json else []), *(["--clean"] if clean else [])], standalone_mode=False)
    except SystemExit as end:
        ctx.exit(2 if end.code else 0)
