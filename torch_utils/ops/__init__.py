"""The operators of `stylegan_ops` under the names and signatures that embedded sources and scripts call."""
