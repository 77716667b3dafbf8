"""Processes that a command starts beside itself."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from refine.runtime import distributed, launch
from refine.runtime.launch import processes_beside, suitable_processes

CPU = torch.device("cpu")
OTHER = """
import sys
import torch
from refine.runtime import distributed
with distributed.processes() as place:
    assert torch.get_num_threads() == 1
    tensor = torch.tensor(1.0 + place.rank)
    distributed.all_reduce_sum_([tensor])
    open(sys.argv[1], "w").write(f"{place.rank} of {place.world_size}: {tensor:g}")
"""


@pytest.fixture(autouse=True)
def without_launcher(monkeypatch):
    for name in (*launch._VARIABLES, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]))


def test_two_processes_share_the_work(tmp_path):
    environment, threads, told = dict(os.environ), torch.get_num_threads(), tmp_path / "told"
    with processes_beside(2, [sys.executable, "-c", OTHER, str(told)]), distributed.processes() as place:
        tensor = torch.tensor(1.0)
        distributed.all_reduce_sum_([tensor])
        assert (place.rank, place.world_size, float(tensor)) == (0, 2, 3.0) and torch.get_num_threads() == 1
    assert told.read_text() == "1 of 2: 3"  # the other one was waited for
    assert dict(os.environ) == environment and torch.get_num_threads() == threads


def test_an_error_here_stops_the_others(tmp_path):
    """They would wait for this one for ever."""
    late = tmp_path / "late"
    sleeper = f"import time; time.sleep(60); open({str(late)!r}, 'w')"
    with pytest.raises(ValueError, match="here"), processes_beside(2, [sys.executable, "-c", sleeper]):
        raise ValueError("here")
    assert not late.exists() and "RANK" not in os.environ


def test_one_process_starts_none():
    with processes_beside(1, ["/nowhere/python"]):
        assert "RANK" not in os.environ


def test_number_of_processes(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert suitable_processes(CPU, 2) == 2 and suitable_processes(CPU, 20) == 8
    assert suitable_processes(torch.device("cuda"), 2) == suitable_processes(torch.device("mps"), 2) == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert suitable_processes(CPU, 2) == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 4})
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert suitable_processes(CPU, 2) == 1  # a launcher has divided the machine
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setattr(sys, "platform", "win32")
    assert suitable_processes(CPU, 2) == 1
