"""Diffusion in EDM's notation: denoisers, the Heun sampler, noise levels, augmentation."""
