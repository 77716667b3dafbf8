"""Other formats of a generator: `python -m refine export`."""
