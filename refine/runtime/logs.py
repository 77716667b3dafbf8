"""Lines of the log, and a filter by rank: of several processes, only rank 0 logs, so that callers need no guards."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

WARNING = "Warning: "
ALL_RANKS = {"all_ranks": True}  # `extra` of a record that every rank logs


class RankFilter(logging.Filter):
    """Filter that drops the records of all ranks but rank 0, except errors and records with `extra=ALL_RANKS`.

    Args:
        rank: Function that returns the rank of this process.
    """

    def __init__(self, rank: Callable[[], int]) -> None:
        super().__init__()
        self.rank = rank

    def filter(self, record: logging.LogRecord) -> bool:
        """True if the record is to be logged."""
        return self.rank() == 0 or record.levelno >= logging.ERROR or getattr(record, "all_ranks", False)


def line_of(record: logging.LogRecord) -> str:
    """Message of a record; that of a warning begins with "Warning: "."""
    message = record.getMessage()
    is_warning = record.levelno == logging.WARNING and not message.startswith(WARNING)
    return f"{WARNING}{message}" if is_warning else message


class LineFormatter(logging.Formatter):
    """Formatter of the lines that `line_of` returns."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record, without its traceback."""
        return line_of(record)


def rank_from_environment() -> int:
    """Rank that the launcher gave this process in RANK; 0 without a launcher, or if RANK is not a number."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() else 0
