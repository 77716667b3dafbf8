"""`bias_act` of `stylegan_ops`, and the table of activations that networks read default gains from."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import dnnlib
from stylegan_ops import bias_act as _bias_act
from stylegan_ops.reference import ACTIVATIONS, Activation
from torch_utils.ops._impl import accepts_impl


def _entry(activation: Activation) -> dnnlib.EasyDict:
    def func(x: Tensor, alpha: float = activation.alpha, **_ignored: Any) -> Tensor:
        return activation.function(x, alpha)

    return dnnlib.EasyDict(func=func, def_alpha=activation.alpha, def_gain=activation.gain)


activation_funcs = {name: _entry(activation) for name, activation in ACTIVATIONS.items()}

bias_act = accepts_impl(_bias_act.bias_act)
