"""Snapshots in the form of R3GAN's: ordinary pickles of modules whose classes the repository defines."""

from __future__ import annotations

import pickle
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from refine.networks import r3gan

NAMES = {
    r3gan.Generator: ("training.networks", "Generator"),
    r3gan.Backbone: ("R3GAN.Networks", "Generator"),
    r3gan.Stage: ("R3GAN.Networks", "GeneratorStage"),
    r3gan.Basis: ("R3GAN.Networks", "GenerativeBasis"),
    r3gan.Upsampling: ("R3GAN.Networks", "UpsampleLayer"),
    r3gan.ResidualBlock: ("R3GAN.Networks", "ResidualBlock"),
    r3gan.Convolution: ("R3GAN.Networks", "Convolution"),
    r3gan.Activation: ("R3GAN.FusedOperators", "BiasedActivationCUDA"),
    r3gan.Resampler: ("R3GAN.Resamplers", "InterpolativeUpsamplerCUDA"),
}
DISCRIMINATOR = ("training.networks", "Discriminator")


def generator(
    widths: tuple[int, ...] = (16, 12, 8), c_dim: int = 0, z_dim: int = 8, expansion: int = 2, seed: int = 0
) -> r3gan.Generator:
    """A generator with random weights."""
    torch.manual_seed(seed)
    stages, in_width = [], z_dim + (4 if c_dim else 0)
    for number, width in enumerate(widths):
        blocks = tuple(r3gan.BlockOptions(width, expansion * width, 2) for _ in range(1 + number % 2))
        changes = number > 0 and width != in_width
        stages.append(r3gan.StageOptions(blocks, in_width, changes, is_low_precision=number > 0))
        in_width = width
    options = r3gan.GeneratorOptions(
        z_dim=z_dim,
        c_dim=c_dim,
        embedding_dim=4 if c_dim else 0,
        img_channels=3,
        img_resolution=4 * 2 ** (len(widths) - 1),
        filter_size=4,
        stages=tuple(stages),
    )
    return r3gan.Generator(options).eval().requires_grad_(False)


@contextmanager
def repository() -> Iterator[dict[tuple[str, str], type]]:
    """Context in which the repository's modules can be imported: empty classes of their names."""
    classes: dict[tuple[str, str], type] = {}
    added = {}
    for module, name in (*NAMES.values(), DISCRIMINATOR):
        for part in (module.partition(".")[0], module):
            if part not in sys.modules:
                added[part] = sys.modules[part] = types.ModuleType(part)
        classes[module, name] = type(name, (nn.Module,), {"__module__": module})
        setattr(sys.modules[module], name, classes[module, name])
    try:
        yield classes
    finally:
        for part in added:
            del sys.modules[part]


def _as_theirs(module: nn.Module, classes: dict[tuple[str, str], type]) -> nn.Module:
    name = NAMES.get(type(module))
    if name is None and not isinstance(module, nn.ModuleList):
        return module  # Conv2d, Linear
    made: Any = classes[name]() if name is not None else nn.ModuleList()
    for key, parameter in module._parameters.items():
        made.register_parameter(key, parameter)
    for key, buffer in module._buffers.items():
        made.register_buffer(key, buffer)
    for key, child in module._modules.items():
        assert child is not None
        made.add_module(key, _as_theirs(child, classes))
    if isinstance(module, r3gan.Stage):
        made.DataType = torch.bfloat16 if module.is_low_precision else torch.float32
    if isinstance(module, r3gan.Generator):
        made.z_dim, made.c_dim, made.img_resolution = module.z_dim, module.c_dim, module.img_resolution
    return made.eval()


def write(path: Path, average: r3gan.Generator, live: r3gan.Generator | None = None, **entries: Any) -> Path:
    """Writes a snapshot with the optimizer states of G and of a D as large as G.

    Args:
        path: File to write.
        average: Generator under `G_ema`.
        live: Generator under `G`; None for the average itself, in memory of its own.
        entries: Further entries, or others in place of those.
    """
    with repository() as classes:
        average_module = _as_theirs(average, classes)
        live_module = pickle.loads(pickle.dumps(average_module)) if live is None else _as_theirs(live, classes)
        discriminator = classes[DISCRIMINATOR]()
        discriminator.weights = nn.ParameterList([nn.Parameter(p.clone(), False) for p in average.parameters()])

        def adam(module: nn.Module) -> dict[str, Any]:
            state = {
                i: {"step": 5, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                for i, p in enumerate(module.parameters())
            }
            return {
                "state": state,
                "param_groups": [{"lr": 1e-4, "betas": [0, 0.99], "params": list(range(len(state)))}],
            }

        content = {
            "G": live_module,
            "D": discriminator,
            "G_ema": average_module,
            "training_set_kwargs": {"path": "x.zip"},
            "cur_nimg": 7,
            "D_opt_state": adam(discriminator),
            "G_opt_state": adam(average_module),
        }
        with path.open("wb") as file:
            pickle.dump(content | entries, file)
    return path
