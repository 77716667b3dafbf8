"""The one exception that a user is meant to read."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can mend. The message is one sentence: the file, the value, the remedy.

    The command line prints it without a traceback and exits with code 2.
    """
