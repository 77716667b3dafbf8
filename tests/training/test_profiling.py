"""The profile counts what can be counted by hand, tells parts apart, and runs as a command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional

from refine.commands.profile import main
from refine.config import RunConfig
from refine.networks.loading import load_gan, load_teacher
from refine.runs.start import make_trainer
from refine.training.profiling import OTHER, Ceilings, Clock, Counter, Parts, profile
from stylegan_ops.upfirdn2d import setup_filter, upsample2d

FIXTURES = Path(__file__).parents[1] / "fixtures"
GAN, TEACHER = str(FIXTURES / "sg2ada/b_cond16.pkl"), str(FIXTURES / "edm/s4_sid_ddpmpp_cond16.pkl")


def count(run):
    with Counter(Ceilings()) as counter:
        run()
    return counter.total


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_are_counted_by_hand(groups, transposed):
    x = torch.randn(2, 8, 5, 6, requires_grad=True)
    weight = torch.randn((8, 12 // groups, 3, 3) if transposed else (12, 8 // groups, 3, 3), requires_grad=True)
    convolve = functional.conv_transpose2d if transposed else functional.conv2d
    forward = 2 * 2 * 5 * 6 * 8 * 12 // groups * 9
    padding = 0 if transposed else 1
    with torch.no_grad():
        assert count(lambda: convolve(x, weight, padding=padding, groups=groups)).flop == forward
    both = count(lambda: convolve(x, weight, padding=padding, groups=groups).sum().backward())
    assert both.flop == 3 * forward  # gradients of input and of weight are a convolution each


def test_products_attention_and_filters_are_counted_by_hand():
    a, b = torch.randn(3, 4), torch.randn(4, 5)
    assert count(lambda: a @ b).flop == 2 * 3 * 4 * 5
    query, key, value = torch.randn(3, 2, 1, 16, 8)
    attention = count(lambda: functional.scaled_dot_product_attention(query, key, value))
    assert attention.flop == 2 * 2 * 2 * 16 * 16 * 8
    image = torch.randn(2, 3, 8, 8)
    assert count(lambda: upsample2d(image, setup_filter([1, 3, 3, 1]))).flop == 2 * 2 * 3 * 16 * 16 * 4


def test_bytes_and_floor():
    a = torch.randn(1000)
    with Counter(Ceilings(flop=1e9, bytes=1e6)) as counter:
        a.view(10, 100)  # computes nothing
        a + a
        a.add_(1)
    assert counter.total.calls == 2
    assert counter.total.bytes == 3 * 4000 + 2 * 4000
    assert counter.total.floor == pytest.approx(20e-3)


def test_parts_nest_and_the_innermost_counts():
    parts = Parts(Clock(torch.device("cpu")))
    inner = parts.wrap("inner", lambda: parts.current)
    outer = parts.wrap("outer", lambda: (inner(), parts.current))
    assert outer() == ("inner", "outer")
    assert parts.current == OTHER
    with pytest.raises(ZeroDivisionError):
        parts.wrap("inner", lambda: 1 / 0)()
    assert parts.current == OTHER


def test_profile_of_a_step():
    config = RunConfig(gan=GAN, teacher=TEACHER, batch=4, kimg=1.0, share_forward=True)
    trainer = make_trainer(config, load_gan(GAN), load_teacher(TEACHER), torch.device("cpu"))
    result = profile(trainer, rounds=1)
    flop = {name: work.flop for name, work in result.by_part.items()}
    # The teacher's pass once, the fake score's twice, one of them with dropout; nothing else multiplies so much.
    assert flop["fake score, forward"] == 2 * flop["teacher, forward"] > 0
    assert flop["teacher, forward"] < flop["fake score, backward"] <= 2.2 * flop["teacher, forward"]
    assert flop["generator, forward"] < flop["generator, backward"] < 2.2 * flop["generator, forward"]
    assert flop["optimisers, average"] == 0 < result.by_part["optimisers, average"].bytes
    assert sum(flop.values()) == sum(work.flop for work in result.by_operator.values())
    assert result.seconds.keys() >= flop.keys()
    weights = sum(p.numel() * 4 for p in trainer.fake.parameters())
    assert result.memory["gradients of fake score"] == weights
    assert result.memory["Adam's moments of fake score"] == pytest.approx(2 * weights, rel=0.01)
    assert result.memory["kept for backward by fake score, forward"] > 0
    assert trainer.progress.step == 4  # one to warm up, one for each pass
    assert "forward" not in vars(trainer.fake)  # nothing stays wrapped


def test_command():
    result = CliRunner().invoke(main, ["--gan", GAN, "--teacher", TEACHER, "--batch", "2", "--rounds", "1"])
    assert result.exit_code == 0, result.output
    for words in ("matrix product", "fake score, backward", "aten.convolution", "of floor", "weights of teacher"):
        assert words in result.output


def test_command_names_what_is_wrong():
    result = CliRunner().invoke(main, ["--gan", "nothing.pkl", "--teacher", TEACHER])
    assert result.exit_code == 2
    assert "nothing.pkl" in result.output
