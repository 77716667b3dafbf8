"""Written pickles differ from their source only in the bytes of tensors."""

from __future__ import annotations

import io
import logging
import pickle
import pickletools
from collections import OrderedDict

import pytest
import torch
from forge import Persistent

from dnnlib.util import EasyDict
from refine import pickles
from refine.errors import UserError
from refine.pickles import PickleError, writer
from refine.pickles.known_sources import KNOWN_SOURCES
from refine.pickles.records import InertType
from refine.pickles.storage import parse_storage
from refine.pickles.tree import children, named_tensors, walk

SNAPSHOTS = [
    *(f"sg2ada/{n}.pkl" for n in ("a_uncond32", "b_cond16", "b_cond16.oldstyle", "c_orig16", "c_resnet16", "d_gray16")),
    *(f"r3gan/{n}.pkl" for n in ("s1_r3gan_uncond32", "s1_r3gan_uncond32.oldnames")),
    "sgxl/s1_sgxl_stem_cond16.pkl",
    *(f"sg3/{n}.pkl" for n in ("s1_stylegan2_uncond32", "s2_stylegan3t_uncond32", "s3_stylegan3r_uncond16")),
    *(f"edm/{n}.pkl" for n in ("s1_edm_ddpmpp_uncond16", "s2_edm_adm_cond16", "s3_vp_ddpmpp_uncond16")),
    *(f"edm/{n}.pkl" for n in ("s4_sid_ddpmpp_cond16", "s5_ve_ncsnpp_uncond16", "s6_iddpm_adm_uncond16")),
]


def state(pkl, key):
    return {name: tensor.read() for name, tensor in named_tensors(pkl[key]).items()}


def opcodes(data: bytes) -> list[tuple[str, object]]:
    """All that a pickle says, apart from how it is cut into frames."""
    return [(opcode.name, arg) for opcode, arg, _ in pickletools.genops(data) if opcode.name != "FRAME"]


def assert_same_but_for(data_a: bytes, data_b: bytes, num_changed: int) -> None:
    """Two pickles that differ in the raw data of exactly `num_changed` storages."""
    a, b = opcodes(data_a), opcodes(data_b)
    assert [name for name, _ in a] == [name for name, _ in b]
    different = [(x, y) for (name, x), (_, y) in zip(a, b, strict=True) if x != y]
    assert len(different) == num_changed
    for x, y in different:
        blob_x, blob_y = parse_storage(x), parse_storage(y)
        assert x[: blob_x.data_start] == y[: blob_y.data_start] and len(x) == len(y)


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_unchanged_is_identical(name, fixture_path, tmp_path):
    source, written = fixture_path(name), tmp_path / "written.pkl"
    pickles.save(pickles.load(source), written)
    assert opcodes(source.read_bytes()) == opcodes(written.read_bytes())
    assert source.read_bytes() == written.read_bytes()


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_new_tensors_change_their_bytes_only(name, fixture_path, tmp_path):
    source, written = fixture_path(name), tmp_path / "written.pkl"
    pkl = pickles.load(source)
    key = "ema" if "ema" in pkl else "G_ema"
    new = {n: t + 1 if t.is_floating_point() else t for n, t in state(pkl, key).items()}
    pickles.save(pkl, written, {key: new})
    assert_same_but_for(source.read_bytes(), written.read_bytes(), len(new))
    again = pickles.load(written)
    assert all(torch.equal(tensor, new[n]) for n, tensor in state(again, key).items())
    assert_records_equal(pkl.root, again.root)


def assert_records_equal(a, b) -> None:
    """Type by type, value by value but for the data of storages, and with the same pattern of shared objects."""
    values_a, values_b = list(walk(a)), list(walk(b))
    order_a, order_b = ({id(v): i for i, v in enumerate(values)} for values in (values_a, values_b))
    assert len(values_a) == len(values_b)
    for x, y in zip(values_a, values_b, strict=True):
        if isinstance(x, pickles.records.Inert):
            names = [(t.global_module, t.global_name) for t in (type(x), type(y))]
            assert names[0] == names[1] and x.is_new_object == y.is_new_object
        else:
            assert type(x) is type(y)
        inner = [list(children(value)) for value in (x, y)]
        assert len(inner[0]) == len(inner[1])
        for u, v in zip(*inner, strict=True):
            if id(u) in order_a or id(v) in order_b:
                assert order_a.get(id(u)) == order_b.get(id(v))
            elif isinstance(u, InertType):
                assert (u.global_module, u.global_name) == (v.global_module, v.global_name)
            else:
                assert u == v


def test_shared_records_stay_shared(fixture_path, tmp_path):
    pkl = pickles.load(fixture_path("sg2ada/d_gray16.pkl"))
    # One settings dict in two networks, one layer in two places, one tensor under two names.
    shared = pkl["G"].attributes["_init_kwargs"]
    pkl["D"].attributes["_init_kwargs"] = shared
    pkl["G_ema"].attributes["_init_kwargs"] = shared
    path, again_path = tmp_path / "shared.pkl", tmp_path / "again.pkl"
    pickles.save(pkl, path)
    first = pickles.load(path)
    pickles.save(first, again_path, {"G": {n: t * 2 for n, t in state(first, "G").items()}})
    again = pickles.load(again_path)
    assert_records_equal(first.root, again.root)
    kwargs = [again[key].attributes["_init_kwargs"] for key in ("G", "D", "G_ema")]
    assert kwargs[0] is kwargs[1] is kwargs[2]


def one_object_as_g_and_g_ema(fixture_path, tmp_path):
    pkl = pickles.load(fixture_path("sg2ada/d_gray16.pkl"))
    pkl.root["G"] = pkl.root["G_ema"]
    path = tmp_path / "alias.pkl"
    pickles.save(pkl, path)
    aliased = pickles.load(path)
    assert aliased["G"] is aliased["G_ema"]
    return aliased


def test_alias_survives_where_nothing_is_replaced(fixture_path, tmp_path):
    aliased = one_object_as_g_and_g_ema(fixture_path, tmp_path)
    pickles.save(aliased, tmp_path / "same.pkl")
    again = pickles.load(tmp_path / "same.pkl")
    assert again["G"] is again["G_ema"]


@pytest.mark.parametrize("keys", [("G",), ("G_ema",), ("G", "G_ema")])
def test_alias_is_split_where_weights_differ(keys, fixture_path, tmp_path):
    aliased = one_object_as_g_and_g_ema(fixture_path, tmp_path)
    old = state(aliased, "G")
    expected = {"G": old, "G_ema": old}
    for number, key in enumerate(keys):
        expected[key] = {n: t + number + 1 for n, t in old.items()}
    pickles.save(aliased, tmp_path / "split.pkl", {key: expected[key] for key in keys})
    again = pickles.load(tmp_path / "split.pkl")
    for key in ("G", "G_ema"):
        assert all(torch.equal(t, expected[key][n]) for n, t in state(again, key).items())
    assert again["G"] is not again["G_ema"]
    storages = [{id(t.storage) for t in named_tensors(again[key]).values()} for key in ("G", "G_ema")]
    assert not storages[0] & storages[1]
    # All but the way to the tensors is still one object: settings, and the texts of the source.
    assert again["G"].attributes["_init_kwargs"] is again["G_ema"].attributes["_init_kwargs"]
    assert again["G"].module_src is again["G_ema"].module_src
    # The pickle in memory is what it was.
    assert aliased["G"] is aliased["G_ema"] and torch.equal(
        next(iter(state(aliased, "G").values())), old[next(iter(old))]
    )


def test_views_keep_the_rest_of_their_storage(tmp_path):
    base = torch.arange(20.0)
    window, flipped = base.view(4, 5)[1:3, 2:4], torch.arange(6.0).view(2, 3).t()
    buffers = {"window": window, "flipped": flipped, "half": torch.ones(2, dtype=torch.float16)}
    path, out = tmp_path / "views.pkl", tmp_path / "out.pkl"
    path.write_bytes(pickle.dumps({"G_ema": Persistent({"_buffers": buffers})}))
    pkl = pickles.load(path)
    new = {"window": torch.full((2, 2), -1.0), "flipped": flipped + 10, "half": torch.tensor([0.1, 0.2])}
    pickles.save(pkl, out, {"G_ema": new})
    again = pickles.load(out)
    read = state(again, "G_ema")
    assert torch.equal(read["window"], new["window"]) and torch.equal(read["flipped"], new["flipped"])
    assert torch.equal(read["half"], new["half"].half())
    storage = named_tensors(again["G_ema"])["window"].storage.blob.tensor()
    base.view(4, 5)[1:3, 2:4] = -1
    assert torch.equal(storage, base)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("mapping.w_avg"), "G_ema needs a new tensor mapping.w_avg"),
        (lambda s: s.update(extra=torch.ones(1)), "G_ema has no tensor extra"),
        (
            lambda s: s.update({"mapping.w_avg": torch.ones(3)}),
            r"G_ema.mapping.w_avg is \(32,\) in the pickle, \(3,\) now",
        ),
    ],
)
def test_wrong_tensors_write_nothing(change, message, fixture_path, tmp_path):
    pkl = pickles.load(fixture_path("sg2ada/d_gray16.pkl"))
    new = state(pkl, "G_ema")
    change(new)
    path = tmp_path / "kept.pkl"
    path.write_bytes(b"before")
    with pytest.raises(PickleError, match=message):
        pickles.save(pkl, path, {"G_ema": new})
    assert path.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == ["kept.pkl"]


def test_unknown_entry(fixture_path, tmp_path):
    pkl = pickles.load(fixture_path("sg2ada/d_gray16.pkl"))
    with pytest.raises(PickleError, match="no network 'training_set_kwargs'"):
        pickles.save(pkl, tmp_path / "x.pkl", {"training_set_kwargs": {}})


def test_failure_while_writing_leaves_nothing(fixture_path, tmp_path, monkeypatch):
    pkl = pickles.load(fixture_path("sg2ada/d_gray16.pkl"))

    def fail(self, obj):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer._RecordPickler, "_save_global", fail)
    with pytest.raises(UserError, match="No space left"):
        pickles.save(pkl, tmp_path / "x.pkl")
    assert not list(tmp_path.iterdir())


def test_unknown_sources_are_mentioned_in_one_line(fixture_path, tmp_path, caplog):
    pkl = pickles.load(fixture_path("sg2ada/d_gray16.pkl"))
    with caplog.at_level(logging.WARNING, "refine"):
        pickles.save(pkl, tmp_path / "known.pkl")
        assert not caplog.records  # every source in the golden files is a lone, listed comment
        pkl["G_ema"].meta["module_src"] = "import os\n"
        pickles.save(pkl, tmp_path / "unknown.pkl")
    (line,) = [record.getMessage() for record in caplog.records]
    assert "carries 1 embedded source" in line and "\n" not in line
    assert pickles.load(tmp_path / "unknown.pkl")["G_ema"].source_sha256 not in KNOWN_SOURCES


def test_large_tensors_lie_outside_of_frames(tmp_path):
    """Protocol 4 readers rely on it, and so does memory: a frame is buffered, a long string is not."""
    path, out = tmp_path / "a.pkl", tmp_path / "b.pkl"
    network = Persistent({"_buffers": {"x": torch.zeros(100_000)}})
    path.write_bytes(pickle.dumps({"G_ema": network}, protocol=4))
    pickles.save(pickles.load(path), out, {"G_ema": {"x": torch.ones(100_000)}})
    assert_same_but_for(path.read_bytes(), out.read_bytes(), 1)
    frames = [arg for opcode, arg, _ in pickletools.genops(out.read_bytes()) if opcode.name == "FRAME"]
    assert max(frames) < 100_000


def test_dump_of_a_part_is_a_pickle_of_its_own(fixture_path):
    pkl = pickles.load(fixture_path("sg2ada/d_gray16.pkl"))
    for protocol in (3, 4, 5):
        file = io.BytesIO()
        writer.dump({"part": pkl["G_ema"]}, file, protocol)
        assert file.getvalue()[:2] == b"\x80" + bytes([protocol])
        assert opcodes(file.getvalue())[-1][0] == "STOP"


def pickled(tmp_path, root, protocol=4):
    path = tmp_path / "own.pkl"
    path.write_bytes(pickle.dumps(root, protocol))
    return pickles.load(path)


def test_tensors_that_share_memory(tmp_path):
    """One parameter under two names, as tied weights are: they stay one, and the caller's tensors are left alone."""
    tied = torch.nn.Parameter(torch.zeros(4))
    pkl = pickled(tmp_path, {"G_ema": Persistent({"_parameters": {"a": tied, "b": tied}})})
    records = named_tensors(pkl["G_ema"])
    assert records["a"] is records["b"]
    new = {"a": torch.full((4,), 2.0), "b": torch.full((4,), 2.0)}
    pickles.save(pkl, tmp_path / "out.pkl", {"G_ema": new})
    again = named_tensors(pickles.load(tmp_path / "out.pkl")["G_ema"])
    assert again["a"] is again["b"] and again["a"].read().tolist() == [2.0] * 4
    different = {"a": torch.ones(4), "b": torch.full((4,), 3.0)}
    with pytest.raises(PickleError, match="shares memory with a, b in the pickle, and differs now"):
        pickles.save(pkl, tmp_path / "out.pkl", {"G_ema": different})
    assert different["a"].tolist() == [1.0] * 4 and different["b"].tolist() == [3.0] * 4
    not_a_number = {"a": torch.full((4,), float("nan")), "b": torch.full((4,), float("nan"))}
    pickles.save(pkl, tmp_path / "out.pkl", {"G_ema": not_a_number})


def test_storage_that_something_else_uses_as_well(tmp_path):
    """The generator's new weights must not become those of a loss that kept a reference to the old ones."""
    shared = torch.nn.Parameter(torch.zeros(4))
    generator = Persistent({"_parameters": {"w": shared}})
    pkl = pickled(tmp_path, {"G_ema": generator, "loss_fn": Persistent({"kept": [shared]})})
    pickles.save(pkl, tmp_path / "out.pkl", {"G_ema": {"w": torch.ones(4)}})
    again = pickles.load(tmp_path / "out.pkl")
    assert named_tensors(again["G_ema"])["w"].read().tolist() == [1.0] * 4
    assert again["loss_fn"].attributes["kept"][0].tensor.read().tolist() == [0.0] * 4


@pytest.mark.parametrize("kind", [dict, EasyDict, OrderedDict])
def test_type_of_the_root(kind, tmp_path):
    pkl = pickled(tmp_path, kind(G_ema=Persistent({"_buffers": {"x": torch.zeros(2)}}), other=1))
    pickles.save(pkl, tmp_path / "out.pkl", {"G_ema": {"x": torch.ones(2)}})
    assert_same_but_for((tmp_path / "own.pkl").read_bytes(), (tmp_path / "out.pkl").read_bytes(), 1)


def test_names_of_missing_tensors_are_the_first_in_order(tmp_path):
    buffers = {name: torch.zeros(1) for name in "zyxwv"}
    pkl = pickled(tmp_path, {"G_ema": Persistent({"_buffers": buffers})})
    with pytest.raises(PickleError, match="needs a new tensor y"):
        pickles.save(pkl, tmp_path / "out.pkl", {"G_ema": {"z": torch.zeros(1)}})


def test_plain_modules_of_pytorch_are_kept(tmp_path):
    """Networks hold them beside persistent ones; making one bare and filling it runs nothing."""
    layers = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.SiLU())
    layers.size, layers.device, layers.dtype = torch.Size([2, 3]), torch.device("cpu"), torch.float32
    pkl = pickled(tmp_path, {"G_ema": Persistent({"_modules": {"layers": layers}})})
    assert list(named_tensors(pkl["G_ema"])) == ["layers.0.weight", "layers.0.bias"]
    pickles.save(pkl, tmp_path / "out.pkl")
    assert (tmp_path / "out.pkl").read_bytes() == (tmp_path / "own.pkl").read_bytes()
