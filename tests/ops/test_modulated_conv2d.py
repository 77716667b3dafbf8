from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from stylegan_ops.modulated_conv2d import fused_is_faster, modulated_conv2d
from stylegan_ops.modulated_conv2d_table import BATCHES, FUSED_SPEEDUP
from stylegan_ops.upfirdn2d import setup_filter


@pytest.mark.parametrize("fused", [True, False, None])
@pytest.mark.parametrize("demodulate", [True, False])
def test_each_sample_is_convolved_with_its_own_weight(fused, demodulate):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 6, 5, dtype=torch.float64)
    weight = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    styles = torch.randn(3, 4, dtype=torch.float64)
    noise = torch.randn(3, 1, 6, 5, dtype=torch.float64)
    result = modulated_conv2d(x, weight, styles, noise, padding=1, demodulate=demodulate, fused_modconv=fused)
    for n in range(3):
        w = weight * styles[n].reshape(1, 4, 1, 1)
        if demodulate:
            norms = torch.stack([(w[o].square().sum() + 1e-8).sqrt() for o in range(2)])
            w = w / norms.reshape(2, 1, 1, 1)
        expected = functional.conv2d(x[n : n + 1], w, padding=1) + noise[n]
        torch.testing.assert_close(result[n : n + 1], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2)])
def test_derivatives(fused, demodulate, up, down):
    torch.manual_seed(0)
    size = 4 * up // down
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    styles = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(size, size, dtype=torch.float64, requires_grad=True)

    def op(x, weight, styles, noise):
        return modulated_conv2d(
            x,
            weight,
            styles,
            noise,
            up=up,
            down=down,
            padding=1,
            resample_filter=setup_filter([1, 3, 3, 1]),
            demodulate=demodulate,
            flip_weight=up == 1,
            fused_modconv=fused,
        )

    assert torch.autograd.gradcheck(op, (x, weight, styles, noise), fast_mode=True)
    assert torch.autograd.gradgradcheck(op, (x, weight, styles, noise), fast_mode=True)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("noise", [None, torch.ones(4, 4)])
@pytest.mark.parametrize("demodulate", [True, False])
def test_empty_batch(fused, noise, demodulate):
    x = torch.zeros(0, 3, 4, 4, requires_grad=True)
    weight = torch.randn(2, 3, 1, 1, requires_grad=True)
    y = modulated_conv2d(x, weight, torch.zeros(0, 3), noise, demodulate=demodulate, fused_modconv=fused)
    assert y.shape == (0, 2, 4, 4)
    y.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize("fused", [True, False])
def test_half_precision_does_not_overflow(fused):
    torch.manual_seed(0)
    x = torch.randn(2, 64, 5, 5)
    weight, styles = 300 * torch.randn(3, 64, 3, 3), 300 * torch.randn(2, 64)
    expected = modulated_conv2d(x, weight, styles, torch.ones(5, 5), padding=1)
    result = modulated_conv2d(x.half(), weight, styles, torch.ones(5, 5), padding=1, fused_modconv=fused)
    assert result.dtype == torch.float16
    torch.testing.assert_close(result.float(), expected, rtol=0, atol=5e-3 * expected.abs().max().item())


@pytest.mark.parametrize("fused", [True, False])
def test_half_precision_with_channels_of_zeros(fused):
    weight, styles = torch.ones(2, 3, 1, 1), torch.ones(2, 3)
    weight[1], styles[1] = 0, 0
    y = modulated_conv2d(torch.ones(2, 3, 2, 2).half(), weight, styles, fused_modconv=fused)
    torch.testing.assert_close(y[0, 0], torch.full([2, 2], 3**0.5).half(), rtol=2e-3, atol=0)
    assert torch.equal(y[0, 1], torch.zeros(2, 2).half())
    assert torch.equal(y[1], torch.zeros(2, 2, 2).half())


@pytest.mark.parametrize(
    ("layer", "speedup"),
    [
        # (batch, kernel size, height, width, up, down, training), and where in the table its row begins
        ((1, 1, 4, 4, 1, 1, False), ("inference", "1x1", 4, 0)),
        ((1, 3, 4, 4, 1, 1, True), ("training", "3x3", 4, 0)),
        ((3, 3, 16, 16, 2, 1, False), ("inference", "3x3 up", 32, 1)),
        ((4, 3, 16, 16, 1, 2, False), ("inference", "3x3", 8, 2)),
        ((100, 5, 2, 3, 1, 1, True), ("training", "3x3", 4, 3)),
        ((8, 1, 63, 33, 1, 1, True), ("training", "1x1", 32, 3)),
        ((8, 1, 300, 33, 1, 1, True), ("training", "1x1", 256, 3)),
        ((0, 3, 8, 8, 1, 1, False), ("inference", "3x3", 8, 0)),
    ],
)
@pytest.mark.parametrize("faster", [True, False])
def test_form_from_the_table(monkeypatch, layer, speedup, faster):
    batch, size, height, width, up, down, training = layer
    x, styles = torch.zeros(batch, 2, height, width), torch.zeros(batch, 2)
    weight = torch.zeros(3, 2, size, size, requires_grad=training)
    mode, kind, resolution, column = speedup

    def ratio(*place):
        return 1.5 if (place == speedup) == faster else 0.5

    table = {
        mode: {
            kind: {res: tuple(ratio(mode, kind, res, i) for i in range(len(BATCHES))) for res in rows}
            for kind, rows in kinds.items()
        }
        for mode, kinds in FUSED_SPEEDUP["cpu"].items()
    }
    assert table[mode][kind][resolution][column] == (1.5 if faster else 0.5)
    monkeypatch.setitem(FUSED_SPEEDUP, "cpu", table)
    assert fused_is_faster(x, weight, styles, up, down) is faster
    with torch.no_grad():
        assert fused_is_faster(x, weight, styles, up, down) is (faster != training)


def test_other_devices_fuse_unless_training_or_in_half_precision():
    x = torch.zeros(2, 1, 4, 4, device="meta")
    assert fused_is_faster(x, x[:1], x[:, :, 0, 0], 1, 1)
    assert not fused_is_faster(x.half(), x[:1].half(), x[:, :, 0, 0].half(), 1, 1)
    assert fused_is_faster(x[:1].half(), x[:1].half(), x[:1, :, 0, 0].half(), 1, 1)
    x.requires_grad_()
    assert not fused_is_faster(x, x[:1], x[:, :, 0, 0], 1, 1)
    with torch.no_grad():
        assert fused_is_faster(x, x[:1], x[:, :, 0, 0], 1, 1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.zeros(2, 4, 8, 8, dtype=torch.int32)}, TypeError, "not torch.int32"),
        ({"weight": torch.zeros(5, 3, 3, 3)}, ValueError, r"\[out_channels, 4, height, width\], not \[5, 3, 3, 3\]"),
        ({"weight": torch.zeros(5, 4, 3)}, ValueError, r"not \[5, 4, 3\]"),
        ({"styles": torch.zeros(1, 4)}, ValueError, r"styles must have shape \[2, 4\], not \[1, 4\]"),
    ],
)
def test_bad_arguments(arguments, error, message):
    defaults = {"x": torch.zeros(2, 4, 8, 8), "weight": torch.zeros(5, 4, 3, 3), "styles": torch.zeros(2, 4)}
    with pytest.raises(error, match=message):
        modulated_conv2d(**{**defaults, **arguments})
