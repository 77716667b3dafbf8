"""The raw operators on CUDA: which kernel of csrc/cuda to launch on how many threads, and the launch.

Planning is pure arithmetic, and tensors on the CPU are given to the simulator (see `simulator`), so that all of this
runs without a GPU, except for PyTorch's streams. The operators check nothing that the public functions have checked.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from stylegan_ops import build
from stylegan_ops.backends import packing
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
    """Part of the result that a block of a tiled upfirdn2d kernel computes; template arguments in csrc/cuda/kernels.cu.

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
        order: Order of derivative, as in `packing`.
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
        ValueError: If an image is so large that its rows or columns could not be counted in 32 bits.
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
    """One way to compute upfirdn2d in tiles.

    Attributes:
        launch: Launch of the kernel.
        work: Pixels that all blocks together read and write, also where they overlap or reach beyond the images.
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
    """Compile the kernels for a GPU, and load them onto it, if that has not been done; launches then find them.

    Raises:
        BuildError: If they cannot be compiled.
        DriverError: If the driver cannot load them.
    """
    _device_kernels(_index(device))


def launch(plan: Launch, args: bytes, device: torch.device) -> None:
    """Launch a kernel on a GPU, in PyTorch's current stream, or run it in the simulator if the device is the CPU.

    Args:
        plan: Plan of the launch.
        args: The packed arguments, whose tensors lie on the device and outlive what uses them there, as PyTorch's
            allocator takes care of.
        device: Device to launch on.

    Raises:
        DriverError: If the driver cannot launch it, perhaps because an earlier kernel failed.
        SimulatorError: If the simulator cannot launch it.
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
