"""Part 1, continued: the tests marked `cuda`, with kernels that NVRTC built, or nvcc.

python -m benchmarks.gpu.parts.tests NVRTC|nvcc --out=DIR --seconds=S
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ROOT
from benchmarks.gpu.setting import Setting


class Counts:
    """A pytest plugin that counts outcomes and remembers failures."""

    def __init__(self) -> None:
        self.passed = self.failed = self.skipped = 0
        self.failures: list[dict[str, str]] = []
        self.reasons: set[str] = set()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Of each phase of a test."""
        if report.failed:
            self.failed += 1
            lines = str(report.longrepr).strip().splitlines()
            self.failures.append({"test": report.nodeid, "error": " | ".join(lines[-3:])[:600]})
        elif report.skipped:
            self.skipped += 1
            self.reasons.add(str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else "")
        elif report.when == "call":
            self.passed += 1

    def pytest_collectreport(self, report: Any) -> None:
        """Of a file that cannot be imported."""
        if report.failed:
            self.failed += 1
            self.failures.append({"test": report.nodeid, "error": str(report.longrepr).strip()[-600:]})


def files() -> list[Path]:
    """Those of the suite that mark a test `cuda`; collecting all others would take time and need more packages."""
    return [
        path
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if re.search(r"\bmark\.cuda\b", path.read_text(encoding="utf-8"))
    ]


def main() -> None:
    setting, options = Setting.from_arguments(compiler=str)
    if options.compiler == "nvcc":
        from benchmarks.gpu import without_nvrtc  # noqa: F401
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # Plugins of this machine may lack what they need.
    os.environ.pop("PYTEST_ADDOPTS", None)
    counts, begun = Counts(), time.perf_counter()
    paths = [str(path.relative_to(ROOT)) for path in files()]
    status = pytest.main(["-m", "cuda", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *paths], [counts])
    setting.emit(
        "tests",
        compiler=options.compiler,
        passed=counts.passed,
        failed=counts.failed,
        skipped=counts.skipped,
        reasons=sorted(counts.reasons),
        failures=counts.failures[:20],
        seconds=time.perf_counter() - begun,
        files=paths,
    )
    sys.exit(int(status))


if __name__ == "__main__":
    main()
