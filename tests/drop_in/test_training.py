"""Golden pickles opened by plain `pickle.load` under our `torch_utils`, and trained as StyleGAN2 trains."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dnnlib
from torch_utils import misc, persistence, training_stats
from torch_utils.ops import conv2d_gradfix, grid_sample_gradfix

SOURCE = (Path(__file__).parents[1] / "support" / "embedded_stylegan2.py").read_text(encoding="utf-8")
NAMES = ("a_uncond32", "b_cond16", "c_orig16", "c_resnet16", "d_gray16")
IMAGES, LOGITS, GRADIENTS, SECOND = 2e-5, 5e-5, 3e-4, 2e-3  # tests/fixtures: what the original code differs by


def opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(persistence, "_import_hooks", [])

    @persistence.import_hook
    def give_source(meta: dnnlib.EasyDict) -> dnnlib.EasyDict:
        meta.module_src = SOURCE
        return meta

    with path.open("rb") as file:
        return pickle.load(file)


def assert_close(name: str, actual: Tensor, expected: np.ndarray, tolerance: float, scale: float | None = None) -> None:
    error = np.abs(actual.detach().numpy() - expected).max()
    scale = np.abs(expected).max() if scale is None else scale
    assert error <= tolerance * scale, f"{name}: off by {error:.2e} where the largest value is {scale:.2e}"


def assert_gradients(
    module: torch.nn.Module, gradients: tuple[Tensor | None, ...], arrays: dict[str, Any], prefix: str, tolerance: float
) -> None:
    """All golden gradients of parameters, judged against the largest of the network."""
    found = dict(zip((name for name, _ in module.named_parameters()), gradients, strict=True))
    golden = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    golden = {name: array for name, array in golden.items() if name in found}
    assert len(golden) > 5
    scale = max(np.abs(array).max() for array in golden.values())
    for name, array in golden.items():
        gradient = found[name]
        assert_close(prefix + name, torch.zeros(array.shape) if gradient is None else gradient, array, tolerance, scale)


@pytest.mark.parametrize("name", NAMES)
def test_golden_networks_compute(
    name: str, fixture_path: Callable[[str], Path], golden: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, arrays = opened(fixture_path(f"sg2ada/{name}.pkl"), monkeypatch), golden(f"sg2ada/{name}")
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items() if key.startswith("in.")}
    G, D = data["G_ema"], data["D"]
    image = G(tensors["in.z"], tensors["in.c"], truncation_psi=0.7, noise_mode="const")
    assert_close("image", image, arrays["G_call_const_psi0.7"], IMAGES)
    for count in (8, 4, 2, 1):
        logits = D(tensors["in.d_img"][:count], tensors["in.d_c"][:count])
        assert_close(f"logits_n{count}", logits, arrays[f"logits_n{count}"], LOGITS)


@pytest.mark.parametrize("name", NAMES)
def test_r1_regularization(
    name: str, fixture_path: Callable[[str], Path], golden: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The squared norm of the gradient of D by its images (arXiv 1801.04406), and one step on it."""
    D, arrays = opened(fixture_path(f"sg2ada/{name}.pkl"), monkeypatch)["D"], golden(f"sg2ada/{name}")
    D.train().requires_grad_(True)

    def penalty() -> Tensor:
        images = torch.from_numpy(arrays["in.d_img"]).clone().requires_grad_(True)
        logits = D(images, torch.from_numpy(arrays["in.d_c"]))
        with conv2d_gradfix.no_weight_gradients():
            (gradient,) = torch.autograd.grad([logits.sum()], [images], create_graph=True, only_inputs=True)
        return gradient.square().sum([1, 2, 3])

    monkeypatch.setattr(conv2d_gradfix, "enabled", True)
    monkeypatch.setattr(grid_sample_gradfix, "enabled", True)
    before = training_stats.report("Loss/r1_penalty", penalty())
    assert_close("r1_penalty", before, arrays["r1_penalty"], LOGITS)
    gradients = torch.autograd.grad(before.sum(), list(D.parameters()), allow_unused=True, retain_graph=True)
    assert_gradients(D, gradients, arrays, "r1_grad.", SECOND)

    options = dnnlib.EasyDict(class_name="torch.optim.Adam", lr=1e-4, betas=[0, 0.99], eps=1e-8)
    optimizer = dnnlib.util.construct_class_by_name(D.parameters(), **options)
    before.mean().mul(5).backward()
    assert all(torch.isfinite(tensor.grad).all() for tensor in D.parameters() if tensor.grad is not None)
    optimizer.step()
    assert penalty().mean() < before.mean()


@pytest.mark.parametrize("name", NAMES)
def test_path_length_regularization(
    name: str, fixture_path: Callable[[str], Path], golden: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Distance that the image moves with w (arXiv 1912.04958, section 3.2), through second derivatives; five steps."""
    G, arrays = opened(fixture_path(f"sg2ada/{name}.pkl"), monkeypatch)["G_ema"], golden(f"sg2ada/{name}")
    G.train().requires_grad_(True)
    r = torch.from_numpy(arrays["in.r"])

    def lengths(z: Tensor) -> Tensor:
        ws = G.mapping(z, torch.from_numpy(arrays["in.c"]))
        images = G.synthesis(ws, noise_mode="const")
        with conv2d_gradfix.no_weight_gradients():
            (gradient,) = torch.autograd.grad([(images * r).sum()], [ws], create_graph=True, only_inputs=True)
        return gradient.square().sum(dim=[1, 2])

    z = torch.from_numpy(arrays["in.z"]).clone().requires_grad_(True)
    squares = lengths(z)
    assert_close("pl_P", squares.sum(), arrays["pl_P"], LOGITS)
    wanted = [z, *G.parameters()]
    gradients = torch.autograd.grad(squares.sum(), wanted, allow_unused=True, retain_graph=True)
    assert_close("pl_grad_z", gradients[0], arrays["pl_grad_z"], SECOND)
    assert_gradients(G, gradients[1:], arrays, "pl_grad.", SECOND)

    mean = squares.sqrt().mean().item() * 0.5
    deviations = []
    optimizer = torch.optim.Adam(G.parameters(), lr=1e-3, betas=(0.0, 0.99))
    for _ in range(5):  # one step may rise: at the kinks of the activations, the penalty jumps
        deviation = (lengths(z).sqrt() - mean).square().mean()
        optimizer.zero_grad()
        deviation.backward()
        optimizer.step()
        deviations.append(deviation.item())
    assert deviations[-1] < 0.9 * deviations[0], deviations
    # And an ordinary gradient of the generator through both networks' operators.
    first = torch.autograd.grad((G.synthesis(G.mapping(z, torch.from_numpy(arrays["in.c"]))) * r).sum(), z)
    assert torch.isfinite(first[0]).all()


def test_both_ways_of_a_checkpoint(fixture_path: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways of a training loop: copies by name, summaries, a pickled snapshot, opened again."""
    data = opened(fixture_path("sg2ada/b_cond16.pkl"), monkeypatch)
    G, G_ema = data["G"], data["G_ema"]
    z, c = torch.randn(2, G.z_dim), torch.eye(G.c_dim)[:2]
    assert not torch.equal(G(z, c, noise_mode="const"), G_ema(z, c, noise_mode="const"))
    misc.copy_params_and_buffers(G_ema, G, require_all=True)
    expected = misc.print_module_summary(G, [z, c, 1, "const"])
    again = pickle.loads(pickle.dumps({"G": G, "training_set_kwargs": dnnlib.EasyDict(path="x")}))
    assert torch.equal(again["G"](z, c, noise_mode="const"), expected)
    assert torch.equal(expected, G_ema(z, c, noise_mode="const"))
    assert again["G"].init_kwargs == G_ema.init_kwargs and persistence.is_persistent(again["G"])
