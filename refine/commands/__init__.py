"""Commands: `python -m refine VERB`. Only this package knows click."""
