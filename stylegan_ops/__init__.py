"""The operators of StyleGAN: each module holds the function of its name, as in `upfirdn2d.upfirdn2d(x, f)`.

`bias_act`, `upfirdn2d`, `conv2d_resample`, `modulated_conv2d`, `filtered_lrelu` and `fma` are public and check their
arguments. `reference` says in plain PyTorch what `bias_act` and `upfirdn2d` mean; whatever else computes them is
tested against it. Faster kernels belong behind the public functions of these two, from which, with PyTorch's own
convolutions, the other operators are built.

Nothing is imported or exported here, since a function of the same name would hide its module.
"""
