"""Refine: improve a pretrained StyleGAN generator using only a pretrained diffusion model.

The public names are imported on first use, so that commands that need no torch start at once.
"""

import importlib as _importlib
import typing as _typing

if _typing.TYPE_CHECKING:
    from refine.config import RunConfig
    from refine.contracts import Denoiser, Generator
    from refine.errors import UserError
    from refine.metrics.evaluation import evaluate
    from refine.networks.loading import LoadedNetwork, load_generator, load_teacher, save
    from refine.networks.sampling import generate
    from refine.networks.weights_file import load_weights
    from refine.objectives import Objective
    from refine.runs.start import run
    from refine.training.trainer import Trainer

    __version__: str

__all__ = [
    "Denoiser",
    "Generator",
    "LoadedNetwork",
    "Objective",
    "RunConfig",
    "Trainer",
    "UserError",
    "evaluate",
    "generate",
    "load_generator",
    "load_teacher",
    "load_weights",
    "run",
    "save",
]

_MODULES = {
    "Denoiser": "contracts",
    "Generator": "contracts",
    "LoadedNetwork": "networks.loading",
    "Objective": "objectives",
    "RunConfig": "config",
    "Trainer": "training.trainer",
    "UserError": "errors",
    "evaluate": "metrics.evaluation",
    "generate": "networks.sampling",
    "load_generator": "networks.loading",
    "load_teacher": "networks.loading",
    "load_weights": "networks.weights_file",
    "run": "runs.start",
    "save": "networks.loading",
}


def __getattr__(name: str) -> _typing.Any:
    if name == "__version__":
        return _importlib.import_module("refine.version").VERSION
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_importlib.import_module(f"refine.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
