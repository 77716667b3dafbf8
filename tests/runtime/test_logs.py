"""Filter of log records by rank."""

from __future__ import annotations

import logging

import pytest

from refine.runtime.logs import ALL_RANKS, RankFilter, rank_from_environment


@pytest.mark.parametrize(("variable", "rank"), [(None, 0), ("0", 0), ("3", 3), ("x", 0), ("", 0), ("-1", 0)])
def test_rank_of_the_launcher(monkeypatch, variable, rank):
    monkeypatch.delenv("RANK", raising=False)
    if variable is not None:
        monkeypatch.setenv("RANK", variable)
    assert rank_from_environment() == rank


@pytest.mark.parametrize(("rank", "expected"), [(0, ["a", "b", "c", "d"]), (1, ["c", "d"])])
def test_filter(rank, expected, caplog):
    log = logging.getLogger("test of the rank filter")
    only_rank0 = RankFilter(lambda: rank)
    log.addFilter(only_rank0)
    try:
        with caplog.at_level(logging.INFO, log.name):
            log.info("a")
            log.warning("b")
            log.info("c", extra=ALL_RANKS)
            log.error("d")
    finally:
        log.removeFilter(only_rank0)
    assert caplog.messages == expected
