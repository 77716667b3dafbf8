"""Runs the parts of the day with a GPU one after the other, each in processes of its own with a time limit.

    python -m benchmarks.gpu.run OUT [--minutes=12] [--parts=operators,step] [--rehearse]

`run.sh` calls this with an environment in which everything can be imported. What a part leaves of its share of the time
goes to those behind it. Every result is a line of OUT/results.jsonl as soon as it is there; OUT/log.txt has what was
printed. A part that runs out of time is ended, one that ends by itself with an error is begun again where it can go on.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ROOT
from benchmarks.gpu import setting

MINUTES = 12.0
GRACE_SECONDS = 5.0  # between being told to end and being ended
LEAST_SECONDS = 8.0  # for less, no part is begun
REHEARSAL_SECONDS = 600.0  # of each part: a limit for what hangs, on a machine however busy

# What only a GPU shows. benchmarks/gpu/README.md has the same list.
NOT_REHEARSED = (
    "kernels on a GPU: the rehearsal times the CPU's, and the tests run CUDA's in a simulator",
    "building the CUDA kernels as a whole: one small kernel is built in their place",
    "the tests marked cuda: they are collected and skipped",
    "NCCL: gloo stands in for it",
    "CUDA events, streams, pinned copies and graph capture: there is nothing to synchronize with on a CPU",
    "TF32: the switches are set, and a CPU does not look at them",
    "torch.compile: blocks are left as they are, since inductor takes minutes on a CPU",
    "out of memory, and with it the trial of the batch: the first size always fits",
    "peak memory: a CPU does not count it",
    "the demo in full length: a few steps are taken",
)


@dataclass(frozen=True)
class Part:
    """Something to run.

    Attributes:
        name: As it is asked for.
        arguments: Those of `python`, without the time limit and the folder of results.
        share: Seconds of a run of 12 minutes.
        starts: How often it is begun, if it ends with an error.
        cache: Name of the folder in which its kernels are built; parts of one name share it.
    """

    name: str
    arguments: tuple[str, ...]
    share: float
    starts: int = 1
    cache: str = "NVRTC"


def module(name: str, *arguments: str) -> tuple[str, ...]:
    """Arguments that run a part's module."""
    return ("-m", f"benchmarks.gpu.parts.{name}", *arguments)


PARTS = (
    Part("operators", module("operators"), 75),
    Part("tests-nvrtc", module("tests", "NVRTC"), 60),
    Part("tests-nvcc", module("tests", "nvcc"), 60, cache="nvcc"),
    Part("kernels", module("kernels"), 45),
    Part("step-cifar", module("step", "CIFAR-10"), 110, starts=3),
    Part("step-ffhq", module("step", "FFHQ-64"), 90, starts=3),
    Part("step-large", module("step", "FFHQ-1024 with 64"), 90, starts=3),
    Part("demo", module("demo"), 100),
    Part("fid", module("fid"), 40),
    Part("step-compiled", module("step", "compiled"), 50, starts=2),
)
REHEARSED = (  # one process for all steps, and the tests once: they are skipped whatever built the kernels
    Part("operators", module("operators"), 1),
    Part("tests-nvcc", module("tests", "nvcc"), 1, cache="nvcc"),
    Part("kernels", module("kernels"), 1),
    Part("step", module("step", "all"), 1, starts=3),
    Part("demo", module("demo"), 1),
    Part("fid", module("fid"), 1),
)


def run(out: Path, minutes: float, rehearse: bool, parts: Sequence[Part], seconds: float | None = None) -> list[str]:
    """Run parts in order.

    Args:
        out: Folder of the results; what is there from an earlier run is added to.
        minutes: Time for all parts together.
        rehearse: Tiny sizes on the CPU.
        parts: What to run.
        seconds: Time limit of each part, instead of its share of the minutes.

    Returns:
        Names of the parts that did not end well.
    """
    until, failed = time.monotonic() + 60 * minutes, []
    with tempfile.TemporaryDirectory() as scratch:
        for index, part in enumerate(parts):
            left = until - time.monotonic()
            limit = seconds or left * part.share / sum(later.share for later in parts[index:])
            ended = attempt(part, out, limit, rehearse, Path(scratch))
            if ended != "ok":
                failed.append(part.name)
    return failed


def attempt(part: Part, out: Path, limit: float, rehearse: bool, scratch: Path) -> str:
    """Run one part, more than once if it may be; record and return how it ended: ok, error, time or "no time"."""
    until, begun = time.monotonic() + limit, time.monotonic()
    ended, starts = "no time", 0
    while starts < part.starts and ended not in ("ok", "time") and until - time.monotonic() >= LEAST_SECONDS:
        starts += 1
        ended = start(part, out, until - time.monotonic(), rehearse, scratch)
    seconds = time.monotonic() - begun
    setting.emit(out, "part", name=part.name, ended=ended, starts=starts, seconds=seconds, limit=limit)
    return ended


def start(part: Part, out: Path, limit: float, rehearse: bool, scratch: Path) -> str:
    """One process of a part, and all that it started: ended when its time is over."""
    command = [sys.executable, *part.arguments, f"--out={out}", f"--seconds={limit:.1f}"]
    command += ["--rehearse"] if rehearse else []
    with (out / "log.txt").open("a", encoding="utf-8") as log:
        log.write(f"\n=== {part.name}: {limit:.0f} s\n")
        log.flush()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(part, rehearse, scratch),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return "ok" if process.wait(timeout=limit) == 0 else "error"
        except subprocess.TimeoutExpired:
            return "time"
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started, if there are any left."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def environment(part: Part, rehearse: bool, scratch: Path) -> dict[str, str]:
    """Variables of a part's process: no download is tried, and kernels are built again."""
    changed = {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    if rehearse:
        changed |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}  # kernels of the CPU come from the usual cache
    else:
        changed |= {"STYLEGAN_OPS_CACHE": str(scratch / part.cache), "DNNLIB_CACHE_DIR": str(scratch / "dnnlib")}
    return os.environ | changed


def chosen(names: str | None, rehearse: bool) -> list[Part]:
    """Parts by name, in their order.

    Raises:
        SystemExit: There is no part of that name.
    """
    parts = list(REHEARSED if rehearse else PARTS)
    if names is None:
        return parts
    wanted = names.split(",")
    unknown = set(wanted) - {part.name for part in parts}
    if unknown:
        sys.exit(f"There is no part {sorted(unknown)[0]!r}: name some of {', '.join(part.name for part in parts)}.")
    return [part for part in parts if part.name in wanted]


def report(out: Path, failed: Sequence[str]) -> None:
    """Print how the parts ended, and what went wrong within those that went on."""
    rows = setting.read(out)
    for row in rows:
        if row["kind"] == "part":
            print(f"{row['name']:<16} {row['ended']:<8} {row['seconds']:6.1f} of {row['limit']:.1f} s")
        elif row["kind"] == "error":
            print(f"  error in {row['section']}: {row['error']}")
        elif row["kind"] == "tests":
            counts = ", ".join(f"{row[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped"))
            print(f"  tests by {row['compiler']}: {counts}")
    print(f"Results: {out / setting.RESULTS}. Log: {out / 'log.txt'}.")
    print(f"Tables: python -m benchmarks.gpu.tables {out}")
    if failed:
        print(f"Did not end well: {', '.join(failed)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the results")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="time for everything")
    parser.add_argument("--parts", help=f"only these, of {', '.join(part.name for part in PARTS)}")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU")
    options = parser.parse_args()
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    parts = chosen(options.parts, options.rehearse)
    failed = run(out, options.minutes, options.rehearse, parts, REHEARSAL_SECONDS if options.rehearse else None)
    report(out, failed)
    if options.rehearse:
        print("Not rehearsed, since only a GPU shows it:")
        print("\n".join(f"- {line}" for line in NOT_REHEARSED))
    errors = any(row["kind"] == "error" for row in setting.read(out))
    sys.exit(1 if failed or errors else 0)


if __name__ == "__main__":
    main()
