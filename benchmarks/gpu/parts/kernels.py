"""Part 2: the kernels beside plain PyTorch and beside the copy bandwidth of the same run.

A layer's bytes are each input and result once: x and y forward; and x (where the derivative reads it), y's gradient and
x's gradient backward. Their rate is compared with that of a copy. Errors are those against plain PyTorch in float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.setting import DeviceClock, Setting, copy_bandwidth, wall
from benchmarks.speed.modulated_conv import KINDS, fused_speedup
from stylegan_ops import dispatch, filtered_lrelu
from stylegan_ops.bias_act import bias_act
from stylegan_ops.upfirdn2d import downsample2d, setup_filter, upfirdn2d, upsample2d

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
SIZES = {32: (512, 32), 256: (128, 8), 1024: (32, 4)}  # pixels -> channels, images
REHEARSED_SIZES = {8: (4, 2)}
CALLS = 200


class Layer(NamedTuple):
    """An operator on images.

    Attributes:
        name: As it stands in the table.
        op: The operator, of x and perhaps a bias.
        shape: Shape of x.
        bias: Whether it takes one.
        reads_x: Whether the derivative reads x again.
        channels_last: Memory format of x.
    """

    name: str
    op: Callable[..., Tensor]
    shape: tuple[int, ...]
    bias: bool = False
    reads_x: bool = False
    channels_last: bool = False


def layers(sizes: dict[int, tuple[int, int]], device: torch.device) -> Iterator[Layer]:
    """Those of generators of several resolutions, largest last."""
    f = setup_filter([1, 3, 3, 1], device=device)
    low_pass = setup_filter([0.01, 0.02, 0.05, 0.1, 0.15, 0.17, 0.17, 0.15, 0.1, 0.05, 0.02, 0.01], device=device)

    def lrelu(x: Tensor, b: Tensor) -> Tensor:
        return bias_act(x, b, act="lrelu", clamp=256)

    def after_conv(x: Tensor) -> Tensor:
        return upfirdn2d(x, f, padding=1, gain=4)

    def alias_free(x: Tensor, b: Tensor) -> Tensor:
        return filtered_lrelu.filtered_lrelu(
            x, low_pass, low_pass, b, up=2, down=2, padding=[11, 10, 11, 10], clamp=256
        )

    for pixels, (channels, images) in sizes.items():
        shape = (images, channels, pixels, pixels)
        yield Layer("bias_act lrelu", lrelu, shape, bias=True, reads_x=True)
        yield Layer("upfirdn2d after conv", after_conv, (images, channels, pixels + 1, pixels + 1))
        yield Layer(
            "upfirdn2d after conv, NHWC", after_conv, (images, channels, pixels + 1, pixels + 1), channels_last=True
        )
        yield Layer("upsample2d", lambda x: upsample2d(x, f), (images, channels, pixels // 2, pixels // 2))
        yield Layer("downsample2d", lambda x: downsample2d(x, f), shape)
        yield Layer("filtered_lrelu", alias_free, shape, bias=True, reads_x=True)


def inputs_of(layer: Layer, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Random numbers."""
    x = torch.randn(layer.shape, device=device).to(dtype)
    if layer.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    inputs = [x, torch.randn(layer.shape[1], device=device).to(dtype)] if layer.bias else [x]
    return [tensor.requires_grad_() for tensor in inputs]


def error_of(layer: Layer, inputs: list[Tensor], dy: Tensor) -> float:
    """Root mean square difference of value and gradients from plain PyTorch in float64, over that of the numbers.

    Of value and gradients, the worse. The largest difference would be that of the few elements which rounding carries
    across a kink.
    """
    small = [t.detach()[:1] if t.ndim == 4 else t.detach() for t in inputs]

    def results(tensors: list[Tensor], gradient: Tensor) -> list[Tensor]:
        tensors = [t.clone().requires_grad_() for t in tensors]
        y = layer.op(*tensors)
        return [y.detach(), *torch.autograd.grad(y, tensors[:1], gradient)]

    found = results(small, dy[:1])
    with dispatch.temporary_mode("off"):
        expected = results([t.double() for t in small], dy[:1].double())
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))


def measure(layer: Layer, dtype_name: str, setting: Setting, clock: DeviceClock, copy: float, rounds: int) -> None:
    """Record a layer, forward and forward and backward."""
    inputs = inputs_of(layer, DTYPES[dtype_name], setting.device)
    dispatch.set_mode("on")
    y = layer.op(*inputs).detach()
    dy = torch.randn_like(y)
    x_bytes, y_bytes = inputs[0].nbytes, y.nbytes
    del y

    def forward() -> None:
        with torch.no_grad():
            layer.op(*inputs)

    def both() -> None:
        torch.autograd.grad(layer.op(*inputs), inputs, dy)

    row: dict[str, Any] = {"layer": layer.name, "dtype": dtype_name, "shape": list(layer.shape), "copy": copy}
    row["error"] = error_of(layer, inputs, dy)
    sizes = {"forward": x_bytes + y_bytes, "both": 2 * (x_bytes + y_bytes) + layer.reads_x * x_bytes}
    for name, run in (("forward", forward), ("both", both)):
        seconds = {}
        for mode in ("on", "off"):
            with dispatch.temporary_mode(mode):
                seconds[mode] = clock.median(run, rounds)
        row[name] = {"kernel": seconds["on"], "plain": seconds["off"], "bytes": sizes[name]}
    setting.emit("kernel", **row)


def calls(setting: Setting) -> None:
    """Record what a call costs Python, on tensors so small that nothing else does."""
    device = setting.device
    f = setup_filter([1, 3, 3, 1], device=device)
    x, b = torch.randn(1, 2, 4, 4, device=device), torch.randn(2, device=device)
    runs: dict[str, Callable[[], Tensor]] = {
        "bias_act": lambda: bias_act(x, b, act="lrelu", clamp=256),
        "upfirdn2d": lambda: upsample2d(x, f),
    }
    for name, run in runs.items():
        seconds = {}
        for mode in ("on", "off"):
            with dispatch.temporary_mode(mode):
                wall(run, device, 10)
                seconds[mode] = wall(run, device, 10 if setting.rehearse else CALLS)
        setting.emit("call", op=name, kernel=seconds["on"], plain=seconds["off"])


def fused(setting: Setting) -> None:
    """Record how much faster modulated convolutions are with weights of each sample than with scaled images."""
    torch.backends.cudnn.benchmark = True  # as a run has it
    resolutions, batches = ((8,), (2,)) if setting.rehearse else ((8, 32, 128), (1, 8, 64))
    for training, kind, resolution, batch in itertools.product((False, True), KINDS, resolutions, batches):
        with setting.section(f"modulated_conv2d {kind}, {resolution} pixels, {batch} images"):
            rounds = 1 if setting.rehearse else 3
            ratio = fused_speedup(setting.device.type, training, kind, resolution, batch, rounds)
            mode = "training" if training else "inference"
            setting.emit("fused", mode=mode, layer=kind, resolution=resolution, batch=batch, ratio=ratio)


def main() -> None:
    setting, _ = Setting.from_arguments()
    sizes, rounds = (REHEARSED_SIZES, 1) if setting.rehearse else (SIZES, 10)
    clock = DeviceClock(setting.device, 1 << 20 if setting.rehearse else 1 << 30)
    copy = copy_bandwidth(setting.device, 1 << 20 if setting.rehearse else 1 << 31)
    with torch.device(setting.device):
        for layer in layers(sizes, setting.device):
            for dtype in DTYPES:
                with setting.section(f"{layer.name} {list(layer.shape)} {dtype}"):
                    measure(layer, dtype, setting, clock, copy, rounds)
        with setting.section("calls"):
            calls(setting)
    dispatch.set_mode("on")
    fused(setting)


if __name__ == "__main__":
    main()
