"""Golden pickles are read into records that say what the fixtures' own descriptions say."""

from __future__ import annotations

import io
import json
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from forge import Persistent

from dnnlib.util import EasyDict
from refine import pickles
from refine.networks import identify
from refine.pickles.numpy_records import NumpyScalar
from refine.pickles.records import Inert, PersistentObject, to_python
from refine.pickles.storage import parse_storage
from refine.pickles.tree import named_tensors, submodules, walk

ALL = [
    *(f"sg2ada/{name}.pkl" for name in ("a_uncond32", "b_cond16", "b_cond16.oldstyle", "c_orig16")),
    *(f"sg2ada/{name}.pkl" for name in ("c_resnet16", "d_gray16")),
    *(f"sg3/{name}.pkl" for name in ("s1_stylegan2_uncond32", "s2_stylegan3t_uncond32")),
    *(f"edm/{name}.pkl" for name in ("s1_edm_ddpmpp_uncond16", "s2_edm_adm_cond16", "s3_vp_ddpmpp_uncond16")),
    *(f"edm/{name}.pkl" for name in ("s4_sid_ddpmpp_cond16", "s5_ve_ncsnpp_uncond16", "s6_iddpm_adm_uncond16")),
]


def normalized(value):
    return json.loads(json.dumps(value))  # tuples and lists alike


@pytest.mark.parametrize("name", ALL)
def test_constructor_arguments_and_data_set(name, fixture_path):
    described = json.loads(fixture_path(name.replace(".oldstyle", "").replace(".pkl", ".json")).read_text())
    pkl = pickles.load(fixture_path(name))
    if described["kind"] == "gan":
        assert normalized(pkl["G_ema"].init_kwargs) == described["G_init_kwargs"]
        assert normalized(pkl["D"].init_kwargs) == described["D_init_kwargs"]
        assert normalized(to_python(pkl["training_set_kwargs"])) == described["training_set_kwargs"]
    else:
        assert normalized(pkl["ema"].init_kwargs) == described["init_kwargs"]
        tensors = named_tensors(pkl["ema"], ["_parameters"]).values()
        assert sum(tensor.num_elements for tensor in tensors) == described["num_params"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sg2ada/a_uncond32.pkl", {"G": "generator", "D": "discriminator", "augment_pipe": "augmentation"}),
        (
            "sg3/s2_stylegan3t_uncond32.pkl",
            {"G_ema": "generator", "D": "discriminator", "augment_pipe": "augmentation"},
        ),
        ("edm/s2_edm_adm_cond16.pkl", {"ema": "denoiser", "loss_fn": "loss", "augment_pipe": "augmentation"}),
        ("edm/s3_vp_ddpmpp_uncond16.pkl", {"ema": "denoiser", "loss_fn": "loss", "augment_pipe": "augmentation"}),
    ],
)
def test_roles(name, expected, fixture_path):
    pkl = pickles.load(fixture_path(name))
    assert {key: identify(pkl[key]).role for key in expected} == expected


def test_dialects_are_told_apart_without_source(fixture_path):
    def name_of(file):
        return identify(pickles.load(fixture_path(file))["G_ema"]).name

    assert name_of("sg2ada/b_cond16.pkl") == "StyleGAN2 generator (stylegan2-ada-pytorch)"
    assert name_of("sg2ada/b_cond16.oldstyle.pkl") == "StyleGAN2 generator (stylegan2-ada-pytorch)"
    assert name_of("sg3/s1_stylegan2_uncond32.pkl") == "StyleGAN2 generator (stylegan3)"
    assert name_of("sg3/s2_stylegan3t_uncond32.pkl") == "StyleGAN3 generator"


def test_old_style_file_holds_the_same_weights(fixture_path):
    new, old = (pickles.load(fixture_path(f"sg2ada/b_cond16{style}.pkl")) for style in ("", ".oldstyle"))
    for key in ("G", "D", "G_ema"):
        new_tensors, old_tensors = named_tensors(new[key]), named_tensors(old[key])
        assert new_tensors.keys() == old_tensors.keys()
        assert all(torch.equal(new_tensors[name].read(), old_tensors[name].read()) for name in new_tensors)


def test_numpy_scalars_of_both_spellings(fixture_path):
    for style in ("", ".oldstyle"):
        pkl = pickles.load(fixture_path(f"sg2ada/b_cond16{style}.pkl"))
        layer = submodules(submodules(submodules(pkl["G_ema"])["synthesis"])["b8"])["conv0"]
        gain = layer.attributes["act_gain"]
        assert isinstance(gain, NumpyScalar)
        assert gain.plain() == pytest.approx(np.sqrt(2), abs=1e-15)


def test_nothing_is_shared_that_the_pickle_does_not_share(fixture_path):
    pkl = pickles.load(fixture_path("sg2ada/b_cond16.pkl"))
    storages = [id(t.storage) for key in ("G", "D", "G_ema") for t in named_tensors(pkl[key]).values()]
    assert len(storages) == len(set(storages))


def test_mapping_interface(fixture_path):
    pkl = pickles.load(fixture_path("edm/s4_sid_ddpmpp_cond16.pkl"))
    assert list(pkl) == ["ema"] and len(pkl) == 1 and "G" not in pkl and pkl.protocol == 4
    assert all(isinstance(record, PersistentObject) for record in pkl.persistent_objects())


# -- own pickles, by Python's and PyTorch's own picklers, at every protocol --------------------------------


TENSORS = {
    "contiguous": torch.arange(12.0).reshape(3, 4),
    "transposed": torch.arange(12.0).reshape(3, 4).t(),
    "window": torch.arange(20.0).reshape(4, 5)[1:3, 2:4],
    "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "scalar": torch.tensor(3.25),
    "empty": torch.zeros(0, 4),
    **{str(d): torch.tensor([1, 0, 3]).to(d) for d in (torch.float64, torch.float16, torch.bfloat16)},
    **{str(d): torch.tensor([1, 0, 3]).to(d) for d in (torch.int64, torch.int32, torch.int16, torch.int8)},
    **{str(d): torch.tensor([1, 0, 3]).to(d) for d in (torch.uint8, torch.bool)},
}


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_every_dtype_and_view_at_every_protocol(protocol, tmp_path):
    parameters = {"p": torch.nn.Parameter(torch.randn(2, 3))}
    buffers = {name.replace(".", "_"): value for name, value in TENSORS.items()} | {"gone": torch.ones(2)}
    path = tmp_path / "own.pkl"
    state = {
        "_parameters": parameters,
        "_buffers": buffers,
        "_non_persistent_buffers_set": {"gone"},
        "_modules": OrderedDict(),
        "_init_args": (),
        "_init_kwargs": EasyDict(size=np.float32(2.5), shape=np.int64(7), flag=np.bool_(True), raw=[1, (2, "x")]),
    }
    path.write_bytes(pickle.dumps({"G_ema": Persistent(state)}, protocol=protocol))
    record = pickles.load(path)["G_ema"]
    read = {name: tensor.read() for name, tensor in named_tensors(record).items()}
    assert read.keys() == (parameters | buffers).keys() - {"gone"}
    for name, value in (parameters | buffers).items():
        if name != "gone":
            assert read[name].dtype == value.dtype and torch.equal(read[name], value), name
            assert read[name].is_contiguous()
    assert record.init_kwargs == {"size": 2.5, "shape": 7, "flag": True, "raw": [1, (2, "x")]}
    assert type(record.init_kwargs["flag"]) is bool and type(record.init_kwargs["shape"]) is int
    # Written back unchanged, it is the same pickle, however its protocol spells sets, globals and frames.
    pickles.save(pickles.load(path), tmp_path / "again.pkl")
    assert (tmp_path / "again.pkl").read_bytes() == path.read_bytes()


def test_reading_a_tensor_gives_memory_of_its_own(fixture_path):
    record = next(iter(named_tensors(pickles.load(fixture_path("sg2ada/d_gray16.pkl"))["G_ema"]).values()))
    record.read().add_(1)
    before = record.read()
    assert torch.equal(before, record.read()) and not torch.equal(before, before + 1)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_storage_agrees_with_torch_load():
    buffer = io.BytesIO()
    value = torch.randn(100, dtype=torch.float64)
    torch.save(value.storage(), buffer, _use_new_zipfile_serialization=False)
    blob = parse_storage(buffer.getvalue())
    assert torch.equal(blob.tensor(), value)
    other = torch.randn(100, dtype=torch.float64)
    head, data = blob.with_data(other)
    again = torch.load(io.BytesIO(head + bytes(data)), weights_only=False)
    assert torch.equal(torch.tensor(again.tolist(), dtype=torch.float64), other)


def test_walk_visits_each_value_once(fixture_path):
    pkl = pickles.load(fixture_path("sg2ada/d_gray16.pkl"))
    visited = [id(value) for value in walk(pkl.root)]
    assert len(visited) == len(set(visited))
    assert sum(isinstance(value, Inert) for value in walk(pkl.root)) > 500


@pytest.mark.parametrize("name", ["sg2ada/b_cond16.pkl", "r3gan/s1_r3gan_uncond32.pkl"])
def test_tensors_are_on_the_cpu_whatever_the_default_device(name, fixture_path):
    record = next(iter(pickles.named_tensors(pickles.load(fixture_path(name))["G_ema"]).values()))
    expected = record.read()
    with torch.device("meta"):
        found = record.read()
    assert found.device.type == "cpu" and torch.equal(found, expected)
