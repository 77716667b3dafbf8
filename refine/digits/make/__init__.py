"""How the built-in files were made: `python -m refine.digits.make` rebuilds all of them from scikit-learn's digits."""
