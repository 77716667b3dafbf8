"""TF32's flags by the first and the second of PyTorch's two sets."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from refine.runtime import tf32

HAS_SECOND_SET = hasattr(torch.backends.cuda.matmul, "fp32_precision")


@pytest.fixture(autouse=True)
def flags_stay() -> Iterator[None]:
    cudnn = torch.backends.cudnn.allow_tf32
    yield
    if HAS_SECOND_SET:
        torch.backends.cuda.matmul.fp32_precision = "none"
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = cudnn


@pytest.mark.parametrize("allowed", [True, False])
def test_first_set(allowed: bool) -> None:
    tf32.allow_in_convolutions(allowed)
    before = tf32.flags()
    assert torch.backends.cudnn.allow_tf32 == allowed and not torch.backends.cuda.matmul.allow_tf32
    with tf32.exact_convolutions():
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
        assert tf32.flags() != before or not allowed
    assert torch.backends.cudnn.allow_tf32 == allowed and tf32.flags() == before


@pytest.mark.skipif(not HAS_SECOND_SET, reason="this PyTorch has one set of flags")
@pytest.mark.parametrize("everywhere", ["ieee", "tf32"])
def test_second_set(everywhere: str) -> None:
    """After a script has used it, PyTorch refuses to tell the first set."""
    places = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)
    torch.backends.cudnn.allow_tf32 = everywhere != "tf32"
    for place in places:
        place.fp32_precision = everywhere
    with pytest.raises(RuntimeError, match="new API"):
        assert torch.backends.cudnn.allow_tf32
    with tf32.exact_convolutions():
        assert [place.fp32_precision for place in places] == ["ieee"] * 3
    assert [place.fp32_precision for place in places] == [everywhere] * 3
    for allowed in (True, False):
        tf32.allow_in_convolutions(allowed)
        assert (torch.backends.cudnn.conv.fp32_precision == "tf32") == allowed
        assert torch.backends.cuda.matmul.fp32_precision == everywhere


def test_pytorch_with_one_set(monkeypatch: pytest.MonkeyPatch) -> None:
    matmul, cudnn = SimpleNamespace(allow_tf32=True), SimpleNamespace(allow_tf32=True)
    monkeypatch.setattr(torch.backends.cuda, "matmul", matmul)
    monkeypatch.setattr(torch.backends, "cudnn", cudnn)
    assert tf32.flags() == (True, True)
    with tf32.exact_convolutions():
        assert not matmul.allow_tf32 and not cudnn.allow_tf32
    assert matmul.allow_tf32 and cudnn.allow_tf32
    tf32.allow_in_convolutions(False)
    assert matmul.allow_tf32 and not cudnn.allow_tf32
