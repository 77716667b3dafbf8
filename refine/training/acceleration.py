"""Acceleration of a network's blocks: compilation, and recomputation in the backward pass.

Both leave modules, parameters and their names as they are; random numbers are those of the plain networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

MAX_VARIANTS = 256  # of one kind of block: by shape, and with and without gradients


def checkpoint_blocks(blocks: Sequence[nn.Module]) -> None:
    """Makes every block keep its input only, and compute the rest again when its gradient is wanted.

    This costs a forward pass and saves most of the memory of activations (Chen et al., arXiv 1604.06174).
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

    for block in blocks:
        wrap(block)


def compile_blocks(blocks: Sequence[nn.Module], backend: str = "inductor") -> None:
    """Lets torch.compile compile every block as a whole, once for all blocks of a shape, on first use.

    With `checkpoint_blocks`, this comes first: what is computed again is then what was compiled.

    Each shape of a block is compiled for itself (inductor fails on some of these blocks if sizes are symbols), which
    takes minutes on a CPU and makes nothing faster there: this is meant for GPUs.

    Args:
        blocks: Blocks of a generator or a denoiser.
        backend: Backend of torch.compile.
    """
    import torch._dynamo
    import torch._inductor.config

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_VARIANTS)
    torch._inductor.config.fallback_random = True  # the numbers that eager PyTorch draws
    for block in blocks:
        block.forward = torch.compile(block.forward, fullgraph=True, dynamic=False, backend=backend)
