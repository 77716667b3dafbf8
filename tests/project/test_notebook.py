"""The Colab notebook, cell by cell, from a clone of this repository and on the PyTorch that is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHORT = "--kimg=0.064 --warmup-kimg=0.032 --tick=0.032"  # instead of minutes


def execute(source: str, names: dict[str, Any]) -> None:
    """What IPython makes of a cell: lines for the shell, `%cd`, and Python."""
    python = []
    for line in source.splitlines():
        if line.startswith("!"):
            exec("\n".join(python), names)
            python = []
            command = line[1:].format(**names).replace("--gan=digits", f"{SHORT} --gan=digits")
            subprocess.run(command, shell=True, check=True, timeout=400)
        elif line.startswith("%cd "):
            os.chdir(line[4:])
        else:
            python.append(line)
    exec("\n".join(python), names)


@pytest.mark.slow
def test_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("the notebook clones a repository, and this is none")
    shown = []
    display = SimpleNamespace(Image=lambda filename, width: Path(filename), display=shown.append)
    monkeypatch.setitem(sys.modules, "IPython.display", display)  # type: ignore[arg-type]
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "docs/colab.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"]).replace("https://github.com/OWNER/refine", f"file://{ROOT}")
            assert not cell["outputs"] and "torch" not in source.replace("pytorch", "")
            execute(source, names)
    assert [path.name for path in shown] == ["fakes_init.png", "fakes000000_064.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in shown)
