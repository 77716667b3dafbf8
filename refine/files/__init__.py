"""Files: atomic writes, downloads, data sets, image decoding."""
