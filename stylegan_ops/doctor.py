"""`python -m stylegan_ops.doctor`: a check of what the kernels need, and of the kernels, with remedies."""

from __future__ import annotations

import ctypes
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from types import ModuleType
from typing import Any

import click
import torch
from torch import Tensor

from stylegan_ops import dispatch, samples
from stylegan_ops.backends import pytorch
from stylegan_ops.backends.driver import LIBRARY as DRIVER_LIBRARY
from stylegan_ops.backends.packing import ACTS
from stylegan_ops.build import BuildError, cache, nvrtc, toolchain
from stylegan_ops.samples import Sample

# As fractions of the largest value. Half precision rounds once, by up to 3.9e-3 and 4.9e-4 of a value; the others at
# each step. Winograd's algorithm rounds some five times as coarsely as a sum.
TOLERANCES = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 6e-3, torch.float16: 8e-4}
WINOGRAD = 5
TIMED_ROUNDS = 7


@dataclass(frozen=True)
class Finding:
    """Part of the machine or the installation.

    Attributes:
        name: Name of the part.
        value: What was found, or why nothing was.
        remedy: Remedy in the imperative; empty if nothing is missing.
    """

    name: str
    value: str
    remedy: str = ""


@dataclass(frozen=True)
class Comparison:
    """Largest error of an operator in a dtype, as a fraction of the largest value, and the tolerance."""

    operator: str
    dtype: str
    error: float
    tolerance: float


@dataclass(frozen=True)
class Verdict:
    """Verdict on the kernels for a device.

    Attributes:
        device: Name that PyTorch has for it.
        applicable: False if there is no such device.
        problem: Problem found; empty if the kernels work.
        remedy: Remedy in the imperative.
        seconds: Seconds taken to build or find and to load the kernels.
        comparisons: Comparisons with `reference` in float64.
        speedups: Time of plain PyTorch / time of the kernels, by layer.
    """

    device: str
    applicable: bool = True
    problem: str = ""
    remedy: str = ""
    seconds: float = 0.0
    comparisons: list[Comparison] = field(default_factory=list)
    speedups: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Gpu:
    """GPU as its driver describes it; `arch` has the form sm_90."""

    name: str
    arch: str


@dataclass(frozen=True)
class DriverState:
    """State of NVIDIA's driver.

    Attributes:
        version: CUDA version that it supports; empty without a driver.
        gpus: GPUs that it drives.
        problem: Reason why a driver does not answer.
    """

    version: str = ""
    gpus: tuple[Gpu, ...] = ()
    problem: str = ""


def driver_state(library: str = DRIVER_LIBRARY) -> DriverState:
    """Ask the driver directly, since a PyTorch without CUDA cannot."""
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return DriverState()
    number = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(number))
    version = f"{number.value // 1000}.{number.value % 1000 // 10}"
    no_device = 100  # CUDA_ERROR_NO_DEVICE
    status = cuda.cuInit(0)
    if status != 0:
        return DriverState(version, (), "" if status == no_device else f"cuInit fails with error {status}")
    cuda.cuDeviceGetCount(ctypes.byref(number))
    gpus = []
    for index in range(number.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        cuda.cuDeviceGet(ctypes.byref(device), index)
        cuda.cuDeviceGetName(name, len(name), device)
        capability = []
        for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
            value = ctypes.c_int()
            cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
            capability.append(value.value)
        gpus.append(Gpu(name.value.decode(errors="replace"), f"sm_{capability[0]}{capability[1]}"))
    return DriverState(version, tuple(gpus))


def survey(driver: DriverState) -> list[Finding]:
    """List the parts of machine and installation that matter."""
    findings = [
        Finding("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        Finding("PyTorch", f"{torch.__version__}, {_pytorch_cuda()}"),
        _finding("mode", dispatch.mode, f"set {dispatch.VARIABLE} to auto, on or off"),
        _finding("C++ compiler", lambda: _describe(toolchain.host_compiler()), toolchain.install_compiler()),
        _finding("ninja", toolchain.ninja_command, "run `pip install ninja`"),
        Finding("NVIDIA driver", f"for CUDA up to {driver.version}" if driver.version else "none"),
    ]
    findings += [Finding("GPU", f"{gpu.name}, {gpu.arch}") for gpu in driver.gpus] or [Finding("GPU", "none")]
    findings.append(_finding("NVRTC", lambda: _describe_nvrtc(driver), nvrtc.INSTALL))
    findings.append(_finding("nvcc", _describe_nvcc, "reinstall the CUDA toolkit"))
    findings.append(_finding("cache", _describe_cache, f"let {cache.VARIABLE} name a folder that can be read"))
    return findings


def _finding(name: str, describe: Callable[[], str], remedy: str) -> Finding:
    try:
        return Finding(name, describe())
    except BuildError as error:
        return Finding(name, error.cause, error.remedy)
    except (OSError, ValueError) as error:
        return Finding(name, str(error), remedy)


def _pytorch_cuda() -> str:
    if torch.version.hip:
        return f"built for ROCm {torch.version.hip}"
    return f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"


def _describe(compiler: toolchain.Compiler) -> str:
    return f"{' '.join(compiler.command)}, {compiler.version}"


def _describe_nvrtc(driver: DriverState) -> str:
    found = nvrtc.find()
    if found is not None:
        return str(found.path)
    if not driver.gpus:
        return "none"
    raise BuildError("none", nvrtc.INSTALL)


def _describe_nvcc() -> str:
    nvcc = toolchain.find_nvcc()
    return f"{_describe(nvcc)}, of the toolkit {toolchain.toolkit_folder(nvcc)}" if nvcc else "none"


def _describe_cache() -> str:
    former = "".join(f"; builds of an earlier version in {folder}" for folder in cache.former_directories())
    return f"{cache.cache_directory()}, {len(cache.builds())} builds, {cache.size() / 1e6:.1f} MB{former}"


def examine_cpu() -> Verdict:
    """Build the CPU library if need be, check it, and time it."""
    return _examine(torch.device("cpu"))


def examine_cuda(driver: DriverState) -> list[Verdict]:
    """Do the same on every GPU; one verdict tells if there is none, or if PyTorch cannot use it."""
    if driver.problem:
        return [Verdict("cuda", problem=f"the driver does not work, {driver.problem}", remedy="restart the machine")]
    if not driver.gpus or torch.version.hip:
        return [Verdict("cuda", applicable=False)]
    if not torch.version.cuda:
        problem = f"there is a GPU ({driver.gpus[0].name}), and this PyTorch is built without CUDA"
        remedy = "run `pip install --force-reinstall torch`, on Windows with the --index-url that pytorch.org tells"
        return [Verdict("cuda", problem=problem, remedy=remedy)]
    if not torch.cuda.is_available():
        problem = f"PyTorch, built for CUDA {torch.version.cuda}, cannot use the driver for CUDA {driver.version}"
        return [Verdict("cuda", problem=problem, remedy="install a newer NVIDIA driver or an older PyTorch")]
    return [_examine(torch.device("cuda", index)) for index in range(torch.cuda.device_count())]


def _examine(device: torch.device) -> Verdict:
    start = time.perf_counter()
    try:
        kernels = dispatch.load(device)
        assert kernels is not None
        seconds = time.perf_counter() - start
        comparisons = compare(kernels, device)
        speedups = measure(kernels, device)
    except BuildError as error:
        return Verdict(str(device), problem=error.cause, remedy=error.remedy)
    except (RuntimeError, ValueError) as error:
        return Verdict(str(device), problem=f"a kernel fails ({error})", remedy=f"run `{cache.CLEAN}` and try again")
    wrong = [c for c in comparisons if not c.error <= c.tolerance]
    if wrong:
        worst = max(wrong, key=lambda c: c.error / c.tolerance)
        size = f" by {worst.error:.1e} of the largest value" if worst.error < sys.float_info.max else ""
        problem = f"{worst.operator} in {worst.dtype} is wrong{size}"
        remedy = f"set {dispatch.VARIABLE}=off and report it"
        return Verdict(str(device), True, problem, remedy, seconds, comparisons, speedups)
    return Verdict(str(device), seconds=seconds, comparisons=comparisons, speedups=speedups)


def compare(kernels: ModuleType, device: torch.device) -> list[Comparison]:
    """Compare raw operators in every dtype that they take with `reference` and its derivatives, computed in float64.

    Args:
        kernels: Module with the raw operators that `registration` lists, or some of them.
        device: Device to run them on.
    """
    comparisons = []
    for dtype, tolerance in TOLERANCES.items():
        errors: dict[str, float] = {}
        for name in samples.DEFINITIONS:
            if hasattr(kernels, name) and (name in samples.ANY_DTYPE or dtype == torch.float32):
                for sample in samples.sample_inputs(name):
                    for operator, actual, expected in _cases(kernels, sample, dtype, device):
                        errors[operator] = max(errors.get(operator, 0.0), _error(actual, expected, dtype))
        short = str(dtype).removeprefix("torch.")
        for operator, error in errors.items():
            coarse = WINOGRAD if "conv3x3" in operator else 1
            comparisons.append(Comparison(operator, short, error, tolerance * coarse))
    return comparisons


def _error(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> float:
    if actual.shape != expected.shape or actual.dtype != dtype:
        return sys.float_info.max  # Unlike infinity, a number in JSON too.
    difference = (actual.cpu().double() - expected).abs().max() / expected.abs().max()
    return float(difference) if difference.isfinite() else sys.float_info.max


Case = tuple[str, Tensor, Tensor]


def _cases(kernels: Any, sample: Sample, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Yield (raw operator, its result, the correct result) for a sample and its derivatives."""
    exact = sample.to(dtype).to(torch.float64).with_leaves()
    y, x = exact.defined(), exact.leaves[0]
    generator = torch.Generator().manual_seed(0)
    dy, ddx = (torch.randn(shape, generator=generator).to(dtype) for shape in (y.shape, x.shape))
    weights = dy.double().requires_grad_()
    grads = torch.autograd.grad(y, exact.leaves, weights, create_graph=True)
    correct = dict(zip(sample.differentiable, grads, strict=True))
    given = sample.to(dtype, device)
    tensors, options = given.tensors, given.options
    results = getattr(kernels, sample.name)(*tensors, *options)
    yield sample.name, results[0] if isinstance(results, tuple) else results, y.detach()
    for operator, index, gradient in _gradients(kernels, given, dy.to(device), results):
        yield operator, gradient, correct[index].detach()
    if sample.name == "filtered_lrelu":  # Its gradient is linear in dy, and the transposed map is the tangent.
        (tangent,) = torch.autograd.grad(correct[0], weights, ddx.double(), retain_graph=True)
        yield "filtered_lrelu_tangent", kernels.filtered_lrelu_tangent(ddx.to(device), *tensors, *options), tangent
    if sample.name == "bias_act" and correct[0].requires_grad:
        (second,) = torch.autograd.grad(correct[0], x, ddx.double(), allow_unused=True)
        if second is not None and second.any():
            result = kernels.bias_act_grad2(ddx.to(device), dy.to(device), *tensors, *options)
            yield "bias_act_grad2", result, second


def _gradients(kernels: Any, sample: Sample, dy: Tensor, results: Any) -> Iterator[tuple[str, int, Tensor]]:
    """Yield (raw operator, index of a tensor, its gradient)."""
    tensors, options = sample.tensors, sample.options
    if sample.name == "bias_act":
        yield "bias_act_grad", 0, kernels.bias_act_grad(dy, *tensors, *options)
    elif sample.name == "filtered_lrelu":
        yield "filtered_lrelu_grad", 0, kernels.filtered_lrelu_grad(dy, *tensors, *options)
    elif sample.name == "conv3x3":
        yield "conv3x3_input_grad", 0, kernels.conv3x3_input_grad(dy, tensors[1])
        yield "conv3x3_weight_grad", 1, kernels.conv3x3_weight_grad(tensors[0], dy)
    elif sample.name == "attention":
        yield "attention_grad", 0, kernels.attention_grad(dy, *tensors)
    elif sample.name == "group_norm_silu":
        grads = kernels.group_norm_silu_grads(dy, *tensors, results[1], *options)
        yield from (("group_norm_silu_grads", i, grads[i]) for i in sample.differentiable)
    elif sample.name == "norm_conv3x3":
        x, weight, _, *others = tensors
        dx, dw, *grads = kernels.norm_conv3x3_grads(dy, x, weight, *others, results[1], *options, True)
        for index, grad in enumerate((dx, dw, None, *grads)):
            if grad is not None:
                yield "norm_conv3x3_grads", index, grad


def measure(kernels: ModuleType, device: torch.device) -> dict[str, float]:
    """Time the raw operators and plain PyTorch in turn, in float32; return the ratios of medians, above 1 if faster."""
    x = torch.randn([4, 32, 64, 64], device=device)
    b = torch.randn([32], device=device)
    f = torch.full([4, 4], 1 / 16, device=device)
    f12 = torch.full([12], 1 / 12, device=device)
    filtered = (2, 2, 9, 8, 9, 8, 2**0.5, 0.2, 256.0, False)
    lrelu = (1, ACTS.index("lrelu"), 0.2, 2**0.5, 256.0)
    timed: dict[str, Callable[[ModuleType], Any]] = {
        "bias_act lrelu": lambda module: module.bias_act(x, b, *lrelu),
        "bias_act_grad lrelu": lambda module: module.bias_act_grad(x, x, b, *lrelu),
        "upfirdn2d up 2": lambda module: module.upfirdn2d(x, f, 2, 2, 1, 1, 2, 1, 2, 1, False, 4.0),
        "upfirdn2d down 2": lambda module: module.upfirdn2d(x, f, 1, 1, 2, 2, 1, 1, 1, 1, False, 1.0),
        "filtered_lrelu": lambda module: module.filtered_lrelu(x, f12, f12, b, *filtered),
    }

    def seconds(run: Callable[[ModuleType], Any], module: ModuleType) -> float:
        start = time.perf_counter()
        run(module)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    speedups = {}
    for name, run in timed.items():
        rounds = [(seconds(run, pytorch), seconds(run, kernels)) for _ in range(TIMED_ROUNDS + 1)][1:]
        slow, fast = zip(*rounds, strict=True)
        speedups[name] = statistics.median(slow) / statistics.median(fast)
    return speedups


def _print(findings: list[Finding], verdicts: list[Verdict]) -> None:
    for finding in findings:
        click.echo(f"{finding.name:<14} {finding.value}{f': {finding.remedy}' if finding.remedy else ''}")
    click.echo()
    for verdict in verdicts:
        if not verdict.applicable:
            click.echo(f"{verdict.device:<14} not applicable: there is no NVIDIA GPU")
            continue
        if verdict.comparisons:
            operators = sorted({c.operator for c in verdict.comparisons})
            worst = max(c.error / c.tolerance for c in verdict.comparisons)
            click.echo(
                f"{verdict.device:<14} ready after {verdict.seconds:.1f} s; {', '.join(operators)} in "
                f"{', '.join(dict.fromkeys(c.dtype for c in verdict.comparisons))}: "
                f"largest error {worst:.0%} of the tolerance"
            )
        if verdict.speedups:
            ratios = ", ".join(f"{name} {ratio:.1f}x" for name, ratio in verdict.speedups.items())
            click.echo(f"{'':<14} plain PyTorch's time / the kernels': {ratios}")
        if verdict.problem:
            click.echo(f"{verdict.device:<14} DOES NOT WORK: {verdict.problem}")
            click.echo(f"{'':<14} remedy: {verdict.remedy}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@click.option("--clean", is_flag=True, help="Delete all builds and locks, and stop.")
def main(as_json: bool, clean: bool) -> None:
    """Check what the fast operators need, build them, compare them with their definitions, and time them.

    The exit code is 0 if everything works that can work on this machine, else 1.
    """
    if clean:
        try:
            click.echo(f"Deleted {cache.clean()} builds in {cache.cache_directory()}")
        except BuildError as error:
            raise click.ClickException(str(error)) from None
        return
    driver = driver_state()
    verdicts = [examine_cpu(), *examine_cuda(driver)]
    findings = survey(driver)
    mode_wrong = next(finding for finding in findings if finding.name == "mode").remedy
    ok = not mode_wrong and not any(verdict.problem for verdict in verdicts)
    if as_json:
        report = {"ok": ok, "findings": list(map(asdict, findings)), "verdicts": list(map(asdict, verdicts))}
        click.echo(json.dumps(report))
    else:
        _print(findings, verdicts)
        click.echo("\n" + ("Everything works that can work here." if ok else "Something does not work, see above."))
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
