"""Statistics by name, of one process and of several."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from joined import run_joined

import dnnlib
from torch_utils import training_stats
from torch_utils.training_stats import Collector, report, report0


@pytest.fixture(autouse=True)
def nothing_reported(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(training_stats, "_reported", {})
    monkeypatch.setattr(training_stats, "_known_names", {})
    yield


def test_number_mean_and_standard_deviation_are_numpys() -> None:
    values = np.random.RandomState(0).randn(1000).astype(np.float32) * 3 + 1
    collector = Collector()
    for part in np.split(values, [1, 10, 400]):
        report("a", torch.from_numpy(part))
    report("b", 0.1)
    report("b", [[0.2, 0.3], [0.4, 0.5]])
    report("c", torch.tensor(7, dtype=torch.int64))
    collector.update()
    exact = values.astype(np.float64)
    assert collector.names() == ["a", "b", "c"]
    assert collector.num("a") == 1000
    assert collector.mean("a") == collector["a"] == pytest.approx(exact.mean(), rel=1e-14)
    assert collector.std("a") == pytest.approx(exact.std(), rel=1e-13)
    assert collector.mean("b") == pytest.approx(0.3, rel=1e-15) and collector.num("b") == 5  # not rounded to float32
    assert (collector.num("c"), collector.mean("c"), collector.std("c")) == (1, 7, 0)
    assert collector.as_dict() == {
        name: {"num": collector.num(name), "mean": collector.mean(name), "std": collector.std(name)} for name in "abc"
    }
    assert isinstance(collector.as_dict().a, dnnlib.EasyDict)


def test_report_returns_its_value_and_keeps_gradients_out() -> None:
    x = torch.ones(3, requires_grad=True)
    assert report("x", x) is x and report0("x", x) is x
    y = (report("loss", x.square()) * 2).sum()
    y.backward()
    assert x.grad is not None and x.grad.tolist() == [4, 4, 4]
    with torch.inference_mode():
        report("x", torch.ones(2))
    report("x", torch.ones(2))


def test_rounds() -> None:
    keeping, forgetting, some = Collector(), Collector(keep_previous=False), Collector(regex="Loss/.*|b")
    report("Loss/G", [1.0, 3.0])
    report("b", [])
    for collector in (keeping, forgetting, some):
        collector.update()
        assert collector.names() == ["Loss/G", "b"]
        assert collector.mean("Loss/G") == 2 and collector.num("b") == 0 and math.isnan(collector.mean("b"))
    report("b", 5)
    report("not Loss/", 9)
    for collector in (keeping, forgetting, some):
        collector.update()
        assert collector["b"] == 5
    assert keeping["Loss/G"] == some["Loss/G"] == 2
    assert forgetting.num("Loss/G") == 0 and math.isnan(forgetting["Loss/G"]) and math.isnan(forgetting.std("Loss/G"))
    assert some.names() == ["Loss/G", "b"] and some.num("not Loss/") == 0 and keeping["not Loss/"] == 9
    # What one collector has read, another still finds; what came before a collector, it does not.
    report("b", 7)
    keeping.update()
    late = Collector()
    report("b", 1)
    some.update()
    late.update()
    assert (keeping["b"], some["b"], late["b"]) == (7, 4, 1)


def test_number_that_is_not_finite_spoils_one_round_only() -> None:
    collector = Collector()
    report("a", [1.0, float("nan")])
    collector.update()
    assert collector.num("a") == 2 and math.isnan(collector["a"]) and math.isnan(collector.std("a"))
    report("a", float("inf"))
    collector.update()
    assert collector["a"] == math.inf and math.isnan(collector.std("a"))
    report("a", 3.0)
    collector.update()
    assert (collector["a"], collector.std("a")) == (3, 0)


def test_default_collector() -> None:
    report("d", 4)
    training_stats.default_collector.update()
    assert training_stats.default_collector.as_dict().d == {"num": 1, "mean": 4.0, "std": 0.0}


def test_half_precision_is_added_up_exactly() -> None:
    collector = Collector()
    report("h", torch.full([5000], 2.5, dtype=torch.float16))
    collector.update()
    assert (collector.num("h"), collector["h"], collector.std("h")) == (5000, 2.5, 0)


JOINED = """
import json
from torch_utils import training_stats
training_stats.init_multiprocessing(rank, torch.device("cpu"))
collector = training_stats.Collector(regex="a|p|q|only|first|none")
values = torch.randn(3, 11, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 4
for name in ("p", "q") if rank == 0 else ("q", "p"):  # each process meets the names in an order of its own
    training_stats.report(name, 3 if name == "p" else 5)
rounds = []
for number in range(3):
    mine = values[number, 4 * rank : 4 + 7 * rank]  # four here, seven there
    training_stats.report("a", mine)
    training_stats.report("ignored", 1)
    training_stats.report0("first", 10 + rank)
    if rank == 1 and number == 1:
        training_stats.report("only", [1, 2])
        training_stats.report("none", [])
    collector.update()
    rounds.append(collector.as_dict())
print(json.dumps(rounds))
"""


def test_two_processes_are_as_one(tmp_path: Path) -> None:
    first, second = (json.loads(out) for out in run_joined(JOINED, tmp_path))
    values = torch.randn(3, 11, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 4
    collector = Collector(regex="a|p|q|only|first|none")
    report("p", [3, 3])
    report("q", [5, 5])
    for number in range(3):
        report("a", values[number])
        report("ignored", 1)
        report0("first", 10)
        if number == 1:
            report("only", [1, 2])
            report("none", [])
        collector.update()
        alone = collector.as_dict()
        for joined in (first[number], second[number]):
            assert joined.keys() == alone.keys()
            for name, expected in alone.items():
                assert joined[name]["num"] == expected.num
                for field in ("mean", "std"):
                    assert joined[name][field] == pytest.approx(expected[field], rel=1e-14, nan_ok=True), name
    assert alone.a.num == 11 and alone.first == {"num": 1, "mean": 10, "std": 0} and alone.only.mean == 1.5
