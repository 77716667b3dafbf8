"""Time `filtered_lrelu` on the CPU at the layers of StyleGAN3-T and -R at 256 pixels.

    python -m benchmarks.speed.filtered_lrelu [--rounds=5] [--only=T|R] [--channels=64]

The kernel takes one pass from the input to the result. Three other ways add the bias, upsample, activate and downsample
one after the other:

- by the kernels of `bias_act` and `upfirdn2d`;
- in plain PyTorch, as this package does where it has no kernels: depthwise convolutions, transposed where they
  upsample and strided where they downsample, which compute neither products with zeros nor results to drop;
- by the reference path, which is what StyleGAN3's repository runs on a CPU: it inserts the zeros, convolves, one axis
  after the other where the filter is separable, and drops pixels.

Everything runs in one process on one thread; all ways take turns, and medians of the CPU time are compared. Channels do
not depend on each other, so at most `--channels` of each layer are computed.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from benchmarks.speed.ops import cpu_seconds, operators_of
from refine.networks.stylegan3_layers import lowpass_filter
from refine.networks.stylegan3_options import LayerOptions, SynthesisOptions, plan
from stylegan_ops import reference
from stylegan_ops.arguments import Padding, pad_or_crop
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


def reference_upfirdn2d(
    x: Tensor, f: Tensor, up: int = 1, down: int = 1, padding: tuple[int, int, int, int] = (0, 0, 0, 0), gain: float = 1
) -> Tensor:
    """Insert zeros, pad, convolve and drop pixels, with every operation that these words ask for."""
    batch, channels, height, width = x.shape
    stuffed = pad(x.reshape(batch, channels, height, 1, width, 1), (0, up - 1, 0, 0, 0, up - 1))
    padded = pad_or_crop(stuffed.reshape(batch, channels, height * up, width * up), Padding(*padding))
    kernel = (f * gain ** (f.ndim / 2)).flip(list(range(f.ndim))).to(x.dtype)
    kernels = [kernel[None, :], kernel[:, None]] if f.ndim == 1 else [kernel]
    for weight in kernels:
        padded = torch.conv2d(padded, weight.repeat(channels, 1, 1, 1), groups=channels)
    return padded[:, :, ::down, ::down]


def reference_path(
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
    """The four steps as StyleGAN3 defines them."""
    u = reference_upfirdn2d(reference.bias_act(x, b), fu, up=up, padding=padding, gain=up**2)
    return reference_upfirdn2d(reference.bias_act(u, None, 1, "lrelu", slope, gain, clamp), fd, down=down)


def medians(ways: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Median CPU seconds of each way; they take turns, and the first round warms up."""
    calls = 1 + int(SHORTEST / max(cpu_seconds(ways[0]), 1e-6))
    times = [[cpu_seconds(way, calls) for way in ways] for _ in range(rounds + 1)]
    return [statistics.median(column) for column in zip(*times[1:], strict=True)]


def compare(layer: Layer, backward: bool, rounds: int) -> list[float]:
    """Seconds by the kernel, by the kernels of four operators, by plain PyTorch, and by the reference path."""
    x, arguments = layer.images(), layer.arguments()
    with torch.no_grad():
        torch.testing.assert_close(filtered_lrelu(x, **arguments), reference_path(x, **arguments), rtol=1e-4, atol=1e-4)

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

    ways = [lambda: run(filtered_lrelu), lambda: run(one_by_one), plain, lambda: run(reference_path)]
    return medians(ways, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=list(OPTIONS), help="one of the two generators")
    parser.add_argument("--channels", type=int, default=64, help="most channels of a layer to compute")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{'':<18}{'resampling':>11}{'forward':>47}{'forward and backward':>47}")
    print(f"{'':<29}" + f"{'kernel':>14}{'4 kernels':>11}{'PyTorch':>11}{'reference':>11}" * 2)
    for kind in [args.only] if args.only else OPTIONS:
        plain_ratios, reference_ratios = [], []
        for layer in layers(kind, args.channels):
            row = f"{kind} {layer.name:<16}{layer.options.up:>6} / {layer.options.down:<2}"
            for backward in (False, True):
                kernel, *others = compare(layer, backward, args.rounds)
                ratios = [other / kernel for other in others]
                row += f"{kernel * 1e3:>11.2f} ms" + "".join(f"{ratio:>10.1f}x" for ratio in ratios)
                plain_ratios.append(ratios[1])
                reference_ratios.append(ratios[2])
            print(row, flush=True)
        for name, found in (("plain PyTorch", plain_ratios), ("the reference path", reference_ratios)):
            print(f"{kind}: {min(found):.1f}x to {max(found):.1f}x {name}")


if __name__ == "__main__":
    main()
