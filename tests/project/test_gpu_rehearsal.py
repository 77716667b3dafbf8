"""The command for the day with a GPU: rehearsed on the CPU as a whole, and what it does when something goes wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from benchmarks import ROOT
from benchmarks.gpu import packages, run, setting, tables
from benchmarks.gpu.inception import InceptionLike
from benchmarks.gpu.parts import step
from benchmarks.gpu.parts.tests import files
from benchmarks.speed import projection, scaling
from benchmarks.speed.steps import gflop

GPU = ROOT / "benchmarks" / "gpu"
NEEDS_BASH = pytest.mark.skipif(
    sys.platform == "win32" or shutil.which("bash") is None, reason="the command is a script for bash"
)
# What a machine with a GPU is sure to have; PyTorch, requests and matplotlib bring some packages along.
INSTALLED = {"torch", "click", "scipy", "numpy", "PIL", "requests", "ninja", "tqdm", "psutil", "matplotlib"}
BROUGHT = {
    *("torchgen", "functorch", "jinja2", "markupsafe", "filelock", "fsspec", "networkx", "sympy", "mpmath", "triton"),
    *("typing_extensions", "setuptools", "_distutils_hack", "pkg_resources", "isympy", "nvidia"),
    *("urllib3", "certifi", "idna", "charset_normalizer"),
    *("contourpy", "cycler", "dateutil", "fontTools", "kiwisolver", "mpl_toolkits", "packaging", "pylab", "pyparsing"),
    *("six", "pip", "wheel"),
}
BARE = '''"""Hides what is installed here and would not be there."""
import sys
from importlib.machinery import PathFinder

ALLOWED = {allowed!r}


class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        spec = PathFinder.find_spec(name, path, target)
        places = [spec.origin or "", *(spec.submodule_search_locations or [])] if spec else []
        installed = any("site-packages" in place for place in places)
        return None if installed and name.partition(".")[0] not in ALLOWED else spec


sys.meta_path[:] = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
'''


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Results and output of the command, on a Python that has what a machine with a GPU has and no network."""
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "bare").mkdir()
    (folder / "bare" / "sitecustomize.py").write_text(BARE.format(allowed=INSTALLED | BROUGHT | {"sitecustomize"}))
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        ["bash", str(GPU / "run.sh"), "--rehearse", str(folder / "out")],
        cwd=folder,
        env=os.environ | nowhere | {"PYTHON": sys.executable, "PYTHONPATH": str(folder / "bare")},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    return folder / "out", done


@NEEDS_BASH
@pytest.mark.slow
def test_every_part_goes_well(rehearsal: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, done = rehearsal
    rows = setting.read(out)
    errors = [row for row in rows if row["kind"] == "error"]
    assert done.returncode == 0 and not errors, (done.stdout, done.stderr, errors)
    assert {row["name"]: row["ended"] for row in rows if row["kind"] == "part"} == {
        part.name: "ok" for part in run.REHEARSED
    }
    for line in run.NOT_REHEARSED:
        assert f"- {line}\n" in done.stdout
    missing = [line.partition(": not installed")[0] for line in done.stderr.splitlines() if ": not installed" in line]
    assert missing == sorted(path.name for path in (GPU / "wheels").glob("*.whl"))  # none of them would be there


@NEEDS_BASH
@pytest.mark.slow
def test_every_measurement_has_a_result(rehearsal: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    report = tables.Report(setting.read(rehearsal[0]))
    assert report.machine["rehearsal"] and report.machine["torch"] == torch.__version__
    assert {row["compiler"] for row in report.of("build")} == {"NVRTC", "nvcc"}
    (tested,) = report.of("tests")
    assert tested["skipped"] > 100 and not tested["failed"] and not tested["passed"]
    assert report.last("processes")["ok"] and report.last("doctor")["ok"]
    for row in report.of("kernel"):
        assert row["error"] < (2e-3 if row["dtype"] == "fp16" else 1e-5), row
    assert {row["layer"] for row in report.of("kernel")} >= {"bias_act lrelu", "upsample2d", "filtered_lrelu"}
    for name in (*step.VARIANTS, *step.COMPILED_VARIANTS):
        found = report.step(step.CIFAR, name)
        assert found.get("seconds", 0) > 0 or "problem" in found, name
    for pair in step.REHEARSED:
        assert report.step(pair, "bf16")["images"] == step.REHEARSED[pair].batch
        assert report.last("flop", pair=pair)["per_image"] > 0 and report.last("estimate", pair=pair)["bytes"] > 0
    assert (
        report.of("demo") and report.last("resume")["same_bits"] and report.last("resume")["moved_after_resuming"] > 0
    )
    assert [row["turn"] for row in report.of("fid")] == ["first", "second"] and report.last("alone")["detector"] > 0


@NEEDS_BASH
@pytest.mark.slow
def test_results_become_tables(
    rehearsal: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(rehearsal[0])
    monkeypatch.setattr(sys, "argv", ["tables", out])
    with pytest.raises(SystemExit, match=r"rehearsal.*--results.*--scaling"):
        tables.main()
    document = tmp_path / "scaling.md"
    document.write_bytes(tables.SCALING.read_bytes())
    monkeypatch.setattr(sys, "argv", ["tables", out, f"--results={tmp_path / 'results'}", f"--scaling={document}"])
    tables.main()
    written = {path.name.partition("_")[0]: path.read_text() for path in (tmp_path / "results").glob("*.md")}
    assert written.keys() == tables.FILES.keys()
    for text in written.values():
        assert text.startswith("# ") and "no figure here means anything" in text and "None" not in text
        for lines in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            assert len({line.count("|") for line in lines.splitlines()}) == 1, lines
    assert all(f"| {name} |" in written["gpu-step"] for name in step.VARIANTS)
    (copied,) = (tmp_path / "results").glob("gpu_*.jsonl")
    assert tables.newest_report(tmp_path / "results").rows == setting.read(rehearsal[0]) and copied.stat().st_size
    measured = document.read_text()
    assert "Not measured yet." not in measured and "Measured on one none (rehearsal)" in measured
    assert measured.split(tables.BEGIN)[0] == tables.SCALING.read_text().split(tables.BEGIN)[0]


def test_documents_agree() -> None:
    """The list of what is not rehearsed, the parts with their time, the wheels, and the table of measured rates."""
    readme = (GPU / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^- (.*)$", readme, re.MULTILINE) == list(run.NOT_REHEARSED)
    named = re.findall(r"`([a-z-]+)`", "".join(re.findall(r"^\| (`.*?) \|", readme, re.MULTILINE)))
    assert named == [part.name for part in run.PARTS]
    assert sum(part.share for part in run.PARTS) <= 60 * run.MINUTES + 30
    wheels = {path.name.split("-")[0]: path.name.split("-")[1] for path in (GPU / "wheels").glob("*.whl")}
    listed = (GPU / "wheels" / "README.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| ([a-z]\w+) ([\d.]+) \|", listed, re.MULTILINE)) == wheels
    scaling_document = tables.SCALING.read_text(encoding="utf-8")
    assert tables.with_scaling(scaling_document, tables.newest_report()) == scaling_document


def test_wheels_are_pure_python_and_bring_their_licenses() -> None:
    for path in (GPU / "wheels").glob("*.whl"):
        assert path.name.endswith("-none-any.whl") and path.stat().st_size < 1e6
        with zipfile.ZipFile(path) as archive:
            assert not [name for name in archive.namelist() if name.endswith((".so", ".pyd", ".dll"))]
            assert [name for name in archive.namelist() if "licen" in name.lower()], path.name


def test_only_missing_packages_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("click-1.0-py3-none-any.whl", "no_such_package-1.0-py3-none-any.whl"):
        (tmp_path / name).touch()
    assert [path.name for path in packages.missing(tmp_path)] == ["no_such_package-1.0-py3-none-any.whl"]


def rows_after(parts: list[run.Part], out: Path, minutes: float) -> dict[str, dict]:
    run.run(out, minutes, False, parts)
    return {row["name"]: row for row in setting.read(out) if row["kind"] == "part"}


@pytest.mark.skipif(sys.platform == "win32", reason="process groups are those of POSIX")
def test_time_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that hangs is ended with its children, deaf ones too; what comes behind it has the rest of the time."""
    monkeypatch.setattr(run, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(run, "LEAST_SECONDS", 0.5)
    child = f"import time; open({str(tmp_path / 'child')!r}, 'w').write('begun'); time.sleep(600)"
    hangs = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}]); print(p.pid, flush=True); time.sleep(600)"
    )
    quick = "import sys; print(sys.argv)"
    parts = [run.Part("hangs", ("-c", hangs), 3), run.Part("quick", ("-c", quick), 3)]
    found = rows_after(parts, tmp_path, 0.3)
    assert found["hangs"]["ended"] == "time" and found["quick"]["ended"] == "ok"
    log = (tmp_path / "log.txt").read_text()
    assert f"--out={tmp_path}" in log and "--rehearse" not in log
    child_pid = int(re.search(r"^(\d+)$", log, re.MULTILINE)[1])
    assert not Path(f"/proc/{child_pid}").exists() or "zombie" in Path(f"/proc/{child_pid}/status").read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="process groups are those of POSIX")
def test_parts_that_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that may be begun again is; others are not, and no part is begun without time."""
    monkeypatch.setattr(run, "LEAST_SECONDS", 0.0)
    counter = tmp_path / "count"
    again = f"import sys; open({str(counter)!r}, 'a').write('x'); sys.exit(len(open({str(counter)!r}).read()) < 2)"
    parts = [run.Part("again", ("-c", again), 1, starts=3), run.Part("fails", ("-c", "raise SystemExit(3)"), 1)]
    found = rows_after(parts, tmp_path, 1)
    assert (found["again"]["ended"], found["again"]["starts"]) == ("ok", 2)
    assert (found["fails"]["ended"], found["fails"]["starts"]) == ("error", 1)
    monkeypatch.setattr(run, "LEAST_SECONDS", 100.0)
    assert rows_after([run.Part("late", ("-c", "pass"), 1)], tmp_path, 0.1)["late"]["ended"] == "no time"


def test_a_step_goes_on_behind_the_variant_that_broke_it(tmp_path: Path) -> None:
    here = setting.Setting(tmp_path, True, 10.0)
    names = list(step.VARIANTS)
    for name in names[:3]:
        here.emit("begin", pair=step.CIFAR, variant=name)
    with (tmp_path / setting.RESULTS).open("a") as file:
        file.write('{"kind": "begin", "pair": "CIFAR-10", "varia')  # by a process that was killed
    assert step.names_of(here, step.CIFAR, compiled=False) == names[3:]
    assert step.names_of(here, step.CIFAR, compiled=True) == list(step.COMPILED_VARIANTS)


def test_out_of_memory_halves_the_part_of_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def make_step(variant, pair, batch, at_once):
        tried.append(at_once)
        if at_once > 2:
            raise torch.OutOfMemoryError("no")
        return lambda: None

    monkeypatch.setattr(step, "make_step", make_step)
    here = setting.Setting(tmp_path, True, 10.0)
    assert step.measure(step.FFHQ, None, 8, "fp32", here, 8) == 2 and tried == [8, 4, 2]
    (row,) = here.done("step")
    assert (row["images"], row["at_once"]) == (8, 2)


def test_an_error_in_a_section_is_recorded(tmp_path: Path) -> None:
    here = setting.Setting(tmp_path, True, 10.0)
    with here.section("one"):
        raise ValueError("a reason")
    with here.section("two"):
        here.emit("fine")
    (error,) = here.done("error")
    assert error["section"] == "one" and "a reason" in error["error"] and here.done("fine")


def test_switches_are_put_back() -> None:
    places = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [place.allow_tf32 for place in places]
    for on in (True, False):
        with step.tf32(on, matmul=True):
            assert [place.allow_tf32 for place in places] == [on, on]
    assert [place.allow_tf32 for place in places] == before


def test_tests_that_need_a_gpu_are_found() -> None:
    found = {path.name for path in files()}
    assert {"test_cuda.py", "test_cuda_graphs.py", "test_background.py"} <= found and len(found) < 30


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_detector_is_as_large_as_inception() -> None:
    """5.7 billion multiplications and additions for 299 pixels, 23.8 million parameters, 2048 features."""
    detector = InceptionLike().eval()
    assert sum(p.numel() for p in detector.parameters()) == pytest.approx(23.8e6, rel=0.01)
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    with torch.no_grad():
        assert gflop(lambda: detector(image)) == pytest.approx(2 * 5.71, rel=0.01)
        scripted = torch.jit.script(InceptionLike(32, 75, 10).eval())
        assert scripted(image, return_features=True).shape == (1, 64)
        assert float(scripted(image, no_output_bias=True).sum()) == pytest.approx(1, abs=1e-5)


def test_scaling_table_compares() -> None:
    rows = [
        {"kind": "machine", "gpu": "NVIDIA H100 80GB HBM3", "date": "2027-01-02", "rehearsal": False},
        {"kind": "ceilings", "matmul": {"bf16": 8e14}, "copy": 3e12},
        {"kind": "flop", "pair": "CIFAR-10", "per_image": 2.4e11},
        {"kind": "step", "pair": "CIFAR-10", "variant": "bf16", "images": 128, "seconds": 0.128},
    ]
    report = tables.Report(json.loads(json.dumps(rows)))
    lines = tables.scaling_table(report).splitlines()
    assert lines[3].startswith("| CIFAR-10 | 537 to 1433 | 1,000 | 30% | 0.20 to 0.52 | 0.278 |")
    assert lines[4].startswith("| FFHQ-64 |") and "| - | - |" in lines[4]
    assert report.hardware == "nvidia-h100-80gb-hbm3"


@pytest.mark.slow
def test_projection_is_counted() -> None:
    for name, recorded in projection.PAIRS.items():
        assert scaling.counted(name) == recorded
