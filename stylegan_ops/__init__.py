"""The operators of StyleGAN and of diffusion U-Nets, with kernels for the CPU and for CUDA.

Each operator has a module of its name, `stylegan_ops.upfirdn2d.upfirdn2d(x, f)`, and `stylegan_ops.functional` has all
of them as functions. A function of the same name here would hide its module.

- `bias_act`, `upfirdn2d`, `filtered_lrelu`, `conv2d_resample`, `modulated_conv2d` and `fma` are the layers of StyleGAN;
  `conv3x3`, `conv1x1`, `attention`, `group_norm_silu` and `norm_conv3x3` those of U-Nets. They check their arguments.
- `reference` defines them in plain PyTorch; all implementations are tested against it.
- `dispatch` chooses what computes a call, `backends` has the implementations, `autograd` their derivatives, and
  `registration` makes them known to PyTorch. `build` compiles the sources in `csrc` on first use.
- `python -m stylegan_ops.doctor` checks whether kernels work on this machine, and names remedies.

Importing the package registers the raw operators `torch.ops.stylegan_ops`. It compiles nothing.
"""

from stylegan_ops import (
    attention,
    bias_act,
    conv1x1,
    conv2d_resample,
    conv3x3,
    filtered_lrelu,
    fma,
    functional,
    group_norm_silu,
    modulated_conv2d,
    norm_conv3x3,
    registration,
    upfirdn2d,
)

__all__ = [
    "attention",
    "bias_act",
    "conv1x1",
    "conv2d_resample",
    "conv3x3",
    "filtered_lrelu",
    "fma",
    "functional",
    "group_norm_silu",
    "modulated_conv2d",
    "norm_conv3x3",
    "registration",
    "upfirdn2d",
]
