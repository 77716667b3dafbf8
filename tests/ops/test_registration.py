"""What PyTorch's dispatcher, autograd and compilers make of the operators, and which way a call takes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from refine.networks.stylegan2 import Generator
from refine.networks.stylegan2_options import GeneratorOptions, MappingOptions, SynthesisOptions
from stylegan_ops import autograd, dispatch, reference
from stylegan_ops.backends import pytorch
from stylegan_ops.backends.packing import ACTS
from stylegan_ops.bias_act import bias_act
from stylegan_ops.dispatch import implementation_for
from stylegan_ops.upfirdn2d import setup_filter, upfirdn2d

REGISTERED = torch.ops.stylegan_ops
LRELU, SWISH = ACTS.index("lrelu"), ACTS.index("swish")


@pytest.fixture(scope="module", autouse=True)
def kernels(kernels_named):
    """Has the CPU library serve the CPU, whatever mode the tests run in."""
    chosen = kernels_named("cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "implementation_for", lambda x: chosen if x.device.type == "cpu" else None)
        yield chosen


@pytest.fixture
def without_kernels(monkeypatch):
    monkeypatch.setattr(dispatch, "implementation_for", lambda x: None)


@pytest.fixture
def taken(monkeypatch):
    """The ways that calls took: what `autograd.route` returned."""
    ways = []
    route = dispatch.route

    def spy(name, *tensors):
        ways.append(route(name, *tensors))
        return ways[-1]

    monkeypatch.setattr(dispatch, "route", spy)
    return ways


def tensors(*shapes, dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def layer(x, b, f):
    """Both operators, in a row."""
    return bias_act(upfirdn2d(x, f, up=2, padding=[2, 1, 2, 1], gain=4), b, act="swish", clamp=1.5)


def layer_arguments(dtype=torch.float32):
    return [*tensors((2, 3, 4, 5), (3,), dtype=dtype), setup_filter([1, 3, 3, 1])]


def definition(x, b, f):
    y = reference.upfirdn2d(x, f, 2, 1, [2, 1, 2, 1], gain=4)
    return reference.bias_act(y, b, act="swish", clamp=1.5)


def gradients(op, *arguments):
    """Values, gradients and gradients of their squared length, R1's."""
    wanted = [t for t in arguments if t.requires_grad]
    y = op(*arguments)
    first = torch.autograd.grad(y.sin().sum(), wanted, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
    return y, *first, *second


# --- the registered operators


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("act", [LRELU, SWISH])
def test_opcheck_bias_act(act, has_bias, format):
    x, dy, ddx = (t.detach().contiguous(memory_format=format).requires_grad_() for t in tensors(*[(2, 3, 4, 5)] * 3))
    b = tensors((3,))[0] if has_bias else None
    options = (1, act, 0.2, 1.3, 0.9)
    opcheck(REGISTERED.bias_act.default, (x, b, *options))
    opcheck(REGISTERED.bias_act_grad.default, (dy, x, b, *options))
    opcheck(REGISTERED.bias_act_grad2.default, (ddx, dy, x, b, *options))


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("options", [(2, 1, 1, 2, 1, 2, 2, -1), (1, 1, 3, 1, 4, 4, 3, 3), (1, 1, 1, 1, -1, 0, 2, 2)])
def test_opcheck_upfirdn2d(options, format):
    x = tensors((2, 3, 4, 5))[0].detach().contiguous(memory_format=format).requires_grad_()
    opcheck(REGISTERED.upfirdn2d.default, (x, setup_filter([1, 3, 3, 1]), *options, False, 1.5))


@pytest.mark.parametrize("shape", [(2, 3), (3, 1, 4, 1), (2, 1, 1, 1), (3, 0, 4, 4)])
def test_opcheck_without_kernels(without_kernels, shape):
    x, dy, ddx = (t.detach().transpose(0, 1) for t in tensors(*[shape] * 3))
    b = torch.randn(x.shape[1])
    for options in ((1, LRELU, 0.2, 1.3, 0.9), (1, SWISH, 0.2, 1.0, -1.0), (1, ACTS.index("linear"), 0.0, 1.0, -1.0)):
        opcheck(REGISTERED.bias_act.default, (x, b, *options))
        opcheck(REGISTERED.bias_act.default, (x.contiguous(), None, *options))
        opcheck(REGISTERED.bias_act_grad.default, (dy, x, b, *options))
        opcheck(REGISTERED.bias_act_grad2.default, (ddx, dy, x, b, *options))
    if len(shape) == 4:
        f = setup_filter([1, 3, 3, 1])
        opcheck(REGISTERED.upfirdn2d.default, (dy, f, 2, 2, 1, 1, 2, 1, 2, 1, False, 4.0))


@pytest.mark.parametrize("act", ACTS)
def test_registered_derivatives(act):
    x, b = tensors((2, 2, 3), (2,), dtype=torch.float64)

    def op(x, b):
        return REGISTERED.bias_act(x, b, 1, ACTS.index(act), 0.2, 1.3, 2.0)

    assert torch.autograd.gradcheck(op, (x, b))
    assert torch.autograd.gradgradcheck(op, (x, b))

    def slope(x, b):
        return torch.autograd.grad(op(x, b).square().sum(), x, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(slope, (x, b))


@pytest.mark.parametrize("registered", [True, False])
@pytest.mark.parametrize("act", ["tanh", "sigmoid", "softplus", "swish"])
def test_fourth_derivative(act, registered):
    def registered_bias_act(x):
        return REGISTERED.bias_act(x, None, 0, ACTS.index(act), 0.0, 1.0, -1.0)

    def derivatives(op):
        x = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
        y = op(x)
        for _ in range(4):
            (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return y

    public = registered_bias_act if registered else lambda x: bias_act(x, act=act, gain=1)
    torch.testing.assert_close(derivatives(public), derivatives(lambda x: reference.bias_act(x, act=act, gain=1)))


def test_registered_derivatives_of_upfirdn2d():
    x = tensors((2, 2, 4, 5), dtype=torch.float64)[0]

    def op(x):
        return REGISTERED.upfirdn2d(x, torch.tensor([1.0, 2.0, -4.0]), 2, 1, 1, 3, 2, 3, 1, 1, False, 1.5)

    assert torch.autograd.gradcheck(op, x)
    assert torch.autograd.gradgradcheck(op, x)


def test_registered_upfirdn2d_refuses_the_derivative_in_the_filter():
    x, f = tensors((1, 1, 4, 4), (4,))
    y = REGISTERED.upfirdn2d(x, f, 1, 1, 1, 1, 2, 1, 2, 1, False, 1.0)
    with pytest.raises(NotImplementedError, match="no derivative in f"):
        y.sum().backward()


def test_vmap_of_a_registered_operator():
    x, b = (t.detach() for t in tensors((4, 2, 3), (3,)))
    result = torch.func.vmap(lambda x: REGISTERED.bias_act(x, b, 1, SWISH, 0.0, 1.0, -1.0))(x)
    torch.testing.assert_close(result, reference.bias_act(x, b, 2, "swish", gain=1))


# --- torch.compile and torch.export


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def assert_compiled_equals_eager(backend):
    x, b, f = layer_arguments()
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for batch in (2, 3):  # The second size makes the compiler generalise.
        x = torch.randn(batch, 3, 4, 5, requires_grad=True)
        y, expected = compiled(x, b, f), layer(x, b, f)
        torch.testing.assert_close(y, expected)
        r = torch.randn_like(y)
        for result, correct in zip(
            torch.autograd.grad(y, (x, b), r), torch.autograd.grad(expected, (x, b), r), strict=True
        ):
            torch.testing.assert_close(result, correct)


def test_compile(fresh_compiler):
    assert_compiled_equals_eager("aot_eager")


@pytest.mark.skipif(" " in torch.__file__, reason="Inductor itself cannot link where PyTorch's path has a space")
@pytest.mark.slow
def test_compile_with_inductor(fresh_compiler):
    assert_compiled_equals_eager("inductor")


def operators_seen_by_the_compiler(function, *arguments):
    seen = []

    def backend(graph_module, example_inputs):
        seen.extend(str(node.target) for node in graph_module.graph.nodes if node.op == "call_function")
        return graph_module

    result = torch.compile(function, fullgraph=True, backend=backend)(*arguments)
    torch.testing.assert_close(result, function(*arguments))
    return seen


def test_compilers_see_the_operators(fresh_compiler):
    seen = operators_seen_by_the_compiler(layer, *layer_arguments())
    assert [name for name in seen if "stylegan_ops" in name] == [
        "stylegan_ops.upfirdn2d.default",
        "stylegan_ops.bias_act.default",
    ]


def test_compilers_see_plain_pytorch_where_there_are_no_kernels(fresh_compiler, without_kernels):
    seen = operators_seen_by_the_compiler(layer, *layer_arguments())
    assert seen
    assert not [name for name in seen if "stylegan_ops" in name]


def test_looking_for_kernels_is_not_compiled(fresh_compiler, monkeypatch):
    monkeypatch.setattr(dispatch, "implementation_for", implementation_for)
    dispatch.set_mode("on")  # Forgets which kernels there are.
    try:
        assert "stylegan_ops.bias_act.default" in operators_seen_by_the_compiler(layer, *layer_arguments())
    finally:
        dispatch.set_mode(None)


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


class Layer(torch.nn.Module):
    def forward(self, x, b, f):
        return layer(x, b, f)


@pytest.mark.parametrize("strict", [True, False])
def test_export(strict, fresh_compiler):
    x, b, f = (t.detach() for t in layer_arguments())
    shapes = {"x": {0: torch.export.Dim("batch")}, "b": None, "f": None}
    program = torch.export.export(Layer(), (x, b, f), dynamic_shapes=shapes, strict=strict)
    seen = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert "stylegan_ops.upfirdn2d.default" in seen
    assert "stylegan_ops.bias_act.default" in seen
    more = torch.randn(5, 3, 4, 5)
    torch.testing.assert_close(program.module()(more, b, f), layer(more, b, f))


def test_onnx_takes_plain_pytorch(monkeypatch, fresh_compiler):
    arguments = layer_arguments()
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    program = torch.export.export(Layer(), tuple(arguments), strict=False)
    assert not [node for node in program.graph.nodes if "stylegan_ops" in str(node.target)]


def test_generator_is_compiled_whole(fresh_compiler):
    G = small_generator().requires_grad_(False)
    compiled = torch.compile(
        lambda ws: G.synthesis(ws, noise_mode="const"), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for batch in (2, 9):
        ws = torch.randn(batch, G.num_ws, 8)
        torch.testing.assert_close(compiled(ws), G.synthesis(ws, noise_mode="const"), rtol=1e-4, atol=1e-4)


# --- the ways that calls take


def test_ordinary_tensors_go_to_the_kernels_at_once(taken, kernels):
    x, b, f = layer_arguments()
    layer(x, b, f).sum().backward()
    layer(torch.nn.Parameter(x.detach()), b, f)
    assert taken == [(kernels, False)] * 6


def test_a_single_addition_goes_to_pytorch(taken):
    x, b, _ = layer_arguments()
    assert torch.equal(bias_act(x, b), x + b[:, None, None])
    assert not taken
    bias_act(x, b, clamp=1)
    bias_act(x, b, gain=2)
    assert len(taken) == 2


def test_operators_get_the_bias_in_the_dtype_of_x(monkeypatch):
    x, b, _ = layer_arguments()
    seen = []
    monkeypatch.setattr(
        autograd, "run", lambda name, way, tensors, options: seen.append(tuple(t.dtype for t in tensors))
    )
    bias_act(x.half(), b, act="relu")
    assert seen == [(torch.float16, torch.float16)]


def test_float64_filters_of_float64_images_keep_their_precision(kernels):
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    f = torch.full([1, 1], 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(upfirdn2d(x, f), x / 3, rtol=1e-14, atol=0)
    torch.testing.assert_close(upfirdn2d(x.float(), f), x.float() / 3)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_filters_of_half_precision(half):
    x, f = torch.randn(1, 1, 4, 4), setup_filter([1, 3, 3, 1])  # Multiples of 1 / 64, exact in half precision.
    torch.testing.assert_close(upfirdn2d(x, f.to(half), padding=1), upfirdn2d(x, f, padding=1), rtol=0, atol=0)


class Subclass(torch.Tensor):
    pass


def negative_view(x):
    """X as PyTorch keeps the imaginary part of a conjugate: in memory with the other sign."""
    view = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert view.is_neg()
    return view


def test_tensors_of_two_devices(taken):
    x, b, _ = layer_arguments()
    with pytest.raises(RuntimeError, match="device"):
        bias_act(x, b.to("meta"), act="relu")
    assert taken == [(pytorch, True)]


def test_other_dtypes(taken):
    with pytest.raises(NotImplementedError):  # Nor does PyTorch calculate with them.
        bias_act(torch.zeros(2).to(torch.float8_e5m2), act="relu", clamp=1)
    assert taken == [(pytorch, True)]


def test_sparse_tensors(taken):
    x = torch.eye(3).to_sparse()
    result = bias_act(x, act="relu")
    torch.testing.assert_close(result.to_dense(), reference.bias_act(torch.eye(3), act="relu"))
    assert taken == [(pytorch, True)]


@pytest.mark.parametrize(
    "unusual", [lambda x: x.as_subclass(Subclass), negative_view, lambda x: torch._efficientzerotensor(x.shape)]
)
def test_tensors_that_kernels_cannot_read(taken, unusual):
    x, b = (t.detach() for t in tensors((2, 3, 4, 5), (3,)))
    unusual_x = unusual(x)
    result = bias_act(unusual_x, b, act="swish")
    torch.testing.assert_close(result.as_subclass(torch.Tensor), reference.bias_act(unusual_x + 0, b, act="swish"))
    assert taken == [(pytorch, True)]


def test_other_devices_take_plain_pytorch(taken):
    y = layer(*(t.to("meta") for t in layer_arguments()))
    assert y.is_meta
    assert y.shape == (2, 3, 8, 10)
    assert taken == [(pytorch, True)] * 2


def test_without_kernels_all_is_plain_pytorch(without_kernels, taken):
    results, expected = (gradients(op, *layer_arguments(torch.float64)) for op in (layer, definition))
    for result, correct in zip(results, expected, strict=True):
        torch.testing.assert_close(result, correct)
    assert taken == [(pytorch, True)] * 2


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operators = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators.append(func)
        return func(*args, **(kwargs or {}))


def test_dispatch_modes_see_the_operators():
    arguments = layer_arguments()
    traced = make_fx(layer)(*arguments)
    seen = [str(node.target) for node in traced.graph.nodes]
    assert "stylegan_ops.upfirdn2d.default" in seen
    assert "stylegan_ops.bias_act.default" in seen
    torch.testing.assert_close(traced(*arguments), layer(*arguments))
    with Recorder() as recorder:
        torch.testing.assert_close(layer(*arguments), definition(*arguments))
    assert {REGISTERED.upfirdn2d.default, REGISTERED.bias_act.default} <= set(recorder.operators)
    with torch.device("meta"):  # A torch function mode, which does not move what is somewhere already.
        torch.testing.assert_close(layer(*arguments), definition(*arguments))


def test_fake_tensors():
    arguments = layer_arguments()
    with torch._subclasses.FakeTensorMode() as mode:
        y = layer(*(mode.from_tensor(t) for t in arguments))
    assert y.shape == (2, 3, 8, 10)


def test_functional_transforms():
    x, b, f = (t.detach() for t in layer_arguments())
    stacked = torch.stack([x, 2 * x])
    batched = torch.func.vmap(lambda x: layer(x, b, f))(stacked)
    torch.testing.assert_close(batched[1], definition(2 * x, b, f))
    hessian = torch.func.hessian(lambda b: layer(x, b, f).sum())(b)
    torch.testing.assert_close(hessian, torch.func.hessian(lambda b: definition(x, b, f).sum())(b))
    _, tangent = torch.func.jvp(lambda x: layer(x, b, f), (x,), (x,))
    _, expected = torch.func.jvp(lambda x: definition(x, b, f), (x,), (x,))
    torch.testing.assert_close(tangent, expected)
    # Also of what the transform leaves alone.
    x.requires_grad_()
    result = torch.func.vmap(lambda scale: scale * layer(x, b, f))(torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(result[1], 2 * definition(x, b, f))


def test_forward_mode():
    x, b, f = (t.detach() for t in layer_arguments())
    with forward_ad.dual_level():
        tangents = [forward_ad.unpack_dual(op(forward_ad.make_dual(x, x), b, f)).tangent for op in (layer, definition)]
    torch.testing.assert_close(*tangents)


def test_batched_gradients():
    x, b, f = layer_arguments()
    r = torch.randn(3, 2, 3, 8, 10)
    results = [torch.autograd.grad(op(x, b, f), (x, b), r, is_grads_batched=True) for op in (layer, definition)]
    for result, expected in zip(*results, strict=True):
        torch.testing.assert_close(result, expected)

    def second(op):
        (slope,) = torch.autograd.grad(op(x, b, f).sum(), x, create_graph=True)
        return torch.autograd.grad(slope, (x, b), torch.ones(3, *slope.shape), is_grads_batched=True)

    for result, expected in zip(second(layer), second(definition), strict=True):
        torch.testing.assert_close(result, expected)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*jit.trace.* is deprecated")
def test_jit_trace():
    x, b, f = (t.detach() for t in layer_arguments())
    traced = torch.jit.trace(layer, (x, b, f))
    torch.testing.assert_close(traced(2 * x, b, f), definition(2 * x, b, f))


@pytest.mark.parametrize("with_kernels", [True, False])
def test_autocast_leaves_the_dtype_alone(with_kernels, monkeypatch):
    if not with_kernels:
        monkeypatch.setattr(dispatch, "implementation_for", lambda x: None)
    arguments = layer_arguments()
    expected = gradients(definition, *arguments)
    with torch.autocast("cpu", torch.bfloat16):
        results = gradients(layer, *arguments)
    for result, correct in zip(results, expected, strict=True):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, correct, rtol=0, atol=1e-5 * correct.abs().max().item())


def test_in_place_changes_are_noticed():
    x = torch.randn(2, 3, requires_grad=True)
    doubled = 2 * x
    y = bias_act(doubled, act="lrelu", clamp=1)
    doubled.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# --- a whole network


def small_generator():
    torch.manual_seed(0)
    return Generator(
        GeneratorOptions(
            *(8, 0, 8, 16, 3),
            mapping=MappingOptions(num_layers=2),
            synthesis=SynthesisOptions(
                channel_base=64,
                channel_max=6,
                architecture="resnet",
                conv_clamp=256,
                fused_modconv_default="inference_only",
            ),
        )
    )


def second_order_gradients(G, z, direction):
    """Of the path-length regularizer's kind: how the squared slope of the image in ws changes with the weights."""
    ws = G.mapping(z)
    image = G.synthesis(ws, noise_mode="const")
    (slope,) = torch.autograd.grad((image * direction).sum(), ws, create_graph=True)
    slope.square().sum().backward()
    return image.detach(), slope.detach(), {name: p.grad for name, p in G.named_parameters()}


def test_second_order_of_a_generator_is_that_of_the_reference(monkeypatch, taken, kernels):
    G = small_generator().double()
    for name, buffer in G.named_buffers():
        if name.endswith("resample_filter"):
            buffer.data = buffer.data.float()  # So that the kernels take it.
    for parameter in G.parameters():
        if parameter.ndim < 2:
            torch.nn.init.normal_(parameter)
    z, direction = torch.randn(2, 8, dtype=torch.float64), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    H = copy.deepcopy(G)
    image, slope, grads = second_order_gradients(G, z, direction)
    assert taken.count((kernels, False)) > 30
    monkeypatch.setattr(dispatch, "implementation_for", lambda x: None)
    expected_image, expected_slope, expected_grads = second_order_gradients(H, z, direction)
    torch.testing.assert_close(image, expected_image, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(slope, expected_slope, rtol=1e-10, atol=1e-10)
    for name, expected in expected_grads.items():
        if expected is None:
            assert grads[name] is None, name
        else:
            result = torch.zeros_like(expected) if grads[name] is None else grads[name]
            torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item(), msg=name)
