"""How the built-in files were made: `python -m refine.assets.make` rebuilds all of them from scikit-learn's digits."""
