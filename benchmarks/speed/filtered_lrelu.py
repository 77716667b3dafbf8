"""Time `filtered_lrelu` on the CPU at the layers of StyleGAN3-T and -R at 256 pixels.

    python -m benchmarks.speed.filtered_lrelu [--rounds=5] [--only=T|R] [--channels=64]

The kernel takes one pass from the input to the result. It is compared with the reference path, which adds the bias,
upsamples, activates and downsamples one after the other in plain PyTorch (depthwise convolutions, transposed where they
upsample), and with the same four steps by the kernels of `bias_act` and `upfirdn2d`. Everything runs in one process on
one thread; all ways take turns, and medians of the CPU time are compared. Channels do not depend on each other, so at
most `--channels` of each layer are computed.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.ops import cpu_seconds, operators_of
from refine.networks.stylegan3_layers import lowpass_filter
from refine.networks.stylegan3_options import LayerOptions, SynthesisOptions, plan
from stylegan_ops.backends import pytorch
from stylegan_ops.bias_act import bias_act
from stylegan_ops.filtered_lrelu import filtered_lrelu
from stylegan_ops.upfirdn2d import upfirdn2d

OPTIONS = {
    "T": SynthesisOptions(),
    "R": SynthesisOptions(channel_base=65536, channel_max=1024, conv_kernel=1, use_radial_filters=True),
}
SHORTEST = 5e-3  # Seconds: what takes less is run several times in its turn, for the clock's sake.


@dataclass(frozen=True)
class Layer:
    """A layer's nonlinearity, on one image.

    Attributes:
        name: Name of the layer.
        options: Options of the layer.
        channels: Number of channels to compute.
    """

    name: str
    options: LayerOptions
    channels: int

    def arguments(self) -> dict[str, Any]:
        """Arguments of `filtered_lrelu` but for its input."""
        o = self.options
        rate = o.activation_rate
        return {
            "fu": lowpass_filter(o.up_taps, o.in_cutoff, 2 * o.in_half_width, rate),
            "fd": lowpass_filter(o.down_taps, o.out_cutoff, 2 * o.out_half_width, rate, o.down_radial),
            "b": torch.randn(self.channels, requires_grad=True),
            "up": o.up,
            "down": o.down,
            "padding": o.padding,
            "gain": math.sqrt(2),
            "slope": 0.2,
            "clamp": 256,
        }

    def images(self) -> Tensor:
        """Result of the layer's convolution."""
        size = self.options.in_size + self.options.kernel - 1
        return torch.randn(1, self.channels, size, size, requires_grad=True)


def layers(kind: str, channels: int) -> Iterator[Layer]:
    """Layers of a generator that differ in shape; the last one, without filters, is left out."""
    seen = set()
    for name, options in plan(512, 256, 3, OPTIONS[kind]).layers[:-1]:
        shape = (options.in_size, options.out_size, options.up, options.down, options.down_radial)
        if shape not in seen:
            seen.add(shape)
            yield Layer(name, options, min(options.out_channels, channels))


def one_by_one(
    x: Tensor,
    fu: Tensor,
    fd: Tensor,
    b: Tensor,
    up: int,
    down: int,
    padding: tuple[int, int, int, int],
    gain: float,
    slope: float,
    clamp: float,
) -> Tensor:
    """Four operators in place of one."""
    u = upfirdn2d(bias_act(x, b), fu, up=up, padding=padding, gain=up**2)
    return upfirdn2d(bias_act(u, act="lrelu", alpha=slope, gain=gain, clamp=clamp), fd, down=down)


def medians(ways: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median CPU seconds of each way; they take turns, and the first round warms up."""
    calls = 1 + int(SHORTEST / max(cpu_seconds(ways[0]), 1e-6))
    times = [[cpu_seconds(way, calls) for way in ways] for _ in range(rounds + 1)]
    return [statistics.median(column) for column in zip(*times[1:], strict=True)]


def compare(layer: Layer, backward: bool, rounds: int) -> list[float]:
    """Seconds by the kernel, by the kernels of four operators, and by plain PyTorch."""
    x, arguments = layer.images(), layer.arguments()

    def run(operator: Callable[..., Tensor]) -> None:
        if backward:
            y = operator(x, **arguments)
            torch.autograd.grad(y, (x, arguments["b"]), torch.ones_like(y))
        else:
            with torch.no_grad():
                operator(x, **arguments)

    def plain() -> None:
        with operators_of(pytorch):
            run(one_by_one)

    return medians([lambda: run(filtered_lrelu), lambda: run(one_by_one), plain], rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=list(OPTIONS), help="one of the two generators")
    parser.add_argument("--channels", type=int, default=64, help="most channels of a layer to compute")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{'':<18}{'resampling':>11}{'forward':>36}{'forward and backward':>38}")
    print(f"{'':<29}" + f"{'kernel':>14}{'4 kernels':>11}{'PyTorch':>11}" * 2)
    for kind in [args.only] if args.only else OPTIONS:
        ratios = []
        for layer in layers(kind, args.channels):
            row = f"{kind} {layer.name:<16}{layer.options.up:>6} / {layer.options.down:<2}"
            for backward in (False, True):
                kernel, several, plain = compare(layer, backward, args.rounds)
                row += f"{kernel * 1e3:>11.2f} ms{several / kernel:>10.1f}x{plain / kernel:>10.1f}x"
                ratios.append(plain / kernel)
            print(row, flush=True)
        print(f"{kind}: {min(ratios):.1f}x to {max(ratios):.1f}x plain PyTorch")


if __name__ == "__main__":
    main()
