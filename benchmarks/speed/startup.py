"""Time from the start of a run to its first step: fresh processes, without PyTorch's imports, operators already built.

    python -m benchmarks.speed.startup [--runs=7] [--threads=1]

Each process does what `python refine.py --gan=digits --teacher=edm-digits --metrics=none` does, and ends after the
first step. The median over processes is shown for each part. PyTorch's own imports are left out of the sum, `import
torch` and `torch._dynamo`, which `torch.optim` imports when an optimizer is made. So is the preflight, a trial of the
pair that `--preflight=0` leaves out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ASIDE = {
    "torch": "import torch",
    "dynamo": "import torch._dynamo",
    "preflight": "preflight",
}
PARTS = {
    "imports": "other imports",
    "loading": "options, networks, folder",
    "saving": "picture, first snapshot",
    "step": "first step",
}


class FirstStepDoneError(Exception):
    """Ends the run."""


def measure(threads: int, outdir: str) -> dict[str, float]:
    """Seconds of each part, in this process, which has imported neither PyTorch nor anything of ours yet."""
    begun = time.perf_counter()
    import torch

    seconds = dict.fromkeys((*ASIDE, *PARTS), 0.0) | {"torch": time.perf_counter() - begun}
    torch.set_num_threads(threads)
    start = time.perf_counter()
    import torch._dynamo

    seconds["dynamo"] = time.perf_counter() - start
    sys.path.insert(0, str(ROOT))
    start = time.perf_counter()
    from refine.commands import run as cli
    from refine.runs import run
    from refine.runs.grids import Grids
    from refine.runs.writer import Writer
    from refine.training.trainer import Trainer

    seconds["imports"] = time.perf_counter() - start

    def timed(owner: Any, name: str, part: str, after: Callable[[], None] = lambda: None) -> None:
        plain = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = plain(*args, **kwargs)
            seconds[part] += time.perf_counter() - start
            after()
            return result

        setattr(owner, name, call)

    def end() -> None:
        raise FirstStepDoneError

    timed(run, "preflight_of", "preflight")
    timed(Grids, "save_fakes", "saving")
    timed(Grids, "save_reals", "saving")
    timed(Writer, "save", "saving")
    timed(Trainer, "warm_up_step", "step", end)
    timed(Trainer, "step", "step", end)
    options = ["--gan=digits", "--teacher=edm-digits", "--metrics=none", "--device=cpu", f"--outdir={outdir}"]
    start = time.perf_counter()
    try:
        cli.main.main(options, standalone_mode=False)
    except Exception as error:
        if not isinstance(error.__cause__, FirstStepDoneError):
            raise
    inside = ("preflight", "saving", "step")
    seconds["loading"] = time.perf_counter() - start - sum(seconds[part] for part in inside)
    return seconds


def main() -> None:
    """Starts the processes and prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", metavar="DIR", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.threads, arguments.measure)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as outdir:
        for _ in range(arguments.runs + 1):  # the first one fills the disk's cache, and may have to build operators
            command = [sys.executable, __file__, f"--measure={outdir}", f"--threads={arguments.threads}"]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            rows.append(json.loads(output.stdout.splitlines()[-1]))
    rows = rows[1:]

    def say(title: str, values: list[float]) -> None:
        print(f"{title:<28}{statistics.median(values):7.2f} s   ({min(values):.2f} to {max(values):.2f})")

    print(f"To the first step, digits pair, {arguments.threads} thread(s), median of {len(rows)} fresh processes")
    for part, title in PARTS.items():
        say(title, [row[part] for row in rows])
    say("together", [sum(row[part] for part in PARTS) for row in rows])
    for part, title in ASIDE.items():
        say(f"aside: {title}", [row[part] for row in rows])


if __name__ == "__main__":
    main()
