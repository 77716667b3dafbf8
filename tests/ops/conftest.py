"""Golden cases of single operators, and the implementations that compute them.

Tests that take `golden_case` run once for each case of the files that the module names in `GOLDEN`, or of those
operators in them that it names in `GOLDEN_OPS`. Tests that take `implementation` run once for each.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from stylegan_ops import build, dispatch, internals
from stylegan_ops.autograd import RULES
from stylegan_ops.backends import cpu, cuda

FIXTURES = Path(__file__).parents[1] / "fixtures" / "ops"
FIRST_ORDER = {"float16": 5e-3, "float32": 1e-5, "float64": 1e-10}
SECOND_ORDER = {"float32": 1e-4, "float64": 1e-10}


@dataclass(frozen=True)
class GoldenCase:
    op: str
    dtype: str
    args: dict[str, Any]
    inputs: dict[str, np.ndarray | None]
    outputs: dict[str, np.ndarray]


def _cases(file: str) -> dict[str, GoldenCase]:
    with np.load(FIXTURES / f"{file}.npz") as npz:
        arrays = dict(npz)
    cases = {}
    for case in json.loads((FIXTURES / f"{file}.json").read_text())["cases"]:
        inputs = {name: None if key is None else arrays[key] for name, key in case["inputs"].items()}
        outputs = {name: arrays[key] for name, key in case["outputs"].items()}
        cases[f"{case['op']}-{case['id']}"] = GoldenCase(
            case["op"], case.get("dtype", "float32"), case["args"], inputs, outputs
        )
    assert cases
    return cases


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_case" in metafunc.fixturenames:
        files = metafunc.module.GOLDEN
        cases = {}
        for file in (files,) if isinstance(files, str) else files:
            cases |= _cases(file)
        ops = getattr(metafunc.module, "GOLDEN_OPS", None)  # None: all of the files
        cases = {name: case for name, case in cases.items() if ops is None or case.op in ops}
        assert cases
        metafunc.parametrize("golden_case", cases.values(), ids=cases.keys())


def _assert_close(
    name: str, actual: torch.Tensor | None, expected: np.ndarray, tolerance: float, scale: float | None = None
) -> None:
    result = np.zeros_like(expected) if actual is None else actual.detach().numpy()
    assert result.shape == expected.shape, name
    assert result.dtype == expected.dtype, name
    error = np.abs(result - expected).max()
    scale = np.abs(expected).max() if scale is None else scale
    assert error <= tolerance * scale, f"{name}: off by {error:.2e} where the largest value is {scale:.2e}"


@pytest.fixture(scope="session")
def kernels_named() -> Callable[[str], Any]:
    """`kernels_named("cpu")` or "sim" -> its raw operators. Skips where there is no compiler to make them."""

    def kernels(name: str) -> Any:
        try:
            {"cpu": build.cpu_library, "sim": build.sim_library}[name]()
        except build.BuildError as error:
            pytest.skip(f"no {name} kernels: {error}")
        # On tensors of the CPU, the code for CUDA runs its kernels in the simulator.
        return {"cpu": cpu, "sim": cuda}[name]

    return kernels


@pytest.fixture(scope="module")
def cpu_kernels(kernels_named: Callable[[str], Any]) -> Iterator[Any]:
    """Has the CPU library serve the CPU, whatever mode the tests run in."""
    chosen = kernels_named("cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "implementation_for", lambda x: chosen if x.device.type == "cpu" else None)
        yield chosen


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "implementation_for", lambda x: None)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, bool]]:
    """The ways that calls took: what `dispatch.route` returned."""
    ways: list[tuple[Any, bool]] = []
    route = dispatch.route

    def spy(name: str, *tensors: torch.Tensor | None) -> tuple[Any, bool]:
        ways.append(route(name, *tensors))
        return ways[-1]

    monkeypatch.setattr(dispatch, "route", spy)
    return ways


@dataclass(frozen=True)
class Implementation:
    """Implementation that the public functions use.

    Attributes:
        name: Its name.
        calls: How often each raw operator of the kernels was called.
        single: Whether operators for which there are single-precision kernels are to be given that precision.
    """

    name: str
    calls: Counter[str]
    single: bool


def counting(kernels: Any, calls: Counter[str]) -> Any:
    """The raw operators of kernels, which count their calls by name."""

    def wrap(name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            calls[name] += 1
            return getattr(kernels, name)(*arguments)

        return call

    return SimpleNamespace(**{name: wrap(name) for name in (*RULES, "bias_act_grads") if hasattr(kernels, name)})


@pytest.fixture(
    scope="module",
    params=[
        "pytorch",
        "cpu",
        "registered",  # kernels, by PyTorch's dispatcher
        "public",  # the same with no private name of PyTorch
        pytest.param("sim", marks=pytest.mark.slow),  # It takes a minute for everything.
    ],
)
def implementation(request: pytest.FixtureRequest, kernels_named: Callable[[str], Any]) -> Iterator[Implementation]:
    """Has the public functions use an implementation."""
    calls: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "pytorch":
            patch.setattr(dispatch, "implementation_for", lambda x: None)
        else:
            kernels = counting(kernels_named("sim" if request.param == "sim" else "cpu"), calls)
            patch.setattr(dispatch, "implementation_for", lambda x: kernels)
        if request.param == "registered":
            patch.setattr(internals, "hooks", replace(internals.private_hooks(), observed=lambda: True))
        if request.param == "public":
            patch.setattr(internals, "hooks", internals.PUBLIC)
        yield Implementation(request.param, calls, request.param in ("cpu", "registered", "public"))


@pytest.fixture(autouse=True)
def fresh_count(request: pytest.FixtureRequest) -> None:
    """Begins to count anew."""
    if "implementation" in request.fixturenames:
        request.getfixturevalue("implementation").calls.clear()


@pytest.fixture(scope="session")
def assert_golden() -> Callable[..., None]:
    """Compares an operator's value, and its first and second derivatives where the case has them.

    y = op(...), L = sum(y * r), d_k = dL/dk; M = sum over k of sum(d_k * s_k), dd_k = dM/dk.
    `vanishing` names derivatives whose true value is zero, so that both sides hold rounding errors only: they
    are judged against the largest derivative of the case.
    """

    def check(case: GoldenCase, op: Callable[..., torch.Tensor], vanishing: tuple[str, ...] = ()) -> None:
        tensors = {k: None if v is None else torch.from_numpy(v) for k, v in case.inputs.items()}
        names = [k for k in tensors if f"d_{k}" in case.outputs]
        for name in names:
            tensors[name].requires_grad_()
        weights = {k: tensors.pop(k) for k in list(tensors) if k == "r" or k.startswith("s_")}
        compared = {"y"}
        largest = max((np.abs(v).max() for k, v in case.outputs.items() if k != "y"), default=0.0)

        def compare(name: str, actual: torch.Tensor | None, tolerances: dict[str, float]) -> None:
            scale = largest if name in vanishing else None
            _assert_close(name, actual, case.outputs[name], tolerances[case.dtype], scale)
            compared.add(name)

        y = op(**tensors, **case.args)
        compare("y", y, FIRST_ORDER)
        if names:
            weights["r"].requires_grad_()
            wanted = [tensors[name] for name in names]
            grads = torch.autograd.grad((y * weights["r"]).sum(), wanted, create_graph=True)
            for name, grad in zip(names, grads, strict=True):
                compare(f"d_{name}", grad, FIRST_ORDER)
        if "dd_r" in case.outputs:
            m = sum((grad * weights[f"s_{name}"]).sum() for name, grad in zip(names, grads, strict=True))
            second = torch.autograd.grad(m, [*wanted, weights["r"]], allow_unused=True)
            for name, grad in zip([*names, "r"], second, strict=True):
                compare(f"dd_{name}", grad, SECOND_ORDER)
        assert compared == case.outputs.keys()

    return check
