"""EDM's helpers, and what `misc` does between processes."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from joined import ROOT, run_joined

from torch_utils import distributed, misc


def test_before_init_there_is_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert (distributed.get_rank(), distributed.get_world_size(), distributed.should_stop()) == (0, 1, False)
    distributed.update_progress(1, 2)
    distributed.print0("once", "more", sep="-")
    assert capsys.readouterr().out == "once-more\n"


def test_init_alone_makes_a_group_without_a_port() -> None:
    code = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
    os.environ.pop(name, None)
import torch
from torch_utils import distributed, training_stats
distributed.init()
torch.distributed.barrier()
assert (distributed.get_rank(), distributed.get_world_size()) == (0, 1)
assert training_stats._sync_device is None
"""
    with socket.socket() as taken:
        with contextlib.suppress(OSError):  # it is taken by somebody else: as good
            taken.bind(("127.0.0.1", 29500))
        subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_init_joins_what_torchrun_started(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch
torch.set_num_threads(1)
from torch_utils import distributed, training_stats
distributed.init()
training_stats.report("rank", distributed.get_rank())
training_stats.default_collector.update()
distributed.print0("rank", distributed.get_rank(), "of", distributed.get_world_size())
distributed.print0(training_stats.default_collector.as_dict()["rank"])
"""
    )
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "script.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["rank 0 of 2", "{'num': 2, 'mean': 0.5, 'std': 0.5}"]


JOINED = """
from torch_utils import misc

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 2, bias=False)
        self.register_buffer("count", torch.tensor([1, 2]))
        self.register_buffer("empty", torch.full([2], float("nan")))

torch.manual_seed(0)
net = Net()
misc.check_ddp_consistency(net)
net.linear.weight.data[1, 1] += rank
misc.check_ddp_consistency(net, ignore_regex=r"Net\\.linear\\..*")
try:
    misc.check_ddp_consistency(net)
except AssertionError as error:
    print(error)

x = torch.full([1, 2], 1.0 + rank)
alone, synced = [], []
ddp = torch.nn.parallel.DistributedDataParallel(Net().linear)
for sync, gradients in ((False, alone), (True, synced)):
    ddp.zero_grad(set_to_none=True)
    with misc.ddp_sync(ddp, sync):
        ddp(x).sum().backward()
    gradients.append(ddp.module.weight.grad[0, 0].item())
print(alone, synced)
"""


def test_consistency_and_exchange_of_gradients_over_two_processes(tmp_path: Path) -> None:
    first, second = (out.splitlines() for out in run_joined(JOINED, tmp_path))
    assert first == ["Net.linear.weight is not the same in all processes", "[1.0] [1.5]"]
    assert second == ["Net.linear.weight is not the same in all processes", "[2.0] [1.5]"]


def test_alone_everything_is_consistent() -> None:
    net = torch.nn.Linear(1, 1)
    misc.check_ddp_consistency(net)
    with misc.ddp_sync(net, sync=False):
        net(torch.ones(1, 1)).backward()
    assert net.weight.grad is not None
