"""The example of docs/own-networks.md runs as it stands, and improves its generator."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from refine.networks.weights_file import read_options
from refine.runs.folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "own-networks.md"
SHORTER = (("range(300)", "range(2)"), ("kimg=3, warmup_kimg=1", "kimg=0.064, warmup_kimg=0.032"))


def example() -> str:
    (source,) = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.M | re.S)
    return source


def run(source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(folder / "cache"))
    names: dict[str, Any] = {"__name__": "example"}
    torch.manual_seed(0)
    exec(compile(source, "example", "exec"), names)
    return names


@pytest.mark.slow
def test_a_shorter_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = example()
    assert len([line for line in source.splitlines() if line.strip()]) <= 40
    for old, new in SHORTER:
        assert old in source
        source = source.replace(old, new)
    names = run(source, tmp_path, monkeypatch)
    assert names["snapshot"].suffix == ".safetensors" and read_options(names["snapshot"])["gan"] == "dcgan"


@pytest.mark.slow
def test_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = run(example(), tmp_path, monkeypatch)["snapshot"]
    (before, *_, after) = [
        row["results"]["fid400_full"] for row in RunFolder(snapshot.parent).metric_rows("fid400_full")
    ]
    assert after < 0.8 * before
