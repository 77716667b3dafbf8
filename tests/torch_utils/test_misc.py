"""The small functions that embedded sources call."""

from __future__ import annotations

import itertools
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from torch_utils import misc


def test_constant_is_made_once() -> None:
    a = misc.constant([[1, 2], [3, 4]])
    assert a.dtype == torch.float32 and a.tolist() == [[1, 2], [3, 4]]
    assert misc.constant(np.array([[1, 2], [3, 4]])) is a
    others = [
        misc.constant([1, 2, 3, 4]),
        misc.constant([[1, 2], [3, 5]]),
        misc.constant([[1, 2], [3, 4]], dtype=torch.float64),
        misc.constant([[1, 2], [3, 4]], device="meta"),
        misc.constant(np.float64([[1, 2], [3, 4]])),
    ]
    assert all(other is not a for other in others)
    assert others[2].dtype == torch.float64 and others[3].device.type == "meta"


def test_constants_of_the_same_bytes_are_told_apart() -> None:
    one = np.float64(1)
    assert misc.constant(one) == 1
    assert misc.constant(one.view(np.int64), dtype=torch.float64) == int(one.view(np.int64))
    assert misc.constant(one, dtype=torch.float64) == 1
    assert misc.constant([1, 2], shape=[2, 2]).tolist() == [[1, 2], [1, 2]]
    assert misc.constant([[1], [2]], shape=[2, 2]).tolist() == [[1, 1], [2, 2]]


def test_constant_takes_a_shape_and_a_memory_format() -> None:
    expanded = misc.constant([1, 2], shape=[3, 2])
    assert expanded.tolist() == [[1, 2]] * 3 and expanded.is_contiguous()
    images = misc.constant(2, shape=[2, 3, 4, 5], memory_format=torch.channels_last)
    assert images.is_contiguous(memory_format=torch.channels_last) and images.shape == (2, 3, 4, 5)
    assert misc.constant(2).shape == ()


def test_constant_does_not_share_memory_with_its_value() -> None:
    value = np.array([1.0, 2.0], dtype=np.float32)
    tensor = misc.constant(value)
    value[0] = 9
    assert tensor.tolist() == [1, 2]


def test_constant_made_in_inference_mode_takes_part_in_gradients_later() -> None:
    with torch.inference_mode():
        scale = misc.constant(1.25)
    x = torch.ones(2, requires_grad=True)
    (x * misc.constant(1.25)).sum().backward()
    assert scale is misc.constant(1.25)
    assert x.grad is not None and x.grad.tolist() == [1.25, 1.25]


def test_const_like_follows_the_tensor() -> None:
    ref = torch.zeros(2, dtype=torch.float64, device="meta")
    assert misc.const_like(ref, 3).dtype == torch.float64
    assert misc.const_like(ref, 3).device.type == "meta"
    assert misc.const_like(ref, [3, 4], dtype=torch.float16, device="cpu").tolist() == [3, 4]


def test_nan_to_num() -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 2])
    assert misc.nan_to_num(x, nan=1, posinf=5, neginf=-5).tolist() == [1, 5, -5, 2]
    misc.nan_to_num(x, out=x)
    assert x.tolist() == [0, torch.finfo(torch.float32).max, torch.finfo(torch.float32).min, 2]


def test_symbolic_assert() -> None:
    misc.symbolic_assert(torch.tensor(True), "fine")
    with pytest.raises(AssertionError, match="not fine"):
        misc.symbolic_assert(torch.tensor(False), "not fine")


def test_assert_shape() -> None:
    x = torch.zeros(2, 3, 0)
    for shape in ([2, 3, 0], [None, 3, None], x.shape, [torch.tensor(2), 3, 0]):
        misc.assert_shape(x, shape)
    for shape, sentence in (
        ([2, 3], "3 dimensions instead of"),
        ([2, 3, 0, None], "3 dimensions instead of"),
        ([2, 4, 0], "dimension 1 of"),
        ([None, 3, 1], "dimension 2 of"),
        ([torch.tensor(1), 3, 0], "dimension 0 of"),
    ):
        with pytest.raises(AssertionError, match=sentence):
            misc.assert_shape(x, shape)


@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_shapes_are_checked_while_tracing_without_a_warning() -> None:
    def double(x: torch.Tensor) -> torch.Tensor:
        misc.assert_shape(x, [None, 3])
        return x * 2

    traced = torch.jit.trace(double, torch.ones(2, 3))
    assert traced(torch.ones(5, 3)).tolist() == [[2, 2, 2]] * 5
    with pytest.raises(AssertionError, match="dimension 1"):
        torch.jit.trace(double, torch.ones(2, 4))


def test_suppress_tracer_warnings() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with misc.suppress_tracer_warnings():
            warnings.warn("silent", torch.jit.TracerWarning, stacklevel=1)
            warnings.warn("heard", UserWarning, stacklevel=1)
        warnings.warn("heard again", torch.jit.TracerWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["heard", "heard again"]


def test_profiled_function() -> None:
    @misc.profiled_function
    def a_name_of_its_own(x: torch.Tensor, factor: float = 1) -> torch.Tensor:
        return x * factor

    with torch.profiler.profile() as profile:
        assert a_name_of_its_own(torch.ones(2), factor=3).tolist() == [3, 3]
    assert "a_name_of_its_own" in {event.key for event in profile.key_averages()}
    assert a_name_of_its_own.__name__ == "a_name_of_its_own"


class Net(torch.nn.Module):
    def __init__(self, width: int = 3, with_shift: bool = True) -> None:
        super().__init__()
        self.first = torch.nn.Linear(2, width)
        self.body = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Sequential(torch.nn.Identity()))
        if with_shift:
            self.register_buffer("shift", torch.full([width], 7.0))

    def forward(self, x: torch.Tensor, scale: float) -> dict[str, float] | tuple[torch.Tensor, None]:
        return self.body(self.first(x)) * scale + self.shift, None


def test_named_params_and_buffers() -> None:
    net = Net()
    assert [name for name, _ in misc.named_params_and_buffers(net)] == ["first.weight", "first.bias", "shift"]
    assert [id(tensor) for tensor in misc.params_and_buffers(net)] == [
        *(id(net.first.weight), id(net.first.bias), id(net.shift))
    ]


def test_copy_params_and_buffers() -> None:
    source, target = Net(), Net().requires_grad_(False)
    source.shift += 1
    misc.copy_params_and_buffers(source, target, require_all=True)
    for (name, a), (_, b) in zip(source.named_parameters(), target.named_parameters(), strict=True):
        assert torch.equal(a, b) and not b.requires_grad and a.requires_grad, name
    assert target.shift.tolist() == [8, 8, 8]


def test_copy_params_and_buffers_copies_all_or_nothing() -> None:
    target = Net()
    before = target.first.weight.clone()
    with pytest.raises(ValueError, match="'shift'"):
        misc.copy_params_and_buffers(Net(with_shift=False), target, require_all=True)
    assert torch.equal(before, target.first.weight)
    with pytest.raises(ValueError, match=r"'first.weight' is \[4, 2\].*\[3, 2\]"):
        misc.copy_params_and_buffers(Net(width=4), target)
    source = Net(with_shift=False)
    misc.copy_params_and_buffers(source, target)
    assert torch.equal(source.first.weight, target.first.weight)
    assert target.shift.tolist() == [7, 7, 7]


def test_print_module_summary(capsys: pytest.CaptureFixture[str]) -> None:
    net = Net()
    outputs = misc.print_module_summary(net, [torch.zeros(5, 2), 2.0])
    assert outputs[0].shape == (5, 3) and outputs[1] is None
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1:] == [
        ["first", "9", "-", "[5,", "3]", "float32"],
        ["body.0", "-", "-", "[5,", "3]", "float32"],
        ["<Net>", "-", "3", "[5,", "3]", "float32"],
        ["Total", "9", "3"],
    ]
    for options, listed in (
        ({"max_nesting": 1, "skip_redundant": True}, ["first", "body", "<Net>"]),
        ({"max_nesting": 3, "skip_redundant": False}, ["first", "body.0", "body.1.0", "body.1", "body", "<Net>"]),
    ):
        misc.print_module_summary(net, [torch.zeros(5, 2), 2.0], **options)
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == [*listed, "Total"]
    assert not net._forward_hooks and not net.first._forward_pre_hooks
    with pytest.raises(RuntimeError):
        misc.print_module_summary(net, [torch.zeros(5, 1), 2.0])
    assert not net._forward_hooks and not net.first._forward_pre_hooks


def take(sampler: misc.InfiniteSampler, count: int) -> list[int]:
    return list(itertools.islice(iter(sampler), count))


def test_sampler_without_shuffling_goes_round() -> None:
    assert take(misc.InfiniteSampler([0] * 3, shuffle=False), 8) == [0, 1, 2, 0, 1, 2, 0, 1]
    assert take(misc.InfiniteSampler([0] * 3, rank=1, num_replicas=2, shuffle=False), 4) == [1, 0, 2, 1]


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_sampler_shuffles_again_and_again(size: int) -> None:
    whole = take(misc.InfiniteSampler(range(size), seed=3), 40 * size)
    assert take(misc.InfiniteSampler(range(size), seed=3), 40 * size) == whole
    counts = np.bincount(whole, minlength=size)
    assert counts.min() > 20 and counts.max() < 60  # nothing is left out or preferred for long
    last_use: dict[int, int] = {}
    for place, index in enumerate(whole):
        assert place - last_use.get(index, -size) > size // 2 - (size < 3)  # the window is half a round
        last_use[index] = place
    if size == 100:
        assert take(misc.InfiniteSampler(range(size), seed=4), 100) != whole[:100]
        assert whole[:100] != whole[100:200] != whole[200:300]


def test_sampler_shares_out_one_order() -> None:
    whole = take(misc.InfiniteSampler(range(10), seed=1), 60)
    parts = [take(misc.InfiniteSampler(range(10), rank, 3, seed=1), 20) for rank in range(3)]
    assert [index for together in zip(*parts, strict=True) for index in together] == whole


def test_sampler_can_be_hashed_and_shown_and_pickled() -> None:
    """As an object without an equality of its own, and without its data set in the text."""
    sampler = misc.InfiniteSampler(list(range(1000)), 1, 2, seed=5)
    assert len({sampler, misc.InfiniteSampler(list(range(1000)), 1, 2, seed=5)}) == 2
    assert "seed=5" in repr(sampler) and "999" not in repr(sampler)
    assert take(pickle.loads(pickle.dumps(sampler)), 20) == take(sampler, 20)


def test_sampler_feeds_a_data_loader() -> None:
    data = torch.arange(6)
    loader = torch.utils.data.DataLoader(data, sampler=misc.InfiniteSampler(data), batch_size=4)  # type: ignore[arg-type]
    batches = list(itertools.islice(loader, 3))
    assert torch.cat(batches).tolist() == take(misc.InfiniteSampler(data), 12)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dataset": []}, "at least one item"),
        ({"rank": 2, "num_replicas": 2}, "num_replicas=2, not 2"),
        ({"window_size": 2}, "window_size must be from 0 to 1, not 2"),
    ],
)
def test_sampler_refuses(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        misc.InfiniteSampler(**{"dataset": [1], **arguments})
