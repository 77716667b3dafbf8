"""Breakages of the repositories with newer versions of Python, PyTorch and NumPy, where ours is responsible."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from public_names import NAMES

import dnnlib
from torch_utils import misc, training_stats
from torch_utils.ops import conv2d_gradfix, grid_sample_gradfix

ROOT = Path(__file__).parents[2]
MODULES = sorted({module for names in NAMES.values() for module in names})


def test_modules_need_nothing_that_python_or_setuptools_dropped() -> None:
    """`distutils` (Python 3.12), `pkg_resources` (setuptools 82), and no compiler at import."""
    absent = ("distutils", "pkg_resources", "setuptools", "imp", "torch.utils.cpp_extension")
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch
for name in {absent!r}:
    sys.modules.pop(name, None)
    sys.modules[name] = None
import importlib
for name in {MODULES!r}:
    importlib.import_module(name)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


def test_no_module_asks_for_a_version_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The original convolutions go their own way for listed versions only, and warn on all others."""
    monkeypatch.setattr(torch, "__version__", "99.0.0")
    for module in MODULES:
        if module.startswith("torch_utils.ops."):
            importlib.reload(importlib.import_module(module))


def test_second_order_through_augmentation_and_convolution(recwarn: pytest.WarningsRecorder) -> None:
    """`derivative for aten::grid_sampler_2d_backward is not implemented`, `missing value for 'output_mask'`,
    `No such operator aten::cudnn_convolution_backward_weight`, `'tuple' object is not callable`.
    """
    conv2d_gradfix.enabled = grid_sample_gradfix.enabled = True
    try:
        images = torch.randn(2, 3, 8, 8, requires_grad=True)
        weight = torch.randn(1, 3, 8, 8, requires_grad=True)
        grid = torch.nn.functional.affine_grid(torch.eye(3)[:2].repeat(2, 1, 1) * 0.9, [2, 3, 8, 8], False)
        logits = conv2d_gradfix.conv2d(grid_sample_gradfix.grid_sample(images, grid), weight)
        with conv2d_gradfix.no_weight_gradients():
            (gradient,) = torch.autograd.grad([logits.sum()], [images], create_graph=True, only_inputs=True)
        gradient.square().sum([1, 2, 3]).mean().backward()
    finally:
        conv2d_gradfix.enabled = grid_sample_gradfix.enabled = False
    assert weight.grad is not None and weight.grad.abs().max() > 0
    assert not recwarn.list


def test_optimizer_of_an_option_file() -> None:
    """`betas must be either both floats or both Tensors` (PyTorch 2.6)."""
    options = dnnlib.EasyDict(class_name="torch.optim.Adam", lr=0.002, betas=[0, 0.99], eps=1e-8)
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = dnnlib.util.construct_class_by_name([weight], **options)
    weight.sum().backward()
    optimizer.step()
    assert optimizer.defaults["betas"] == (0.0, 0.99)
    assert options.betas == [0, 0.99]
    torch.testing.assert_close(weight.detach(), torch.full([2], 0.998))


def test_sampler_does_not_pass_its_data_on() -> None:
    """`object.__init__() takes exactly one argument`."""
    assert next(iter(misc.InfiniteSampler([1, 2, 3]))) in (0, 1, 2)


def test_statistics_are_plain_numbers() -> None:
    """`Object of type float32 is not JSON serializable`, and `np.float64(1.5)` in a log."""
    collector = training_stats.Collector()
    training_stats.report("x", torch.tensor([1.5], dtype=torch.float32))
    collector.update()
    assert json.dumps(collector.as_dict()) == '{"x": {"num": 1, "mean": 1.5, "std": 0.0}}'
    assert f"{collector['x']}" == "1.5"


def test_summary_does_not_change_what_other_processes_would_have_to_change() -> None:
    """Printed in the first process only, as EDM does, it must leave the module as it is in the others."""
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)).eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    misc.print_module_summary(net, [torch.zeros(1, 1, 4, 4)])
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert not net.training and not net._forward_hooks
