"""The files that repeat each other agree, and what the documents say can be done, can be done."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from refine.__main__ import VERBS

ROOT = Path(__file__).resolve().parents[2]


def fenced_blocks(markdown: str) -> str:
    return "\n".join(re.findall(r"^```[^\n]*\n(.*?)^```", markdown, flags=re.MULTILINE | re.DOTALL))


def test_commands_in_the_documents_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for document in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        for module in set(re.findall(r"\bpython3? -m ([\w.]+)", text)):
            assert importlib.util.find_spec(module) is not None, f"{document} names python -m {module}"
        targets = set(re.findall(r"^make (?:[A-Z_]+=\S+ )*([a-z-]+)", fenced_blocks(text), flags=re.MULTILINE))
        targets |= set(re.findall(r"`make ([a-z-]+)", text))
        assert targets, document
        for target in targets:
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"{document} names make {target}"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\bpython -m refine ([a-z]+)", readme))
    assert {"demo", "inspect", "generate", "metrics"} <= named <= VERBS.keys()


def pyproject_section(name: str) -> str:
    """The text of one TOML array; tomllib would need Python 3.11."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(rf"^{name} = \[(.*?)^\]", text, flags=re.MULTILINE | re.DOTALL)
    assert found, name
    return found[1]


def test_conda_environment_has_the_same_dependencies() -> None:
    wanted = set(re.findall(r'"([^"]+)"', pyproject_section("dependencies")))
    requires_python = re.search(r'^requires-python = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert requires_python and wanted
    conda = set(re.findall(r"^  - ([^\s:]+)$", (ROOT / "environment.yml").read_text(), flags=re.MULTILINE))
    conda -= {"conda-forge", "pip"}
    assert conda == {re.sub(r"^torch\b", "pytorch", line) for line in wanted} | {f"python{requires_python[1]}"}


def test_pre_commit_runs_the_commands_of_make_lint() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE)
    assert recipe
    linted = [line.replace("$(VENV_PYTHON)", "python").strip() for line in recipe[1].splitlines()]
    hooks = re.findall(r"entry: (.*)", (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert hooks == linted
    assert all(shlex.split(line)[:2] == ["python", "-m"] for line in linted) and len(linted) == 3


def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert examples
    monkeypatch.chdir(tmp_path)
    for source in examples:
        for name in re.findall(r'"(tests/fixtures/[^"]+)"', source):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
        names: dict[str, Any] = {}
        exec(compile(source, "README.md", "exec"), names)
        shape = re.search(r"images = .*# \[(.*?)\]", source)
        if shape:
            assert str(tuple(names["images"].shape)) == f"({shape[1]})"


def readme_commands() -> list[str]:
    """Those that need neither a GPU nor a download; tests/test_stand_ins.py has the others."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = fenced_blocks(re.sub(r"^```\n# with a GPU.*?^```\n", "", readme, flags=re.MULTILINE | re.DOTALL))
    found = [line for line in blocks.splitlines() if re.match(r"python (refine\.py|-m refine)\b", line)]
    return [line for line in found if "# needs a GPU" not in line]


DEMO = "python -m refine demo"  # takes minutes; continuous integration runs it by itself
SHORTER = {"refine.py --gan=digits": ["--kimg=0.064", "--warmup-kimg=0.032", "--metrics=fid500_full"]}


def test_commands_of_the_readme_run(tmp_path: Path) -> None:
    """In their order, in a folder that has what a checkout has and nothing else, so that nothing is left behind."""
    for name in ("refine.py", "refine", "stylegan_ops", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    commands = [command for command in readme_commands() if command != DEMO]
    assert len(commands) >= 5
    for command in commands:
        shorter = [word for start, words in SHORTER.items() if f"python {start}" in command for word in words]
        result = subprocess.run(
            [sys.executable, *shlex.split(command)[1:], *shorter],
            cwd=tmp_path,
            env=os.environ | {"DNNLIB_CACHE_DIR": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, (command, result.stderr)
        assert result.stdout, command


def test_demo_runs_commands_of_the_readme() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE)
    assert recipe
    lines = [line.strip().replace("$(VENV_PYTHON)", "python") for line in recipe[1].splitlines()]
    assert lines == [DEMO] and DEMO in readme_commands()
