"""Capture and replay of graphs, with a stand-in for CUDA; on a GPU, the results of a replay."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn
from trainers import golden_pair, trainer_of

from refine.networks.loading import load_teacher
from refine.training import cuda_graphs, trainer
from refine.training.cuda_graphs import CALLS_BEFORE, MAX_GRAPHS, CudaGraphs, graph_forward

FIXTURES = Path(__file__).parents[1] / "fixtures"
GAN, TEACHER = str(FIXTURES / "sg2ada/b_cond16.pkl"), str(FIXTURES / "edm/s4_sid_ddpmpp_cond16.pkl")


class StandIn(CudaGraphs):
    """On the CPU. A replay computes from the buffers that were there at the capture, into the result of the capture."""

    def __init__(self):
        super().__init__()
        self.captures = self.replays = 0

    def usable(self, tensors):
        return bool(tensors)

    def random_state(self, tensor):
        return torch.get_rng_state()

    def capture(self, run):
        self.captures += 1
        output = run()

        def replay():
            self.replays += 1
            output.copy_(run())

        return output, replay


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, sigma, labels=None):
        return self.dropout(self.layer(x)) * sigma + (0 if labels is None else labels)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval().requires_grad_(False)


def inputs(n=3):
    return torch.randn(n, 4), torch.rand(n, 1)


def settle(net, n=3):
    """Calls until the next one of that shape replays."""
    with torch.no_grad():
        for _ in range(CALLS_BEFORE + 1):
            net(*inputs(n))


def test_replays_give_what_the_network_gives(net):
    cuda, plain = StandIn(), net.forward
    graph_forward(net, cuda)
    results, expected = [], []
    with torch.no_grad():
        for _ in range(6):
            x, sigma = inputs()
            kept = x.clone()
            results.append(net(x, sigma))
            expected.append(plain(x, sigma))
            assert torch.equal(x, kept)
            net.layer.weight.add_(0.1)  # as an optimizer does, in place
    assert cuda.captures == 1 and cuda.replays == 6 - CALLS_BEFORE
    # Earlier results are not those of the last replay.
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def gradients(net):
    net(*inputs())


def training(net):
    net.train()
    with torch.no_grad():
        net(*inputs())


def by_name(net):
    with torch.no_grad():
        x, sigma = inputs()
        net(x, sigma=sigma)


def inference(net):
    with torch.inference_mode():
        net(*inputs())


@pytest.mark.parametrize("use", [gradients, training, by_name, inference])
def test_what_no_graph_repeats_runs_as_usual(net, use):
    cuda = StandIn()
    graph_forward(net, cuda)
    settle(net)
    replays = cuda.replays
    for _ in range(CALLS_BEFORE + 2):
        use(net)
    assert (cuda.captures, cuda.replays) == (1, replays)


def test_gradients_pass(net):
    graph_forward(net, StandIn())
    settle(net)
    net.requires_grad_(True)
    net(*inputs()).sum().backward()
    assert net.layer.weight.grad is not None


@pytest.mark.parametrize("change", ["shape", "dtype", "strides", "labels", "number", "autocast", "tf32"])
def test_another_call_needs_another_graph(net, change):
    cuda, plain = StandIn(), net.forward
    graph_forward(net, cuda)
    settle(net)
    (x, sigma), labels = inputs(), None
    if change == "shape":
        x, sigma = inputs(5)
    elif change == "dtype":
        net.double()  # also moves the weights: see below
        x, sigma = x.double(), sigma.double()
    elif change == "strides":
        x = torch.randn(4, 3).t()
    elif change == "labels":
        labels = torch.ones(4)
    elif change == "number":
        sigma = 2.0
    before = cuda.replays
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"):
        previous = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = previous != (change == "tf32")
        try:
            for call in range(1, CALLS_BEFORE + 3):
                result = net(x, sigma, labels)
                assert torch.equal(result, plain(x, sigma, labels))
                assert cuda.replays == before + max(call - CALLS_BEFORE, 0)
        finally:
            torch.backends.cudnn.allow_tf32 = previous
    assert cuda.captures == 2


def test_a_network_that_was_moved_is_captured_again(net):
    cuda, plain = StandIn(), net.forward
    graph_forward(net, cuda)
    settle(net)
    net.layer.weight = nn.Parameter(torch.ones(4, 4), requires_grad=False)
    with torch.no_grad():
        x, sigma = inputs()
        assert torch.equal(net(x, sigma), plain(x, sigma))
    assert cuda.captures == 2


def test_graphs_are_few(net):
    cuda = StandIn()
    graph_forward(net, cuda)
    for n in range(1, MAX_GRAPHS + 3):
        settle(net, n)
    assert cuda.captures == MAX_GRAPHS


def test_a_network_that_draws_is_left_alone(net, caplog):
    plain = net.forward
    net.forward = lambda x, sigma: plain(x, sigma) + torch.randn(())
    cuda = StandIn()
    graph_forward(net, cuda)
    settle(net)
    settle(net)
    assert cuda.captures == 0
    (record,) = caplog.records
    assert "Net " in record.getMessage() and "random numbers" in record.getMessage()


def test_a_capture_that_fails_is_said_once(net, caplog, monkeypatch):
    def fail(self, run):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(StandIn, "capture", fail)
    cached = torch.is_autocast_cache_enabled()
    plain = net.forward
    graph_forward(net, StandIn())
    settle(net)
    settle(net, 5)
    with torch.no_grad():
        x, sigma = inputs()
        assert torch.equal(net(x, sigma), plain(x, sigma))
    assert len(caplog.records) == 1 and "not permitted when stream is capturing" in caplog.text
    assert "and more" not in caplog.text and torch.is_autocast_cache_enabled() == cached


class Streams:
    """As much of `torch.cuda` as a capture uses; one that fails to end leaves its stream behind, as PyTorch's does."""

    def __init__(self, fails):
        self.now, self.fails, self.captured = "of the run", fails, 0

    def current_stream(self):
        streams = self

        class Stream:
            name = streams.now

            def wait_stream(self, other):
                pass

        return Stream()

    Stream = current_stream

    @contextmanager
    def stream(self, stream):
        yield

    def set_stream(self, stream):
        self.now = stream.name

    class CUDAGraph:
        def pool(self):
            return 1

        def replay(self):
            pass

    @contextmanager
    def graph(self, graph, pool=None, capture_error_mode="global"):
        before, self.now = self.now, "of the capture"
        yield
        if self.fails and not self.captured:
            self.fails = False
            raise RuntimeError("operation failed due to a previous error during capture")
        self.now, self.captured = before, self.captured + 1


@pytest.mark.parametrize("fails", [False, True])
def test_the_stream_is_the_runs_again_behind_a_capture(monkeypatch, fails):
    streams = Streams(fails)
    monkeypatch.setattr(cuda_graphs.torch, "cuda", streams)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, device: zeros(*size))
    with pytest.raises(RuntimeError) if fails else nullcontext():
        assert CudaGraphs().capture(lambda: torch.ones(1))[0] == 1
    assert streams.now == "of the run"
    assert streams.captured == 1  # If not of the graph, of an addition, after which random numbers can be drawn.


def test_casts_of_weights_are_not_kept(net):
    """A graph that held a cast of another moment would not see what the optimizer does."""
    seen = []
    plain = net.forward
    net.forward = lambda x, sigma: (seen.append(torch.is_autocast_cache_enabled()), plain(x, sigma))[1]
    graph_forward(net, StandIn())
    settle(net)
    assert seen[:CALLS_BEFORE] == [True] * CALLS_BEFORE and set(seen[CALLS_BEFORE:]) - {True} == {False}
    assert seen[CALLS_BEFORE : CALLS_BEFORE + 2] == [False, False]  # tried, and captured


def test_never_on_a_cpu(net):
    forward = graph_forward(net, CudaGraphs())
    settle(net)
    settle(net)
    assert not forward.graphs and not forward.given_up


@pytest.mark.parametrize(("options", "captures"), [({}, 2), ({"paired_dropout": True}, 0), ({"objective": "sds"}, 1)])
def test_a_run_with_graphs_is_the_same_run(monkeypatch, options, captures):
    """Teacher and fake score for the generator's step; not with dropout, whose masks a replay would repeat."""
    weights, cuda = [], StandIn()
    monkeypatch.setattr(trainer, "CudaGraphs", lambda: cuda)
    for graphs in (False, True):
        run = trainer_of(golden_pair(), batch=4, kimg=1.0, glr=1e-3, flr=1e-3, cuda_graphs=graphs, **options)
        for _ in range(CALLS_BEFORE + 2):
            run.step()
        weights.append([p for network in run.networks for p in network.module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert cuda.captures == captures and bool(cuda.replays) == bool(captures)


@pytest.mark.cuda
@pytest.mark.parametrize("half", [False, True])
def test_on_a_gpu_a_replay_is_the_network(half):
    network = load_teacher(TEACHER).network.cuda()
    plain = network.forward
    forward = graph_forward(network, CudaGraphs())
    labels = torch.eye(network.label_dim, device="cuda")[:4]
    with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16, enabled=half):
        for _ in range(cuda_graphs.CALLS_BEFORE + 3):
            x, sigma = torch.randn(4, network.img_channels, 16, 16, device="cuda"), torch.rand(4, device="cuda") + 0.1
            expected = plain(x, sigma, labels)
            torch.testing.assert_close(network(x, sigma, labels), expected, rtol=1e-3, atol=1e-3)
            for parameter in network.parameters():
                parameter.mul_(1.01)
    assert len(forward.graphs) == 1 and not forward.given_up


class Stubborn(nn.Module):
    """Looks at a value on the CPU, which cannot be captured."""

    def forward(self, x):
        return x * x.sum().item()


@pytest.mark.cuda
def test_on_a_gpu_a_failed_capture_leaves_everything_usable():
    network = Stubborn().eval()
    forward = graph_forward(network, CudaGraphs())
    x = torch.ones(3, device="cuda")
    with torch.no_grad():
        for _ in range(cuda_graphs.CALLS_BEFORE + 3):
            assert torch.equal(network(x), torch.full((3,), 3.0, device="cuda"))
    assert forward.given_up
    assert torch.rand(4, device="cuda").unique().numel() > 1
    assert nn.functional.dropout(torch.ones(64, device="cuda"), 0.5).unique().numel() == 2
