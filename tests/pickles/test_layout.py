"""Networks that are not in the dict of a snapshot: bare, in tuples, below keys, under other names, from torch.save."""

from __future__ import annotations

import io
import logging
import pickle
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from forge import Described, described

from refine import load_generator, load_teacher, pickles
from refine.commands import export, inspect
from refine.pickles import PickleError, module_state, named_tensors
from torch_utils import persistence

GAN, TEACHER = "sg2ada/b_cond16.pkl", "edm/s6_iddpm_adm_uncond16.pkl"
EMBEDDED = Path(__file__).parents[1] / "support" / "embedded_stylegan2.py"


def torch_saved(value, legacy=False) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


PACKINGS = {
    "pickle": lambda value: pickle.dumps(value, 4),
    "protocol 3": lambda value: pickle.dumps(value, 3),
    "protocol 5": lambda value: pickle.dumps(value, 5),
    "torch.save": torch_saved,
    "torch.save before 1.6": lambda value: torch_saved(value, legacy=True),
}
ARRANGEMENTS = {
    "a network": (lambda d: d["G_ema"], ["G_ema"]),
    "tuple": (lambda d: (d["G"], d["D"], d["G_ema"]), ["G", "D", "G_ema"]),
    "list": (lambda d: [d["G"], d["G_ema"]], ["G", "G_ema"]),
    "tuple with others": (lambda d: (d["G_ema"], 1000, {"lr": 0.1}), ["G_ema", "1", "2"]),
    "dict": (lambda d: d, ["training_set_kwargs", "G", "D", "G_ema", "augment_pipe"]),
    "below a key": (lambda d: {"step": 5, "model": {"G_ema": d["G_ema"]}}, ["G_ema"]),
    "deep": (lambda d: {"a": [{"b": {"G": d["G"], "G_ema": d["G_ema"], "n": 1}}], "c": 2}, ["G", "G_ema", "n"]),
    "tuple below a key": (lambda d: {"nets": (d["G"], d["D"], d["G_ema"])}, ["G", "D", "G_ema"]),
    "other name": (lambda d: {"generator": d["G_ema"], "step": 7}, ["G_ema", "step"]),
    "other names": (lambda d: {"g_ema": d["G_ema"], "g": d["G"], "d": d["D"]}, ["G_ema", "G", "d"]),
}


COMBINATIONS = [
    *((packing, arrangement) for packing in ("pickle", "torch.save") for arrangement in ARRANGEMENTS),
    *((packing, arrangement) for packing in PACKINGS for arrangement in ("a network", "deep")),
]


@pytest.mark.parametrize(("packing", "arrangement"), list(dict.fromkeys(COMBINATIONS)))
def test_generator_in_every_arrangement(packing, arrangement, fixture_path, tmp_path, caplog):
    arrange, keys = ARRANGEMENTS[arrangement]
    path = tmp_path / "file"
    path.write_bytes(PACKINGS[packing](arrange(described(fixture_path(GAN)))))
    with caplog.at_level(logging.INFO, "refine"):
        loaded = load_generator(str(path))
    assert (str(path) in caplog.text) == (packing.startswith("torch") or arrangement != "dict")
    assert list(loaded.pickle) == keys and loaded.key == "G_ema"
    expected = load_generator(str(fixture_path(GAN))).network.state_dict()
    state = loaded.network.state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)

    # What is written opens again, with the new weights, and with everything that was beside them.
    moved = {name: tensor + 1 for name, tensor in state.items()}
    pickles.save(loaded.pickle, tmp_path / "written.pkl", {"G_ema": moved})
    again = load_generator(str(tmp_path / "written.pkl"))
    assert set(keys) <= set(again.pickle)
    assert all(torch.equal(tensor, moved[name]) for name, tensor in again.network.state_dict().items())
    if "G" in keys:
        before, after = (named_tensors(pkl["G"]) for pkl in (loaded.pickle, again.pickle))
        assert all(torch.equal(before[name].read(), after[name].read()) for name in before)


@pytest.mark.parametrize("packing", ["pickle", "torch.save", "torch.save before 1.6"])
@pytest.mark.parametrize(
    "arrange",
    [
        lambda d: d["ema"],
        lambda d: (d["ema"], d["loss_fn"]),
        lambda d: {"net": d["ema"], "optimizer_state": {"state": {0: torch.ones(3)}}},
        lambda d: {"teacher": d["ema"]},
        lambda d: {"loss_fn": d["loss_fn"], "nets": {"ema": d["ema"]}},
    ],
)
def test_denoiser_in_other_arrangements(packing, arrange, fixture_path, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(PACKINGS[packing](arrange(described(fixture_path(TEACHER)))))
    state = load_teacher(str(path)).network.state_dict()
    expected = load_teacher(str(fixture_path(TEACHER))).network.state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("arrangement", ["below a key", "deep", "other name", "other names"])
def test_dicts_are_written_as_they_came(arrangement, fixture_path, tmp_path):
    path = tmp_path / "file.pkl"
    path.write_bytes(pickle.dumps(ARRANGEMENTS[arrangement][0](described(fixture_path(GAN))), 4))
    pickles.save(pickles.load(path), tmp_path / "written.pkl")
    assert (tmp_path / "written.pkl").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("arrangement", ["a network", "tuple", "list"])
@pytest.mark.parametrize("packing", ["pickle", "torch.save"])
def test_others_are_written_as_snapshots(arrangement, packing, fixture_path, tmp_path, monkeypatch, golden):
    """As NVIDIA's loaders want them: a module under each of G, D and G_ema, and working ones."""
    path = tmp_path / "file"
    path.write_bytes(PACKINGS[packing](ARRANGEMENTS[arrangement][0](described(fixture_path(GAN)))))
    pickles.save(pickles.load(path), tmp_path / "written.pkl")

    def give_source(meta):
        meta.module_src = EMBEDDED.read_text(encoding="utf-8")
        return meta

    monkeypatch.setattr(persistence, "_import_hooks", [give_source])
    with (tmp_path / "written.pkl").open("rb") as file:
        data = pickle.load(file)
    assert list(data)[:5] == ["training_set_kwargs", "G", "D", "G_ema", "augment_pipe"]
    assert all(isinstance(data[key], torch.nn.Module) for key in ("G", "D", "G_ema"))
    assert bool(list(data["D"].parameters())) == (arrangement == "tuple")
    arrays = golden("sg2ada/b_cond16")
    z, c = (torch.from_numpy(arrays[name]) for name in ("in.z", "in.c"))
    image = data["G_ema"](z, c, truncation_psi=0.7, noise_mode="const")
    assert (image - torch.from_numpy(arrays["G_call_const_psi0.7"])).abs().max() < 1e-4


def test_commands_take_such_files(fixture_path, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(torch_saved(described(fixture_path(GAN))["G_ema"]))
    shown = CliRunner().invoke(inspect.main, [str(path)])
    assert shown.exit_code == 0 and "torch.save" in shown.stdout and "bare network" in shown.stdout
    out = tmp_path / "ema.pkl"
    done = CliRunner().invoke(export.main, [f"--network={path}", "--format=pkl-ema", f"--out={out}"])
    assert done.exit_code == 0, done.output
    assert list(pickles.load(out)) == ["training_set_kwargs", "G", "D", "G_ema", "augment_pipe"]


@pytest.mark.parametrize("packing", ["pickle", "torch.save"])
def test_several_networks_that_could_be_meant(packing, fixture_path, tmp_path):
    data = described(fixture_path(GAN))
    for value, names in (
        ({"a": {"G_ema": data["G_ema"]}, "b": {"G_ema": data["G"]}}, ("a", "b")),
        ({"one": data["G_ema"], "two": data["G"]}, ("'one'", "'two'")),
    ):
        path = tmp_path / "file"
        path.write_bytes(PACKINGS[packing](value))
        with pytest.raises(PickleError) as caught:
            load_generator(str(path))
        assert str(path) in str(caught.value) and all(name in str(caught.value) for name in names)


@pytest.mark.parametrize(
    "value", [{"a": 1}, [1, 2], 7, "text", None, {"a": {"b": [1, (2,)]}}, {"x": torch.ones(2)}, list(range(50_000))]
)
def test_files_without_a_network(value, tmp_path):
    for packing, pack in PACKINGS.items():
        path = tmp_path / "file"
        path.write_bytes(pack(value))
        with pytest.raises(PickleError) as caught:
            load_generator(str(path))
        assert str(path) in str(caught.value), packing


def test_shared_storages_stay_shared(fixture_path, tmp_path):
    """torch.save writes a storage once, however many tensors look at it."""
    data = described(fixture_path("sg2ada/d_gray16.pkl"))
    path = tmp_path / "file"
    path.write_bytes(torch_saved({"G": data["G_ema"], "G_ema": data["G_ema"], "D": data["D"]}))
    pkl = pickles.load(path)
    assert pkl["G"] is pkl["G_ema"] and module_state(pkl["D"]) is not None
    one, other = (named_tensors(pkl[key]) for key in ("G", "D"))
    assert {id(t.storage) for t in one.values()}.isdisjoint(id(t.storage) for t in other.values())


def test_every_dtype_and_view_from_torch_save(tmp_path):
    base = torch.arange(20.0).reshape(4, 5)
    buffers = {
        "window": base[1:3, 2:4],
        "transposed": base.t(),
        "scalar": torch.tensor(3.25),
        "empty": torch.zeros(0, 4),
        **{str(d)[6:]: torch.tensor([1, 0, 3]).to(d) for d in (torch.float64, torch.float16, torch.bfloat16)},
        **{str(d)[6:]: torch.tensor([1, 0, 3]).to(d) for d in (torch.int64, torch.int32, torch.uint8, torch.bool)},
    }
    state = {"_parameters": {}, "_buffers": buffers, "_modules": {}, "_init_kwargs": {"big": 2**70, "b": b"\xff\x00"}}
    meta = {"type": "class", "version": 6, "module_src": "#\n", "class_name": "M", "state": state}
    for legacy in (False, True):
        path = tmp_path / "file"
        path.write_bytes(torch_saved({"G_ema": Described(meta)}, legacy))
        record = pickles.load(path)["G_ema"]
        assert record.init_kwargs == {"big": 2**70, "b": b"\xff\x00"}
        found = {name: tensor.read() for name, tensor in named_tensors(record).items()}
        assert found.keys() == buffers.keys()
        assert all(found[n].dtype == v.dtype and torch.equal(found[n], v) for n, v in buffers.items())
        assert record.attributes["_buffers"]["window"].storage is record.attributes["_buffers"]["transposed"].storage
        pickles.save(pickles.load(path), tmp_path / "written.pkl")
        again = named_tensors(pickles.load(tmp_path / "written.pkl")["G_ema"])
        assert all(torch.equal(again[name].read(), value) for name, value in buffers.items())
