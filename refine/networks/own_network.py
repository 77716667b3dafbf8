"""Generators and teachers of the user's own, given in Python or made by a Python file."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from refine.contracts import Generator
from refine.errors import UserError
from refine.networks.plain_module import as_contract
from refine.networks.python_file import make_network, parse_python_spec
from refine.networks.style_based import as_generator
from refine.networks.weights_file import load_state
from refine.runtime import distributed


def own_generator(gan: Any, *, trust: bool = False) -> Generator:
    """A copy of a generator of the user's own behind the contract: float32, on the CPU, in evaluation mode.

    Args:
        gan: A module, an object that fulfills `contracts.Generator`, or `module.py:function`.
        trust: Permission to execute the Python file.

    Raises:
        UserError: There is no permission, the file fails, or the generator cannot be called or trained.
    """
    made = own_copy(made_network(gan, "gan", trust=trust), "generator")
    styled = type(made).__module__.startswith("refine.networks.") and isinstance(made, nn.Module)
    generator: Any = as_generator(made) if styled else as_contract(made)
    if not any(True for _ in generator.module.parameters()):
        raise UserError(
            "The generator has no parameters to train: give a torch.nn.Module, or an object whose `module` is one."
        )
    generator.module.eval().cpu()
    for parameter in generator.module.parameters():
        parameter.data = parameter.data.float()
    same_everywhere(generator.module)
    c = torch.eye(max(generator.c_dim, 1))[:1, : generator.c_dim]
    try:
        with torch.no_grad():
            images = generator(torch.zeros(1, *generator.z_shape), c, noise_mode="const").images
    except UserError:
        raise
    except Exception as error:  # foreign code can fail in any way
        called = "G(z, c)" if generator.c_dim else "G(z)"
        raise UserError(
            f"The generator cannot be called as {called} with z [1, {', '.join(map(str, generator.z_shape))}] "
            f"({type(error).__name__}: {error}): let it take these, on the CPU."
        ) from error
    expected = (1, generator.img_channels, generator.img_resolution, generator.img_resolution)
    if tuple(images.shape) != expected:
        raise UserError(
            f"The generator returns {list(images.shape)} for one latent, and its attributes say {list(expected)}: "
            "return images [N, C, R, R] in [-1, 1]."
        )
    return generator


def made_network(network: Any, option: str, *, trust: bool = False) -> Any:
    """A network as it was given, or as a Python file makes it.

    Args:
        network: The network, or `module.py:function`.
        option: Option that it stands for, `gan` or `teacher`.
        trust: Permission to execute the Python file.

    Raises:
        UserError: There is no permission, the file fails, or the network cannot be called.
    """
    spec = parse_python_spec(network) if isinstance(network, str) else None
    made = network if spec is None else make_network(spec, option, trust=trust)
    if not callable(made):
        name = "generator" if option == "gan" else "teacher"
        raise UserError(f"The {name} is {made!r:.80}, which cannot be called: give a module or a function.")
    return made


def own_copy(network: Any, name: str) -> Any:
    """A copy of a network.

    Args:
        network: Network that stays unchanged.
        name: Name for messages: `generator` or `teacher`.

    Raises:
        UserError: The network cannot be copied.
    """
    try:
        return copy.deepcopy(network)
    except Exception as error:  # hooks, open files, tensors that are not leaves
        raise UserError(
            f"The {name} cannot be copied ({type(error).__name__}: {error}): give a module that copy.deepcopy copies."
        ) from error


def same_everywhere(module: nn.Module) -> None:
    """Gives all processes the weights of the first, because each has made its own module."""
    state = module.state_dict()
    odd = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if odd:
        raise UserError(f"{type(module).__name__} has a state {odd[0]} that is not a tensor: keep tensors only.")
    if distributed.world_size() > 1:
        load_state(module, distributed.broadcast(state), "the first process")
