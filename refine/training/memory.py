"""How much memory a run takes: counted from the networks, and measured where counting is guesswork.

Weights, gradients, moments of Adam and the average of weights are counted. What a backward pass needs to remember is
measured: one image goes through the generator and one through the fake score, on the CPU in float32, while PyTorch
tells what it keeps; images at once multiply it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from refine.errors import UserError
from refine.runtime import distributed
from refine.runtime.text import format_bytes
from refine.training.trainer import Trainer
from stylegan_ops import select

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


def estimate_memory(trainer: Trainer, num_processes: int = 1) -> Memory:
    """Estimate for one process.

    Args:
        trainer: Trainer with its networks on the CPU.
        num_processes: Processes that share the batch.
    """
    options = trainer.options
    trained = [network.module for network in trainer.networks]
    averages = [network.average.network.module for network in trainer.networks if network.average is not None]
    frozen = [trainer.teacher.module, *([trainer.generator_start.module] if trainer.generator_start else [])]
    num_trained = _count(p for module in trained for p in module.parameters() if p.requires_grad)
    saved = _count(p for module in [*trained, *averages] for p in module.parameters())
    mode = select.mode()
    select.set_mode("off")  # nothing is to be built for this; kernels keep no more than plain PyTorch
    try:
        of_generator, of_fake = _activations(trainer)
    finally:
        select.set_mode(mode)
    # The generator's are gone before the fake score has its own, but where one pass of that serves both updates.
    per_image = of_generator + of_fake if trainer.sharing.shares_noise else max(of_generator, of_fake)
    images = options.batch_gpu or -(-options.batch // num_processes)
    return Memory(
        parameters=FLOAT * (saved + _count(p for module in frozen for p in module.parameters())),
        gradients=FLOAT * num_trained,
        adam=2 * FLOAT * num_trained,
        activations=per_image * min(images, options.batch),
        images=min(images, options.batch),
        state=FLOAT * (saved + 2 * num_trained),
    )


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters)


def _activations(trainer: Trainer) -> tuple[int, int]:
    """Bytes kept for the backward pass of one image: of the generator with the bridge, and of the fake score."""
    generator, bridge = trainer.generator.network, trainer.bridge
    z, c = torch.zeros(1, *generator.z_shape), torch.zeros(1, generator.c_dim)

    def draw() -> Tensor:
        return bridge.images(generator(z, c, noise_mode=trainer.options.noise_mode).images)

    of_generator, images = saved_bytes(draw, generator.module)
    if not trainer.objective.needs_fake:
        return of_generator, 0
    x, fake = images.detach(), trainer.fake_score.network
    of_fake, _ = saved_bytes(lambda: fake(x, torch.ones(1), bridge.labels(c)), fake.module)
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


@contextmanager
def memory_advice(batch: int, batch_gpu: int | None) -> Iterator[None]:
    """Turns PyTorch's out-of-memory error into the option that helps.

    Raises:
        UserError: Memory ran out.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        size = batch_gpu or -(-batch // distributed.size())
        smaller = next((n for n in range(size // 2, 0, -1) if batch % n == 0), None)
        remedy = f"try --batch-gpu={smaller}" if smaller else "take a larger GPU, --precision=bf16 or --checkpoint"
        raise UserError(f"Out of GPU memory with {size} images per pass: {remedy}.") from error
