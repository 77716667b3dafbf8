"""`python -m refine`: the list of verbs, the version, and what is said to a verb that does not exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import refine
from refine.__main__ import VERBS, main
from refine.commands import run as cli
from refine.commands.base import Command
from refine.runs import start

ROOT = Path(__file__).resolve().parents[2]


def call(*arguments: str):
    return CliRunner().invoke(main, arguments, prog_name="python -m refine")


def test_without_a_verb_it_lists_all():
    for arguments in ((), ("--help",), ("-h",)):
        result = call(*arguments)
        assert result.exit_code == 0 and result.stderr == ""
        listed = re.findall(r"^  (\w+)  +[A-Z]", result.stdout, re.MULTILINE)
        assert listed == list(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_a_command_of_refine(verb):
    """Thus errors are sentences, and --debug and --help are there."""
    command = main.get_command(None, verb)
    assert isinstance(command, Command)
    result = call(verb, "--help")
    assert result.exit_code == 0 and f"python -m refine {verb}" in result.stdout and "--debug" in result.stdout
    assert (command.help or "").split("\n")[0].strip()


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_does_not_wait_for_torch(verb):
    code = f"import sys, importlib; importlib.import_module({VERBS[verb][0]!r}); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "False", result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("inspct", "x.pkl"), ["'inspct'", "did you mean inspect?"]),
        (("refine",), ["'refine'"]),
        (("xyzzy", "--gan=x"), ["'xyzzy'", "run, zoo"]),
        (("--gan=digits", "--teacher=edm-digits"), ["--gan", "python -m refine run"]),
        (("--verson",), ["--verson"]),
    ],
)
def test_what_is_no_verb(arguments, words):
    result = call(*arguments)
    assert result.exit_code == 2 and result.stdout == "" and "Traceback" not in result.stderr
    (sentence,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert all(word in sentence for word in words)


def test_a_missing_package_is_one_sentence(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'yaml'", name="yaml")

    monkeypatch.setattr("importlib.import_module", missing)
    result = call("run")
    assert result.exit_code == 2 and "yaml" in result.stderr and "pip install" in result.stderr


def test_run_is_what_refine_py_does(monkeypatch, pair):
    made = []
    monkeypatch.setattr(start, "run", lambda config, **given: made.append((config, given)) or "x.pkl")
    options = [f"--{name}={value}" for name, value in pair.items()]
    assert call("run", *options, "--seed=3").exit_code == 0
    assert CliRunner().invoke(cli.main, [*options, "--seed=3"]).exit_code == 0
    assert made[0] == made[1] and made[0][0].seed == 3


def test_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", refine.__version__)
    assert call("--version").stdout == f"Refine {refine.__version__}\n"


def test_as_a_module():
    result = subprocess.run([sys.executable, "-m", "refine", "zoo", "--json"], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0 and '"digits"' in result.stdout
    result = subprocess.run([sys.executable, "-m", "refine", "zo"], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 2 and "zoo" in result.stderr and "Traceback" not in result.stderr


def test_each_command_is_spelled_in_one_way():
    """`python -m refine.inspect` and its like are gone, from messages and documents too."""
    gone = re.compile(r"-m refine\.(?!digits\.(judge|make)\b)\w+")
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.*"),
        *ROOT.glob("benchmarks/**/*"),
        *ROOT.glob("refine/**/*.*"),
    ]:
        if path.suffix in (".md", ".py", ".txt", ".ipynb", ".html") and "CHANGELOG" not in path.name:
            found = gone.search(path.read_text(encoding="utf-8"))
            assert found is None, f"{path}: {found and found[0]}"
