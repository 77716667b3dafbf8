"""Snapshots of networks without a pickle."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from refine.errors import UserError
from refine.networks.weights_file import load_weights, read_options, read_weights, write_weights


def states(count=2):
    return [torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).state_dict() for _ in range(count)]


def test_round_trip(tmp_path):
    path, (live, average) = tmp_path / "network-snapshot-000001.safetensors", states()
    average["1.weight"] = live["1.weight"]  # shared memory
    write_weights(path, live, average, json.dumps({"batch": 8}))
    found = read_weights(path)
    for key, expected in (("G", live), ("G_ema", average)):
        assert found[key].keys() == expected.keys()
        assert all(torch.equal(found[key][name], tensor) for name, tensor in expected.items())
    assert read_options(path) == {"batch": 8}
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    assert load_weights(network, path) is network
    assert all(torch.equal(tensor, average[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(load_weights(network, path, "G")[0].weight, live["0.weight"])


def test_plain_files_are_an_average(tmp_path):
    (weights,) = states(1)
    save_file(weights, tmp_path / "w.safetensors")
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    load_weights(network, tmp_path / "w.safetensors")
    assert torch.equal(network[0].weight, weights["0.weight"])
    assert read_options(tmp_path / "w.safetensors") == {}
    with pytest.raises(UserError, match="G_ema"):
        load_weights(network, tmp_path / "w.safetensors", "G")


def test_other_architectures_and_files(tmp_path):
    path, (live, average) = tmp_path / "s.safetensors", states()
    write_weights(path, live, average, "{}")
    for network, words in (
        (torch.nn.Sequential(torch.nn.Linear(2, 3)), ["weights 1.", "s.safetensors"]),
        (torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4)), ["0.", "[3", "[4"]),
        (torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(1, 1)), ["2.weight"]),
    ):
        with pytest.raises(UserError) as caught:
            load_weights(network, path)
        assert all(word in str(caught.value) for word in words), caught.value
    (tmp_path / "other.safetensors").write_bytes(b"no such thing")
    for missing in ("other.safetensors", "none.safetensors"):
        with pytest.raises(UserError, match=missing):
            read_weights(tmp_path / missing)
        with pytest.raises(UserError, match=missing):
            read_options(tmp_path / missing)
