"""Commands of the documents that need a download and a GPU, with tiny stand-ins served from this machine."""

from __future__ import annotations

import functools
import http.server
import re
import shlex
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from refine import zoo
from refine.commands import run as cli

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
STAND_INS = {
    "cifar10": "sg2ada/b_cond16.pkl",
    "edm-cifar10-cond": "edm/s4_sid_ddpmpp_cond16.pkl",
    "cifar10-uncond": "sg2ada/c_resnet16.pkl",
    "edm-cifar10-uncond": "edm/s1_edm_ddpmpp_uncond16.pkl",
    "ffhq.pkl": "sg2ada/a_uncond32.pkl",
    "edm-ffhq.pkl": "edm/s1_edm_ddpmpp_uncond16.pkl",
}
SHORT = ["--batch=4", "--kimg=0.004", "--warmup-kimg=0.004", "--tick=0.004", "--device=cpu"]


def commands() -> list[str]:
    """Those of the blocks that say what they need, each once."""
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/higher-resolution.md"))
    blocks = re.findall(r"^```\n# with a GPU, and a download\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("python refine.py ")]
    assert len(blocks) == 2 and len(lines) >= 4
    return list(dict.fromkeys(lines))


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The zoo with addresses on this machine."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(FIXTURES))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        entries = []
        for entry in zoo.ENTRIES:
            file = next((file for name, file in STAND_INS.items() if name in entry.spellings), None)
            entries.append(replace(entry, url=f"{address}/{file}", sha256=None, size=None) if file else entry)
        monkeypatch.setattr(zoo, "ENTRIES", tuple(entries))
        monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        yield
        server.shutdown()


@pytest.mark.parametrize("command", [commands()[0], *(pytest.param(c, marks=pytest.mark.slow) for c in commands()[1:])])
def test_command_with_stand_ins(command: str, served: None, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.main, [*shlex.split(command)[2:], *SHORT])
    assert result.exit_code == 0, result.stderr
    (folder,) = (tmp_path / "training-runs").iterdir()
    assert len(list(folder.glob("network-snapshot-*.pkl"))) == 2 and (folder / "fakes_init.png").exists()
