"""The operators as PyTorch's dispatcher, compilers and exporters see them."""

from __future__ import annotations

import pytest
import torch
from operator_layers import (
    UNET,
    layer,
    layer_arguments,
    small_generator,
    tensors,
    unet,
    unet_arguments,
)
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from stylegan_ops import dispatch, internals, reference, registration
from stylegan_ops.autograd import RULES
from stylegan_ops.backends.packing import ACTS
from stylegan_ops.conv3x3 import conv3x3
from stylegan_ops.dispatch import implementation_for
from stylegan_ops.samples import DEFINITIONS, Sample, sample_inputs
from stylegan_ops.upfirdn2d import upfirdn2d

REGISTERED = torch.ops.stylegan_ops
SWISH = ACTS.index("swish")
LOOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(autouse=True)
def kernels(cpu_kernels):
    """Kernels for the CPU."""


# --- PyTorch's own checks

FORMS = {
    "bias_act": ("lrelu", "swish-channels_last", "swish-no_bias"),
    "upfirdn2d": ("up", "rest-channels_last"),
    "filtered_lrelu": ("radial", "larger"),
    "group_norm_silu": ("all",),
    "norm_conv3x3": ("all",),
}


def samples(name: str) -> list[Sample]:
    """Those that differ in what the registration does, in single precision."""
    return [s.to(torch.float32) for s in sample_inputs(name) if s.label in FORMS.get(name, (s.label,))]


def gradient_arguments(sample: Sample) -> dict[str, tuple]:
    """Arguments of the operators that compute the derivatives of another one."""
    tensors, options = sample.tensors, sample.options
    result = getattr(REGISTERED, sample.name)(*tensors, *options)
    y, statistics = result if isinstance(result, tuple) else (result, None)
    dy, (x, *others) = torch.randn_like(y), tensors
    match sample.name:
        case "bias_act":
            ddx = torch.randn_like(x)
            return {"bias_act_grad": (dy, *tensors, *options), "bias_act_grad2": (ddx, dy, *tensors, *options)}
        case "filtered_lrelu":
            arguments = {"filtered_lrelu_grad": dy, "filtered_lrelu_tangent": torch.randn_like(x)}
            return {name: (first, *tensors, *options) for name, first in arguments.items()}
        case "conv3x3":
            return {"conv3x3_input_grad": (dy, others[0]), "conv3x3_weight_grad": (x, dy)}
        case "attention":
            return {"attention_grad": (dy, x)}
        case "group_norm_silu":
            return {"group_norm_silu_grads": (dy, *tensors, statistics, *options)}
        case "norm_conv3x3":
            return {"norm_conv3x3_grads": (dy, x, others[0], *others[2:], statistics, *options, True)}
    return {}


def requiring_gradients(arguments):
    """Of all tensors that can have one."""
    return tuple(
        a.detach().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments
    )


ALL = [sample for name in DEFINITIONS for sample in samples(name)]
# What finds out that these derivatives' derivatives compile takes minutes, for what no compiler can do: AOTAutograd
# differentiates once.
BY_PYTORCH = ("attention_grad", "group_norm_silu_grads", "norm_conv3x3_grads")


def check(name, arguments, slow=False):
    operator = getattr(REGISTERED, name).default
    if slow or name not in BY_PYTORCH:
        opcheck(operator, arguments)
    else:
        opcheck(operator, arguments, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))
        plain = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
        opcheck(operator, tuple(plain), test_utils="test_aot_dispatch_dynamic")


@pytest.mark.parametrize("sample", ALL, ids=str)
def test_opcheck(sample):
    leaves = sample.with_leaves()
    check(sample.name, (*leaves.tensors, *sample.options))


@pytest.mark.parametrize("sample", [sample for sample in ALL if sample.label not in ("no_bias", "heads")], ids=str)
def test_opcheck_of_derivatives(sample):
    for name, arguments in gradient_arguments(sample).items():
        tensors = requiring_gradients(arguments)
        if name.startswith("filtered_lrelu"):  # Filters are constants.
            tensors = (*tensors[:2], *arguments[2:4], *tensors[4:])
        if name.startswith(("group_norm", "norm_conv")):  # Nothing is to be differentiated in the statistics.
            index = RULES[name].tensors - 1
            tensors = (*tensors[:index], arguments[index], *tensors[index + 1 :])
        check(name, tensors)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sample", [s for s in ALL if s.name in ("attention", "group_norm_silu", "norm_conv3x3")], ids=str
)
def test_opcheck_of_derivatives_compiled_with_their_own(sample):
    for name, arguments in gradient_arguments(sample).items():
        index = RULES[name].tensors - 1
        tensors = list(requiring_gradients(arguments))
        if name != "attention_grad":
            tensors[index] = arguments[index]
        check(name, tuple(tensors), slow=True)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_opcheck_without_kernels(name, without_kernels):
    sample = samples(name)[-1]
    opcheck(getattr(REGISTERED, name).default, (*sample.tensors, *sample.options))
    for operator, arguments in gradient_arguments(sample).items():
        opcheck(getattr(REGISTERED, operator).default, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("shape", [(3, 1, 4, 1), (2, 1, 1, 1), (3, 0, 4, 4), (2, 3)])
def test_layouts_of_results_without_kernels(shape, without_kernels):
    """PyTorch's own operators return their argument here, or something that lies otherwise in memory."""
    x, dy, ddx = (t.detach().transpose(0, 1) for t in tensors(*[shape] * 3))
    b = torch.randn(x.shape[1])
    quick = {"test_utils": ("test_schema", "test_faketensor")}
    for act, gain, clamp in (("lrelu", 1.3, 0.9), ("swish", 1.0, -1.0), ("linear", 1.0, -1.0)):
        options = (1, ACTS.index(act), 0.2, gain, clamp)
        opcheck(REGISTERED.bias_act.default, (x, b, *options), **quick)
        opcheck(REGISTERED.bias_act.default, (x.contiguous(), None, *options), **quick)
        opcheck(REGISTERED.bias_act_grad.default, (dy, x, b, *options), **quick)
        opcheck(REGISTERED.bias_act_grad2.default, (ddx, dy, x, b, *options), **quick)
    if len(shape) == 4:
        f = torch.outer(*torch.tensor([1.0, 3, 3, 1]).expand(2, 4)) / 64
        opcheck(REGISTERED.upfirdn2d.default, (dy, f, 2, 2, 1, 1, 2, 1, 2, 1, False, 4.0), **quick)


def test_every_raw_operator_is_registered():
    assert registration.SCHEMAS.keys() == registration.PREDICTIONS.keys() == RULES.keys()
    checked = {name for sample in ALL for name in (sample.name, *gradient_arguments(sample))}
    assert checked == RULES.keys()
    for name, rule in RULES.items():
        arguments = getattr(REGISTERED, name).default._schema.arguments
        kinds = ["Tensor" in str(argument.type) for argument in arguments]
        assert kinds == [True] * rule.tensors + [False] * (len(kinds) - rule.tensors), name


def test_autocast_leaves_registered_operators_alone(without_kernels):
    sample = sample_inputs("conv3x3")[0].to(torch.float32)
    expected = REGISTERED.conv3x3(*sample.tensors)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(REGISTERED.conv3x3(*sample.tensors), expected)


def test_vmap_of_a_registered_operator():
    x, b = (t.detach() for t in tensors((4, 2, 3), (3,)))
    result = torch.func.vmap(lambda x: REGISTERED.bias_act(x, b, 1, SWISH, 0.0, 1.0, -1.0))(x)
    torch.testing.assert_close(result, reference.bias_act(x, b, 2, "swish", gain=1))


# --- multiplications and additions


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_flops_are_counted():
    for name in ("conv3x3", "conv1x1"):
        operator = getattr(REGISTERED, name)
        tensors = sample_inputs(name)[0].to(torch.float32).with_leaves().tensors
        x, weight, _ = tensors
        flops = counted(lambda operator=operator, tensors=tensors: operator(*tensors).sum().backward())
        assert flops == 3 * 2 * x.shape[0] * x.shape[2] * x.shape[3] * weight.numel(), name
    sample = sample_inputs("norm_conv3x3")[1].to(torch.float32).with_leaves()
    x, weight, *_ = sample.tensors
    one = 2 * x.shape[0] * x.shape[2] * x.shape[3] * weight.numel()
    assert counted(lambda: REGISTERED.norm_conv3x3(*sample.tensors, *sample.options)[0].sum().backward()) == 3 * one
    frozen = (x, weight.detach(), *sample.tensors[2:])
    assert counted(lambda: REGISTERED.norm_conv3x3(*frozen, *sample.options)[0].sum().backward()) == 2 * one
    (qkv,) = sample_inputs("attention")[1].to(torch.float32).with_leaves().tensors
    products = 2 * qkv.shape[0] * qkv.shape[1] * qkv.shape[2] * qkv.shape[4] ** 2
    assert counted(lambda: REGISTERED.attention(qkv)) == 2 * products
    assert counted(lambda: REGISTERED.attention(qkv).sum().backward()) == 7 * products
    image, f = torch.randn(2, 3, 8, 8), torch.randn(4)
    for taps in (f, torch.outer(f, f)):
        assert counted(lambda t=taps: upfirdn2d(image, t, up=2, padding=[2, 1, 2, 1])) == 2 * 2 * 3 * 16 * 16 * 4


# --- torch.compile and torch.export


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def assert_compiled_equals_eager(op, arguments, backend):
    x, *rest = arguments
    leaves = [t for t in rest if t.requires_grad]
    compiled = torch.compile(op, fullgraph=True, backend=backend)
    for batch in (x.shape[0], x.shape[0] + 1):  # The second size makes the compiler generalize.
        x = torch.randn(batch, *x.shape[1:], requires_grad=True)
        y, expected = compiled(x, *rest), op(x, *rest)
        torch.testing.assert_close(y, expected)
        r = torch.randn_like(y)
        for result, correct in zip(
            torch.autograd.grad(y, (x, *leaves), r), torch.autograd.grad(expected, (x, *leaves), r), strict=True
        ):
            torch.testing.assert_close(result, correct)


LAYERS = pytest.mark.parametrize(("op", "make"), [(layer, layer_arguments), (unet, unet_arguments)])


@LAYERS
def test_compile(op, make, fresh_compiler):
    assert_compiled_equals_eager(op, make(), "aot_eager")


@LAYERS
@pytest.mark.skipif(" " in torch.__file__, reason="Inductor itself cannot link where PyTorch's path has a space")
@pytest.mark.slow
def test_compile_with_inductor(op, make, fresh_compiler):
    assert_compiled_equals_eager(op, make(), "inductor")


def operators_seen_by_the_compiler(function, *arguments):
    seen = []

    def backend(graph_module, example_inputs):
        seen.extend(str(node.target) for node in graph_module.graph.nodes if node.op == "call_function")
        return graph_module

    result = torch.compile(function, fullgraph=True, backend=backend)(*arguments)
    torch.testing.assert_close(result, function(*arguments))
    return seen


@pytest.mark.parametrize(
    ("op", "make", "names"), [(layer, layer_arguments, ["upfirdn2d", "bias_act"]), (unet, unet_arguments, [*UNET])]
)
def test_compilers_see_the_operators(op, make, names, fresh_compiler):
    seen = operators_seen_by_the_compiler(op, *make())
    assert [name for name in seen if "stylegan_ops" in name] == [f"stylegan_ops.{name}.default" for name in names]


@LAYERS
def test_compilers_see_plain_pytorch_where_there_are_no_kernels(op, make, fresh_compiler, without_kernels):
    seen = operators_seen_by_the_compiler(op, *make())
    assert seen
    assert not [name for name in seen if "stylegan_ops" in name]


def test_compilers_see_plain_pytorch_of_what_kernels_do_not_take(fresh_compiler):
    """As far as a compiler can know: sizes may be other ones later."""
    x, weight, bias, projection = unet_arguments()
    double = [t.detach().double() for t in (x, weight, bias, projection)]
    assert not [name for name in operators_seen_by_the_compiler(unet, *double) if "stylegan_ops" in name]
    last = x.detach().to(memory_format=torch.channels_last)
    seen = operators_seen_by_the_compiler(conv3x3, last, weight, bias)
    assert not [name for name in seen if "stylegan_ops" in name]


def test_one_compilation_serves_few_pixels_and_many(fresh_compiler):
    """The registered operator decides when it runs what computes."""
    x, weight, bias, _ = unet_arguments()
    compiled = torch.compile(conv3x3, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for batch, size in ((16, 8), (2, 3), (5, 40)):
            x = torch.randn(batch, 16, size, size)
            torch.testing.assert_close(compiled(x, weight, bias), torch.conv2d(x, weight, bias, padding=1), **LOOSE)


def test_compiled_without_private_names(monkeypatch, fresh_compiler):
    monkeypatch.setattr(internals, "hooks", internals.PUBLIC)
    assert_compiled_equals_eager(layer, layer_arguments(), "aot_eager")
    assert "stylegan_ops.bias_act.default" in operators_seen_by_the_compiler(layer, *layer_arguments())


def test_looking_for_kernels_is_not_compiled(fresh_compiler, monkeypatch):
    monkeypatch.setattr(dispatch, "implementation_for", implementation_for)
    with dispatch.temporary_mode("on"):  # Forgets which kernels there are.
        assert "stylegan_ops.bias_act.default" in operators_seen_by_the_compiler(layer, *layer_arguments())


def test_compiled_derivative_in_the_filter(fresh_compiler):
    x, _, f = layer_arguments()
    f.requires_grad_()
    compiled = torch.compile(lambda x, f: upfirdn2d(x, f, padding=2), fullgraph=True, backend="aot_eager")
    (df,) = torch.autograd.grad(compiled(x, f).sum(), f)
    (expected,) = torch.autograd.grad(reference.upfirdn2d(x, f, padding=2).sum(), f)
    torch.testing.assert_close(df, expected)


def test_compiled_functional_transforms(fresh_compiler):
    x, b, f = (t.detach() for t in layer_arguments())

    def slopes(x):
        return torch.func.vmap(torch.func.grad(lambda x: layer(x[None], b, f).sum()))(x)

    compiled = torch.compile(slopes, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), slopes(x))


class Module(torch.nn.Module):
    def __init__(self, op):
        super().__init__()
        self.op = op

    def forward(self, *arguments):
        return self.op(*arguments)


@LAYERS
@pytest.mark.parametrize("strict", [True, False])
def test_export(op, make, strict, fresh_compiler):
    x, *rest = (t.detach() for t in make())
    shapes = {"arguments": ({0: torch.export.Dim("batch")}, *[None] * len(rest))}
    program = torch.export.export(Module(op), (x, *rest), dynamic_shapes=shapes, strict=strict)
    seen = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    names = ("upfirdn2d", "bias_act") if op is layer else UNET[1:]  # Without gradients the first one is two others.
    assert {f"stylegan_ops.{name}.default" for name in names} <= set(seen)
    more = torch.randn(5, *x.shape[1:])
    torch.testing.assert_close(program.module()(more, *rest), op(more, *rest))


@LAYERS
def test_onnx_takes_plain_pytorch(op, make, monkeypatch, fresh_compiler):
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    program = torch.export.export(Module(op), tuple(make()), strict=False)
    assert not [node for node in program.graph.nodes if "stylegan_ops" in str(node.target)]


def test_generator_is_compiled_whole(fresh_compiler):
    G = small_generator().requires_grad_(False)
    compiled = torch.compile(
        lambda ws: G.synthesis(ws, noise_mode="const"), fullgraph=True, dynamic=True, backend="eager"
    )
    for batch in (2, 9):
        ws = torch.randn(batch, G.num_ws, 8)
        torch.testing.assert_close(compiled(ws), G.synthesis(ws, noise_mode="const"), **LOOSE)
