"""Times both forms of `modulated_conv2d` and writes `stylegan_ops/modulated_conv2d_table.py` from that.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.modulated_conv [--device=cuda]

The layers are those of a 256-pixel StyleGAN2 (channel_base 16384). What the table has of other devices stays.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from stylegan_ops import modulated_conv2d_table
from stylegan_ops.modulated_conv2d import modulated_conv2d
from stylegan_ops.modulated_conv2d_table import BATCHES
from stylegan_ops.upfirdn2d import setup_filter

TABLE = Path(modulated_conv2d_table.__file__)
RESOLUTIONS = (4, 8, 16, 32, 64, 128, 256)
KINDS = ("1x1", "3x3", "3x3 up")
HEADER = '''"""How much faster the fused form of `modulated_conv2d` is: written by benchmarks/speed/modulated_conv.py.

FUSED_SPEEDUP[device][mode][layer][resolution of its result] holds, for each of BATCHES, the time of the form that
scales images divided by the time of the form that scales weights; layers are those of a 256-pixel StyleGAN2.
"""

from __future__ import annotations

BATCHES = (1, 2, 4, 8)
FUSED_SPEEDUP: dict[str, dict[str, dict[str, dict[int, tuple[float, ...]]]]] = {
'''


def seconds(fused: bool, training: bool, arguments: tuple[torch.Tensor, ...], options: dict[str, object]) -> float:
    x, weight, styles, _ = arguments
    if x.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    y = modulated_conv2d(*arguments, **options, fused_modconv=fused)
    if training:
        torch.autograd.grad(y, (x, weight, styles), y.detach())
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def fused_speedup(device: str, training: bool, kind: str, resolution: int, batch: int, rounds: int) -> float:
    channels = min(16384 // resolution, 512)
    up = 2 if kind == "3x3 up" else 1
    in_channels = min(16384 * up // resolution, 512)
    size = 1 if kind == "1x1" else 3
    x = torch.randn(batch, in_channels, resolution // up, resolution // up, device=device)
    weight = torch.randn(3 if kind == "1x1" else channels, in_channels, size, size, device=device)
    styles = torch.randn(batch, in_channels, device=device)
    noise = torch.randn(resolution, resolution, device=device)
    options = {
        "up": up,
        "padding": size // 2,
        "resample_filter": setup_filter([1, 3, 3, 1], device=device),
        "demodulate": kind != "1x1",
        "flip_weight": up == 1,
    }
    for tensor in (x, weight, styles):
        tensor.requires_grad_(training)
    times: dict[bool, list[float]] = {True: [], False: []}
    for i in range(rounds + 1):
        for fused in times:
            elapsed = seconds(fused, training, (x, weight, styles, noise), options)
            if i > 0:  # The first round warms up.
                times[fused].append(elapsed)
    return round(min(times[False]) / min(times[True]), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = dict(modulated_conv2d_table.FUSED_SPEEDUP)
    table[options.device] = {}
    for mode in ("inference", "training"):
        table[options.device][mode] = {}
        for kind in KINDS:
            rows: dict[int, tuple[float, ...]] = {}
            for resolution in RESOLUTIONS[1 if kind == "3x3 up" else 0 :]:
                rows[resolution] = tuple(
                    fused_speedup(options.device, mode == "training", kind, resolution, batch, options.rounds)
                    for batch in BATCHES
                )
                print(options.device, mode, kind, resolution, *rows[resolution], flush=True)
            table[options.device][mode][kind] = rows
    text = HEADER
    for device, modes in table.items():
        text += f'    "{device}": {{\n'
        for mode, kinds in modes.items():
            text += f'        "{mode}": {{\n'
            for kind, rows in kinds.items():
                text += f'            "{kind}": {{\n'
                text += "".join(f"                {resolution}: {row},\n" for resolution, row in rows.items())
                text += "            },\n"
            text += "        },\n"
        text += "    },\n"
    TABLE.write_text(text + "}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
