"""The operators of `stylegan_ops` under the names and signatures that embedded sources call.

StyleGAN3's `filtered_lrelu` is not among them yet.
"""
