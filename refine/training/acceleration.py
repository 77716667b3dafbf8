"""Compilation of a network's blocks, and recomputation of their activations in the backward pass.

Both leave modules, parameters and their names unchanged, and draw the same random numbers as the plain networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

MAX_VARIANTS = 256  # compiled variants of one kind of block: by shape, and with and without gradients


def checkpoint_blocks(blocks: Sequence[nn.Module]) -> None:
    """Enables activation checkpointing of every block, in place (Chen et al., arXiv 1604.06174).

    Each block keeps only its input and recomputes its activations in the backward pass. This costs one more forward
    pass and saves most of the memory for activations.

    Args:
        blocks: Blocks of a generator or a denoiser.
    """

    def wrap(block: nn.Module) -> None:
        plain = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return plain(*args, **kwargs)
            mode = block.training  # may have changed by the time of the backward pass

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
    """Compiles every block with torch.compile, in place, once for all blocks of a shape, on first use.

    If `checkpoint_blocks` is used too, call this first, so that compiled blocks are recomputed.

    Each shape of a block is compiled separately (inductor fails on some of these blocks with symbolic sizes). This
    takes minutes on a CPU and speeds up nothing there: it is meant for GPUs.

    Args:
        blocks: Blocks of a generator or a denoiser.
        backend: Backend of torch.compile.
    """
    import torch._dynamo
    import torch._inductor.config

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_VARIANTS)
    torch._inductor.config.fallback_random = True  # the random numbers of eager PyTorch
    for block in blocks:
        block.forward = torch.compile(block.forward, fullgraph=True, dynamic=False, backend=backend)
