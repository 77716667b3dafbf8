"""The raw operators on CUDA: a plan for each launch of a kernel of csrc/cuda, and the launch.

Planning is pure arithmetic, and the simulator (see `simulator`) takes tensors on the CPU, so that everything here but
PyTorch's streams runs without a GPU. The operators rely on the checks of the public functions.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stylegan_ops import build
from stylegan_ops.backends import packing, pytorch
from stylegan_ops.backends.driver import DeviceKernels, Driver
from stylegan_ops.backends.simulator import Simulator

BLOCK = 256  # Threads; csrc/cuda/common.cuh has the same number.
MAX_BLOCKS = 2**31 - 1
BLOCKS_ENOUGH = 2**20  # With this many, threads of kernels without tiles go over several elements each.
MAX_EXTENT = 2**30  # Rows and columns are counted in 32 bits.
ACCESS_BYTES = 16
TWO_PASS_TAPS = 8  # From here on a filter for both axes is applied in two passes.

_DTYPE_NAMES = {torch.float64: "f64", torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
_ORDER_NAMES = {packing.VALUE: "bias_act", packing.GRAD: "bias_act_grad", packing.GRAD2: "bias_act_grad2"}


@dataclass(frozen=True)
class Launch:
    """Launch of a kernel.

    Attributes:
        kernel: Name of the kernel.
        grid: Blocks along x, y and z.
        block: Threads of a block along x, y and z.
        shared_bytes: Size of the dynamic shared memory.
    """

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int


@dataclass(frozen=True)
class Tile:
    """Part of the result that a block of a tiled upfirdn2d kernel computes, as csrc/cuda/kernels.cu has it.

    Attributes:
        variant: End of the kernel's name.
        planes: Depth of the tile; each channel of each image is a plane.
        patch_rows: Patches of a plane from top to bottom.
        patch_columns: Patches of a plane from left to right.
        patch_height: Rows of a patch, which one thread computes at once.
        patch_width: Columns of a patch.
    """

    variant: str
    planes: int
    patch_rows: int
    patch_columns: int
    patch_height: int
    patch_width: int

    @property
    def height(self) -> int:
        """Rows of the result."""
        return self.patch_rows * self.patch_height

    @property
    def width(self) -> int:
        """Columns of the result."""
        return self.patch_columns * self.patch_width


# (up, down, taps) -> tiles; the last is for channels_last, the others for NCHW.
TILES = {
    (1, 1, 4): (Tile("large", 1, 8, 32, 4, 1), Tile("small", 4, 4, 16, 4, 1), Tile("nhwc", 32, 2, 8, 4, 1)),
    (2, 1, 4): (Tile("large", 1, 16, 32, 2, 2), Tile("small", 8, 8, 8, 2, 2), Tile("nhwc", 32, 4, 4, 2, 2)),
    (1, 2, 4): (Tile("large", 1, 8, 32, 2, 1), Tile("small", 8, 4, 8, 2, 1), Tile("nhwc", 32, 2, 4, 2, 1)),
}


@functools.lru_cache(maxsize=1024)
def plan_bias_act(order: int, dtype: torch.dtype, numel: int) -> Launch:
    """Plan `bias_act` (order VALUE), `bias_act_grad` (GRAD) or `bias_act_grad2` (GRAD2) of a tensor.

    Args:
        order: `packing.VALUE`, `GRAD` or `GRAD2`.
        dtype: Dtype of all tensors.
        numel: Number of elements, at least 1 and below 2^63.
    """
    per_thread = ACCESS_BYTES // dtype.itemsize
    blocks = min(-(-numel // (per_thread * BLOCK)), BLOCKS_ENOUGH)
    return Launch(f"{_ORDER_NAMES[order]}_{_DTYPE_NAMES[dtype]}", (blocks, 1, 1), (BLOCK, 1, 1), 0)


@functools.lru_cache(maxsize=1024)
def plan_upfirdn2d(
    dtype: torch.dtype,
    channels_last: bool,
    batch: int,
    channels: int,
    x_height: int,
    x_width: int,
    y_height: int,
    y_width: int,
    taps_y: int,
    taps_x: int,
    up_x: int,
    up_y: int,
    down_x: int,
    down_y: int,
    pad_x0: int,
    pad_y0: int,
) -> Launch:
    """Plan `upfirdn2d` by a 2-D filter. All sizes are at least 1.

    Raises:
        ValueError: An image is too large to count its rows or columns in 32 bits.
    """
    extent = max(
        x_width * up_x, x_height * up_y, y_width * down_x, y_height * down_y, abs(pad_x0), abs(pad_y0), taps_x, taps_y
    )
    if extent >= MAX_EXTENT:
        raise ValueError(f"upfirdn2d on CUDA takes up to 2^30 rows and columns, padding included, not {extent}")
    if up_x == up_y and down_x == down_y and taps_x == taps_y and (up_x, down_x, taps_x) in TILES:
        *planar, interleaved = TILES[up_x, down_x, taps_x]
        plans = [
            plan_tiles(dtype, tile, up_x, down_x, taps_x, batch * channels, y_height, y_width, pad_x0, pad_y0)
            for tile in ([interleaved] if channels_last else planar)
        ]
        best = min(plans, key=lambda plan: plan.work).launch
        if best.grid[0] <= MAX_BLOCKS:
            return best
    blocks = min(-(-batch * channels * y_height * y_width // BLOCK), BLOCKS_ENOUGH)
    return Launch(f"upfirdn2d_{_DTYPE_NAMES[dtype]}", (blocks, 1, 1), (BLOCK, 1, 1), 0)


@dataclass(frozen=True)
class TiledPlan:
    """A way to compute upfirdn2d in tiles.

    Attributes:
        launch: Launch of the kernel.
        work: Pixels that all blocks read and write, including overlaps and what lies beyond the images.
    """

    launch: Launch
    work: int


def plan_tiles(
    dtype: torch.dtype,
    tile: Tile,
    up: int,
    down: int,
    taps: int,
    planes: int,
    y_height: int,
    y_width: int,
    pad_x0: int,
    pad_y0: int,
) -> TiledPlan:
    """Plan `upfirdn2d` by a kernel with given tiles; `planes` are channels times images."""
    # Tiles begin where a tap meets a pixel of x, which may be before y begins.
    tiles_x = -(-(y_width + -pad_x0 % up) // tile.width)
    tiles_y = -(-(y_height + -pad_y0 % up) // tile.height)
    blocks = tiles_x * tiles_y * -(-planes // tile.planes)
    x_height = ((tile.height - 1) * down + taps - 1) // up + 1
    x_width = ((tile.width - 1) * down + taps - 1) // up + 1
    pixels = tile.planes * x_height * x_width
    # The taps, then the pixels, in the type that they are computed in.
    shared_bytes = (taps * taps + pixels) * max(dtype.itemsize, torch.float32.itemsize)
    kernel = f"upfirdn2d_{_DTYPE_NAMES[dtype]}_u{up}_d{down}_{taps}x{taps}_{tile.variant}"
    launch = Launch(kernel, (blocks, 1, 1), (BLOCK, 1, 1), shared_bytes)
    return TiledPlan(launch, blocks * (pixels + tile.planes * tile.height * tile.width))


@functools.cache
def _driver() -> Driver:
    return Driver()


@functools.cache
def _device_kernels(device: int) -> DeviceKernels:
    major, minor = torch.cuda.get_device_capability(device)
    return _driver().load(device, build.cuda_image(f"sm_{major}{minor}").read_bytes())


@functools.cache
def _simulator() -> Simulator:
    return Simulator(build.sim_library())


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def load(device: torch.device) -> None:
    """Compile the kernels for a GPU and load them onto it, unless that has been done.

    Raises:
        BuildError: They cannot be compiled.
        DriverError: The driver cannot load them.
    """
    _device_kernels(_index(device))


def launch(plan: Launch, args: bytes, device: torch.device) -> None:
    """Launch a kernel on a GPU, in PyTorch's current stream, or run it in the simulator if the device is the CPU.

    Args:
        plan: Launch of the kernel.
        args: Packed arguments. Their tensors lie on the device, where PyTorch's allocator keeps them long enough.
        device: Device of the tensors.

    Raises:
        DriverError: The driver cannot launch it, perhaps because an earlier kernel failed.
        SimulatorError: The simulator cannot run it.
    """
    if device.type == "cpu":
        _simulator().launch(plan.kernel, plan.grid, plan.block, plan.shared_bytes, args)
        return
    index = _index(device)
    stream = torch.cuda.current_stream(index).cuda_stream
    _device_kernels(index).launch(plan.kernel, plan.grid, plan.block, plan.shared_bytes, args, stream)


def _bias_act(
    order: int,
    ddx: Tensor | None,
    dy: Tensor | None,
    x: Tensor,
    b: Tensor | None,
    dim: int,
    act: int,
    alpha: float,
    gain: float,
    clamp: float,
) -> Tensor:
    x = packing.dense(x)
    dy = None if dy is None else packing.dense_like(dy, x)
    ddx = None if ddx is None else packing.dense_like(ddx, x)
    b = None if b is None else b.to(x.dtype).contiguous()
    out = torch.empty_like(x)
    if x.numel():
        args = packing.bias_act_args(order, out, x, b, dy, ddx, dim, act, alpha, gain, clamp)
        launch(plan_bias_act(order, x.dtype, x.numel()), args, x.device)
    return out


def bias_act(x: Tensor, b: Tensor | None, dim: int, act: int, alpha: float, gain: float, clamp: float) -> Tensor:
    """Compute clamp(gain * act(x + b)); `act` is an index into `packing.ACTS`, a negative clamp is none."""
    return _bias_act(packing.VALUE, None, None, x, b, dim, act, alpha, gain, clamp)


def bias_act_grad(
    dy: Tensor, x: Tensor, b: Tensor | None, dim: int, act: int, alpha: float, gain: float, clamp: float
) -> Tensor:
    """Compute dy * gain * act'(x + b), zero where the clamp holds."""
    return _bias_act(packing.GRAD, None, dy, x, b, dim, act, alpha, gain, clamp)


def bias_act_grad2(
    ddx: Tensor,
    dy: Tensor,
    x: Tensor,
    b: Tensor | None,
    dim: int,
    act: int,
    alpha: float,
    gain: float,
    clamp: float,
) -> Tensor:
    """Compute ddx * dy * gain * act''(x + b), zero where the clamp holds."""
    return _bias_act(packing.GRAD2, ddx, dy, x, b, dim, act, alpha, gain, clamp)


def upfirdn2d(
    x: Tensor,
    f: Tensor,
    up_x: int,
    up_y: int,
    down_x: int,
    down_y: int,
    pad_x0: int,
    pad_x1: int,
    pad_y0: int,
    pad_y1: int,
    flip: bool,
    gain: float,
) -> Tensor:
    """Upsample, pad, filter and downsample images; `f` is a filter [height, width], or [taps] for both axes."""
    if f.ndim == 1:
        # Two passes multiply less often than one, but move more memory, and would round half precision once more;
        # the product of taps would not be exact enough for double precision.
        if x.dtype.itemsize == 2 or (x.dtype == torch.float32 and len(f) < TWO_PASS_TAPS):
            f = torch.outer(f, f)
        else:
            x = upfirdn2d(x, f[None, :], up_x, 1, down_x, 1, pad_x0, pad_x1, 0, 0, flip, 1.0)
            return upfirdn2d(x, f[:, None], 1, up_y, 1, down_y, 0, 0, pad_y0, pad_y1, flip, gain)
    x = packing.dense(x)
    f = f.to(x.device, torch.float32).contiguous()
    (batch, channels, x_height, x_width), (taps_y, taps_x) = x.shape, f.shape
    y_height = packing.upfirdn2d_size(x_height, taps_y, up_y, down_y, pad_y0, pad_y1)
    y_width = packing.upfirdn2d_size(x_width, taps_x, up_x, down_x, pad_x0, pad_x1)
    channels_last = packing.is_channels_last(x)
    y = torch.empty(
        (batch, channels, y_height, y_width),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )
    if y.numel():
        plan = plan_upfirdn2d(
            x.dtype,
            channels_last,
            batch,
            channels,
            x_height,
            x_width,
            y_height,
            y_width,
            taps_y,
            taps_x,
            up_x,
            up_y,
            down_x,
            down_y,
            pad_x0,
            pad_y0,
        )
        args = packing.upfirdn2d_args(y, x, f, up_x, up_y, down_x, down_y, pad_x0, pad_y0, flip, gain)
        launch(plan, args, x.device)
    return y


# --- filtered_lrelu

SHARED_BYTES = 48 * 1024  # That a block can have on every GPU.
FILTERED_LRELU_TILES = ((32, 32), (16, 32), (16, 16), (8, 16), (8, 8), (4, 8), (4, 4), (2, 2), (1, 1))


def shared_values(tile: tuple[int, int], halves: Sequence[packing.Half], has_signal: bool) -> int:
    """Count the numbers that a block of filtered_lrelu's kernel keeps: those of csrc/cuda/filtered_lrelu.cuh.

    Args:
        tile: Rows and columns of the result that the block computes.
        halves: Result of `packing.FilteredLrelu.resamplings`.
        has_signal: Whether there is a second input.
    """
    x_up, signal_up, down = halves
    height, width = (
        (n - 1) * down.factor + taps for n, taps in zip(tile, (down.shape[0], down.shape[-1]), strict=True)
    )
    memory = height * tile[1] if len(down.shape) == 1 else 0
    for half in (x_up, signal_up) if has_signal else (x_up,):
        rows, columns = (
            (count + taps - 2) // half.factor + 1 for count, taps in ((height, half.shape[0]), (width, half.shape[-1]))
        )
        memory = max(memory, rows * columns + (rows * width if len(half.shape) == 1 else 0))
    return height * width + memory


@functools.lru_cache(maxsize=1024)
def plan_filtered_lrelu(
    order: int, dtype: torch.dtype, call: packing.FilteredLrelu
) -> tuple[Launch, tuple[int, int]] | None:
    """Plan `filtered_lrelu` (order FILTERED_LRELU) or a derivative; None if its filters do not fit into a block.

    Args:
        order: `packing.FILTERED_LRELU`, `FILTERED_LRELU_GRAD` or `FILTERED_LRELU_TANGENT`.
        dtype: Dtype of all images.
        call: Shapes and options.

    Returns:
        Launch, and the tile that a block computes.
    """
    halves, has_signal = call.resamplings(order), order != packing.FILTERED_LRELU
    height, width = halves[2].size
    planes = call.x_shape[0] * call.x_shape[1]
    itemsize = max(dtype.itemsize, torch.float32.itemsize)
    best: tuple[int, Launch, tuple[int, int]] | None = None
    for tile in FILTERED_LRELU_TILES:
        shared = shared_values(tile, halves, has_signal)
        blocks = -(-height // tile[0]) * -(-width // tile[1]) * planes
        if shared * itemsize > SHARED_BYTES or blocks > MAX_BLOCKS:
            continue
        launch = Launch(f"filtered_lrelu_{_DTYPE_NAMES[dtype]}", (blocks, 1, 1), (BLOCK, 1, 1), shared * itemsize)
        if best is None or blocks * shared < best[0]:
            best = (blocks * shared, launch, tile)
    extents = [
        side * half.factor + abs(pad) for half in halves for side in half.size for pad in (half.pad_x, half.pad_y)
    ]
    return None if best is None or max(extents) >= MAX_EXTENT else best[1:]


def _run_filtered_lrelu(
    order: int, signal: Tensor | None, x: Tensor, fu: Tensor, fd: Tensor, b: Tensor | None, *options: Any
) -> Tensor:
    up, down, left, right, top, bottom, gain, slope, clamp, flip = options
    call = packing.FilteredLrelu(
        x.shape, fu.shape, fd.shape, up, down, (left, right, top, bottom), gain, slope, clamp, flip
    )
    y = x.new_empty(call.x_shape if order == packing.FILTERED_LRELU_GRAD else call.y_shape)
    if y.numel() == 0:
        return y
    plan = plan_filtered_lrelu(order, x.dtype, call)
    if plan is None:
        name = ("filtered_lrelu", "filtered_lrelu_grad", "filtered_lrelu_tangent")[order]
        tensors = (x, fu, fd, b) if signal is None else (signal, x, fu, fd, b)
        result: Tensor = getattr(pytorch, name)(*tensors, *options)
        return result
    x = x.contiguous()
    filters = {"fu": fu.to(x.device, torch.float32).contiguous(), "fd": fd.to(x.device, torch.float32).contiguous()}
    b = None if b is None else b.to(x.dtype).contiguous()
    signal = None if signal is None else signal.to(x.dtype).contiguous()
    how, tile = plan
    launch(how, packing.filtered_lrelu_args(order, y, x, b, signal, filters, call, 1, tile), x.device)
    return y


def filtered_lrelu(
    x: Tensor,
    fu: Tensor,
    fd: Tensor,
    b: Tensor | None,
    up: int,
    down: int,
    pad_x0: int,
    pad_x1: int,
    pad_y0: int,
    pad_y1: int,
    gain: float,
    slope: float,
    clamp: float,
    flip: bool,
) -> Tensor:
    """Upsample x + b by `fu`, apply clamp(gain * lrelu), downsample by `fd`."""
    options = (up, down, pad_x0, pad_x1, pad_y0, pad_y1, gain, slope, clamp, flip)
    return _run_filtered_lrelu(packing.FILTERED_LRELU, None, x, fu, fd, b, *options)


def filtered_lrelu_grad(
    dy: Tensor,
    x: Tensor,
    fu: Tensor,
    fd: Tensor,
    b: Tensor | None,
    up: int,
    down: int,
    pad_x0: int,
    pad_x1: int,
    pad_y0: int,
    pad_y1: int,
    gain: float,
    slope: float,
    clamp: float,
    flip: bool,
) -> Tensor:
    """Map the gradient of the result of `filtered_lrelu` to that of x."""
    options = (up, down, pad_x0, pad_x1, pad_y0, pad_y1, gain, slope, clamp, flip)
    return _run_filtered_lrelu(packing.FILTERED_LRELU_GRAD, dy, x, fu, fd, b, *options)


def filtered_lrelu_tangent(
    dx: Tensor,
    x: Tensor,
    fu: Tensor,
    fd: Tensor,
    b: Tensor | None,
    up: int,
    down: int,
    pad_x0: int,
    pad_x1: int,
    pad_y0: int,
    pad_y1: int,
    gain: float,
    slope: float,
    clamp: float,
    flip: bool,
) -> Tensor:
    """Map a change of x to that of the result of `filtered_lrelu`, to first order."""
    options = (up, down, pad_x0, pad_x1, pad_y0, pad_y1, gain, slope, clamp, flip)
    return _run_filtered_lrelu(packing.FILTERED_LRELU_TANGENT, dx, x, fu, fd, b, *options)
