"""Two ways to run the blocks that networks are built of: compiled, or computed again in the backward pass.

Both leave modules, parameters and their names as they are; random numbers are those of the plain networks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from refine.networks.edm_layers import UNetBlock
from refine.networks.stylegan2 import SynthesisBlock

BLOCKS = (UNetBlock, SynthesisBlock)
MAX_VARIANTS = 256  # of one kind of block: by shape, and with and without gradients


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The blocks of a generator or a denoiser; none of a network that Refine does not know."""
    return [module for module in network.modules() if isinstance(module, BLOCKS)]


def checkpoint_blocks(network: nn.Module) -> int:
    """Has every block keep its input only, and compute the rest again when its gradient is wanted.

    This costs a forward pass and saves most of the memory of activations (Chen et al., arXiv 1604.06174).

    Returns:
        How many blocks there are.
    """

    def wrap(block: nn.Module) -> None:
        plain = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return plain(*args, **kwargs)
            mode = block.training  # may be another one by the time of the backward pass

            def in_this_mode(*args: Any, **kwargs: Any) -> Any:
                later_mode = block.training
                block.train(mode)
                try:
                    return plain(*args, **kwargs)
                finally:
                    block.train(later_mode)

            return checkpoint(in_this_mode, *args, use_reentrant=False, **kwargs)

        block.forward = forward

    blocks = blocks_of(network)
    for block in blocks:
        wrap(block)
    return len(blocks)


def compile_blocks(network: nn.Module, backend: str = "inductor") -> int:
    """Has torch.compile compile every block as a whole, once for all blocks of a shape, on first use.

    With `checkpoint_blocks`, this comes first: what is computed again is then what was compiled.

    Each shape of a block is compiled for itself (inductor fails on some of these blocks if sizes are symbols), which
    takes minutes on a CPU and makes nothing faster there: this is meant for GPUs.

    Args:
        network: generator or denoiser.
        backend: of torch.compile.

    Returns:
        How many blocks there are.
    """
    import torch._dynamo
    import torch._inductor.config

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_VARIANTS)
    torch._inductor.config.fallback_random = True  # the numbers that eager PyTorch draws
    blocks = blocks_of(network)
    for block in blocks:
        block.forward = torch.compile(block.forward, fullgraph=True, dynamic=False, backend=backend)
    return len(blocks)
