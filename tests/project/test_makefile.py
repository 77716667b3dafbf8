"""Virtual environment made by the Makefile, with a stand-in for Python that records how it is called."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="on Windows the README's plain commands take make's place"),
    pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed"),
]

# `-m venv` copies the stand-in into .venv; `-c` really runs; `-m pip` and all else is only written down.
STAND_IN = """#!/bin/sh
if [ "$1" = -c ]; then exec "{python}" "$@"; fi
echo "$@" >> "{log}"
if [ "$1 $2" = "-m venv" ]; then rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python; fi
"""


class Checkout:
    """A copy of the Makefile beside a stand-in Python that writes its arguments to a log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "a checkout's copy"
        self.folder.mkdir()
        self.log = folder / "log.txt"
        shutil.copy(ROOT / "Makefile", self.folder)
        shutil.copy(ROOT / "pyproject.toml", self.folder)
        self.python = folder / "stand-in python"
        self.python.write_text(STAND_IN.format(python=sys.executable, log=self.log))
        self.python.chmod(self.python.stat().st_mode | stat.S_IXUSR)

    def make(
        self, *arguments: str, env: dict[str, str] | None = None, python: str | None = "given"
    ) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        """Runs make from outside the checkout; returns its result and the calls of Python.

        Args:
            arguments: Arguments of make.
            env: Further environment variables.
            python: None to call make without PYTHON.
        """
        self.log.write_text("")
        clean = {key: value for key, value in os.environ.items() if not key.startswith("MAKE") and key != "MFLAGS"}
        result = subprocess.run(
            ["make", "-C", str(self.folder), *([f"PYTHON={self.python}"] if python else []), *arguments],
            env={key: value for key, value in clean.items() if not key.startswith(("TORCH", "PYTHON"))} | (env or {}),
            capture_output=True,
            text=True,
            timeout=60,
        )
        return result, self.log.read_text().splitlines()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


VENV = "-m venv --clear .venv"
TORCH = "-m pip install --quiet torch==2.13.0"
PROJECT = "-m pip install --quiet --editable .[dev]"
PARALLEL = "-n logical --maxprocesses 8 --dist worksteal"
LINT = ["-m ruff check .", "-m ruff format --check .", "-m mypy"]


def test_first_call_installs_and_second_call_does_not(checkout: Checkout) -> None:
    result, calls = checkout.make("test")
    assert result.returncode == 0, result.stderr
    assert calls == [VENV, TORCH, PROJECT, *LINT, f"-m pytest -m not slow {PARALLEL}"]
    _, calls = checkout.make("test-extra")
    assert calls == [f"-m pytest -m slow -rsfE {PARALLEL}"]


def test_parallel_make_installs_once_and_in_order(checkout: Checkout) -> None:
    result, calls = checkout.make("-j8", "lint", "demo")
    assert result.returncode == 0, result.stderr
    assert calls[:3] == [VENV, TORCH, PROJECT]
    assert sum("pip" in call for call in calls) == 2


def test_another_torch_makes_the_environment_anew(checkout: Checkout) -> None:
    checkout.make("venv")
    other = ("TORCH=torch>=2.6,<3", "TORCH_INDEX=https://example.org/cpu")
    _, calls = checkout.make("venv", *other)
    assert calls == [
        VENV,
        "-m pip install --quiet --index-url https://example.org/cpu torch>=2.6,<3",
        PROJECT,
    ]
    _, calls = checkout.make("venv", *other)
    assert calls == []


CHOICES = ("TORCH=torch>=2.6,<3", "TORCH_INDEX=https://example.org/cpu")
CHOSEN = "-m pip install --quiet --index-url https://example.org/cpu torch>=2.6,<3"


def test_choices_hold_until_others_are_given(checkout: Checkout) -> None:
    checkout.make("venv", *CHOICES)
    for target in ("venv", "demo", "lint"):
        result, calls = checkout.make(target, python=None)
        assert result.returncode == 0, result.stderr
        assert VENV not in calls and not any("pip" in call for call in calls), target
    help_text = checkout.make("help", python=None)[0].stdout
    assert "torch>=2.6,<3" in help_text and "https://example.org/cpu" in help_text and str(checkout.python) in help_text
    _, calls = checkout.make("venv", "TORCH=torch==2.9.0", python=None)
    assert calls == [VENV, "-m pip install --quiet --index-url https://example.org/cpu torch==2.9.0", PROJECT]


def test_choices_hold_for_a_checkout_that_has_moved(checkout: Checkout) -> None:
    checkout.make("venv", *CHOICES)
    checkout.folder = checkout.folder.rename(checkout.folder.with_name("moved"))
    assert checkout.make("demo", python=None)[1][:3] == [VENV, CHOSEN, PROJECT]


def test_empty_value_stands_for_the_default(checkout: Checkout) -> None:
    checkout.make("venv", *CHOICES)
    assert checkout.make("venv", "TORCH=", "TORCH_INDEX=")[1] == [VENV, TORCH, PROJECT]
    assert checkout.make("venv")[1] == []


def test_new_default_reaches_an_environment_made_with_the_old_one(checkout: Checkout) -> None:
    checkout.make("venv")
    makefile = checkout.folder / "Makefile"
    makefile.write_text(makefile.read_text().replace("torch==2.13.0", "torch==2.14.0"))
    assert checkout.make("venv")[1] == [VENV, TORCH.replace("2.13", "2.14"), PROJECT]


def test_variables_of_the_environment_count_as_given(checkout: Checkout) -> None:
    checkout.make("venv", env=dict(choice.split("=", 1) for choice in CHOICES))
    assert checkout.make("venv")[1] == []
    assert checkout.make("venv", env={"TORCH": "torch==2.9.0"})[1][0] == VENV


def test_rebuild_is_announced_with_both_choices(checkout: Checkout) -> None:
    result, _ = checkout.make("venv")
    assert "Rebuilding" not in result.stdout
    result, _ = checkout.make("venv", *CHOICES)
    assert "Rebuilding .venv" in result.stdout
    assert "torch==2.13.0" in result.stdout and "torch>=2.6,<3" in result.stdout
    assert result.stdout.index("Rebuilding") < result.stdout.index("venv --clear")


def test_venv_names_the_next_step(checkout: Checkout) -> None:
    for _ in range(2):
        result, _ = checkout.make("venv")
        assert ". .venv/bin/activate" in result.stdout and "make demo" in result.stdout
    assert "make demo" not in checkout.make("lint")[0].stdout


def test_changed_pyproject_installs_the_project_again_and_keeps_torch(checkout: Checkout) -> None:
    checkout.make("venv")
    later = (checkout.folder / ".venv/installed.stamp").stat().st_mtime + 5
    os.utime(checkout.folder / "pyproject.toml", (later, later))
    assert checkout.make("venv")[1] == [PROJECT]


def test_moved_checkout_makes_the_environment_anew(checkout: Checkout) -> None:
    checkout.make("venv")
    checkout.folder = checkout.folder.rename(checkout.folder.with_name("moved"))
    assert checkout.make("venv")[1] == [VENV, TORCH, PROJECT]


def test_failed_install_is_tried_again(checkout: Checkout) -> None:
    checkout.python.write_text(checkout.python.read_text() + 'if [ "$2" = pip ]; then exit 1; fi\n')
    assert checkout.make("venv")[0].returncode == 2
    assert checkout.make("venv")[1][0] == VENV


@pytest.mark.parametrize("module", ["ensurepip", "venv"])
def test_missing_venv_module_gets_one_sentence(checkout: Checkout, tmp_path: Path, module: str) -> None:
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    (lacking / f"{module}.py").write_text("raise ModuleNotFoundError(__name__)")
    result, calls = checkout.make("test", env={"PYTHONPATH": str(lacking)})
    assert result.returncode == 2
    assert calls == []
    sentences = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    assert len(sentences) == 1 and "lacks its venv module" in sentences[0], result.stderr
    assert not (checkout.folder / ".venv").exists()


def test_missing_python_gets_one_sentence(checkout: Checkout) -> None:
    checkout.python.unlink()
    result, _ = checkout.make("test")
    assert result.returncode == 2
    sentences = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    assert len(sentences) == 1 and "does not run" in sentences[0], result.stderr


def test_old_python_gets_one_sentence(checkout: Checkout, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.version_info = (3, 9, 18, 'final', 0)")
    result, _ = checkout.make("test", env={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 2
    sentences = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    assert len(sentences) == 1 and "is older" in sentences[0], result.stderr


def test_help_is_the_default_and_names_every_target(checkout: Checkout) -> None:
    result, _ = checkout.make()
    for target in ("help", "venv", "lint", "test", "test-extra", "demo", "clean"):
        assert f"\nmake {target} " in "\n" + result.stdout
    assert not (checkout.folder / ".venv").exists()


def test_clean_removes_the_environment(checkout: Checkout) -> None:
    checkout.make("venv")
    cache = checkout.folder / "refine" / "__pycache__"
    cache.mkdir(parents=True)
    assert checkout.make("clean")[0].returncode == 0
    assert not cache.exists()
    assert not (checkout.folder / ".venv").exists()


def test_continuous_integration_runs_the_same_targets() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert any(line.startswith("export PYTEST_ADDOPTS=") and "--durations=25" in line for line in lines)
    assert lines[-3:] == ["make test", "within_the_limit test-extra", "within_the_limit demo"]
    assert "set -euo pipefail" in lines


@pytest.mark.skipif(shutil.which("timeout") is None, reason="there is no GNU timeout")
@pytest.mark.parametrize(
    ("recipe", "code", "words"),
    [
        ("echo fine", 0, "fine"),
        ("exit 1", 2, "Error 1"),
        ("sleep 60", 0, "CUT SHORT"),
        ("echo 'FAILED x'; sleep 60", 124, "FAILED x"),
    ],
)
def test_continuous_integration_ends_in_time(recipe: str, code: int, words: str, tmp_path: Path) -> None:
    """A slow machine leaves the rest out, and says so; what has failed by then fails all the same."""
    script = (ROOT / ".ci" / "run").read_text()
    for old, new in (("LIMIT_SECONDS=$((80 * 60))", "LIMIT_SECONDS=4"), ("left < 120", "left < 1")):
        assert script.count(old) == 1
        script = script.replace(old, new)
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "run").write_text(script)
    (tmp_path / "Makefile").write_text(f"test:\n\t@true\ntest-extra:\n\t@{recipe}\ndemo:\n\t@echo done\n")
    result = subprocess.run(["bash", str(tmp_path / ".ci" / "run")], capture_output=True, text=True)
    output = result.stdout + result.stderr
    assert result.returncode == code and words in output, output
    assert ("done" in output) == (words == "fine") and ("make demo: LEFT OUT" in output) == (words == "CUT SHORT")
