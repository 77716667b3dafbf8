"""Part 4: the digits demo on the GPU with its figures, and a run that is stopped and resumed.

By the command line, in one process. `make demo` on a CPU comes to a Frechet distance of 20 to 22 with three seeds.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.setting import Setting
from refine.commands import run as cli
from refine.digits.figures import figures_of
from refine.networks.loading import load_generator

PAIR = ("--gan=digits", "--teacher=edm-digits")
SECONDS_OF_A_RUN = 60.0  # that have to be left for another seed


def refined(setting: Setting, *options: str) -> str:
    """Run the command line; what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        cli.main.main([*options, f"--device={setting.device.type}"], standalone_mode=False)
    print(printed.getvalue(), flush=True)
    return printed.getvalue()


def only_run_in(outdir: Path) -> Path:
    """The one run's folder."""
    (folder,) = outdir.glob("0*")
    return folder


def figures(snapshot: Path, count: int) -> dict[str, Any]:
    """Figures of the demo's judge: on the CPU, of the moving average, against the test images."""
    return asdict(figures_of(load_generator(str(snapshot)).network, "test", count))


def demo(setting: Setting, outdir: Path, seed: int) -> None:
    """Record the demo as the README has it."""
    short = ["--kimg=0.128", "--warmup-kimg=0.032", "--metrics=none"] if setting.rehearse else []
    begun = time.perf_counter()
    refined(setting, *PAIR, f"--outdir={outdir}", f"--seed={seed}", *short)
    seconds = time.perf_counter() - begun
    folder = only_run_in(outdir)
    count, snapshots = 200 if setting.rehearse else 5000, sorted(folder.glob("network-snapshot-*.pkl"))
    last = [json.loads(line) for line in (folder / "stats.jsonl").read_text(encoding="utf-8").splitlines()][-1]
    setting.emit(
        "demo",
        seed=seed,
        seconds=seconds,
        cur_nimg=last.get("Progress/cur_nimg"),
        before=figures(snapshots[0], count),
        after=figures(snapshots[-1], count),
        images=count,
    )
    if (folder / "report.html").exists():
        (setting.out / "demo-report.html").write_bytes((folder / "report.html").read_bytes())


def newest_weights(folder: Path) -> torch.Tensor:
    """Of a run's last snapshot, all in one."""
    snapshot = sorted(folder.glob("network-snapshot-*.pkl"))[-1]
    return torch.cat([p.detach().flatten() for p in load_generator(str(snapshot)).network.parameters()])


def resume(setting: Setting, temporary: Path) -> None:
    """Record how far a resumed run's weights are from those of one that went through."""
    half, whole = (0.064, 0.128) if setting.rehearse else (0.512, 1.024)
    common = (*PAIR, "--preflight=0", "--warmup-kimg=0.032", "--metrics=none", "--lr-decay=none")
    refined(setting, *common, f"--outdir={temporary / 'stopped'}", f"--kimg={half}")
    stopped = only_run_in(temporary / "stopped")
    at_half = newest_weights(stopped)
    refined(setting, f"--resume={stopped}", f"--kimg={whole}")
    refined(setting, *common, f"--outdir={temporary / 'through'}", f"--kimg={whole}")
    resumed, through = newest_weights(stopped), newest_weights(only_run_in(temporary / "through"))
    start = torch.cat([p.detach().flatten() for p in load_generator("digits").network.parameters()])
    setting.emit(
        "resume",
        moved=float((through - start).norm()),
        moved_after_resuming=float((resumed - at_half).norm()),
        apart=float((resumed - through).norm()),
        same_bits=torch.equal(resumed, through),
    )


def main() -> None:
    setting, _ = Setting.from_arguments()
    with tempfile.TemporaryDirectory() as temporary:
        for seed in (0,) if setting.rehearse else (0, 1, 2):
            if seed == 1:
                with setting.section("resume"):
                    resume(setting, Path(temporary))
            if seed == 0 or setting.left > SECONDS_OF_A_RUN:
                with setting.section(f"demo, seed {seed}"):
                    demo(setting, Path(temporary) / f"demo{seed}", seed)
        if setting.rehearse:
            with setting.section("resume"):
                resume(setting, Path(temporary))


if __name__ == "__main__":
    main()
