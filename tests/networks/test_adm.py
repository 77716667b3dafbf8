"""ADM state dicts against golden vectors and a forward pass of another make; settings, wrong files, and runs."""

from __future__ import annotations

import collections
import dataclasses
import io
import json
import pathlib
import struct

import numpy as np
import pytest
import torch
from adm_reference import Form, forward, random_state_dict
from click.testing import CliRunner

from refine import load_teacher, pickles
from refine.commands import inspect
from refine.diffusion.sampler import heun_sample
from refine.errors import UserError
from refine.networks import adm
from refine.networks.adm_settings import ADMSettings, parse_settings
from refine.networks.adm_state_dict import as_is, sources
from refine.networks.loading import denoiser_of

GOLDEN = "adm/s2_adm_cond16_new"  # float16 training: views into two storages; cosine, new order, five classes
KNOWN = "image_size=16,num_head_channels=64,attention_order=new,noise_schedule=cosine"
SMALL = "image_size=16,num_heads=2,attention_order=old,noise_schedule=linear"


def worst(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest error relative to the largest expected magnitude, of the worst sample."""
    assert actual.shape == expected.shape
    error, scale = ((t.double().abs().flatten(1).amax(1)) for t in (actual - expected, expected))
    return float((error / scale).max())


def saved(value, path, **options):
    torch.save(value, path, **options)
    return path


@pytest.fixture(scope="module")
def arrays(golden):
    return {name: torch.from_numpy(value) for name, value in golden(GOLDEN).items()}


@pytest.fixture(scope="module")
def one_hot(arrays):
    return torch.eye(5)[arrays["in.y"]]


def of_settings(fixture_path, settings):
    return load_teacher(str(fixture_path(f"{GOLDEN}.pt")), settings=settings).network


# -- golden vectors -----------------------------------------------------------------------------------


def test_golden_vectors(fixture_path, arrays, one_hot):
    net = of_settings(fixture_path, KNOWN)
    t = arrays
    assert worst(net(t["in.x"], t["in.sigma"], one_hot), t["D"]) < 5e-5
    assert worst(net(t["in.x"], t["in.sigma"], one_hot), t["pred_xstart"]) < 5e-5
    assert worst(net(t["x_off"], t["in.sigma_off"], one_hot), t["D_off"]) < 5e-5
    assert worst(net.model(t["x_t"], t["in.t"].float(), one_hot), t["raw"]) < 5e-5
    assert worst(net.model(t["x_t"], t["in.t_frac"], one_hot), t["raw_frac"]) < 5e-5
    np.testing.assert_allclose(adm.sigma_table("cosine"), t["sigma_table"], rtol=1e-12)
    np.testing.assert_allclose(net.index_of(t["in.sigma_off"]), t["t_off"], atol=2e-4)
    assert (net.sigma_min, net.sigma_max) == pytest.approx(tuple(t["sigma_table"][[0, -1]].tolist()))


def gradients_under_their_names(net, order):
    """Gradients with the names, rows and shapes of the state dict."""
    ours = dict(net.model.named_parameters())
    found = {}
    for name, theirs, convert in sources(net.model, order):
        if convert is torch.t:
            found[theirs] = ours[name].grad.t()
        elif convert is as_is:
            found[theirs] = ours[name].grad
        else:  # the order of rows: where each came from
            rows = convert(torch.arange(len(ours[name])))
            found[theirs] = torch.empty_like(ours[name].grad).index_copy(0, rows, ours[name].grad)
    return found


def check_gradients(net, loss, x, expected, parameters, order):
    loss.backward()
    assert float((loss.detach() - expected["loss"]).abs() / expected["loss"].abs()) < 2e-4
    assert worst(x.grad, expected["grad_x"]) < 3e-4
    grads = gradients_under_their_names(net, order)
    for key in (key for key in expected if key.startswith("grad.")):
        found = grads[key.removeprefix("grad.")][: len(expected[key])]
        error = (found.reshape(expected[key].shape) - expected[key]).abs().max() / expected[key].abs().max()
        assert error < 3e-4, key
    for row, name in zip(expected["grad_digest"], parameters, strict=True):
        flat = grads[name].double().flatten()
        ramp = torch.arange(1, len(flat) + 1, dtype=torch.float64) / len(flat)
        digest = torch.stack([flat.sum(), flat.square().sum(), flat @ ramp])
        assert ((digest - row).abs() < 3e-4 * expected["grad_digest"].abs().amax(0)).all(), name


def test_golden_gradients(fixture_path, arrays, one_hot):
    parameters = json.loads(fixture_path(f"{GOLDEN}.json").read_text())["parameters"]
    net = of_settings(fixture_path, KNOWN).requires_grad_(True)
    x = arrays["in.x"].clone().requires_grad_()
    sigma = arrays["in.sigma"].reshape(-1, 1, 1, 1)
    eps = net.model(x / (1 + sigma**2).sqrt(), net.index_of(arrays["in.sigma"]).round(), one_hot)[:, :3]
    check_gradients(net, (eps * arrays["in.r"]).sum(), x, arrays, parameters, "new")


def test_golden_vectors_of_consistency_models(fixture_path, golden, one_hot):
    t = {name: torch.from_numpy(value) for name, value in golden(f"{GOLDEN}.cm").items()}
    tensors = pickles.load(fixture_path(f"{GOLDEN}.pt"))["state_dict"].tensors
    shape = dataclasses.replace(adm.shape_of(tensors), planar_attention=True, out_channels=3)
    labels, parameters = (
        torch.eye(5)[t["in.y"]],
        json.loads(fixture_path(f"{GOLDEN}.cm.json").read_text())["parameters"],
    )
    nets = {}
    for name in ("edm", "consistency"):
        settings = adm.completed(shape, parse_settings(f"image_size=16,num_head_channels=64,preconditioning={name}"))
        nets[name] = adm._DENOISERS[name](adm.ADMUNet(shape, settings), shape, settings)
        state = of_settings(fixture_path, KNOWN).model.state_dict()
        for part in ("weight", "bias"):
            state[f"out_conv.{part}"] = state[f"out_conv.{part}"][:3]
        nets[name].model.load_state_dict(state)
        nets[name].eval()
    with torch.no_grad():
        assert worst(nets["edm"](t["in.x"], t["in.sigma"], labels), t["D"]) < 5e-5
        assert worst(nets["consistency"](t["in.x"], t["in.sigma"], labels), t["consistency"]) < 5e-5
        assert worst(nets["consistency"](80 * t["in.z"], 80.0, labels[:4]), t["onestep_sigma80"]) < 5e-5
    x = t["in.x"].clone().requires_grad_()
    check_gradients(nets["edm"], (nets["edm"](x, t["in.sigma"], labels) * t["in.r"]).sum(), x, t, parameters, "new")


def test_both_orders_of_the_attention_rows(fixture_path, arrays, one_hot, tmp_path):
    """The rows of the golden file, put into the old order, are the same network."""
    state = torch.load(fixture_path(f"{GOLDEN}.pt"), weights_only=True)
    for name in [name for name in state if ".qkv." in name]:
        rows = state[name].reshape(3, 2, 64, *state[name].shape[1:])  # (q, k, v), head, channel
        state[name] = rows.transpose(0, 1).reshape(state[name].shape).clone()
    path = saved(state, tmp_path / "old.pt")
    old = load_teacher(str(path), settings=KNOWN.replace("new", "old")).network
    assert worst(old(arrays["in.x"], arrays["in.sigma"], one_hot), arrays["D"]) < 5e-5
    new = load_teacher(str(path), settings=KNOWN).network
    assert worst(new(arrays["in.x"], arrays["in.sigma"], one_hot), arrays["D"]) > 1e-3


def test_linear_noise_levels():
    table = adm.sigma_table("linear")
    assert len(table) == 1000 and bool((table.diff() > 0).all())
    assert float(table[0]) == pytest.approx(0.01000050003749898) and float(table[-1]) == pytest.approx(157.40728081)


# -- shapes -------------------------------------------------------------------------------------------

FORMS = {
    "two levels": (Form(), {"num_heads": 2}),
    "three levels": (
        Form(mult=(1, 1, 2), attention=(False, True, True), num_blocks=2, classes=7),
        {"head_channels": 16},
    ),
    "half width first": (Form(width=64, mult=(0.5, 1), attention=(False, False)), {"head_channels": 64}),
    "attention everywhere, no blocks": (Form(num_blocks=0, attention=(True, True), classes=3), {"num_heads": 4}),
    "no scale, three channels": (Form(scale_shift=False, out_channels=3), {"num_heads": 1}),
    "gray": (Form(img_channels=1, out_channels=2), {"num_heads": 2}),
    "one level": (Form(mult=(2,), attention=(False,)), {"head_channels": 32}),
}


@pytest.mark.parametrize("order", ["old", "new"])
@pytest.mark.parametrize("name", FORMS)
def test_forms_against_another_implementation(name, order, tmp_path):
    form, heads = FORMS[name]
    state = random_state_dict(form)
    spelled = {"num_heads": "num_heads", "head_channels": "num_head_channels"}
    settings = {"image_size": 8, "attention_order": order, "noise_schedule": "linear"}
    settings |= {spelled[key]: value for key, value in heads.items()}
    net = load_teacher(str(saved(state, tmp_path / "net.pt")), settings=settings).network
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, form.img_channels, 8, 8, generator=generator)
    y = torch.tensor([0, 1, 2]) if form.classes else None
    t = torch.tensor([0.0, 3.25, 999.0])
    labels = torch.eye(form.classes)[y] if form.classes else None
    expected = forward(state, form, x, t, y, order=order, **heads)
    assert worst(net.model(x, t, labels), expected) < 2e-5
    assert (net.img_channels, net.label_dim) == (form.img_channels, form.classes)
    sigma = adm.sigma_table("linear")[[10, 400, 998]].float()
    scaled = x * (sigma / (1 + sigma**2).sqrt()).reshape(-1, 1, 1, 1)
    eps = forward(state, form, scaled, torch.tensor([10.0, 400.0, 998.0]), y, order=order, **heads)
    denoised = sigma.reshape(-1, 1, 1, 1) * (x - eps[:, : form.img_channels])
    assert worst(net(sigma.reshape(-1, 1, 1, 1) * x, sigma, labels), denoised) < 2e-4


def test_consistency_models_files(tmp_path):
    form = Form(planar=True, scale_shift=False, out_channels=3)
    path = str(saved(random_state_dict(form), tmp_path / "edm.pt"))
    net = load_teacher(path, settings="image_size=16,num_heads=2,preconditioning=edm").network
    assert isinstance(net, adm.KarrasDenoiser) and (net.sigma_min, net.sigma_max) == (0.002, 80)
    assert heun_sample(net, torch.randn(1, 3, 16, 16)).isfinite().all()
    with pytest.raises(UserError, match="preconditioning"):
        load_teacher(path, settings="image_size=16,num_heads=2")
    with pytest.raises(UserError, match="preconditioning=consistency"):
        load_teacher(path, settings="image_size=16,num_heads=2,preconditioning=consistency")
    with pytest.raises(UserError, match="attention_order=old"):
        load_teacher(path, settings="image_size=16,num_heads=2,preconditioning=edm,attention_order=old")


# -- settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mult", "size"), [((1, 1, 2, 2, 4, 4), 256), ((0.5, 1, 1, 2, 2, 4, 4), 512), ((1, 2), None)])
def test_image_size_of_the_published_widths(mult, size, tmp_path):
    state = random_state_dict(Form(width=64, mult=mult, num_blocks=0, attention=(False,) * len(mult)))
    tensors = pickles.load(saved(state, tmp_path / "net.pt"))["state_dict"].tensors
    assert adm.shape_of(tensors).image_size == size


@pytest.mark.parametrize("left_out", ["image_size", "num_heads", "attention_order", "noise_schedule"])
def test_what_cannot_be_inferred_is_asked_for_by_name(left_out, tmp_path):
    path = saved(random_state_dict(Form()), tmp_path / "net.pt")
    given = {name: value for name, value in parse_settings(SMALL).known().items() if name != left_out}
    with pytest.raises(UserError) as caught:
        load_teacher(str(path), settings=given)
    others = {"image_size", "num_heads", "attention_order", "noise_schedule"} - {left_out}
    sentence = str(caught.value).partition(":  look")[0].partition(": look")[0]
    assert str(path) in sentence and left_out in sentence and not any(f" {name}" in sentence for name in others)
    assert "--teacher-settings" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("heads=4", "'heads'"),
        ("num_heads=0", "num_heads"),
        ("num_heads=two", "'two'"),
        ("attention_order=newer", "newer"),
        ("dropout=1", "dropout"),
        ("dropout=nan", "dropout"),
        ("image_size=1e3", "image_size"),
        ("num_heads=1,num_heads=2", "twice"),
        ("image_size=99999999999999999999", "image_size"),
        (7, "7"),
    ],
)
def test_impossible_settings(text, part):
    with pytest.raises(UserError, match=part):
        parse_settings(text)


def test_settings_as_text():
    settings = parse_settings(" num_heads = 4 , dropout=0.1,preconditioning=edm")
    assert settings == ADMSettings(num_heads=4, dropout=0.1, preconditioning="edm")
    assert parse_settings(str(settings)) == settings and parse_settings(str(ADMSettings())) == ADMSettings()
    merged = ADMSettings(num_heads=2).or_else(ADMSettings(num_head_channels=64, image_size=64))
    assert merged == ADMSettings(num_heads=2, image_size=64)


@pytest.mark.parametrize("settings", ["num_heads=3", "num_heads=5", "num_head_channels=48", "image_size=15"])
def test_settings_that_do_not_fit(settings, tmp_path):
    path = saved(random_state_dict(Form()), tmp_path / "net.pt")
    with pytest.raises(UserError, match=settings):
        load_teacher(str(path), settings=parse_settings(settings).or_else(parse_settings(SMALL)))


# -- files --------------------------------------------------------------------------------------------


def outputs(path, settings=SMALL):
    net = load_teacher(str(path), settings=settings).network
    return net(torch.linspace(-2, 2, 3 * 256).reshape(1, 3, 16, 16), 0.7)


def test_every_packing_is_the_same_network(tmp_path):
    state = random_state_dict(Form())
    expected = outputs(saved(state, tmp_path / "plain.pt"))
    module = torch.nn.Module()
    module.register_parameter("p", torch.nn.Parameter(torch.zeros(1)))
    with_metadata = module.state_dict()  # an OrderedDict with the versions of modules
    with_metadata.clear()
    with_metadata.update(state)
    variants = {
        "legacy": (state, {"_use_new_zipfile_serialization": False}),
        "metadata": (with_metadata, {}),
        "dict": (dict(state), {}),
        "parameters": ({name: torch.nn.Parameter(value) for name, value in state.items()}, {}),
        "prefix": ({f"module.{name}": value for name, value in state.items()}, {}),
        "nested": ({"model": state, "epoch": 3}, {}),
        "average": ({"model": {k: 2 * v for k, v in state.items()}, "ema": state}, {}),
        "strided": (
            {name: value.t().contiguous().t() if value.ndim == 2 else value for name, value in state.items()},
            {},
        ),
    }
    for name, (value, options) in variants.items():
        assert torch.equal(outputs(saved(value, tmp_path / f"{name}.pt", **options)), expected), name
    half = saved({name: value.half() for name, value in state.items()}, tmp_path / "half.pt")
    rounded = saved({name: value.half().float() for name, value in state.items()}, tmp_path / "rounded.pt")
    assert torch.equal(outputs(half), outputs(rounded)) and worst(outputs(half), expected) < 5e-2


def test_nothing_is_read_before_it_is_needed(tmp_path, monkeypatch):
    path = saved(random_state_dict(Form()), tmp_path / "net.pt")
    opened = pickles.load(path)
    path.write_bytes(path.read_bytes()[:2000])  # the data are gone
    with pytest.raises(UserError, match=r"net\.pt has changed since it was opened"):
        denoiser_of(opened, settings=parse_settings(SMALL))


def test_several_networks_in_one_file(tmp_path):
    state = random_state_dict(Form())
    path = saved({"one": state, "two": state}, tmp_path / "two.pt")
    with pytest.raises(UserError, match=r"two\.pt.*'one', 'two'"):
        load_teacher(str(path), settings=SMALL)


DAMAGE = {
    "missing tensor": lambda state: state.pop("input_blocks.1.0.in_layers.2.bias"),
    "another shape": lambda state: state.update({"out.2.bias": torch.zeros(5)}),
    "transposed": lambda state: state.update({"time_embed.2.weight": torch.zeros(128, 1, 128)}),
    "more": lambda state: state.update({"input_blocks.9.0.weight": torch.zeros(2)}),
    "nan": lambda state: state["input_blocks.1.0.in_layers.2.bias"].fill_(torch.nan),
    "inf": lambda state: state["middle_block.0.in_layers.0.weight"].fill_(torch.inf),
    "integers": lambda state: state.update({"out.0.bias": torch.zeros(32, dtype=torch.int64)}),
    "scalar": lambda state: state.update({"time_embed.0.weight": torch.zeros(())}),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_state_dicts(kind, tmp_path):
    state = random_state_dict(Form())
    DAMAGE[kind](state)
    path = saved(state, tmp_path / "net.pt")
    with pytest.raises(UserError) as caught:
        load_teacher(str(path), settings=SMALL)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def unet(**changes):
    return random_state_dict(Form(**changes))


def renamed(old, new):
    return {name.replace(old, new): value for name, value in unet().items()}


def classifier():
    state = {name: value for name, value in unet().items() if not name.startswith(("output_blocks", "out."))}
    return state | {"out.2.positional_embedding": torch.zeros(2, 2)}


WRONG = {
    "classifier": (classifier, "classifier"),
    "upsampler": (lambda: unet(img_channels=6, out_channels=6), "upsampler"),
    "upsampler without variance": (lambda: unet(img_channels=6, out_channels=3), "upsampler"),
    "latents": (lambda: unet(img_channels=4, out_channels=4), "latents"),
    "stable diffusion": (
        lambda: {"state_dict": {f"model.diffusion_model.{k}": v for k, v in unet().items()}}, "latent diffusion",
    ),
    "latent unet": (
        lambda: renamed("middle_block.1.qkv", "middle_block.1.transformer_blocks.0.attn1"), "latent diffusion",
    ),
    "dit": (lambda: {"x_embedder.proj.weight": torch.zeros(2), "blocks.0.attn.qkv.weight": torch.zeros(2)}, "DiT"),
    "autoencoder": (lambda: {"state_dict": {"post_quant_conv.weight": torch.zeros(2)}}, "autoencoder"),
    "lora": (lambda: {"lora_unet_down_blocks_0.lora_up.weight": torch.zeros(2)}, "LoRA"),
    "diffusers": (lambda: {"down_blocks.0.resnets.0.norm1.weight": torch.zeros(2)}, "diffusers"),
    "optimizer": (lambda: {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": []}, "optimizer"),
    "score_sde": (lambda: {"model": {"module.all_modules.0.weight": torch.zeros(2)}}, "score_sde"),
    "edm weights": (lambda: {"model.map_layer0.weight": torch.zeros(2)}, ".pkl"),
    "improved": (lambda: unet() | {"input_blocks.2.0.op.weight": torch.zeros(2)}, "resblock_updown"),
    "anything": (lambda: {"fc.weight": torch.zeros(2)}, "PyTorch checkpoint"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_files_get_their_sentence(kind, tmp_path):
    make, part = WRONG[kind]
    path = saved(make(), tmp_path / "net.pt")
    with pytest.raises(UserError) as caught:
        load_teacher(str(path), settings=SMALL)
    assert str(path) in str(caught.value) and part in str(caught.value) and "\n" not in str(caught.value)


def lightning():
    """A checkpoint with an object of a library in it, as training frameworks write them."""
    return {"callbacks": pathlib.PurePosixPath("x"), "state_dict": {"first_stage_model.encoder.weight": torch.zeros(2)}}


def test_checkpoint_with_other_objects(tmp_path):
    path = saved(lightning(), tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"last\.ckpt.*latent diffusion"):
        load_teacher(str(path))


@pytest.mark.parametrize(
    ("name", "part"), [("lora_unet.lora_up.weight", "LoRA"), ("down_blocks.0.weight", "diffusers")]
)
def test_safetensors(name, part, tmp_path):
    header = json.dumps({name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    path = tmp_path / "net.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(UserError, match=rf"net\.safetensors.*{part}"):
        load_teacher(str(path))


def test_folder_of_diffusers(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(UserError, match="diffusers"):
        load_teacher(str(tmp_path))


def test_teacher_given_as_generator(tmp_path):
    from refine import load_generator

    path = saved(unet(), tmp_path / "net.pt")
    with pytest.raises(UserError, match=r"net\.pt.*--teacher"):
        load_generator(str(path))


# -- inspect ------------------------------------------------------------------------------------------


def shown(path, *options):
    return CliRunner().invoke(inspect.main, [str(path), *options])


def test_inspect(fixture_path, tmp_path):
    result = shown(fixture_path(f"{GOLDEN}.pt"), "--json")
    entry = json.loads(result.stdout)["entries"]["state_dict"]
    assert entry["role"] == "denoiser" and entry["parameters"] == 2330854 and entry["dtypes"] == ["float32"]
    assert (entry["label_dim"], entry["img_channels"], entry["img_resolution"]) == (5, 3, None)
    assert entry["shape"]["level_channels"] == [128, 128] and entry["shape"]["attention"] == [False, True]
    assert "image_size" in entry["why_not"] and "attention_order" in entry["why_not"]
    text = shown(fixture_path(f"{GOLDEN}.pt")).stdout
    assert "a state dict" in text and "guided-diffusion" in text and "2,330,854 parameters" in text
    state = unet()
    state["out.0.bias"][:2] = torch.nan
    text = shown(saved(state, tmp_path / "net.pt")).stdout
    assert "2 in out.0.bias" in text


def test_file_with_a_published_name_needs_no_settings(tmp_path, caplog):
    caplog.set_level("INFO", "refine")
    form = Form(width=64, mult=(1, 1, 2, 2, 4, 4), num_blocks=0, attention=(False,) * 3 + (True,) * 3)
    path = saved(random_state_dict(form), tmp_path / "lsun_bedroom.pt")
    loaded = load_teacher(str(path))
    assert loaded.network.img_resolution == 256 and "num_head_channels=64" in caplog.text
    entry = json.loads(shown(path, "--json").stdout)["entries"]["state_dict"]
    assert entry["rebuilt_by_refine"] and entry["img_resolution"] == 256


def test_file_of_another_size_with_a_published_name(tmp_path):
    path = saved(unet(), tmp_path / "lsun_bedroom.pt")
    with pytest.raises(UserError, match="num_head_channels"):
        load_teacher(str(path))


def test_the_reader_takes_any_order_of_names(tmp_path):
    state = unet()
    backward = collections.OrderedDict(reversed(state.items()))
    assert torch.equal(outputs(saved(backward, tmp_path / "a.pt")), outputs(saved(state, tmp_path / "b.pt")))


def test_file_objects_are_not_needed(tmp_path):
    file = io.BytesIO()
    torch.save(unet(), file)
    (tmp_path / "net.bin").write_bytes(file.getvalue())
    assert outputs(tmp_path / "net.bin").isfinite().all()
