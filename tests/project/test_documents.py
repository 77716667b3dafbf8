"""Documents: their commands and examples run, their links resolve, and files that repeat each other agree."""

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
        verbs = set(re.findall(r"\bpython -m refine ([a-z]+)\b", text))
        assert verbs <= VERBS.keys(), f"{document} names python -m refine {sorted(verbs - VERBS.keys())}"
        for module in set(re.findall(r"\bpython3? -m ([\w.]+)", text)):
            assert importlib.util.find_spec(module) is not None, f"{document} names python -m {module}"
        targets = set(re.findall(r"^make (?:[A-Z_]+=\S+ )*([a-z-]+)", fenced_blocks(text), flags=re.MULTILINE))
        targets |= set(re.findall(r"`make ([a-z-]+)", text))
        assert targets, document
        for target in targets:
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"{document} names make {target}"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {"inspect", "zoo"} <= set(re.findall(r"\bpython -m refine ([a-z]+)", readme))
    assert set(re.findall(r"^\| `([a-z]+)` \|", readme, flags=re.MULTILINE)) == VERBS.keys()


def markdown_files() -> list[Path]:
    """All documents of the project, without the fixtures' own."""
    folders = (ROOT, ROOT / "docs", ROOT / "benchmarks", ROOT / "benchmarks" / "gpu", ROOT / "refine" / "digits")
    found = [path for folder in folders for path in sorted(folder.glob("*.md"))]
    assert len(found) > 12
    return found


def anchors(markdown: str) -> set[str]:
    """Anchors of the headings, as code hosts make them."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", markdown_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(document: Path) -> None:
    """Files that are linked exist, and so do the headings in them."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (document.parent / name).resolve() if name else document
        assert linked.exists(), f"{document.name} links to {target}"
        if anchor:
            assert anchor in anchors(linked.read_text(encoding="utf-8")), f"{document.name} links to {target}"


def test_the_documentation_table_names_every_document() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "docs").glob("*.md")):
        assert f"(docs/{path.name})" in readme, path.name


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


def python_examples() -> list[Any]:
    """Sources of the Python examples, each with its document."""
    found = []
    for document in ("README.md", "docs/python.md"):
        sources = re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(encoding="utf-8"), re.M | re.S)
        assert sources, document
        marks = [] if document == "README.md" else [pytest.mark.slow]
        found += [pytest.param(source, id=f"{document}-{i}", marks=marks) for i, source in enumerate(sources)]
    return found


@pytest.mark.parametrize("source", python_examples())
def test_python_examples_run(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    for name in re.findall(r'"(tests/fixtures/[^"]+)"', source):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    names: dict[str, Any] = {}
    exec(compile(source, "example", "exec"), names)
    shape = re.search(r"images = .*# \[(.*?)\]", source)
    if shape:
        assert str(tuple(names["images"].shape)) == f"({shape[1]})"
    assert ignored(tmp_path, {"tests", "cache"})


def ignored(folder: Path, known: set[str]) -> bool:
    """True if .gitignore covers everything that an example left in a checkout's root."""
    patterns = [line.strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()]
    left = [path.name for path in folder.iterdir() if path.name not in known and path.name not in patterns]
    assert left == [], f".gitignore does not cover {left}"
    return True


def document_commands() -> list[str]:
    """Commands of Refine that need neither a GPU nor a download; test_stand_ins.py has the others."""
    found = []
    for document in ("README.md", "docs/metrics.md", "docs/pickles.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        blocks = fenced_blocks(re.sub(r"^```\n# with a GPU.*?^```\n", "", text, flags=re.MULTILINE | re.DOTALL))
        lines = [line for line in blocks.splitlines() if re.match(r"python (refine\.py|-m refine)\b", line)]
        assert lines, document
        found += [line for line in lines if "# needs a GPU" not in line]
    return found


# The demo takes minutes, and continuous integration runs it: here its options are listed.
SHORTER = {"-m refine demo": ["--help"]}


@pytest.mark.slow
def test_commands_of_the_documents_run(tmp_path: Path) -> None:
    """In their order, in a folder that has what a checkout has and nothing else; .gitignore covers what they write."""
    for name in ("refine.py", "refine", "stylegan_ops", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    commands = document_commands()
    assert len(commands) >= 10
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
    assert ignored(tmp_path, {"refine.py", "refine", "stylegan_ops", "tests", "cache"})


def test_make_demo_runs_a_command_of_the_readme() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE)
    assert recipe
    lines = [line.strip().replace("$(VENV_PYTHON)", "python") for line in recipe[1].splitlines()]
    assert lines == ["python -m refine demo"] and lines[0] in document_commands()
