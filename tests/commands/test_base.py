from __future__ import annotations

import errno
import logging
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import refine
from refine.commands import base
from refine.commands.base import Command
from refine.errors import OptionError, UserError, literal

OUTCOMES = {
    "nothing": None,
    "user": UserError("The file a.pkl\n  is no pickle: give another."),
    "unknown": ZeroDivisionError("division\nby zero."),
    "silent": RuntimeError(),
    "interrupt": KeyboardInterrupt(),
    "usage": click.UsageError("Two seeds are one too many."),
    "option": OptionError("{batch_gpu} must divide 8, and {share_unet=True} too: use {ema_rampup=None}."),
    "braces": OptionError(f"{{data={literal('/{run}/{gan=1}.pkl')}}} and {literal('/{data}')}: use {{ref}}."),
    "disk": OSError(errno.ENOSPC, "No space left on device", "a.pkl"),
    "device": OSError(errno.EIO, "Input/output error"),
    "memory": MemoryError("Unable to allocate 7 TiB"),
    "surrogates": UserError("There is no file a\udcff.pkl\x1b[2J."),
}


@click.command(cls=Command)
@click.option("--outcome", default="nothing")
def command(outcome: str) -> None:
    """A command with every possible end."""
    logging.getLogger("refine").info("a message")
    logging.getLogger("refine").debug("a detail")
    exception = OUTCOMES[outcome]
    if exception:
        raise exception
    click.echo("the result")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def test_result_on_stdout_and_messages_on_stderr():
    result = call()
    assert (result.exit_code, result.stdout, result.stderr) == (0, "the result\n", "a message\n")


def test_messages_are_not_doubled_by_a_second_call():
    call()
    assert call().stderr == "a message\n"
    assert not logging.getLogger("refine").handlers


def test_user_error_is_one_sentence_and_exit_code_2():
    result = call("--outcome=user")
    assert result.exit_code == 2
    assert result.stderr == "a message\nError: The file a.pkl is no pickle: give another.\n"
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ("option", ["--batch-gpu", "--share-unet=1", "--ema-rampup=none"]),
        ("braces", ["--data=/{run}/{gan=1}.pkl and /{data}: use --ref."]),
        ("disk", ["a.pkl", "No space left on device"]),
        ("device", ["Input/output error"]),
        ("memory", ["memory", "7 TiB"]),
        ("surrogates", [r"a\udcff.pkl\x1b[2J"]),
    ],
)
def test_what_the_user_can_mend_is_one_sentence_and_exit_code_2(outcome: str, words: list[str]):
    result = call(f"--outcome={outcome}")
    assert result.exit_code == 2 and result.stdout == ""
    sentence = result.stderr.splitlines()[-1]
    assert sentence.startswith("Error: ") and all(word in sentence for word in words), sentence


@pytest.mark.parametrize("arguments", ["--outcome=user", "--outcome=usage", "--outcom=user"])
def test_what_fails_in_all_processes_is_told_by_rank_0(arguments: str, monkeypatch: pytest.MonkeyPatch):
    """The launcher ends the others while they wait; an error of theirs alone is told after that."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    assert call(arguments).exit_code == 2 and waits == []
    monkeypatch.setenv("RANK", "1")
    assert call(arguments).exit_code == 2 and waits == [base.LATER_SECONDS]


def test_of_several_processes_one_speaks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base, "LATER_SECONDS", 0.0)
    monkeypatch.setenv("RANK", "1")
    result = call("--outcome=user")
    assert result.exit_code == 2 and "a message" not in result.stderr and "a.pkl" in result.stderr


def test_unknown_error_names_its_type_and_the_way_to_the_traceback():
    result = call("--outcome=unknown")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[1:] == [
        "Error: Unexpected error: ZeroDivisionError: division by zero. Run again with --debug for the traceback."
    ]
    assert "error: RuntimeError. Run" in call("--outcome=silent").stderr


@pytest.mark.parametrize(("outcome", "exit_code"), [("user", 2), ("unknown", 1)])
def test_debug_shows_the_traceback_and_keeps_the_exit_code(outcome: str, exit_code: int):
    result = call(f"--outcome={outcome}", "--debug")
    assert result.exit_code == exit_code
    assert "Traceback (most recent call last)" in result.stderr
    assert "raise exception" in result.stderr
    assert "a detail" in result.stderr
    assert "Error: " in result.stderr.splitlines()[-1]


def test_interrupt_is_exit_code_130_without_a_traceback():
    result = call("--outcome=interrupt")
    assert result.exit_code == 130
    assert result.stderr == "a message\nInterrupted.\n"


def test_errors_of_click_stay_its_own():
    result = call("--outcome=usage")
    assert result.exit_code == 2
    assert "Usage: " in result.stderr
    assert "Two seeds are one too many." in result.stderr


def test_a_typing_mistake_gets_a_suggestion():
    result = call("--outcom=nothing")
    assert result.exit_code == 2
    assert "--outcome" in result.stderr


def test_help_lists_debug():
    result = call("--help")
    assert result.exit_code == 0
    assert "--debug" in result.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")
def test_a_closed_pipe_is_no_unknown_error():
    program = (
        "import click, os, sys; from refine.commands.base import Command\n"
        "@click.command(cls=Command)\n"
        "def c():\n"
        "    sys.stdin.readline()\n"
        "    click.echo('x')\n"
        "c()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=Path(refine.__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin and process.stdout and process.stderr
    process.stdout.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    process.wait()
    assert process.stderr.read() == b""
    process.stderr.close()
