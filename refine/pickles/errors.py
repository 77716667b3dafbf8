"""What the reader and the writer of pickles raise."""

from __future__ import annotations

from refine.errors import UserError


class PickleError(UserError):
    """A file is not a network pickle, is damaged, or asks for something that Refine does not do."""
