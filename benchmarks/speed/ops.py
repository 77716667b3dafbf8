"""Time `bias_act` and `upfirdn2d` on the CPU: the compiled kernels against the common reference path.

    python -m benchmarks.speed.ops [--rounds=9] [--generator-rounds=5] [--only=layers]

The reference path is what `stylegan_ops.reference` does: zero-stuff, pad, grouped convolution, drop pixels; bias,
activation, gain and clamp as operators of their own. Everything runs in one process on one thread. Both ways take
turns, and medians of the CPU time are compared, which other load on the machine changes less than the time on the
clock. Beside each ratio stands the share of the machine's copy bandwidth that the kernels reach, counting each input
and result once; what stays in the caches exceeds 100 %, and page faults of new results count against it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from refine.networks.stylegan2 import generator_from_init_kwargs
from stylegan_ops import dispatch, reference
from stylegan_ops.backends import pytorch
from stylegan_ops.backends.packing import ACTS
from stylegan_ops.bias_act import bias_act
from stylegan_ops.upfirdn2d import setup_filter, upfirdn2d, upsample2d

# Of each generator: its largest resolutions, channels per resolution, and a batch that fits into memory.
GENERATORS = {32: ((8, 16, 32), 512 * 32, 16), 256: ((64, 128, 256), 16384, 4), 1024: ((256, 512, 1024), 32768, 1)}
FILTER = setup_filter([1, 3, 3, 1])
SHORTEST = 2e-3  # Seconds: what takes less is run several times in its turn, for the clock's sake.


def _reference_upfirdn2d(x: Tensor, f: Tensor, *options: Any) -> Tensor:
    up_x, up_y, down_x, down_y, *padding, flip, gain = options
    return reference.upfirdn2d(x, f, (up_x, up_y), (down_x, down_y), padding, flip, gain)


# Its bias_act is the reference's.
REFERENCE = SimpleNamespace(bias_act=pytorch.bias_act, upfirdn2d=_reference_upfirdn2d)


@contextmanager
def operators_of(operators: Any) -> Iterator[None]:
    """Has the public functions use these raw operators, which PyTorch can differentiate."""
    with mock.patch.object(dispatch, "route", lambda name, x, *others: (operators, True)):
        yield


def cpu_seconds(run: Callable[[], object], calls: int = 1) -> float:
    start = time.process_time()
    for _ in range(calls):
        run()
    return (time.process_time() - start) / calls


def compare(run: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds of `run` with the kernels, and with the reference's operators."""
    run()
    calls = 1 + int(SHORTEST / max(cpu_seconds(run), 1e-6))
    kernels, common = [], []
    for _ in range(rounds + 1):
        kernels.append(cpu_seconds(run, calls))
        with operators_of(REFERENCE):
            common.append(cpu_seconds(run, calls))
    return statistics.median(kernels[1:]), statistics.median(common[1:])  # The first round warms up.


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of copying between two large tensors."""
    source, target = torch.ones(2, 1 << 26)
    return 2 * source.nbytes / statistics.median(cpu_seconds(lambda: target.copy_(source)) for _ in range(9))


def compare_layer(
    name: str, op: Callable[..., Tensor], inputs: Sequence[Tensor], backward_reads_x: bool, rounds: int, copy: float
) -> None:
    """Print a line about op(*inputs), forward and forward and backward."""
    x = inputs[0]
    y = op(*inputs)
    dy = torch.randn_like(y)

    def forward() -> None:
        with torch.no_grad():
            op(*inputs)

    def both() -> None:
        torch.autograd.grad(op(*inputs), inputs, dy)

    forward_bytes = x.nbytes + y.nbytes
    both_bytes = 2 * forward_bytes + backward_reads_x * x.nbytes
    line = f"{name:<22} {'x'.join(map(str, x.shape)):>17}"
    del y
    for tensor in inputs:
        tensor.requires_grad_()
    for run, size in ((forward, forward_bytes), (both, both_bytes)):
        kernels, common = compare(run, rounds)
        line += f"   {common / kernels:6.1f}x {1e3 * kernels:9.2f} ms {size / kernels / copy:5.0%}"
    print(line, flush=True)


def compare_layers(rounds: int) -> None:
    copy = copy_bandwidth()
    print(f"copying: {copy / 1e9:.1f} GB/s read and written\n")
    print(f"{'':40}   {'forward':^25}   {'forward and backward':^25}")
    for resolution, (sizes, channel_base, batch) in GENERATORS.items():
        print(f"{resolution}-pixel generator")
        for size in sizes:
            channels = min(channel_base // size, 512)
            features, bias = torch.randn(batch, channels, size, size), torch.randn(channels)
            convolved = torch.randn(batch, channels, size + 1, size + 1)
            image = torch.randn(batch, 3, size // 2, size // 2)
            compare_layer(
                "bias_act lrelu",
                lambda x, b: bias_act(x, b, act="lrelu", clamp=256),
                (features, bias),
                True,
                rounds,
                copy,
            )
            compare_layer(
                "upfirdn2d after conv",
                lambda x: upfirdn2d(x, FILTER, padding=1, gain=4),
                (convolved,),
                False,
                rounds,
                copy,
            )
            compare_layer("upsample2d image", lambda x: upsample2d(x, FILTER), (image,), False, rounds, copy)
            compare_layer(
                "upsample2d features",
                lambda x: upsample2d(x, FILTER),
                (torch.randn(batch, channels, size // 2, size // 2),),
                False,
                rounds,
                copy,
            )


def compare_generator(rounds: int) -> None:
    init_kwargs = {
        "z_dim": 512,
        "c_dim": 0,
        "w_dim": 512,
        "img_resolution": 256,
        "img_channels": 3,
        "synthesis_kwargs": {"channel_base": 16384, "channel_max": 512, "conv_clamp": 256},
    }
    torch.manual_seed(0)
    generator = generator_from_init_kwargs(init_kwargs, "ada")
    z = torch.randn(1, 512)

    def forward() -> None:
        with torch.no_grad():
            generator(z, None, noise_mode="const")

    def both() -> None:
        generator(z, None, noise_mode="const").square().mean().backward()

    print("\nStyleGAN2, 256 pixels, batch 1")
    for name, run, training in (("forward", forward, False), ("forward and backward", both, True)):
        generator.train(training).requires_grad_(training)
        kernels, common = compare(run, rounds)
        print(f"  {name:<22} {common / kernels:5.2f}x   {kernels:.3f} s against {common:.3f} s", flush=True)


def compare_overhead(rounds: int, calls: int = 1000) -> None:
    """Print what a call costs on a tensor so small that nothing else does."""
    x, b = torch.randn(1, 2, 3, 3), torch.randn(2)
    runs: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "bias_act": lambda x, b: bias_act(x, b, act="lrelu", clamp=256),
        "upfirdn2d": lambda x, b: upfirdn2d(x, FILTER, up=2, padding=[2, 1, 2, 1], gain=4),
    }
    print(f"\n{'microseconds per call':<32} {'plain PyTorch':>14} {'eager':>9} {'registered':>14}")
    for name, op in runs.items():
        for training in (False, True):
            inputs = [t.clone().requires_grad_(training) for t in (x, b)]

            def many(op: Any = op, inputs: Any = inputs, training: bool = training) -> None:
                for _ in range(calls):
                    y = op(*inputs)
                    if training:
                        y.backward(y)

            seconds: dict[str, list[float]] = {"plain": [], "eager": [], "registered": []}
            for _ in range(rounds + 1):
                dispatch.set_mode("off")
                op(*inputs)
                seconds["plain"].append(cpu_seconds(many))
                dispatch.set_mode("on")
                op(*inputs)
                seconds["eager"].append(cpu_seconds(many))
                with operators_of(dispatch.registered):
                    seconds["registered"].append(cpu_seconds(many))
            plain_s, eager_s, registered_s = (statistics.median(s[1:]) / calls * 1e6 for s in seconds.values())
            label = f"{name}{', forward and backward' if training else ''}"
            print(
                f"{label:<32} {plain_s:14.1f} {eager_s:6.1f} {eager_s / plain_s:4.1f}x "
                f"{registered_s:7.1f} {registered_s / plain_s:4.1f}x",
                flush=True,
            )


def compare_activations(rounds: int) -> None:
    """Print a line per activation, on features of 64 pixels."""
    copy = copy_bandwidth()
    print(f"\n{'every activation':40}   {'forward':^25}   {'forward and backward':^25}")
    x, b = torch.randn(4, 256, 64, 64), torch.randn(256)
    for act in ACTS:
        compare_layer(
            f"bias_act {act}", lambda x, b, act=act: bias_act(x, b, act=act, gain=2), (x.clone(), b), True, rounds, copy
        )


PARTS = {
    "overhead": compare_overhead,
    "layers": compare_layers,
    "activations": compare_activations,
    "generator": compare_generator,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="times each layer is run in both ways")
    parser.add_argument("--only", choices=PARTS, help="this part alone")
    parser.add_argument("--generator-rounds", type=int, default=5, help="times the whole generator is run in both ways")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dispatch.set_mode("on")
    for name, part in PARTS.items():
        if options.only in (None, name):
            part(options.generator_rounds if name == "generator" else options.rounds)


if __name__ == "__main__":
    main()
