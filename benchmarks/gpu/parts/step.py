"""Part 3: a step at three sizes, by precision and option, with the plain recipe beside it.

    python -m benchmarks.gpu.parts.step WHAT --out=DIR --seconds=S

WHAT is a pair, `compiled` for what torch.compile takes long to prepare, or `all`. What an earlier process of the same
run has begun is left out, so that a variant that ends the process is not tried again.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from benchmarks.gpu.setting import Setting, wall
from benchmarks.speed.baseline_step import Baseline
from benchmarks.speed.steps import PUBLISHED, Size, estimated_memory, gflop, make_trainer, networks, pair_of_modules
from refine.errors import UserError
from refine.metrics.batch_size import is_out_of_memory
from refine.pair.pair import Pair

CIFAR, FFHQ, LARGE = "CIFAR-10", "FFHQ-64", "FFHQ-1024 with 64"
REHEARSED = {
    CIFAR: Size(8, 10, 3, (16, 2, 64, 8), (8, (1, 2), 1), 4, attention=(8,)),
    FFHQ: Size(16, 0, 3, (16, 2, 64, 8), (8, (1, 2), 1), 4),
    LARGE: Size(32, 0, 3, (16, 2, 64, 8), (8, (1, 2), 1), 4, teacher_resolution=16),
}
ENOUGH_SECONDS, MOST_STEPS, FEWEST_STEPS = 2.5, 20, 3
SECONDS_TO_BEGIN = 3.0  # that have to be left
COMPILED = "compiled"


class Variant(NamedTuple):
    """A way to take a step.

    Attributes:
        options: Options of a run that differ from the defaults.
        plain: Whether it is the plain recipe instead of Refine.
        tf32: Whether float32 products of convolutions are TF32: PyTorch's switch, set after the trainer is made;
            None: as Refine sets it. The plain recipe's matrix products follow it.
        autocast: Whether a plain step runs under bf16 autocast as a whole.
    """

    options: dict[str, Any] = {}  # noqa: RUF012
    plain: bool = False
    tf32: bool | None = None
    autocast: bool = False


BF16 = {"precision": "bf16"}
VARIANTS: dict[str, Variant] = {  # the most wanted first
    "bf16": Variant(BF16),
    "plain recipe, fp32": Variant(plain=True, tf32=False),
    "plain recipe, TF32": Variant(plain=True, tf32=True),
    "plain recipe, bf16": Variant(plain=True, tf32=True, autocast=True),
    "fp32": Variant({"precision": "fp32"}),
    "TF32": Variant({"precision": "fp32"}, tf32=True),
    "fp16": Variant({"precision": "fp16"}),
    "bf16, --share-forward": Variant(BF16 | {"share_forward": True}),
    "bf16, --share-unet": Variant(BF16 | {"share_unet": True}),
    "bf16, --checkpoint": Variant(BF16 | {"checkpoint": True}),
    "bf16, --cuda-graphs": Variant(BF16 | {"cuda_graphs": True}),
    "bf16, --objective=sid": Variant(BF16 | {"objective": "sid"}),
}
COMPILED_VARIANTS = {  # of the first pair: minutes, for some eighty kinds of block
    "bf16, --compile": Variant(BF16 | {"compile": True}),
    "bf16, --compile --cuda-graphs": Variant(BF16 | {"compile": True, "cuda_graphs": True}),
}
FEW = ("bf16", "plain recipe, fp32", "bf16, --checkpoint")  # rehearsed with every pair


class Timed(NamedTuple):
    """Measurements of a step.

    Attributes:
        seconds: Median of a step, until the device is done.
        first_seconds: The first two steps, with whatever is built, searched or compiled for them.
        steps: Steps in the median.
        peak_bytes: Largest memory of tensors, without the networks that all variants are copied from; None on a CPU.
    """

    seconds: float
    first_seconds: float
    steps: int
    peak_bytes: int | None


def time_step(step: Callable[[], object], setting: Setting, held: int) -> Timed:
    """Take two steps, then more of them for some seconds; `held` bytes are not the step's."""
    device, cuda = setting.device, setting.device.type == "cuda"
    first = wall(step, device) + wall(step, device)
    times: list[float] = []
    fewest, most = (1, 1) if setting.rehearse else (FEWEST_STEPS, MOST_STEPS)
    while len(times) < fewest or (len(times) < most and sum(times) < ENOUGH_SECONDS):
        times.append(wall(step, device))
    peak = torch.cuda.max_memory_allocated(device) - held if cuda else None
    return Timed(statistics.median(times), first, len(times), peak)


def memory_in_use(device: torch.device) -> int:
    """Bytes of tensors on a GPU, from where the peak is counted again; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def sizes_to_try(batch: int) -> Iterator[int]:
    """The batch, its half, and so on."""
    while batch:
        yield batch
        batch //= 2


@contextlib.contextmanager
def tf32(on: bool | None, matmul: bool) -> Iterator[None]:
    """PyTorch's switches for TF32, as they were before behind it."""
    places: list[Any] = [torch.backends.cudnn, torch.backends.cuda.matmul]
    before = [place.allow_tf32 for place in places]
    try:
        if on is not None:
            places[0].allow_tf32 = on
            if matmul:
                places[1].allow_tf32 = on
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value


def free(device: torch.device) -> None:
    """Give memory of what is no longer used back."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def make_step(variant: Variant, pair: Pair, batch: int, at_once: int) -> Callable[[], object]:
    """The step; Refine's with the whole batch in parts of `at_once`, the plain one's batch is `at_once`."""
    device = next(pair.teacher.module.parameters()).device
    if not variant.plain:
        return make_trainer(pair, device, batch=batch, batch_gpu=at_once, **variant.options).step
    recipe = Baseline(copy.deepcopy(pair.generator.module), copy.deepcopy(pair.teacher.module), at_once)
    if variant.autocast:  # each update by itself, since casts of weights are kept until a context ends
        under = torch.autocast(device.type, dtype=torch.bfloat16)
        recipe.fit_fake, recipe.move_generator = under(recipe.fit_fake), under(recipe.move_generator)  # type: ignore[method-assign]
    return recipe.step


def measure(pair: str, loaded: Pair, batch: int, name: str, setting: Setting, largest: int) -> int:
    """Record a variant with the largest part of the batch that memory holds; returns that."""
    variant, device = (VARIANTS | COMPILED_VARIANTS)[name], setting.device
    for at_once in sizes_to_try(largest):
        step: Callable[[], object] | None = None
        held = memory_in_use(device)
        try:
            with contextlib.ExitStack() as stack:
                if variant.options.get("compile") and setting.rehearse:
                    stack.enter_context(without_compiler())
                # Making the trainer sets PyTorch's switches; they are put back at the end.
                stack.enter_context(tf32(None, matmul=True))
                step = make_step(variant, loaded, batch, at_once)
                stack.enter_context(tf32(variant.tf32, matmul=variant.plain))
                timed = time_step(step, setting, held)
                images = at_once if variant.plain else batch
                row = {"pair": pair, "variant": name, "images": images, "at_once": at_once, **timed._asdict()}
                setting.emit("step", **row)
                if name == "bf16":
                    setting.emit("flop", pair=pair, per_image=gflop(step) * 1e9 / images)
                if name == "bf16" and (pair == CIFAR or not setting.rehearse):
                    hot(pair, step, setting)
            return at_once
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            print(f"{pair}, {name}: out of memory with {at_once} images at once", flush=True)
        finally:
            del step
            free(device)
    setting.emit("step", pair=pair, variant=name, problem="out of memory with one image")
    return largest


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """Has torch.compile leave functions as they are: inductor takes minutes on a CPU."""
    original = torch.compile
    torch.compile = lambda function, **options: function  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = original


def hot(pair: str, step: Callable[[], object], setting: Setting, count: int = 15) -> None:
    """Record the kernels that take most of a step."""
    cuda = setting.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU]
    if cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        wall(step, setting.device)

    def microseconds(entry: Any) -> float:
        return entry.self_device_time_total if cuda else entry.self_cpu_time_total

    # On a GPU the kernels alone, not what launched them nor names that stretches of code were given.
    entries = [
        entry
        for entry in profile.key_averages()
        if not getattr(entry, "is_user_annotation", False)
        and (not cuda or entry.device_type == torch.autograd.DeviceType.CUDA)
    ]
    entries.sort(key=microseconds, reverse=True)
    total = sum(map(microseconds, entries))
    rows = [[entry.key[:100], entry.count, round(microseconds(entry) / 1e3, 3)] for entry in entries[:count]]
    setting.emit("hot", pair=pair, total_ms=total / 1e3, kernels=rows)


def names_of(setting: Setting, pair: str, compiled: bool) -> list[str]:
    """Variants to measure that no earlier process began."""
    begun = {row["variant"] for row in setting.done("begin") if row["pair"] == pair}
    few = FEW if setting.rehearse and pair != CIFAR else tuple(VARIANTS)
    return [name for name in (COMPILED_VARIANTS if compiled else few) if name not in begun]


def estimate(pair: str, size: Size, setting: Setting, at_once: int) -> None:
    """Record what the dry run says of memory."""
    setting.emit("estimate", pair=pair, at_once=at_once, bytes=estimated_memory(size, batch_gpu=at_once, **BF16))


def measure_pair(pair: str, setting: Setting, seconds: float, compiled: bool = False) -> None:
    """Record all variants of a pair for which there is time."""
    size = (REHEARSED if setting.rehearse else PUBLISHED)[pair]
    until, largest = time.monotonic() + seconds, size.batch
    loaded = pair_of_modules(*(network.to(setting.device) for network in networks(size)))
    for row in setting.done("step"):
        if row["pair"] == pair and row["variant"] == "bf16":
            largest = row.get("at_once", largest)
    for name in names_of(setting, pair, compiled):
        if until - time.monotonic() < SECONDS_TO_BEGIN:
            setting.emit("step", pair=pair, variant=name, problem="no time left")
            continue
        setting.emit("begin", pair=pair, variant=name)
        with setting.section(f"{pair}, {name}"):
            try:
                found = measure(pair, loaded, size.batch, name, setting, largest)
            except UserError as error:  # an objective or option that this version does not have
                setting.emit("step", pair=pair, variant=name, problem=str(error))
                continue
            if name == "bf16":
                largest = found
                with setting.section(f"{pair}, estimate"):
                    estimate(pair, size, setting, found)
        if setting.device.type == "cuda":
            try:
                torch.cuda.synchronize()
            except RuntimeError:  # every later call would fail: a new process goes on
                sys.exit(3)


def main() -> None:
    setting, options = Setting.from_arguments(what=str)
    works = [(options.what, False)]
    if options.what == COMPILED:
        works = [(CIFAR, True)]
    elif options.what == "all":
        works = [*((pair, False) for pair in PUBLISHED), (CIFAR, True)]
    for index, (pair, compiled) in enumerate(works):
        measure_pair(pair, setting, setting.left / (len(works) - index) - 1, compiled)


if __name__ == "__main__":
    main()
