"""The Colab notebook, cell by cell and twice, from a clone of this repository and on the PyTorch that is installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FIELD = r'^REPOSITORY = "(.*)"  # @param {type:"string"}$'
# The demo of a few steps, a few samples.
SHORT_DEMO = """
import refine.config as config
import refine.digits.judge as judge
from_preset, of_run = config.RunConfig.from_preset, judge.print_judgment
short = {"kimg": 0.064, "warmup_kimg": 0.032, "tick_kimg": 0.032, "metrics": "fid100_full"}
config.RunConfig.from_preset = lambda name, **options: from_preset(name, **options, **short)
judge.print_judgment = lambda folder: of_run(folder, 100)
import refine.runtime.launch as launch
from refine.digits.demo import main
launch.suitable_processes = lambda device, at_most: 1  # another one would make the whole demo
main()
"""


def code_cells() -> list[str]:
    cells = json.loads((ROOT / "docs/colab.ipynb").read_text(encoding="utf-8"))["cells"]
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code")
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def execute(source: str, names: dict[str, Any]) -> None:
    """Run a cell as IPython does: lines for the shell, and Python."""
    python: list[str] = []
    for line in source.splitlines():
        if line.startswith("!"):
            exec("\n".join(python), names)
            python = []
            command = line[1:].format(**names).replace("-m refine demo", "-m short_demo")
            subprocess.run(command, shell=True, check=True, timeout=400)
        else:
            python.append(line)
    exec(compile("\n".join(python), "cell", "exec"), names)


class Colab:
    """Record of what cells show and offer for download, in place of IPython's and Colab's modules."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, in_colab: bool) -> None:
        self.shown: list[Any] = []
        self.downloads: list[Path] = []
        display = SimpleNamespace(Image=lambda filename, width: Path(filename), HTML=str, display=self.shown.append)
        monkeypatch.setitem(sys.modules, "IPython.display", display)  # type: ignore[arg-type]
        colab = ModuleType("google.colab") if in_colab else None
        if colab is not None:
            colab.files = SimpleNamespace(download=lambda path: self.downloads.append(Path(path)))  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "google.colab", colab)  # type: ignore[arg-type]


@pytest.mark.slow
def test_all_cells_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("the notebook clones a repository, and this is not one")
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "short"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "short_demo.py").write_text(SHORT_DEMO)
    session = tmp_path / "content"
    session.mkdir()
    monkeypatch.chdir(session)
    cells = code_cells()
    assert re.search(FIELD, cells[0], flags=re.MULTILINE)
    cells[0] = re.sub(FIELD, f'REPOSITORY = "file://{ROOT}"', cells[0], flags=re.MULTILINE)
    colab, names = Colab(monkeypatch, in_colab=True), {"__name__": "__main__"}
    for number in range(2):
        for cell in cells:
            execute(cell, names)
        checkout = session / "refine-checkout"
        (run,) = (checkout / "training-runs").glob(f"{number:05d}-*")
        picture, page = colab.shown[-2:]
        assert (checkout / picture).resolve() == (run / "before-after.png").resolve()
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert "&lt;!DOCTYPE html&gt;" in page and page.count("<") == 2
        downloads = [path.resolve() for path in colab.downloads[-2:]]
        assert downloads == [(run / "network-best.pkl").resolve(), (run / "report.html").resolve()]
        assert all(path.is_file() for path in downloads)
        assert re.search(r"^FID +[\d.]+ +[\d.]+ ", capsys.readouterr().out, flags=re.MULTILINE)
    assert len(list(session.iterdir())) == 1  # cloned once
    # After a restart of the kernel, from the folder that it starts in.
    monkeypatch.chdir(session)
    execute(cells[0], {})
    assert Path.cwd() == checkout and len(list(session.iterdir())) == 1


def test_the_first_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an address it says what to enter; within a checkout it needs none, and leaves PyTorch alone."""
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **options: commands.append(list(map(str, command))))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("TQDM_DISABLE", "0")
    monkeypatch.chdir(tmp_path)
    cell = code_cells()[0]
    with pytest.raises(SystemExit, match="REPOSITORY"):
        execute(cell, {})
    assert commands == []
    monkeypatch.chdir(ROOT / "docs")
    execute(cell, {})
    assert Path.cwd() == ROOT
    (command,) = commands
    assert command[:5] == [sys.executable, "-m", "pip", "install", "--quiet"]
    assert not any(re.match(r"torch\b", word) for word in command[5:])
    assert any(word.startswith("jinja2") for word in command[5:])


def test_files_are_named_outside_colab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Colab(monkeypatch, in_colab=False)
    execute(code_cells()[-1], {"run": tmp_path})
    assert str(tmp_path / "network-best.pkl") in capsys.readouterr().out
