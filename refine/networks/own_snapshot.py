"""Snapshots of generators without a pickle, opened again: weights of a safetensors file in the network of a function.

Such a file has weights and the options of its run, and nothing that could be executed. The network around the weights
is made by the function that the options name, `module.py:function`, which takes the user's trust.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from refine import zoo
from refine.contracts import Generator
from refine.errors import OptionError, UserError, literal
from refine.networks.loading import LoadedNetwork, load_generator
from refine.networks.own_network import own_generator
from refine.networks.python_file import PythonSpec, parse_python_spec
from refine.networks.weights_file import AVERAGE, SUFFIX, load_state, read_options, read_weights
from refine.pickles.finite import require_finite

log = logging.getLogger("refine")


class OwnNetwork(nn.Module):
    """A generator of any kind, called as those of StyleGAN are: `G(z, c, truncation_psi, noise_mode)`.

    Args:
        generator: The generator.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.network = generator.module
        self._draw = generator.__call__
        self.z_shape, self.c_dim = generator.z_shape, generator.c_dim
        self.img_channels, self.img_resolution = generator.img_channels, generator.img_resolution
        if len(self.z_shape) == 1:
            self.z_dim = self.z_shape[0]

    def forward(
        self,
        z: Tensor,
        c: Tensor | None = None,
        truncation_psi: float = 1.0,
        noise_mode: str = "const",
        force_fp32: bool = False,
    ) -> Tensor:
        """Images; see `contracts.Generator`. Without classes, `c` may be missing."""
        labels = z.flatten(1)[:, :0] if c is None else c
        return self._draw(z, labels, noise_mode, truncation_psi, force_fp32).images


@dataclass(frozen=True)
class OwnSnapshot:
    """A snapshot with a network around its weights.

    Attributes:
        generator: The generator, on the CPU, in evaluation mode, gradients off.
        path: The snapshot.
    """

    generator: Generator
    path: Path

    @property
    def network(self) -> nn.Module:
        """The generator as a module that is called as those of StyleGAN are."""
        is_known = type(self.generator.module).__module__.startswith("refine.")
        return self.generator.module if is_known else OwnNetwork(self.generator)

    @property
    def drawn(self) -> Any:
        """The network that a run measures: the module itself, unless the adapter around it is the user's own."""
        is_known = type(self.generator).__module__.startswith("refine.")
        return self.generator.module if is_known else self.generator


def open_generator(
    spec: str, *, gan: str | None = None, sigma_init: float | None = None, trust: bool = False
) -> LoadedNetwork | OwnSnapshot:
    """A generator out of a file of either kind, a pickle or a snapshot of a network of the user's own.

    Args:
        spec: Path, http(s) URL or zoo name.
        gan: `module.py:function` that makes the network of a snapshot; None: as the snapshot tells.
        sigma_init: Noise level of a one-step generator; see `load_generator`.
        trust: Permission to execute that Python file, or source embedded in a pickle; see `load_generator`.

    Raises:
        UserError: The file cannot be had or read, there is no permission, or an option is of the other kind.
    """
    path = zoo.resolve(spec).path
    if not is_snapshot(path):
        if gan is not None:
            raise OptionError(
                f"{{gan={literal(gan)}}} makes the network of a {SUFFIX} snapshot, and {literal(spec)} is not one: "
                "leave it out."
            )
        return load_generator(spec, trust=trust, sigma_init=sigma_init)
    if sigma_init is not None:
        raise OptionError(
            f"{{sigma_init={sigma_init:g}}} is the noise level of a one-step generator, and {literal(path)} is a "
            "snapshot of a network of your own: leave it out."
        )
    return load_snapshot(path, gan=gan, trust=trust)


def is_snapshot(path: Path) -> bool:
    """True for a safetensors file with the options of a run."""
    if path.suffix.lower() != SUFFIX or not path.is_file():
        return False
    try:
        return bool(read_options(path))
    except UserError:  # whoever opens it as a pickle says what it is
        return False


def load_snapshot(path: Path, *, gan: str | None = None, trust: bool = False) -> OwnSnapshot:
    """Makes the network of a snapshot, and gives it the weights of the moving average.

    Args:
        path: A network-snapshot-*.safetensors.
        gan: `module.py:function` that makes the network; None: as the snapshot tells.
        trust: Permission to execute that Python file.

    Raises:
        UserError: It is not known what makes the network, there is no permission, the Python file fails, or its network
            has another architecture.
    """
    spec = parse_python_spec(gan)
    if gan is not None and spec is None:
        raise OptionError(
            f"{{gan={literal(gan)}}} has to name a Python file and a function in it, such as dcgan.py:load."
        )
    spec = spec or made_by(read_options(path))
    if spec is None:
        raise UserError(
            f"{path} is a snapshot of a network that was given in Python, and does not tell what makes it: add "
            "--gan=FILE.py:FUNCTION, or in Python use refine.load_weights(network, path) and then the network."
        )
    if not trust:
        raise UserError(
            f"{path} is a snapshot of the network that {spec} makes, and this Python file would be executed: if you "
            "trust it, add --trust-pickle (in Python trust=True)."
        )
    log.info(f"Executing {spec}, which makes the network of {path}")
    generator = own_generator(str(spec), trust=trust)
    weights = read_weights(path)[AVERAGE]
    require_finite(weights, str(path))
    load_state(generator.module, weights, str(path))
    generator.module.requires_grad_(False)
    return OwnSnapshot(generator, path)


def made_by(options: Mapping[str, Any]) -> PythonSpec | None:
    """The function that made a run's generator, by the run's options; None if the generator was given in Python."""
    gan = options.get("gan")
    return parse_python_spec(gan) if isinstance(gan, str) else None
