"""ONNX: the generator as a graph. Inputs z, c and truncation_psi, output image; the noise is the stored one.

Without a mapping network there is no truncation_psi; the sigma_init of a one-step generator is part of the graph.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import onnxruntime
import torch
from torch import Tensor

from refine.errors import UserError
from refine.export.agreement import Probe
from refine.networks.loading import LoadedNetwork
from refine.networks.own_snapshot import OwnSnapshot
from refine.networks.sampling import z_shape_of

OPSET = 18


class _Graph(torch.nn.Module):
    """The generator with truncation as arithmetic, so that psi can stay an input."""

    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, z: Tensor, c: Tensor, truncation_psi: Tensor) -> Tensor:
        w_avg = self.generator.mapping.w_avg
        ws = self.generator.mapping(z, c)
        if w_avg is not None:
            if w_avg.ndim == 2:  # of each class
                w_avg = w_avg[c.argmax(1)][:, None]
            ws = w_avg + (ws - w_avg) * truncation_psi
        return self.generator.synthesis(ws, noise_mode="const", force_fp32=True)


class _PlainGraph(torch.nn.Module):
    """A generator without truncation."""

    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        draw = getattr(self.generator, "images", None)  # without checks of shapes, which a graph cannot have
        images: Tensor = self.generator(z, c, force_fp32=True) if draw is None else draw(z, c)
        return images


class _UnconditionalGraph(_Graph):
    def forward(self, z: Tensor, truncation_psi: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(z, z[:, :0], truncation_psi)


def write(loaded: LoadedNetwork | OwnSnapshot, file: BinaryIO) -> None:
    """Writes the graph for batches of any size.

    Raises:
        UserError: PyTorch cannot export this network.
    """
    generator: Any = loaded.network
    batch = torch.export.Dim("N", min=1)
    inputs: dict[str, Tensor] = {"z": torch.zeros(2, *z_shape_of(generator))}
    if generator.c_dim:
        inputs["c"] = torch.zeros(2, generator.c_dim)
    shapes: dict[str, Any] = {name: {0: batch} for name in inputs}
    graph: torch.nn.Module = _PlainGraph(generator)
    if hasattr(generator, "mapping"):
        graph = (_Graph if generator.c_dim else _UnconditionalGraph)(generator)
        inputs["truncation_psi"], shapes["truncation_psi"] = torch.tensor(1.0), None
    with _quiet():
        try:
            program = torch.onnx.export(
                graph,
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=["image"],
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=shapes,
            )
        except Exception as error:  # the exporter's many ways to fail
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"PyTorch {torch.__version__} cannot export this network to ONNX ({line}).") from error
    assert program is not None
    file.write(program.model_proto.SerializeToString())


def images(path: Path, loaded: LoadedNetwork | OwnSnapshot, probe: Probe) -> Tensor:
    """Images computed by ONNX Runtime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    wanted = {item.name for item in session.get_inputs()}

    def generator(z: Tensor, c: Tensor, psi: float) -> Tensor:
        # One by one: a batch of another size than the one that was exported with.
        given = [{"z": one.numpy(), "c": label.numpy()} for one, label in zip(z.split(1), c.split(1), strict=True)]
        truncation = torch.tensor(psi).numpy()
        feeds = [{n: v for n, v in {**one, "truncation_psi": truncation}.items() if n in wanted} for one in given]
        return torch.cat([torch.from_numpy(session.run(["image"], feed)[0]) for feed in feeds])

    return probe.images(generator)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's messages about packages that no generator needs."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
