"""Persistent classes: their pickles open where their module does not exist, and keep its source."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import io
import pickle
import pickletools
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import dnnlib
from torch_utils import persistence

ROOT = Path(__file__).resolve().parents[2]

# The umlaut and the tab are there to be kept.
SOURCE = '''\
"""A module that exists only while the test makes a pickle with it: \tÜbung."""
import torch
import dnnlib
from torch_utils import misc, persistence
from torch_utils.ops import bias_act, conv2d_gradfix, conv2d_resample, fma, grid_sample_gradfix, upfirdn2d

@persistence.persistent_class
class Layer(torch.nn.Module):
    size: int = 3

    def __init__(self, channels, act="lrelu", **options):
        super().__init__()
        self.act = act
        self.act_gain = bias_act.activation_funcs[act].def_gain
        self.options = options
        options.pop("eaten", None)
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, channels**2 * 9).reshape(channels, channels, 3, 3))
        self.bias = torch.nn.Parameter(torch.linspace(-1, 1, channels))
        self.register_buffer("resample_filter", upfirdn2d.setup_filter([1, 3, 3, 1]))

    @misc.profiled_function
    def forward(self, x):
        misc.assert_shape(x, [None, self.weight.shape[1], None, None])
        x = conv2d_resample.conv2d_resample(x, self.weight, f=self.resample_filter, up=2, padding=1, flip_weight=False)
        x = fma.fma(x, misc.constant(0.5), misc.constant(1))
        return bias_act.bias_act(x, self.bias, act=self.act, gain=self.act_gain, clamp=4, impl="ref")

@persistence.persistent_class
class Stack(torch.nn.Module):
    def __init__(self, channels, layer_kwargs):
        super().__init__()
        self.layer = Layer(channels, **layer_kwargs)
        self.twin = self.layer

    def forward(self, x):
        return upfirdn2d.downsample2d(self.layer(x), self.layer.resample_filter, impl="cuda")

@persistence.persistent_class
class Loss:
    def __init__(self, P_mean=-1.2):
        self.P_mean = P_mean

@persistence.persistent_class
class DerivedLoss(Loss):
    def __init__(self, scale, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

class Undecorated(Loss):
    pass

@persistence.persistent_class
class Custom:
    def __getstate__(self):
        return ("packed", self.value)

    def __setstate__(self, state):
        self.value = state[1] + 1
'''


@pytest.fixture(autouse=True)
def no_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persistence, "_import_hooks", [])


@pytest.fixture
def module(tmp_path: Path) -> Iterator[ModuleType]:
    """SOURCE, imported from a file."""
    path = tmp_path / "short_lived.py"
    path.write_text(SOURCE, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("short_lived", path)
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    sys.modules["short_lived"] = found
    spec.loader.exec_module(found)
    yield found
    del sys.modules["short_lived"]


def metas(pickled: bytes) -> list[dict[str, Any]]:
    """Arguments that `_reconstruct_persistent_obj` would be called with, from the innermost outwards; runs nothing."""
    found = []

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if name != "_reconstruct_persistent_obj":
                return super().find_class(module, name)
            assert module == "torch_utils.persistence"
            return lambda meta: found.append(meta)

    Reader(io.BytesIO(pickled)).load()
    return found


def run_python(code: str, folder: Path) -> str:
    """Runs code in a fresh interpreter that can import what is installed, and not the test's module."""
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{textwrap.dedent(code)}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_pickle_opens_and_computes_in_a_process_without_the_module(module: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "short_lived.py").unlink()
    stack = module.Stack(2, layer_kwargs=dnnlib.EasyDict(act="relu", eaten=1)).eval()
    x = torch.linspace(-2, 2, 2 * 2 * 5 * 4).reshape(2, 2, 5, 4)
    expected = stack(x)
    assert expected.std() > 0.1
    with open(tmp_path / "network.pkl", "wb") as file:
        pickle.dump({"ema": stack, "x": x, "y": expected}, file)

    printed = run_python(
        """
        import importlib.util, pickle, torch, dnnlib
        assert importlib.util.find_spec("short_lived") is None
        with open("network.pkl", "rb") as file:
            data = pickle.load(file)
        net = data["ema"]
        assert net.init_args == (2,)
        assert net.init_kwargs.layer_kwargs == {"act": "relu", "eaten": 1}
        assert type(net.init_kwargs.layer_kwargs) is dnnlib.util.EasyDict
        assert net.layer is net.twin and not net.training
        torch.testing.assert_close(net(data["x"]), data["y"], rtol=0, atol=0)
        with open("again.pkl", "wb") as file:
            pickle.dump(net, file)
        print(type(net).__name__)
        """,
        tmp_path,
    )
    assert printed == "Stack\n"

    for meta in metas((tmp_path / "again.pkl").read_bytes()) + metas((tmp_path / "network.pkl").read_bytes()):
        assert meta["module_src"].encode() == SOURCE.encode()
    # The second generation differs from the first in nothing.
    assert tokens(pickle.dumps(stack)) == tokens((tmp_path / "again.pkl").read_bytes())


def test_pickle_describes_the_object(module: ModuleType) -> None:
    layer_meta, stack_meta = metas(pickle.dumps(module.Stack(2, layer_kwargs={"act": "elu"})))
    assert list(stack_meta) == ["type", "version", "module_src", "class_name", "state"]
    assert type(stack_meta) is dict
    assert (stack_meta["type"], stack_meta["version"], stack_meta["class_name"]) == ("class", 6, "Stack")
    assert stack_meta["state"]["_init_args"] == (2,)
    assert stack_meta["state"]["_init_kwargs"] == {"layer_kwargs": {"act": "elu"}}
    assert layer_meta["class_name"] == "Layer"
    assert list(layer_meta["state"])[-2:] == ["_init_args", "_init_kwargs"]
    assert layer_meta["module_src"] is stack_meta["module_src"]  # stored once


@pytest.mark.parametrize(
    "name",
    [
        *("sg2ada/a_uncond32", "sg2ada/b_cond16", "sg2ada/c_orig16", "sg2ada/c_resnet16", "sg2ada/d_gray16"),
        *("sg3/s1_stylegan2_uncond32", "sg3/s2_stylegan3t_uncond32"),
        *("edm/s1_edm_ddpmpp_uncond16", "edm/s2_edm_adm_cond16", "edm/s4_sid_ddpmpp_cond16"),
        *("edm/s3_vp_ddpmpp_uncond16", "edm/s5_ve_ncsnpp_uncond16", "edm/s6_iddpm_adm_uncond16"),
    ],
)
def test_golden_pickle_is_written_again_opcode_by_opcode(
    name: str, fixture_path: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = fixture_path(f"{name}.pkl").read_bytes()
    blank = "# source removed\n"
    class_names = sorted({meta["class_name"] for meta in metas(original)})
    assert len(class_names) > 2
    source = "import torch\nfrom torch_utils import persistence\n"
    for class_name in class_names:
        source += f"@persistence.persistent_class\nclass {class_name}(torch.nn.Module):\n    pass\n"

    @persistence.import_hook
    def give_source(meta: dnnlib.EasyDict) -> dnnlib.EasyDict:
        assert meta.module_src == blank
        meta.module_src = source
        return meta

    # Other versions of PyTorch would add private fields of their own to the state of old modules.
    monkeypatch.setattr(torch.nn.Module, "__setstate__", lambda self, state: vars(self).update(state))
    data = pickle.loads(original)
    assert tokens(pickle.dumps(data, protocol=4), {source: blank}) == tokens(original)


def tokens(pickled: bytes, renamed: dict[str, str] | None = None) -> list[tuple[Any, ...]]:
    """The opcodes, with strings in place of references to strings, which depend on object identity alone.

    Bytes are left out: torch names storages by their addresses. So are frames, which count bytes.
    """
    found: list[tuple[Any, ...]] = []
    memo: list[tuple[Any, ...]] = []
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "MEMOIZE":
            memo.append(found[-1] if found[-1][0] == "string" else ("reference", len(found)))
        elif opcode.name in ("BINGET", "LONG_BINGET"):
            found.append(memo[argument])
        elif "BINUNICODE" in opcode.name:
            text = (renamed or {}).get(argument, argument)
            found.append(("string", text.replace("numpy._core", "numpy.core")))
        elif "BINBYTES" in opcode.name:
            found.append(("bytes",))
        elif opcode.name != "FRAME":
            found.append((opcode.name, argument))
    return found


def test_init_arguments_are_copies(module: ModuleType) -> None:
    options = {"act": "tanh"}
    stack = module.Stack(2, layer_kwargs=options)
    options["act"] = "changed outside"
    stack.init_kwargs.layer_kwargs["act"] = "changed inside"
    assert stack.init_kwargs.layer_kwargs == {"act": "tanh"}
    assert isinstance(stack.init_kwargs, dnnlib.EasyDict)
    loss = module.Loss([1])
    loss.init_args[0].append("changed inside")
    assert loss.init_args == ([1],)
    with pytest.raises(AttributeError):
        stack.init_args = ()
    # What a constructor takes out of its arguments was still an argument.
    assert module.Layer(2, eaten=1).init_kwargs == {"eaten": 1}


def test_outermost_constructor_decides_the_init_arguments(module: ModuleType) -> None:
    loss = module.DerivedLoss(3, P_mean=-0.4)
    assert (loss.init_args, loss.init_kwargs) == ((3,), {"P_mean": -0.4})
    again = pickle.loads(pickle.dumps(loss))
    assert (again.scale, again.P_mean, again.init_args) == (3, -0.4, (3,))
    assert list(inspect.signature(module.Layer).parameters) == ["channels", "act", "options"]


def test_class_that_lacks_the_decorator_is_not_pickled_as_its_parent(module: ModuleType) -> None:
    assert not persistence.is_persistent(module.Undecorated)
    with pytest.raises(pickle.PicklingError, match="Undecorated derives from a persistent class"):
        pickle.dumps(module.Undecorated())


def test_is_persistent(module: ModuleType) -> None:
    assert persistence.is_persistent(module.Loss) and persistence.is_persistent(module.Loss())
    assert not persistence.is_persistent(torch.nn.Linear) and not persistence.is_persistent(3)
    once = module.Loss.__init__
    assert persistence.persistent_class(module.Loss) is module.Loss and module.Loss.__init__ is once
    assert module.Loss(P_mean=1).init_kwargs == {"P_mean": 1}


def test_own_getstate_and_setstate_are_used(module: ModuleType) -> None:
    custom = module.Custom()
    custom.value = 5
    assert metas(pickle.dumps(custom))[0]["state"] == ("packed", 5)
    assert pickle.loads(pickle.dumps(custom)).value == 6


def test_state_that_cannot_be_pickled_is_named(module: ModuleType) -> None:
    stack = module.Stack(2, layer_kwargs={})
    stack.layer.callback = [lambda: None]
    with pytest.raises(pickle.PicklingError, match=r"^Layer\.callback cannot be pickled"):
        pickle.dumps(stack)
    stack.layer.callback = None
    custom = module.Custom()
    custom.value = stack.handle = sys.stdout
    with pytest.raises(pickle.PicklingError, match=r"^Stack\.handle cannot be pickled"):
        pickle.dumps(stack)
    with pytest.raises(pickle.PicklingError, match=r"Custom\.__getstate__\(\) cannot be pickled"):
        pickle.dumps(custom)


@pytest.mark.filterwarnings("ignore:.*jit.trace.* is deprecated")
def test_copies_hold_what_cannot_be_pickled(module: ModuleType) -> None:
    """Hooks that are local functions, and ScriptModules: only a pickle has no place for them."""
    stack = module.Stack(2, layer_kwargs={})
    calls: list[str] = []
    stack.layer.register_forward_hook(lambda *_: calls.append("hook"))
    stack.scripted = torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2))
    x = torch.ones(1, 2, 4, 4)
    expected = stack(x)
    assert calls == ["hook"]
    for twin in (copy.copy(stack), copy.deepcopy({"G": stack})["G"]):
        assert type(twin) is module.Stack and twin.init_args == (2,)
        assert torch.equal(twin(x), expected)
        assert torch.equal(twin.scripted(torch.ones(1, 2)), stack.scripted(torch.ones(1, 2)))
        with pytest.raises(pickle.PicklingError, match=r"Stack\.scripted|Layer\._forward_hooks|Stack\._modules"):
            pickle.dumps(twin)
    assert calls == ["hook"] * 3
    assert copy.copy(stack).layer is stack.layer


def test_deep_copies_share_as_the_original_does(module: ModuleType) -> None:
    stack = module.Stack(2, layer_kwargs={})
    stack.layer.owner = [stack]  # a circle
    twin, optimized = copy.deepcopy((stack, list(stack.parameters())))
    assert twin.layer is twin.twin is not stack.layer
    assert twin.layer.owner[0] is twin
    assert [id(p) for p in optimized] == [id(p) for p in twin.parameters()]
    with torch.no_grad():
        twin.layer.weight.zero_()
    assert stack.layer.weight.any()
    custom = module.Custom()
    custom.value = 5
    assert (copy.deepcopy(custom).value, copy.copy(custom).value) == (6, 6)  # by its own __getstate__ and __setstate__
    derived = module.Undecorated()
    assert type(copy.deepcopy(derived)) is module.Undecorated


def test_a_class_keeps_its_own_way_of_being_copied(module: ModuleType) -> None:
    class Own(module.Loss):
        def __deepcopy__(self, memo: dict[int, Any]) -> str:
            return "copied"

    assert copy.deepcopy(persistence.persistent_class(Own)()) == "copied"


def test_unpickled_objects_are_instances_of_imported_classes(module: ModuleType) -> None:
    stack = pickle.loads(pickle.dumps(module.Stack(2, layer_kwargs={})))
    assert type(stack) is module.Stack and isinstance(stack.layer, module.Layer)
    assert type(stack).__module__ == "short_lived"


def test_another_source_makes_another_class(module: ModuleType) -> None:
    pickled = pickle.dumps(module.Loss(P_mean=3))
    meta = metas(pickled)[0]
    altered = persistence._reconstruct_persistent_obj(meta | {"module_src": SOURCE.replace("-1.2", "-1.3")})
    assert type(altered) is not module.Loss and altered.P_mean == 3
    sys.modules["short_lived"] = ModuleType("short_lived")  # Something else has that name now.
    try:
        assert type(pickle.loads(pickled)) is not module.Loss
    finally:
        sys.modules["short_lived"] = module


def test_source_is_executed_once_for_all_objects(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persistence, "_module_of_source", {})  # as if the module had never been imported
    first, second = pickle.loads(pickle.dumps([module.Loss(), module.DerivedLoss(1)]))
    third = pickle.loads(pickle.dumps(module.Loss()))
    assert type(first) is type(third) is not module.Loss
    assert issubclass(type(second), type(first))
    generated = sys.modules[type(first).__module__]
    assert vars(generated)["Loss"] is type(first)
    assert type(copy.deepcopy(first)) is type(first)
    # It is compiled by its own rules, not by the __future__ imports of the module that executes it.
    assert vars(generated)["Layer"].__annotations__["size"] is int


def test_hooks_change_what_runs(module: ModuleType) -> None:
    pickled = pickle.dumps(module.Loss(P_mean=2))
    seen = []

    @persistence.import_hook
    def rename(meta: dnnlib.EasyDict) -> dict[str, Any]:
        seen.append((meta.type, meta.version, meta.class_name, meta.state.P_mean, meta.state["P_mean"]))
        changed = dict(meta)
        changed["module_src"] = meta.module_src.replace("class Loss", "class Renamed")
        return changed

    @persistence.import_hook
    def follow(meta: dnnlib.EasyDict) -> dnnlib.EasyDict:
        meta.class_name = "Renamed"
        return meta

    with pytest.raises(NameError, match="'Loss' is not defined"):  # DerivedLoss(Loss)
        pickle.loads(pickled)
    assert seen == [("class", 6, "Loss", 2, 2)]

    persistence._import_hooks.clear()

    @persistence.import_hook
    def patch(meta: dnnlib.EasyDict) -> dnnlib.EasyDict:
        meta.module_src += "\nRenamed = Loss\nLoss.patched = True\n"
        return meta

    persistence.import_hook(follow)
    loss = pickle.loads(pickled)
    assert loss.patched and loss.P_mean == 2
    assert metas(pickle.dumps(loss))[0]["module_src"].endswith("Loss.patched = True\n")

    @persistence.import_hook
    def change_state(meta: dnnlib.EasyDict) -> dnnlib.EasyDict:
        meta.state.P_mean += 1
        meta.state.added = "new"
        return meta

    loss = pickle.loads(pickled)
    assert (loss.P_mean, loss.added) == (3, "new")
    assert type(vars(loss)) is dict

    @persistence.import_hook
    def forgets_to_return(meta: dnnlib.EasyDict) -> None:
        pass

    with pytest.raises(TypeError, match="forgets_to_return"):
        pickle.loads(pickled)


@pytest.mark.parametrize("source", ["class A: pass", "class A: pass\r\n\t # \u00dc\x0c\n\n"])
def test_source_that_came_in_a_pickle_is_kept_byte_for_byte(source: str) -> None:
    meta = {"type": "class", "version": 6, "module_src": source, "class_name": "A", "state": {"x": 1}}
    pickled = pickle.dumps(persistence._reconstruct_persistent_obj(meta))
    assert metas(pickled) == [meta]


def test_source_that_fails_leaves_nothing_behind() -> None:
    meta = {"type": "class", "version": 6, "class_name": "A", "state": {}}
    before = set(sys.modules)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            persistence._reconstruct_persistent_obj(meta | {"module_src": "class A: pass\n1 / 0\n"})
        assert set(sys.modules) == before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"version": 5}, "version 5"),
        ({"type": "function"}, "type 'function'"),
        ({"class_name": "B"}, "defines no class 'B'"),
        ({"class_name": "x"}, "defines no class 'x'"),
    ],
)
def test_what_cannot_be_read_is_said(change: dict[str, Any], sentence: str) -> None:
    meta = {"type": "class", "version": 6, "module_src": "class A: pass\nx = 1\n", "class_name": "A", "state": None}
    obj = persistence._reconstruct_persistent_obj(meta)
    assert type(obj).__name__ == "A" and persistence.is_persistent(obj)
    with pytest.raises(pickle.UnpicklingError, match=sentence):
        persistence._reconstruct_persistent_obj(meta | change)


def test_class_without_a_source_is_refused() -> None:
    nowhere = ModuleType("nowhere")
    sys.modules["nowhere"] = nowhere
    try:
        exec("class A: pass", vars(nowhere))
        with pytest.raises(OSError, match="A cannot be persistent"):
            persistence.persistent_class(vars(nowhere)["A"])
    finally:
        del sys.modules["nowhere"]
