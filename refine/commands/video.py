"""Videos of generators: from image to image, and from one generator to another."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from refine.commands.blend import blendable, interpolate
from refine.commands.generate import Input, Settings, columns_of, draw
from refine.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from refine.networks.loading import LoadedNetwork

SMALLEST_SIDE = 256  # pixels of a frame; smaller images are enlarged by a whole factor
MAX_SIDE = 4096


def require_ffmpeg() -> None:
    """Checks that the package which brings ffmpeg is installed.

    Raises:
        UserError: The package is missing.
    """
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise UserError("--video needs the package imageio-ffmpeg: python -m pip install imageio-ffmpeg")


def between_inputs(generator: Any, inputs: list[Input], frames: int, settings: Settings) -> Iterator[np.ndarray]:
    """Frames uint8 [H, W, C] from each input to the next, and from the last one to the first.

    Latents move on great circles, since those of a normal distribution lie near a sphere; labels and w on straight
    lines. The motion is slowest at the inputs, and each of them is a frame.

    Raises:
        UserError: There are fewer than two inputs.
    """
    if len(inputs) < 2:
        raise UserError(
            "--video goes from image to image: give at least two --seeds, or another generator to --compare."
        )
    ways = zip(inputs, [*inputs[1:], inputs[0]], strict=True)
    steps = [_eased(index / frames) for index in range(frames)]
    return (_frame([draw(generator, _between(*way, t), settings)]) for way in ways for t in steps)


def between_generators(
    origin: LoadedNetwork, refined: LoadedNetwork, inputs: list[Input], frames: int, settings: Settings
) -> Iterator[np.ndarray]:
    """Frames uint8 [H, W, C] of all inputs in a grid, while the weights go from one generator to the other and back.

    Raises:
        UserError: The generators are of different architectures.
    """
    weights = blendable(origin.pickle, refined.pickle)
    if refined.key not in weights:
        raise UserError(f"{origin.pickle.path} has no {refined.key}, as {refined.pickle.path} has: give one with both.")
    network: Any = refined.network
    there = [_eased(index / frames) for index in range(frames + 1)]

    def pictures() -> Iterator[np.ndarray]:
        for alpha in [*there, *there[-2:0:-1]]:
            network.load_state_dict(interpolate(*weights[refined.key], alpha))
            yield _frame([draw(network, each, settings) for each in inputs])

    return pictures()


def write_video(path: Path, frames: Iterator[np.ndarray], fps: int) -> int:
    """Writes frames as H.264 in MP4, complete or not at all; returns their number.

    Raises:
        UserError: The file cannot be written.
    """
    import imageio_ffmpeg
    from tqdm import tqdm

    first = next(frames)
    target = Path(os.path.realpath(path))
    temporary = target.parent / f".refine-{uuid4().hex}.mp4"
    height, width = first.shape[:2]
    count = 1
    try:
        writer = imageio_ffmpeg.write_frames(
            str(temporary), (width, height), fps=fps, codec="libx264", macro_block_size=1, ffmpeg_log_level="error",
            output_params=["-crf", "17", "-movflags", "+faststart"],
        )  # fmt: skip
        writer.send(None)
        try:
            writer.send(first)
            for frame in tqdm(frames, desc="video", unit="frame", disable=None):
                writer.send(np.ascontiguousarray(frame))
                count += 1
        finally:
            writer.close()
        if not temporary.is_file() or not temporary.stat().st_size:
            raise UserError(f"Cannot write {path} (ffmpeg wrote nothing): choose another disk or folder.")
        os.replace(temporary, target)
    except OSError as error:
        reason = error.strerror or (str(error).strip().splitlines() or ["unknown"])[-1]
        raise UserError(f"Cannot write {path} ({reason}): choose another disk or folder.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return count


def _eased(t: float) -> float:
    return (1 - math.cos(math.pi * t)) / 2


def _between(start: Input, end: Input, t: float) -> Input:
    ws = None if start.ws is None or end.ws is None else start.ws.lerp(end.ws, t)
    c = None if start.c is None or end.c is None else start.c.lerp(end.c, t)
    z = None if start.z is None or end.z is None else slerp(start.z, end.z, t)
    return Input(f"between {start.name} and {end.name}", start.seed, z, c, ws)


def slerp(start: Tensor, end: Tensor, t: float) -> Tensor:
    """A point between two latents [1, z_dim] on the great circle, its length between theirs; t in [0, 1]."""
    import torch

    lengths = [each.norm().clamp_min(1e-12) for each in (start, end)]
    one, other = start / lengths[0], end / lengths[1]
    angle = torch.acos((one * other).sum().clamp(-1, 1))
    if angle.sin() < 1e-4:  # the same direction, or opposite ones between which no circle is marked out
        return start.lerp(end, t)
    direction = (((1 - t) * angle).sin() * one + (t * angle).sin() * other) / angle.sin()
    return direction * lengths[0].lerp(lengths[1], t)


def _frame(images: list[Tensor]) -> np.ndarray:
    """Images [1, C, H, W] as one picture uint8 [H, W, 3] with even sides."""
    from refine.files.images import WHITE, enlarge, tile, to_picture

    pictures = [np.asarray(to_picture(image).convert("RGB")) for image in images]
    side = pictures[0].shape[0]
    columns = columns_of(len(pictures))
    factor = max(1, math.ceil(SMALLEST_SIDE / (columns * side)))
    reduce = max(1, math.ceil(columns * side / MAX_SIDE))
    if reduce > 1:
        pictures = [np.asarray(to_picture(image).convert("RGB").reduce(reduce)) for image in images]
    canvas = enlarge(tile(np.stack(pictures).transpose(0, 3, 1, 2), columns, fill=WHITE), factor)
    odd = [(0, size % 2) for size in canvas.shape[:2]]
    return np.pad(canvas, [*odd, (0, 0)], mode="edge")
