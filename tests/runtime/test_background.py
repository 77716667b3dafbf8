"""Work beside the run: its errors arrive, and its copies are copies."""

from __future__ import annotations

import io
import threading

import pytest
import torch

from refine.errors import UserError
from refine.runtime.background import Background, host_copy, to_host


def test_one_after_the_other():
    background, first, seen = Background(), threading.Event(), []
    background.start(lambda: (first.wait(), seen.append(1)))
    background.check()  # does not wait
    assert not seen
    threading.Timer(0.05, first.set).start()
    background.start(lambda: seen.append(2))  # after the other one
    assert seen[:1] == [1]
    background.wait()
    assert seen == [1, 2]
    background.wait()


def fail():
    raise UserError("Cannot write x (disk full): free some space.")


@pytest.mark.parametrize("ask", ["wait", "check", "start", "leave"])
def test_an_error_is_raised_once_where_somebody_asks(ask):
    background, begun = Background(), []
    background.start(fail)
    background._thread.join()
    with pytest.raises(UserError, match="disk full"):
        if ask == "start":
            background.start(lambda: begun.append(1))
        elif ask == "leave":
            with background:
                pass
        else:
            getattr(background, ask)()
    background.wait()
    assert not begun


def test_the_first_error_is_the_one_that_is_told():
    with pytest.raises(ZeroDivisionError), Background() as background:
        background.start(fail)
        raise ZeroDivisionError


def state():
    base = torch.arange(12.0)
    network = torch.nn.Linear(3, 2)
    return {
        "views": [base[2:8].reshape(2, 3), base[::2]],
        "network": network.state_dict(),  # with versions in an attribute
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "empty": (torch.zeros(0, 3), torch.zeros(0)),
        "start": {"constant": torch.ones(3)},
        "numbers": {"step": 3, "name": "x"},
    }


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_a_copy_is_saved_as_the_original_was():
    """Also after the original has changed. Tensors share memory in the copy as before, and constants are not copied."""
    original = state()
    before = saved(original)
    copied, arrive = host_copy(original, shared=[original["start"]])
    for tensor in (original["views"][1], *original["network"].values(), original["channels_last"]):
        tensor.add_(1)
    original["numbers"]["step"] = 4
    arrive()
    assert saved(copied) == before
    assert copied["start"] is original["start"]
    copied["views"][1][1] = 7
    assert copied["views"][0][0, 0] == 7


def test_the_way_from_a_device_keeps_shapes_strides_and_sharing():
    original, storages = state(), {}
    tensors = [*original["views"], *original["network"].values(), original["channels_last"], *original["empty"]]
    copies = [to_host(tensor, storages, pinned=False) for tensor in tensors]
    for a, b in zip(tensors, copies, strict=True):
        assert torch.equal(a, b) and a.dtype == b.dtype and a.stride() == b.stride()
        assert not a.numel() or a.data_ptr() != b.data_ptr()
    assert copies[0].untyped_storage().data_ptr() == copies[1].untyped_storage().data_ptr()


@pytest.mark.cuda
def test_a_copy_from_a_gpu_is_of_its_moment():
    x = torch.ones(1 << 24, device="cuda")
    copied, arrive = host_copy({"x": x, "part": x[:5]})
    for _ in range(10):
        x.add_(1)
    arrive()
    assert copied["x"].device.type == "cpu" and copied["x"].eq(1).all() and copied["part"].eq(1).all()
