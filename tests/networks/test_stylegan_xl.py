"""The StyleGAN-XL generator, out of a file of dill that nothing is executed of."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from refine import load_generator, pickles
from refine.errors import UserError
from refine.networks import stylegan_xl
from refine.networks.loading import generator_of, save
from refine.networks.style_based import as_generator

NAME = "sgxl/s1_sgxl_stem_cond16"


def close(found, expected, tolerance):
    expected = torch.from_numpy(np.asarray(expected))
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.fixture
def loaded(fixture_path):
    return load_generator(str(fixture_path(f"{NAME}.pkl")))


def tensors(golden, *names):
    return [torch.from_numpy(golden(NAME)[name]) for name in names]


def test_nothing_of_the_file_is_imported(fixture_path):
    before = set(sys.modules)
    loaded = load_generator(str(fixture_path(f"{NAME}.pkl")))
    added = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert not added & {"dill", "timm", "pg_modules", "dnnlib", "torch_utils", "training"}
    assert loaded.architecture.name == "StyleGAN-XL generator" and not loaded.is_embedded
    assert type(loaded.network).__module__ == "refine.networks.stylegan_xl"


def test_golden_values(loaded, golden):
    arrays, network = golden(NAME), loaded.network
    z, c, soft = tensors(golden, "in.z", "in.c", "in.c_soft")
    with torch.no_grad():
        for psi in (1, 0.7, 0):
            close(network.mapping(z, c, truncation_psi=psi), arrays[f"ws_psi{psi}"], 1e-5)
        for psi in (1, 0.7):
            close(network.mapping(z, c, psi, truncation_cutoff=2), arrays[f"ws_psi{psi}_cut2"], 1e-5)
        close(network.mapping(z, soft), arrays["ws_psi1_csoft"], 1e-5)
        close(network(z, c), arrays["img_const_psi1"], 2e-5)
        close(network(z, c, truncation_psi=0.7), arrays["G_call_const_psi0.7"], 2e-5)
        close(network.synthesis(tensors(golden, "ws_mix")[0]), arrays["img_const_mix"], 2e-5)
        close(network.synthesis(tensors(golden, "ws_rand")[0]), arrays["img_const_wsrand"], 2e-5)
        ws = network.mapping(z, c)
        x = network.synthesis.input(ws[:1, 0])
        close(x, arrays["act_input"], 2e-5)
        first = network.synthesis.layers()[0]
        close(first(x, ws[:1, 1]), arrays[f"act_{network.synthesis.layer_names[0]}"], 2e-5)
        raw = generator_of(loaded.pickle, ("G",)).network
        close(raw(z, c), arrays["rawG_img_const_psi1"], 2e-5)


def test_golden_gradients(loaded, golden):
    arrays, network = golden(NAME), loaded.network.requires_grad_(True)
    z, c, r = tensors(golden, "in.z", "in.c", "in.r")
    weight = network.mapping.embed.weight.requires_grad_(True)  # not trained here, but differentiable
    ws = network.mapping(z.requires_grad_(True), c)
    loss = (network.synthesis(ws) * r).sum()
    named = {name: p for name, p in network.named_parameters() if f"grad.{name}" in arrays}
    assert len(named) > 20
    given = [z, ws, weight, *named.values()]
    grad_z, grad_ws, grad_embed, *rest = torch.autograd.grad(loss, given, create_graph=True)
    close(grad_z, arrays["grad_z"], 3e-4)
    close(grad_ws, arrays["grad_ws"], 3e-4)
    close(grad_embed, arrays["grad.mapping.embed.weight"], 3e-4)
    for name, gradient in zip(named, rest, strict=True):
        close(gradient, arrays[f"grad.{name}"], 3e-4)
    second = {name: p for name, p in named.items() if f"pl_grad.{name}" in arrays}
    lengths = grad_ws.square().sum()
    assert float(lengths.detach()) == pytest.approx(float(arrays["pl_P"]), rel=1e-3)
    found = torch.autograd.grad(lengths, [z, *second.values()], allow_unused=True)
    close(found[0], arrays["pl_grad_z"], 2e-3)
    largest = max(float(np.abs(arrays[f"pl_grad.{name}"]).max()) for name in second)
    for name, gradient in zip(second, found[1:], strict=True):
        expected = torch.from_numpy(arrays[f"pl_grad.{name}"])
        gradient = torch.zeros_like(expected) if gradient is None else gradient
        bound = 2e-3 * max(float(expected.abs().max()), 1e-3 * largest)
        assert (gradient - expected).abs().max() <= bound, name


def test_averages_after_a_step(loaded, golden):
    """One image of each class: the order does not matter, and the result is NVIDIA's."""
    arrays = golden(NAME)
    generator = as_generator(loaded.network.requires_grad_(True))
    z, c = tensors(golden, "in.z", "in.c")
    parts = [generator(z[part], c[part]) for part in (slice(0, 3), slice(3, 4))]
    generator.after_step(torch.cat([part.w for part in parts]).mean(0).detach())
    close(loaded.network.mapping.w_avg, arrays["after_update_emas.mapping.w_avg"], 1e-5)
    for name in loaded.network.synthesis.layer_names:
        found = loaded.network.synthesis.get_submodule(name).magnitude_ema
        close(found, arrays[f"after_update_emas.synthesis.{name}.magnitude_ema"], 1e-5)


def test_class_averages():
    options = stylegan_xl.MappingOptions(embedding_dim=2, w_avg_beta=0.5)
    mapping = stylegan_xl.MappingNetwork(3, 2, 4, 2, options)
    mapping.w_avg.copy_(torch.ones(2, 4))
    z = torch.randn(3, 3)
    c = torch.eye(2)[[1, 1, 0]]
    w = mapping(z, c)[:, 0].detach()
    stylegan_xl.update_class_averages(mapping)
    expected = torch.stack([0.5 + 0.5 * w[2], 0.25 + 0.75 * w[:2].mean(0)])
    assert torch.allclose(mapping.w_avg, expected, atol=1e-6)
    before = mapping.w_avg.clone()
    with torch.no_grad():
        mapping(z, c)
    stylegan_xl.update_class_averages(mapping)
    assert torch.equal(mapping.w_avg, before)
    assert [name for name, _ in mapping.named_parameters() if "embed." in name] == []
    single = stylegan_xl.MappingNetwork(3, 0, 4, 2, stylegan_xl.MappingOptions(w_avg_beta=0.5))
    w = single(z)[:, 0].detach()
    stylegan_xl.update_class_averages(single)
    assert torch.allclose(single.w_avg, (1 - 0.5**3) * w.mean(0), atol=1e-6)
    with pytest.raises(ValueError, match=r"\[3, 2\]"):
        mapping(z, torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"\[N, 3\]"):
        mapping(torch.zeros(3, 4), c)


def test_the_adapter(loaded, fixture_path):
    generator = as_generator(loaded.network)
    about = json.loads(fixture_path(f"{NAME}.json").read_text())
    assert generator.c_dim == 4 and generator.z_shape == (24,) and loaded.network.num_ws == 8
    assert len(generator.blocks()) == 7 and about["kind"]
    resolutions = {name: generator.resolution_of(name) for name, _ in loaded.network.named_parameters()}
    assert resolutions["synthesis.L6_16_3.weight"] == 16 and resolutions["mapping.fc0.weight"] is None
    assert not any("embed.weight" in name for name in resolutions)


def test_written_back_with_all_else_untouched(loaded, fixture_path, tmp_path):
    source, written = fixture_path(f"{NAME}.pkl"), tmp_path / "written.pkl"
    with torch.no_grad():
        loaded.network.mapping.fc1.bias.add_(1)
    save(loaded, written)
    old, new = source.read_bytes(), written.read_bytes()
    assert len(old) == len(new)
    differing = [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
    assert differing and differing[-1] - differing[0] < loaded.network.mapping.fc1.bias.nbytes
    again = load_generator(str(written))
    state = loaded.network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.network.state_dict().items())


def test_layers_of_later_stages(loaded):
    """The arguments of the generator may be the stem's; each layer has its own."""
    record = loaded.record
    record.meta["class_name"] = "SuperresGenerator"
    for name in list(record.attributes["_init_kwargs"]):
        del record.attributes["_init_kwargs"][name]
    record.attributes["_init_kwargs"]["path_stem"] = "/nowhere/stem.pkl"
    network = generator_of(loaded.pickle).network
    assert all(torch.equal(tensor, loaded.network.state_dict()[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda synthesis, layers: synthesis["layer_names"].append("L9"), ["L9"]),
        (lambda synthesis, layers: synthesis["layer_names"].pop(), ["16 channels", "3 channels"]),
        (lambda synthesis, layers: synthesis["layer_names"].reverse(), ["L6_16_3"]),
        (lambda synthesis, layers: synthesis.update(layer_names=["a.b"]), ["a.b"]),
        (lambda synthesis, layers: synthesis.update(layer_names=["input"]), ["input"]),
        (lambda synthesis, layers: synthesis.update(output_scale="x"), ["output_scale", "x"]),
        (lambda synthesis, layers: synthesis.pop("layer_names"), []),
        (lambda synthesis, layers: layers["L0_36_20"].update(in_size=10**7), ["in_size"]),
        (lambda synthesis, layers: layers["L0_36_20"].update(odd=1), ["L0_36_20", "odd"]),
        (lambda synthesis, layers: layers["L0_36_20"].pop("in_cutoff"), ["in_cutoff"]),
        (lambda synthesis, layers: layers["input"].update(channels=10**9 - 1), ["channels"]),
        (lambda synthesis, layers: layers["input"].pop("bandwidth"), ["bandwidth"]),
    ],
)
def test_forged_records(loaded, change, words):
    synthesis = pickles.submodules(loaded.record)["synthesis"]
    layers = {name: layer.attributes["_init_kwargs"] for name, layer in pickles.submodules(synthesis).items()}
    change(synthesis.attributes, layers)
    with pytest.raises(UserError) as caught:
        generator_of(loaded.pickle)
    assert all(word in str(caught.value) for word in words), caught.value
