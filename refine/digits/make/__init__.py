"""Maker of the built-in files: `python -m refine.digits.make` rebuilds all of them from scikit-learn's digits."""
