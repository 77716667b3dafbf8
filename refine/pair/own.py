"""Pair with networks of the user's own: any module from latents to images, any denoiser."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from refine import pickles
from refine.contracts import Denoiser, Generator
from refine.diffusion.guidance import Guided
from refine.errors import OptionError
from refine.networks.loading import LoadedNetwork, load_generator, load_teacher
from refine.networks.own_network import made_network, own_copy, own_generator, same_everywhere
from refine.networks.plain_denoiser import as_denoiser_contract
from refine.networks.preconditioned import as_denoiser
from refine.networks.python_file import PythonSpec, parse_python_spec
from refine.networks.style_based import as_generator
from refine.pair.bridge import make_bridge
from refine.pair.pair import Pair, guided_denoiser


def own_pair(
    gan: Any,
    teacher: Any,
    *,
    names: tuple[str | None, str | None] = (None, None),
    resample: str = "lanczos",
    class_map: Sequence[int] | None = None,
    sigma_init: float | None = None,
    trust: bool = False,
    settings: Any = None,
    guide: str | None = None,
    guidance: float = 1.0,
) -> Pair:
    """Joins two networks, of which one at least does not come from a pickle.

    Args:
        gan: Generator: a module, an object that fulfills `contracts.Generator`, `module.py:function`, or the name of a
            pickle.
        teacher: Teacher: a module or function, an object that fulfills `contracts.Denoiser`, `module.py:function`, or
            the name of a pickle.
        names: Names of the two for the run's folder; None: those of files or classes.
        resample: Key of `resize.FILTERS`.
        class_map: Teacher class of each generator class; None if both number their classes alike.
        sigma_init: Noise level of a one-step generator; None: as its file tells, else 2.5.
        trust: Permission to execute Python files, and source code embedded in pickles.
        settings: What a teacher's state dict does not tell; see `networks.loading.load_teacher`.
        guide: Path, URL, or zoo name of a denoiser that the teacher is guided away from; None for none.
        guidance: Weight of the guidance.

    Raises:
        UserError: A file cannot be read or executed, a network lacks an attribute, or the two do not fit together.
    """
    if gan is None:
        raise OptionError("A teacher without a file cannot be distilled: give {gan}, or a generator in Python.")
    gan_file = _file(gan, partial(load_generator, sigma_init=sigma_init), trust)
    teacher_file = _file(teacher, partial(load_teacher, settings=settings), trust)
    guide_file = None if guide is None else load_teacher(guide, trust=trust, settings=settings)
    files = {"gan": gan_file, "teacher": teacher_file, "guide": guide_file}
    digests = {name: pickles.file_sha256(file.pickle.path) for name, file in files.items() if file is not None}
    generator = own_generator(gan, trust=trust) if gan_file is None else _of_file(gan_file)
    if teacher_file is None:
        denoiser = _denoiser(teacher, trust)
        if any(True for _ in denoiser.module.parameters()):
            digests["teacher weights"] = weights_sha256(denoiser.module)
        if guide_file is not None:
            denoiser = Guided(denoiser, as_denoiser(guide_file.network), guidance)
    else:
        denoiser = guided_denoiser(teacher_file, guide_file, guidance)
    return Pair(
        generator,
        denoiser,
        make_bridge(generator, denoiser, resample, class_map),
        gan_file,
        teacher_file,
        digests,
        guide_file=guide_file,
        titles=(names[0] or _title(gan, generator), names[1] or _title(teacher, denoiser)),
    )


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 of a module's state dict: names, shapes, element types and values."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _file(network: Any, load: Any, trust: bool) -> LoadedNetwork | None:
    """The pickle that a network comes from; None for one that does not."""
    if isinstance(network, LoadedNetwork):
        return network
    if isinstance(network, str) and parse_python_spec(network) is None:
        loaded: LoadedNetwork = load(network, trust=trust)
        return loaded
    return None


def _of_file(file: LoadedNetwork) -> Generator:
    return as_generator(file.network, f"{file.record.class_name} in {file.pickle.path}")


def _denoiser(teacher: Any, trust: bool) -> Denoiser:
    made = own_copy(made_network(teacher, "teacher", trust=trust), "teacher")
    if isinstance(made, nn.Module):  # before it is tried out
        made.eval().cpu()
    denoiser: Any = as_denoiser_contract(made)
    denoiser.module.eval().cpu()
    same_everywhere(denoiser.module)
    return denoiser


def _title(network: Any, contract: Generator | Denoiser) -> str:
    spec = parse_python_spec(network) if isinstance(network, str) else None
    if isinstance(spec, PythonSpec):
        return spec.path.stem
    if isinstance(network, LoadedNetwork):
        return network.pickle.path.stem
    if isinstance(network, str):
        return Path(network).stem
    named = network if not hasattr(network, "module") else contract.module
    return str(getattr(named, "__name__", type(named).__name__))
