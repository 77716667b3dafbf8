"""Estimate of a run's memory: counted from the networks, except for activations, which are measured.

Weights, gradients, Adam moments and the moving average are counted. Activations are measured by passing one image
through an update of the generator, with every network that it differentiates, and one through an update of the fake
score, on the CPU in float32, with a hook on the tensors that PyTorch saves for the backward pass; the result is
multiplied by the number of images per pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from refine.errors import OptionError
from refine.runtime import distributed
from refine.runtime.text import counted, format_bytes
from refine.training.statistics import RunningMeans
from refine.training.trainer import Trainer, frozen
from stylegan_ops import dispatch

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Memory:
    """Peak memory of a step, in bytes.

    Attributes:
        parameters: Weights of all networks: trained networks, their moving averages, the teacher and, with `--anchor`,
            the starting generator.
        gradients: Gradients of the trained parameters.
        adam: Adam moments of the trained parameters, two each.
        activations: Activations saved for the backward pass of `images` images.
        images: Images per pass.
        state: Size of a training state.
    """

    parameters: int
    gradients: int
    adam: int
    activations: int
    images: int
    state: int

    @property
    def total(self) -> int:
        """Sum in bytes, without the overhead of PyTorch, CUDA and convolution workspaces."""
        return self.parameters + self.gradients + self.adam + self.activations

    def lines(self) -> list[str]:
        """Estimate, one line of text each."""
        parts = (("weights", self.parameters), ("gradients", self.gradients), ("Adam", self.adam))
        parts_text = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts)
        return [
            f"Memory    about {format_bytes(self.total)}, plus the overhead of PyTorch itself",
            f"          {parts_text} (counted)",
            f"          activations of {counted(self.images, 'image')} {format_bytes(self.activations)} (measured with "
            "one image in float32; bf16 and fp16 take less)",
            f"          a copy of {format_bytes(self.state)} in host memory while a snapshot is written (counted)",
        ]


def estimate_memory(trainer: Trainer, num_processes: int = 1) -> Memory:
    """Estimates the memory of one process.

    Args:
        trainer: Trainer with its networks on the CPU.
        num_processes: Processes that share the batch.
    """
    options = trainer.options
    trained = [network.module for network in trainer.networks]
    averages = [average.network.module for network in trainer.networks for average in network.averages().values()]
    start = [trainer.generator_start.module] if trainer.generator_start else []
    frozen = [*start, *(denoiser.module for denoiser in trainer.frozen_denoisers())]
    kept = trainer.backtrack.count * _count(trainer.teacher.module.parameters())
    num_trained = _count(p for module in trained for p in module.parameters() if p.requires_grad)
    saved = _count(p for module in [*trained, *averages] for p in module.parameters())
    # Kernels, which would have to be built first, save no more for the backward pass than plain PyTorch.
    with dispatch.temporary_mode("off"):
        per_image = _activations(trainer)
    images = options.batch_gpu or -(-options.batch // num_processes)
    return Memory(
        parameters=FLOAT * (saved + _count(p for module in frozen for p in module.parameters())),
        gradients=FLOAT * num_trained,
        adam=2 * FLOAT * num_trained,
        activations=per_image * min(images, options.batch),
        images=min(images, options.batch),
        state=FLOAT * (saved + 2 * num_trained + kept),
    )


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters)


def _activations(trainer: Trainer) -> int:
    """Bytes saved for the backward pass of one image, at the fullest moment of a step."""
    # A whole batch could be too large to draw, which is what this is about to say.
    shape, trainer.input_shape = trainer.input_shape, replace(trainer.input_shape, batch=1)
    inputs = next(trainer.inputs("generator", 0))
    trainer.input_shape = shape
    frozen_ones = [denoiser.module for denoiser in trainer.frozen_denoisers()]
    modules = [*frozen_ones, *(trained.module for trained in trainer.networks)]
    statistics, trainer.statistics = trainer.statistics, RunningMeans()
    with frozen(trainer.passed_modules()):
        of_move, _ = saved_bytes(lambda: trainer.generator_loss(inputs).loss, *modules)
    trainer.statistics = statistics
    for trained in trainer.networks:
        trained.optimizer.zero_grad()  # one pass of the fake score for both updates has left a gradient
    if not trainer.objective.needs_fake:
        return of_move
    # The generator's activations are freed before the fake score saves its own, except if both updates share a pass.
    images, fake = torch.zeros_like(inputs.noise), trainer.fake_score.network
    labels = trainer.bridge.labels(inputs.c)
    of_fake, _ = saved_bytes(lambda: fake(images, inputs.sigma, labels), fake.module)
    return max(of_move, of_fake)


def saved_bytes(forward: Callable[[], Tensor], *networks: torch.nn.Module) -> tuple[int, Tensor]:
    """Bytes that PyTorch saves for the backward pass of a computation, without parameters, and its result.

    Args:
        forward: Computation.
        *networks: Networks whose parameters are not counted.
    """
    parameters = {p.untyped_storage().data_ptr() for network in networks for p in network.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no address is reused

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
    """Converts PyTorch's out-of-memory error into a message that names the remedy.

    Args:
        batch: Images per step, over all processes.
        batch_gpu: Images per pass; None for all of a process's images at once.

    Raises:
        UserError: The GPU is out of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        size = batch_gpu or -(-batch // distributed.world_size())
        smaller = next((n for n in range(size // 2, 0, -1) if batch % n == 0), None)
        remedy = f"{{batch_gpu={smaller}}}" if smaller else "{precision=bf16}, {checkpoint=True}, or a larger GPU"
        raise OptionError(f"Out of GPU memory with {counted(size, 'image')} per pass: use {remedy}.") from error
