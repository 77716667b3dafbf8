"""Digests of what Refine computes, to compare before and after a change that must not alter a bit.

    python benchmarks/digests.py --out=before.json
    python benchmarks/digests.py --check=before.json

Recorded are weights and statistics of short runs of the demo's pair with IKL (seeds 0 and 1, with each way of sharing
passes), of one that was stopped and resumed, of two processes, and the metric rows of a README command and of a run.
Timings are left out. They hold for one machine: other processors round differently. Takes some five minutes on one
core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DEMO = [
    *("--gan=digits", "--teacher=edm-digits", "--objective=ikl", "--preflight=0"),
    *("--warmup-kimg=0.5", "--tick=0.5", "--snap=2"),
]
SHARING = {"fresh": [], "share-forward": ["--share-forward=1"], "share-unet": ["--share-unet=1"]}
FIXTURES = "tests/fixtures/metrics"
METRICS = [
    "--network=tests/fixtures/sg2ada/a_uncond32.pkl",
    f"--data={FIXTURES}/dataset_s32.zip",
    f"--detector={FIXTURES}/tiny_inception_s.pt",
    f"--vgg={FIXTURES}/tiny_vgg_s.pt",
    "--metrics=fid500_full,kid500_full,pr1k3_full,ppl2_wend20",
]


def call(*command: str) -> str:
    """Standard output of a Python command in the repository, on one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, check=False, text=True, stdout=subprocess.PIPE
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    return done.stdout


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    """A row of statistics or of a metric without what differs from one run to the next.

    The divergence, and the origin of labels in a metric's provenance, are left out too: records made before there were
    any can be compared.
    """
    left_out = ("Timing/", "Resources/", "Divergence/", "timestamp", "total_time")
    kept = {name: value for name, value in row.items() if not name.startswith(left_out)}
    if "provenance" in kept:
        kept["provenance"] = {name: value for name, value in kept["provenance"].items() if name != "labels"}
    return kept


def of_run(folder: Path) -> dict[str, str]:
    """Digests of a run's snapshots and rows, by file name."""
    digests = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("network-snapshot"):
            digests[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.suffix == ".jsonl" and path.name != "sessions.jsonl":  # That one has times and machines.
            rows = [without_times(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
            digests[path.name] = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    return digests


def record() -> dict[str, Any]:
    """All digests, by what they are of."""
    digests: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:

        def run(name: str, *options: str, launcher: tuple[str, ...] = ()) -> Path:
            outdir = Path(temporary) / name.replace(" ", "-")
            call(*launcher, "refine.py", *DEMO, f"--outdir={outdir}", *options)
            (folder,) = outdir.iterdir() if not (outdir / "latest").exists() else outdir.glob("0*")
            digests[name] = of_run(folder)
            print(name, file=sys.stderr)
            return folder

        for sharing, options in SHARING.items():
            for seed in (0, 1):
                run(f"{sharing} seed {seed}", "--kimg=2", "--metrics=none", f"--seed={seed}", *options)
        stopped = run("stopped", "--kimg=1", "--lr-decay=none", "--metrics=none")
        call("refine.py", f"--resume={stopped}", "--kimg=2")
        digests["resumed"] = of_run(stopped)
        torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
        run("two processes", "--kimg=1", "--metrics=none", launcher=torchrun)
        run("measured", "--kimg=1", "--metrics=fid500_full,kid500_full,pr1k3_full,is1k")
    with_verbs = (ROOT / "refine" / "__main__.py").exists()
    spelling = ("refine", "metrics") if with_verbs else ("refine.metrics",)
    rows = [json.loads(line) for line in call("-m", *spelling, *METRICS).splitlines() if line.startswith("{")]
    digests["metrics"] = [without_times(row) for row in rows]
    return digests


def differing_files(before: Any, now: Any) -> list[str]:
    """Names of the files of a run, or numbers of the metric rows, whose digests differ or are missing on one side."""
    one, other = (dict(enumerate(digests)) if isinstance(digests, list) else digests for digests in (before, now))
    return [str(name) for name in one.keys() | other.keys() if one.get(name) != other.get(name)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--check", type=Path)
    arguments = parser.parse_args()
    digests = record()
    if arguments.out:
        arguments.out.write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")
    if arguments.check:
        before = json.loads(arguments.check.read_text(encoding="utf-8"))
        different = [
            f"{name} ({', '.join(differing_files(before[name], digests[name]))})"
            for name in before
            if digests[name] != before[name]
        ]
        print(f"different: {', '.join(different)}" if different else f"all {len(before)} equal")
        raise SystemExit(bool(different))


if __name__ == "__main__":
    main()
