"""How much memory a run takes: counted from the networks, and measured where counting is guesswork.

Weights, gradients, moments of Adam and the average of weights are counted. What a backward pass needs to remember is
measured: one image goes through the generator and one through the fake score, on the CPU in float32, while PyTorch
tells what it keeps; images at once multiply it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from refine.config import RunConfig
from refine.errors import UserError
from refine.runtime import distributed
from refine.training.trainer import Trainer
from stylegan_ops import dispatch

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Memory:
    """Bytes at the fullest moment of a step.

    Attributes:
        parameters: of generator, average, teacher, fake score and, with `--anchor`, the starting generator.
        gradients: of what is trained.
        adam: two moments for each parameter that is trained.
        activations: kept for the backward passes of `images` images.
        images: that go through the networks at once.
        state: a file that holds all that a run must remember.
    """

    parameters: int
    gradients: int
    adam: int
    activations: int
    images: int
    state: int

    @property
    def total(self) -> int:
        """Without what PyTorch, CUDA and the convolutions' workspaces take."""
        return self.parameters + self.gradients + self.adam + self.activations

    def lines(self) -> list[str]:
        """The estimate as text."""
        parts = (("weights", self.parameters), ("gradients", self.gradients), ("Adam", self.adam))
        counted = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts)
        return [
            f"Memory    about {format_bytes(self.total)}, besides what PyTorch itself takes",
            f"          {counted} (counted)",
            f"          activations of {self.images} images {format_bytes(self.activations)} (measured on one, in "
            "float32; bf16 and fp16 take less)",
            f"          a copy of {format_bytes(self.state)} in main memory while a snapshot is written (counted)",
        ]


def estimate_memory(trainer: Trainer, config: RunConfig, num_processes: int = 1) -> Memory:
    """The estimate for one process.

    Args:
        trainer: with its networks on the CPU.
        config: the options.
        num_processes: that share the batch.
    """
    generators = 2 + (config.anchor > 0)
    generator, fake, teacher = (_count(n.parameters()) for n in (trainer.generator, trainer.fake, trainer.teacher))
    trained = _count(p for n in (trainer.generator, trainer.fake) for p in n.parameters() if p.requires_grad)
    mode = dispatch.mode()
    dispatch.set_mode("off")  # nothing is to be built for this; kernels keep no more than plain PyTorch
    try:
        of_generator, of_fake = _activations(trainer)
    finally:
        dispatch.set_mode(mode)
    # The generator's are gone before the fake score has its own, but where one pass of that serves both updates.
    per_image = of_generator + of_fake if config.share_unet else max(of_generator, of_fake)
    images = config.batch_gpu or -(-config.batch // num_processes)
    return Memory(
        parameters=FLOAT * (generators * generator + fake + teacher),
        gradients=FLOAT * trained,
        adam=2 * FLOAT * trained,
        activations=per_image * min(images, config.batch),
        images=min(images, config.batch),
        state=FLOAT * (2 * generator + fake + 2 * trained),
    )


def _count(parameters: Any) -> int:
    return sum(p.numel() for p in parameters)


def _activations(trainer: Trainer) -> tuple[int, int]:
    """Bytes kept for the backward pass of one image: of the generator with the bridge, and of the fake score."""
    generator, fake, bridge = trainer.generator, trainer.fake, trainer.bridge
    z, c = torch.zeros(1, generator.z_dim), torch.zeros(1, generator.c_dim)

    def draw() -> Tensor:
        ws = generator.mapping(z, c)
        return bridge.images(generator.synthesis(ws, noise_mode=trainer.config.noise_mode))

    of_generator, images = saved_bytes(draw, generator)
    x = images.detach()
    of_fake, _ = saved_bytes(lambda: fake(x, torch.ones(1), bridge.labels(c)), fake)
    return of_generator, of_fake


def saved_bytes(forward: Callable[[], Tensor], network: torch.nn.Module) -> tuple[int, Tensor]:
    """What PyTorch keeps for the backward pass of a computation, parameters apart, and its result."""
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    return sum(storage.nbytes() for storage in storages.values()), result


def format_bytes(size: float) -> str:
    """`3.2 GB`, in powers of 1000."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


@contextmanager
def memory_advice(config: RunConfig) -> Iterator[None]:
    """Turns PyTorch's out-of-memory error into the option that helps.

    Raises:
        UserError: the memory did not suffice.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        size = config.batch_gpu or -(-config.batch // distributed.size())
        smaller = next((n for n in range(size // 2, 0, -1) if config.batch % n == 0), None)
        remedy = f"try --batch-gpu={smaller}" if smaller else "this pair needs a larger GPU"
        raise UserError(f"The GPU's memory did not suffice for {size} images at once: {remedy}.") from error
