"""Networks with random weights, the trainer of a pair, and clocks: what all measurements of a step share.

The trainer is made here and nowhere else in `benchmarks`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from benchmarks.speed.baseline_step import Baseline
from refine.config import RunConfig, TrainingOptions
from refine.networks.edm import denoiser_from_init_kwargs
from refine.networks.preconditioned import as_denoiser
from refine.networks.style_based import as_generator
from refine.networks.stylegan2 import generator_from_init_kwargs
from refine.pair.bridge import make_bridge
from refine.pair.pair import Pair, load_pair
from refine.training import memory
from refine.training.profiling import Ceilings, Counter
from refine.training.trainer import Trainer


class Size(NamedTuple):
    """A pair of networks and the batch they are timed with.

    Attributes:
        resolution: Pixels of the generator's images.
        classes: Number of classes; 0 = unconditional.
        channels: Channels of the images.
        generator: Values of z_dim = w_dim, mapping layers, channel_base and channel_max.
        teacher: Values of model_channels, channel_mult and num_blocks.
        batch: Images per step.
        teacher_resolution: Pixels that the teacher sees; None: all.
        attention: Resolutions at which the teacher has attention.
    """

    resolution: int
    classes: int
    channels: int
    generator: tuple[int, int, int, int]
    teacher: tuple[int, tuple[int, ...], int]
    batch: int
    teacher_resolution: int | None = None
    attention: tuple[int, ...] = (16,)


PUBLISHED = {  # with the published batch of 128
    # StyleGAN2-ADA's `cifar` generator and EDM's DDPM++ for CIFAR-10.
    "CIFAR-10": Size(32, 10, 3, (512, 2, 32768, 512), (128, (2, 2, 2), 4), 128),
    # StyleGAN2 with channel_base 32768 and 8 mapping layers, and EDM's DDPM++ for FFHQ at 64 pixels.
    "FFHQ-64": Size(64, 0, 3, (512, 8, 32768, 512), (128, (1, 2, 2, 2), 4), 128),
    "FFHQ-1024 with 64": Size(1024, 0, 3, (512, 8, 32768, 512), (128, (1, 2, 2, 2), 4), 128, teacher_resolution=64),
}


def networks(size: Size) -> tuple[Any, Any]:
    """Generator and teacher of a size, with random weights, in eval mode on the CPU."""
    torch.manual_seed(0)
    latent, layers, channel_base, channel_max = size.generator
    generator = generator_from_init_kwargs(
        {
            "z_dim": latent,
            "c_dim": size.classes,
            "w_dim": latent,
            "img_resolution": size.resolution,
            "img_channels": size.channels,
            "mapping_kwargs": {"num_layers": layers},
            "synthesis_kwargs": {"channel_base": channel_base, "channel_max": channel_max, "conv_clamp": 256},
        },
        "ada",
    )
    width, mult, blocks = size.teacher
    teacher = denoiser_from_init_kwargs(
        "EDMPrecond",
        {
            "img_resolution": size.teacher_resolution or size.resolution,
            "img_channels": size.channels,
            "label_dim": size.classes,
            "model_type": "SongUNet",
            "model_channels": width,
            "channel_mult": list(mult),
            "num_blocks": blocks,
            "attn_resolutions": list(size.attention),
            "dropout": 0.13,
        },
    )
    return generator.eval(), teacher.eval()


def pair_of_modules(generator: Any, teacher: Any) -> Pair:
    """A pair of networks that come from no file."""
    networks = as_generator(generator), as_denoiser(teacher)
    return Pair(*networks, make_bridge(*networks))


def make_trainer(pair: Pair, device: torch.device, /, **options: Any) -> Trainer:
    """The trainer of a pair with the defaults of a run but for `options`; others than those of training do nothing."""
    config = RunConfig(**({"gan": "random", "teacher": "random"} | options))
    return Trainer(pair, config.section(TrainingOptions), device)


def estimated_memory(size: Size, **options: Any) -> int:
    """Bytes that the dry run counts and measures for a pair."""
    options = {"batch": size.batch} | options
    trainer = make_trainer(pair_of_modules(*networks(size)), torch.device("cpu"), **options)
    return memory.estimate_memory(trainer).total


def trainer_of_digits(device: torch.device, /, **options: Any) -> Trainer:
    """The trainer of the built-in pair."""
    return make_trainer(load_pair("digits", "edm-digits"), device, **options)


def baseline(size: Size, device: torch.device) -> Callable[[], object]:
    """The step of the released recipe, written out plainly."""
    generator, teacher = (network.to(device) for network in networks(size))
    return Baseline(generator, teacher, size.batch).step


def shipped(size: Size, device: torch.device, **options: Any) -> Callable[[], None]:
    """The step of Refine with its defaults but for `options`."""
    return make_trainer(pair_of_modules(*networks(size)), device, **({"batch": size.batch} | options)).step


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """CPU seconds of a call; on a GPU seconds on the clock."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        begun = time.perf_counter()
        run()
        torch.cuda.synchronize(device)
        return time.perf_counter() - begun
    begun = time.process_time()
    run()
    return time.process_time() - begun


def gflop(run: Callable[[], object]) -> float:
    """Billions of floating-point operations of a call, convolutions counted as direct ones."""
    with Counter(Ceilings()) as counter:
        run()
    return counter.total.flop / 1e9
