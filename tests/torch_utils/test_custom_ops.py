"""Extension modules that a repository brings along."""

from __future__ import annotations

from pathlib import Path

import pytest

from torch_utils import custom_ops

SOURCE = """
#include <pybind11/pybind11.h>
#include "factor.h"
int times(int x) { return x * FACTOR; }
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("times", &times); }
"""


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "built"))
    monkeypatch.setattr(custom_ops, "_plugins", {})


@pytest.mark.parametrize("name", ["bias_act", "upfirdn2d", "filtered_lrelu"])
def test_plugins_of_stylegan_are_replaced(name: str) -> None:
    with pytest.raises(RuntimeError, match=rf"because its torch_utils\.ops\.{name} computes the same: replace"):
        custom_ops.get_plugin(f"{name}_plugin", sources=[f"{name}.cpp"], extra_cuda_cflags=["--use_fast_math"])


def test_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"my_plugin cannot be built because .*none\.cpp is not there"):
        custom_ops.get_plugin("my_plugin", ["none.cpp"], source_dir=tmp_path)


@pytest.mark.slow
def test_plugin_is_built_for_each_content_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "times.cpp").write_text(SOURCE)
    (tmp_path / "factor.h").write_text("#define FACTOR 3\n")
    plugin = custom_ops.get_plugin("times_plugin", ["times.cpp"], headers=["factor.h"], source_dir=tmp_path)
    assert plugin.times(2) == 6
    assert custom_ops.get_plugin("times_plugin", ["times.cpp"], ["factor.h"], tmp_path) is plugin
    assert capfd.readouterr().out.count("Setting up PyTorch plugin times_plugin") == 1


@pytest.mark.slow
def test_compiler_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "wrong.cpp").write_text("int main( { return 0; }\n")
    with pytest.raises(RuntimeError, match=r"^wrong_plugin cannot be built here: .*wrong\.cpp.*error") as raised:
        custom_ops.get_plugin("wrong_plugin", [tmp_path / "wrong.cpp"])
    assert "\n" not in str(raised.value)
