"""Tables from the results of the day with a GPU: files of benchmarks/results, and measured rates in docs/scaling.md.

    python -m benchmarks.gpu.tables OUT [--results=DIR] [--scaling=FILE]

Writes <what>_<gpu>_<date>.md for each part that has results, and beside them the results themselves, from which the
documents can be made again. Those of a rehearsal are written only where DIR and FILE say so.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.gpu import setting
from benchmarks.speed.projection import PAIRS, images_per_second
from benchmarks.speed.projection import hours as projected_hours

RESULTS, SCALING = ROOT / "benchmarks" / "results", ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- written by benchmarks/gpu/tables.py -->\n", "<!-- end -->\n"
COMMAND = "benchmarks/gpu/run.sh OUT"
NONE = "-"

Rows = list[dict[str, Any]]


class Report:
    """The results of one run, by kind.

    Args:
        rows: Lines of results.jsonl.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def of(self, kind: str) -> Rows:
        """All results of a kind."""
        return [row for row in self.rows if row["kind"] == kind]

    def newest(self, kind: str, *keys: str) -> Rows:
        """The last result of a kind for each value of these fields, in the order of the first."""
        found = {tuple(str(row.get(key)) for key in keys): row for row in self.of(kind)}
        return list(found.values())

    def last(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The newest result of a kind with these fields; empty without one."""
        found = [row for row in self.of(kind) if all(row.get(name) == value for name, value in fields.items())]
        return found[-1] if found else {}

    @property
    def machine(self) -> dict[str, Any]:
        """Description of the machine."""
        return self.last("machine")

    @property
    def hardware(self) -> str:
        """The GPU's name, as it stands in names of files."""
        return re.sub(r"[^a-z0-9]+", "-", str(self.machine.get("gpu", "unknown")).lower()).strip("-")

    def step(self, pair: str, variant: str) -> dict[str, Any]:
        """The measured step of a variant, or why there is none."""
        return self.last("step", pair=pair, variant=variant)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; columns behind the first are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, without an exponent."""
    if value is None:
        return NONE
    if value == 0:
        return "0"
    text = f"{value:.{digits}g}"
    return f"{float(text):,.0f}" if "e" in text else text


def gigabytes(value: float | None) -> str:
    """Bytes in GB."""
    return NONE if value is None else f"{value / 1e9:.1f}"


# --- the files


def operators(report: Report) -> str:
    """Builds, tests, ceilings, and what kernels use."""
    if not (report.of("build") or report.of("tests")):
        return ""
    builds = [
        [row["compiler"], row["arch"], number(row.get("seconds")), row.get("problem", "")]
        for row in report.newest("build", "compiler")
    ]
    tests = [
        [row["compiler"], *(str(row[name]) for name in ("passed", "failed", "skipped")), number(row["seconds"])]
        for row in report.newest("tests", "compiler")
    ]
    text = table(["Compiler", "For", "Seconds to build all kernels", "Problem"], builds) if builds else ""
    if tests:
        text += "\nTests marked `cuda`, by what built the kernels:\n\n"
        text += table(["Compiler", "Passed", "Failed", "Skipped", "Seconds"], tests)
        failures = [failure for row in report.newest("tests", "compiler") for failure in row["failures"]]
        text += "".join(f"- `{failure['test']}`: {failure['error']}\n" for failure in failures)
    for verdict in report.last("doctor").get("verdicts", []):
        if verdict["applicable"]:
            worst = NONE if verdict["worst"] is None else f"{verdict['worst']:.0%}"
            text += f"\nDoctor, {verdict['device']}: {verdict['problem'] or 'works'}; "
            text += f"largest error {worst} of what is allowed.\n"
    if group := report.last("processes"):
        text += f"\nA group of one process by {group['backend']}: {'works' if group['ok'] else 'WRONG'}.\n"
    if limits := report.last("ceilings"):
        rates = [[f"matrix product, {name}", f"{rate / 1e12:.1f} TFLOP/s"] for name, rate in limits["matmul"].items()]
        rates.append(["copy, read and written", f"{limits['copy'] / 1e9:.0f} GB/s"])
        text += "\n" + table(["Ceiling", "Rate"], rates)
    if kernels := report.last("usage").get("kernels"):
        used = [[f"`{name}`", *map(str, use.values())] for name, use in sorted(kernels.items())]
        text += "\n" + table(["Kernel", "Registers", "Spilled bytes", "Static shared bytes"], used)
    return text


def kernels(report: Report) -> str:
    """Layers beside plain PyTorch and the copy bandwidth."""
    rows = []
    for row in report.newest("kernel", "layer", "shape", "dtype"):
        cells = [row["layer"], "x".join(map(str, row["shape"])), row["dtype"]]
        for part in (row["forward"], row["both"]):
            share = part["bytes"] / part["kernel"] / row["copy"]
            ratio = part["plain"] / part["kernel"]
            cells += [f"{part['kernel'] * 1e3:.3f}", f"{ratio:.1f}x", f"{share:.0%}"]
        rows.append([*cells, f"{row['error']:.1e}"])
    if not rows:
        return ""
    head = ["Layer", "Shape", "Type", "Forward ms", "Plain / kernel", "Of copy"]
    head += ["Both ms", "Plain / kernel", "Of copy", "Error"]
    text = table(head, rows)
    calls = [
        [row["op"], f"{row['kernel'] * 1e6:.1f}", f"{row['plain'] * 1e6:.1f}"] for row in report.newest("call", "op")
    ]
    if calls:
        text += "\nA call on a tensor of 32 elements:\n\n"
        text += table(["Operator", "Kernel, microseconds", "Plain PyTorch"], calls)
    ratios = [
        [*(row["mode"], row["layer"], str(row["resolution"]), str(row["batch"])), f"{row['ratio']:.2f}x"]
        for row in report.newest("fused", "mode", "layer", "resolution", "batch")
    ]
    if ratios:
        text += "\nA modulated convolution in fp32, the time with scaled images / with weights of each sample:\n\n"
        text += table(["Mode", "Layer", "Pixels", "Images", "Ratio"], ratios)
    return text + (
        "\nBoth is forward and backward. Bytes are every input and result once, and what lies in the cache of the GPU "
        "is written over before each call. Errors are root mean squares of differences from plain PyTorch in float64, "
        "relative to those of the values.\n"
    )


def steps(report: Report) -> str:
    """Rates of a step by variant, a table for each pair."""
    text = ""
    for pair in dict.fromkeys(row["pair"] for row in report.of("step")):
        plain = report.step(pair, "plain recipe, fp32").get("seconds")
        plain_images = report.step(pair, "plain recipe, fp32").get("images")
        flop, ceiling = report.last("flop", pair=pair).get("per_image"), report.last("ceilings").get("matmul", {})
        rows = []
        for variant in dict.fromkeys(row["variant"] for row in report.of("begin") if row["pair"] == pair):
            found = report.step(pair, variant)
            if "seconds" not in found:
                rows.append([variant, found.get("problem", "did not end"), *[NONE] * 6])
                continue
            rate = found["images"] / found["seconds"]
            speed = f"{rate * plain / plain_images:.2f}x" if plain else NONE
            share = f"{flop * rate / ceiling['bf16']:.0%}" if flop and ceiling else NONE
            rows.append(
                [
                    *(variant, number(rate), speed, f"{found['seconds'] * 1e3:.0f}", str(found["images"])),
                    *(str(found["at_once"]), gigabytes(found["peak_bytes"]), share),
                ]
            )
        head = ["Variant", "img/s", "Of plain fp32", "ms per step", "Images", "At once", "Peak GB", "Of bf16 ceiling"]
        text += f"\n\n### {pair}\n\n" + table(head, rows)
        estimated = report.last("estimate", pair=pair)
        if flop:
            text += f"\n{flop / 1e9:.0f} GFLOP per image."
        if estimated:
            text += (
                f" The dry run estimates {gigabytes(estimated['bytes'])} GB for {estimated['at_once']} images at once "
                "with activations in float32."
            )
        if hot := report.last("hot", pair=pair).get("kernels"):
            rows = [[f"`{name}`", str(count), f"{milliseconds:.2f}"] for name, count, milliseconds in hot[:10]]
            text += "\n\nWhat takes most of a step in bf16:\n\n" + table(["Kernel", "Calls", "ms"], rows)
    if not text:
        return ""
    return text + (
        "\n\nThe plain recipe is `benchmarks/speed/baseline_step.py`: the published recipe in plain PyTorch, without "
        "kernels of its own; its batch is what goes through at once. Seconds are medians on the clock, after two steps "
        "that warm up. Peak is that of PyTorch's tensors, without a copy of both networks that all variants start "
        "from.\n"
    )


def demo(report: Report) -> str:
    """The demo's figures and the resumed run."""
    rows = []
    for row in report.newest("demo", "seed"):
        names = ("fid", "recall", "coverage", "agreement")
        changes = [f"{number(row['before'][name])} → {number(row['after'][name])}" for name in names]
        rows.append([f"seed {row['seed']}", *changes, f"{row['seconds']:.0f}"])
    text = ""
    if rows:
        text = table(["Run", "FID", "Recall", "Coverage", "Agreement", "Seconds"], rows)
        text += (
            f"\n{report.of('demo')[-1]['images']} images against the test split, digit-CNN features, not Inception. On "
            "a CPU three seeds come to a FID of 20 to 22.\n"
        )
    if row := report.last("resume"):
        text += (
            f"\nA run that was stopped half-way and resumed: weights apart from those of one that went through by "
            f"{row['apart'] / row['moved']:.1e} of how far these moved"
            f"{', so the same bits' if row['same_bits'] else ''}.\n"
        )
    return text


def fid(report: Report) -> str:
    """The pipeline of a FID."""
    rows = [
        [f"pipeline, {row['turn']} turn", number(row["images"] / row["row_seconds"]), str(row["batch"])]
        for row in report.newest("fid", "turn")
    ]
    if alone := report.last("alone"):
        rows += [[f"{name} alone", number(alone[name]), str(alone["batch"])] for name in ("generator", "detector")]
    if not rows:
        return ""
    return table(["", "img/s", "Batch"], rows) + (
        "\nA StyleGAN2 generator of 256 pixels (channel_base 16384) and a network of Inception-v3's shape with random "
        "weights; the pipeline includes the distance of the moments. Images are float32 without TF32, as the suite has "
        "them.\n"
    )


FILES: dict[str, tuple[str, Callable[[Report], str]]] = {
    "gpu-operators": ("Operators: builds, tests, and what the machine can do", operators),
    "gpu-kernels": ("Kernels beside plain PyTorch", kernels),
    "gpu-step": ("A step by precision and option", steps),
    "gpu-demo": ("The digits demo", demo),
    "gpu-fid": ("A FID's pipeline", fid),
}


def heading(title: str, report: Report) -> str:
    """Title, machine and command."""
    machine = report.machine
    where = f"{machine.get('gpu')}, {machine.get('cores')} CPU cores"
    software = f"PyTorch {machine.get('torch')}, Python {machine.get('python')}"
    commit = f", commit {machine['commit'][:10]}" if machine.get("commit") else ""
    note = "**Of a rehearsal: no figure here means anything.**\n\n" if machine.get("rehearsal", True) else ""
    return f"# {title}\n\n{note}`{COMMAND}`, {machine.get('date')}: {where}; {software}{commit}.\n\n"


def files(report: Report) -> dict[str, str]:
    """Text of each file by its name."""
    found = {}
    for what, (title, text_of) in FILES.items():
        text = text_of(report)
        if text:
            name = f"{what}_{report.hardware}_{report.machine.get('date')}.md"
            found[name] = heading(title, report) + re.sub(r"\n{3,}", "\n\n", text).lstrip("\n")
    return found


# --- docs/scaling.md


def scaling_table(report: Report | None) -> str:
    """Measured rates beside the projected ones, with both markers."""
    measured_on = report.machine["gpu"] if report else ""
    rows = []
    for pair in PAIRS:
        low, high = images_per_second(pair)
        found = report.step(pair, "bf16") if report else {}
        rate = found["images"] / found["seconds"] if "seconds" in found else None
        share = None
        if report and rate and report.last("ceilings") and report.last("flop", pair=pair):
            share = rate * report.last("flop", pair=pair)["per_image"] / report.last("ceilings")["matmul"]["bf16"]
        hours = None if rate is None else 1e6 / rate / 3600
        rows.append(
            [
                *(pair, f"{low:.0f} to {high:.0f}", number(rate), NONE if share is None else f"{share:.0%}"),
                *(" to ".join(f"{value:.2f}" for value in projected_hours(pair)), number(hours)),
            ]
        )
    head = ["", "img/s, projected", "measured", "of a bf16 product", "Hours for 1000 kimg, projected", "measured"]
    said = f"Measured on one {measured_on}, {report.machine['date']}." if report else "Not measured yet."
    return BEGIN + table(head, rows) + f"\n{said}\n" + END


def with_scaling(text: str, report: Report | None) -> str:
    """The document with its table made again."""
    return text.split(BEGIN)[0] + scaling_table(report) + text.split(END)[1]


def newest_report(folder: Path = RESULTS) -> Report | None:
    """The results that the documents show; None before the first ones."""
    found = sorted(folder.glob("gpu_*.jsonl"), key=lambda path: path.stem.rpartition("_")[2])
    return Report(setting.rows_of(found[-1])) if found else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the results")
    parser.add_argument("--results", type=Path, metavar="DIR", help="where the tables go; default: benchmarks/results")
    parser.add_argument("--scaling", type=Path, metavar="FILE", help="the document; default: docs/scaling.md")
    options = parser.parse_args()
    report = Report(setting.read(options.out))
    if not report.machine:
        sys.exit(f"{options.out / setting.RESULTS} does not say which machine it is of: run {COMMAND}.")
    if report.machine["rehearsal"] and not (options.results and options.scaling):
        sys.exit(f"{options.out} holds a rehearsal: name other places for its tables with --results and --scaling.")
    results, scaling = options.results or RESULTS, options.scaling or SCALING
    results.mkdir(parents=True, exist_ok=True)
    for name, text in files(report).items():
        (results / name).write_text(text, encoding="utf-8")
        print(results / name)
    name = f"gpu_{report.hardware}_{report.machine['date']}.jsonl"
    shutil.copy(options.out / setting.RESULTS, results / name)
    scaling.write_text(with_scaling(scaling.read_text(encoding="utf-8"), report), encoding="utf-8")
    print(scaling)


if __name__ == "__main__":
    main()
