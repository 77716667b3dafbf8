"""docs/architecture.md says what is there: its tree exists, its floors are the tested order, its code is the code."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from test_architecture import ORDER  # noqa: E402

TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def block(heading: str) -> list[str]:
    """Lines of the first fenced block under a heading."""
    found = re.search(rf"^## {heading}\n.*?^```\w*\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1].splitlines()


def test_floors_are_the_tested_order() -> None:
    assert [line.split()[0] for line in block("Floors")] == list(reversed(ORDER))


def named_in_tree() -> list[Path]:
    """Files and folders of the tree, in full."""
    found: list[Path] = []
    inside = folder = Path()
    for line in block("Tree"):
        depth = len(line) - len(line.lstrip())
        listed = [word.rstrip(",;:") for word in re.split(r"[\s()]+", line) if re.search(r"(/|\.py)[,;:]?$", word)]
        if depth == 0:
            inside = Path("refine") if line.startswith("refine/") else Path()
            folders = [word for word in line[:26].split() if word.endswith("/")]
            folder = Path(folders[0]) if len(folders) == 1 else Path()
        elif depth == 2:
            folders = [word for word in line[:26].split() if word.endswith("/")]
            folder = inside / folders[0] if len(folders) == 1 else inside
        for word in listed:
            at_margin = line.index(word) < 26
            base = (inside if depth else Path()) if at_margin else folder
            found.append(base / word)
    return found


def test_the_tree_exists() -> None:
    named = named_in_tree()
    assert len(named) > 80 and Path("refine/training/trainer.py") in named
    assert [str(path) for path in named if not (ROOT / path).exists()] == []


def test_every_folder_of_the_product_is_in_the_tree() -> None:
    named = {path.parts[:2] for path in named_in_tree()}
    folders = {path.parent.relative_to(ROOT).parts for path in (ROOT / "refine").glob("*/__init__.py")}
    assert len(folders) >= 12 and folders - named == set()


def test_quoted_code_is_the_code() -> None:
    code = {line.strip() for line in (ROOT / "refine/training/trainer.py").read_text(encoding="utf-8").splitlines()}
    quoted = [line.strip() for line in block("The step") if line.strip()]
    assert len(quoted) > 15
    assert [line for line in quoted if line not in code] == []


def test_files_named_in_the_text_exist() -> None:
    for name in set(re.findall(r"`((?:refine|tests|stylegan_ops|benchmarks)/[\w/.]+|[a-z_]+/[a-z_0-9]+\.py)`", TEXT)):
        candidates = [ROOT / name, ROOT / "refine" / name]
        assert any(path.exists() for path in candidates), name
