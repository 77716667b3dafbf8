"""Networks of any constructor arguments that the originals allow are rebuilt from tensors of the original shapes."""

from __future__ import annotations

import json
import pickle
import random
from typing import Any

import original_shapes
import pytest
import torch
from forge import Persistent

from refine import load_generator, load_teacher, pickles
from refine.errors import UserError
from refine.pickles.tree import named_tensors

# Each seed draws other arguments; those of the fast tests reach every value of every argument.
SEEDS = [*range(25), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(25, 100))]
GENERATORS = [
    *(f"sg2ada/{name}" for name in ("a_uncond32", "b_cond16", "c_orig16", "c_resnet16", "d_gray16")),
    "sg3/s1_stylegan2_uncond32",
]
DENOISERS = [
    *("s1_edm_ddpmpp_uncond16", "s2_edm_adm_cond16", "s3_vp_ddpmpp_uncond16", "s4_sid_ddpmpp_cond16"),
    *("s5_ve_ncsnpp_uncond16", "s6_iddpm_adm_uncond16"),
]


@pytest.mark.parametrize("name", GENERATORS)
def test_shapes_of_generators_are_those_of_the_original(name, fixture_path):
    record = pickles.load(fixture_path(f"{name}.pkl"))["G_ema"]
    expected = {name: tensor.shape for name, tensor in named_tensors(record).items()}
    assert original_shapes.stylegan2(record.init_kwargs, "sg3" if name.startswith("sg3") else "ada") == expected


@pytest.mark.parametrize("name", DENOISERS)
def test_shapes_of_denoisers_are_those_of_the_original(name, fixture_path):
    record = pickles.load(fixture_path(f"edm/{name}.pkl"))["ema"]
    expected = {name: tensor.shape for name, tensor in named_tensors(record).items()}
    assert original_shapes.edm(record.class_name, record.init_kwargs) == expected


def record_of(
    class_name: str, shapes: dict[str, tuple[int, ...]], args: tuple[Any, ...], kwargs: dict[str, Any], **marks: Any
) -> Persistent:
    """A network with random tensors of these names; `marks` are attributes of all modules."""
    tree: dict[str, Any] = {"mapping": {}} if class_name == "Generator" else {}  # it may have no tensor
    for name, shape in shapes.items():
        *modules, leaf = name.split(".")
        place = tree
        for module in modules:
            place = place.setdefault(module, {})
        value = torch.rand(shape) + 0.1 if leaf == "u" else 0.3 * torch.randn(shape)
        place[leaf] = value.sort(descending=True).values if leaf == "u" else value

    def module(content: dict[str, Any], class_name: str = "M") -> Persistent:
        children = {name: module(item) for name, item in content.items() if isinstance(item, dict)}
        buffers = {name: item for name, item in content.items() if not isinstance(item, dict)}
        state = {"_modules": children, "_buffers": buffers, "_init_args": (), "_init_kwargs": {}, **marks}
        return Persistent(state, class_name, "# source removed\n")

    record = module(tree, class_name)
    record.meta["state"] |= {"_init_args": args, "_init_kwargs": kwargs}
    return record


def some_by_position(rng: random.Random, arguments: dict[str, Any], order: list[str]) -> tuple[tuple, dict]:
    """The arguments, up to a random one given by position."""
    count = next((i for i, name in enumerate(order) if name not in arguments), len(order))
    count = rng.randint(0, count)
    return tuple(arguments[name] for name in order[:count]), {
        name: value for name, value in arguments.items() if name not in order[:count]
    }


def chosen(rng: random.Random, choices: dict[str, list[Any]]) -> dict[str, Any]:
    """Each argument with a random one of its values, or left out."""
    return {name: rng.choice(values) for name, values in choices.items() if rng.random() < 0.6}


FILTERS = [
    *([1, 3, 3, 1], [1, 1], [1, 2, 1], [1], 2, None, 0.5, (1, 2, 2, 1), [1.5, -0.25, 3]),
    *([1, 2, 3, 4, 4, 3, 2, 1], [1, 1, 2, 3, 5, 3, 2, 1, 1], [[1, 2], [3, 4]], [[1, 2, 1], [0, 1, 3]]),
]
ACTIVATIONS = ["linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus", "swish"]


def draw_generator(rng: random.Random) -> tuple[str, dict[str, Any]]:
    dialect = rng.choice(["ada", "sg3"])
    c_dim = rng.choice([0, 0, 1, 3])
    z_dim, w_dim = rng.choice([0, 1, 7, 16] if c_dim else [1, 7, 16]), rng.choice([1, 5, 16])
    mapping = chosen(
        rng,
        {
            "num_layers": [1, 2, 3, 8],
            "embed_features": [None, 4, 9],
            "layer_features": [None, 1, 6],
            "activation": ACTIVATIONS,
            "lr_multiplier": [0.01, 1, 3.5, 1e-8, -0.5],
            "w_avg_beta": [None, 0.995, 0, 1, 1.5],
        },
    )
    if rng.random() < 0.15:  # no layer at all: w is z, or the embedded label, or both
        mapping["num_layers"] = 0
        embedded = mapping.get("embed_features", None) or w_dim
        z_dim = w_dim if not c_dim else w_dim - embedded
        if z_dim < 0:
            mapping["embed_features"], z_dim = w_dim, 0
    synthesis = chosen(
        rng,
        {
            "channel_max": [1, 3, 8],
            "num_fp16_res": [0, 1, 9],
            "conv_clamp": [None, 256, 0.5, 0],
            "architecture": ["orig", "skip", "resnet"],
            "resample_filter": FILTERS,
            "kernel_size": [1, 3, 5],
            "use_noise": [True, False],
            "activation": ACTIVATIONS,
            "fp16_channels_last": [True, False],
        },
    )
    synthesis["channel_base"] = rng.choice([32, 100, 128])
    shape = {"z_dim": z_dim, "c_dim": c_dim, "w_dim": w_dim, "img_resolution": rng.choice([4, 8, 16, 32])}
    arguments = shape | {"img_channels": rng.choice([1, 2, 3, 4])} | {"mapping_kwargs": mapping}
    if dialect == "sg3":
        return dialect, arguments | synthesis | chosen(rng, {"fused_modconv_default": [True, False, "inference_only"]})
    return dialect, arguments | {"synthesis_kwargs": synthesis}


GENERATOR_ORDER = ["z_dim", "c_dim", "w_dim", "img_resolution", "img_channels", "mapping_kwargs"]


@pytest.mark.parametrize("seed", SEEDS)
def test_any_generator(seed, tmp_path):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    dialect, arguments = draw_generator(rng)
    order = GENERATOR_ORDER + (["synthesis_kwargs"] if dialect == "ada" else [])
    args, kwargs = some_by_position(rng, arguments, order)
    marks = {"fused_modconv_default": True} if dialect == "sg3" else {}
    shapes = original_shapes.stylegan2(arguments, dialect)
    path = tmp_path / "g.pkl"
    path.write_bytes(pickle.dumps({"G_ema": record_of("Generator", shapes, args, kwargs, **marks)}))
    loaded = load_generator(str(path))
    stored = {name: tensor.read() for name, tensor in named_tensors(loaded.record).items()}
    state = loaded.network.state_dict()
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[name], value) for name, value in stored.items()), json.dumps(arguments)
    G: Any = loaded.network
    z, c = torch.randn(2, G.z_dim), torch.eye(2, G.c_dim)
    resolution = arguments["img_resolution"]
    for noise_mode in ("const", "random", "none"):
        image = G(z, c, noise_mode=noise_mode)
        assert image.shape == (2, arguments["img_channels"], resolution, resolution)
    if G.mapping.w_avg is None:
        with pytest.raises(UserError, match=r"0\.5"):
            G(z, c, truncation_psi=0.5)
    else:
        G(z, c, truncation_psi=0.5)


STYLEGAN3 = ["s2_stylegan3t_uncond32", "s3_stylegan3r_uncond16", "s4_stylegan3t_cond16"]


@pytest.mark.parametrize("name", STYLEGAN3)
def test_shapes_of_stylegan3_are_those_of_the_original(name, fixture_path):
    record = pickles.load(fixture_path(f"sg3/{name}.pkl"))["G_ema"]
    expected = {name: tensor.shape for name, tensor in named_tensors(record).items()}
    assert original_shapes.stylegan3(record.init_kwargs) == expected


def draw_stylegan3(rng: random.Random) -> dict[str, Any]:
    c_dim, w_dim = rng.choice([0, 0, 1, 3]), rng.choice([1, 5, 16])
    mapping = chosen(rng, {"num_layers": [1, 2, 5], "lr_multiplier": [0.01, 1, -0.5], "w_avg_beta": [None, 0.998, 0]})
    z_dim = rng.choice([0, 1, 7] if c_dim else [1, 7])
    if rng.random() < 0.15:
        mapping["num_layers"], z_dim = 0, 0 if c_dim else w_dim
    num_layers = rng.randint(2, 5)
    return {
        "z_dim": z_dim,
        "c_dim": c_dim,
        "w_dim": w_dim,
        "img_resolution": rng.choice([8, 16, 16, 24, 32]),
        "img_channels": rng.choice([1, 3, 4]),
        "mapping_kwargs": mapping,
        "channel_base": rng.choice([32, 100.5]),
        "channel_max": rng.choice([3, 6]),
        "num_layers": num_layers,
        "num_critical": rng.randint(0, num_layers - 1),
        **chosen(
            rng,
            {
                "first_cutoff": [2, 1.5, 3],
                "first_stopband": [2**2.1, 5, 3.5],
                "last_stopband_rel": [2**0.3, 1.1, 1],
                "margin_size": [0, 3, 10],
                "output_scale": [0.25, 1, -2],
                "num_fp16_res": [0, 4, 20],
                "conv_kernel": [1, 2, 3, 5],
                "filter_size": [1, 2, 5, 6, 8],
                "lrelu_upsampling": [1, 2, 4],
                "use_radial_filters": [True, False],
                "conv_clamp": [None, 256, 0.5, 0],
                "magnitude_ema_beta": [0.999, 0, 1],
            },
        ),
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_any_stylegan3(seed, tmp_path):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    arguments = draw_stylegan3(rng)
    args, kwargs = some_by_position(rng, arguments, GENERATOR_ORDER)
    path = tmp_path / "g.pkl"
    record = record_of("Generator", original_shapes.stylegan3(arguments), args, kwargs)
    path.write_bytes(pickle.dumps({"G_ema": record}))
    loaded = load_generator(str(path))
    stored = {name: tensor.read() for name, tensor in named_tensors(loaded.record).items()}
    state = loaded.network.state_dict()
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[name], value) for name, value in stored.items()), json.dumps(arguments)
    G: Any = loaded.network
    for layer in G.synthesis.layers():
        layer.magnitude_ema.abs_()  # random numbers are no mean squares
    image = G(torch.randn(2, G.z_dim), torch.eye(2, G.c_dim), truncation_psi=0.5)
    assert image.shape == (2, arguments["img_channels"], arguments["img_resolution"], arguments["img_resolution"])
    assert image.isfinite().all()


def draw_denoiser(rng: random.Random) -> tuple[str, dict[str, Any]]:
    class_name = rng.choice(["EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond"])
    is_song = rng.random() < 0.6
    own = {
        "EDMPrecond": {"sigma_min": [0, 0.002], "sigma_max": [float("inf"), 80], "sigma_data": [0.5, 1, 0.7]},
        "VPPrecond": {"beta_d": [19.9, 10], "beta_min": [0.1, 1], "M": [1000, 3], "epsilon_t": [1e-5, 1e-3]},
        "VEPrecond": {"sigma_min": [0.02, 1e-3], "sigma_max": [100, 50]},
        "iDDPMPrecond": {"C_1": [0.001, 0.01], "C_2": [0.008, 0.1], "M": [1000, 7, 1]},
    }[class_name]
    levels = rng.randint(1, 3)
    arguments = {
        "img_resolution": rng.choice([4, 8, 12, 20]),
        "img_channels": rng.choice([1, 3, 4]),
        "model_type": "SongUNet" if is_song else "DhariwalUNet",
        "model_channels": rng.choice([4, 8, 12, 16] if is_song else [4, 8, 32, 64]),
        "channel_mult": [rng.randint(1, 2) for _ in range(levels)],
        **chosen(rng, own),
        **chosen(
            rng,
            {
                "label_dim": [0, 1, 5],
                "use_fp16": [True, False],
                "augment_dim": [0, 3, 9],
                "channel_mult_emb": [1, 2, 4],
                "num_blocks": [0, 0, 1, 2],
                "attn_resolutions": [[], [8], (4, 2), [1, 2, 3, 4, 5, 6, 8, 10, 12, 20]],
                "dropout": [0, 0.13, 1],
                "label_dropout": [0, 0.1, 1],
            },
        ),
    }
    if is_song:
        arguments |= chosen(
            rng,
            {
                "embedding_type": ["positional", "fourier"],
                "channel_mult_noise": [1, 2, 3],
                "encoder_type": ["standard", "skip", "residual"],
                "decoder_type": ["standard", "skip"],
                "resample_filter": [[1, 1], [1, 3, 3, 1], (1, 2, 3, 3, 2, 1), [0.5, 1.5]]
                + ([[1], [1, 2, 1], [0, 0]] if levels == 1 else []),
            },
        )
    return class_name, arguments


DENOISER_ORDER = ["img_resolution", "img_channels", "label_dim", "use_fp16"]


def test_the_fast_seeds_draw_every_value():
    """So that fewer of them are as good as many."""
    fast = [seed for seed in SEEDS if isinstance(seed, int)]
    draws = (
        lambda rng: flat(draw_generator(rng)[1]),
        lambda rng: flat(draw_stylegan3(rng)),
        lambda rng: flat(draw_denoiser(rng)[1]),
    )
    for draw in draws:
        some = {pair for seed in fast for pair in draw(random.Random(seed))}
        many = {pair for seed in range(1000) for pair in draw(random.Random(seed))}
        missing = sorted(f"{name}={value}" for name, value in many - some)
        assert len(missing) < 0.15 * len(many), missing
        assert {name for name, _ in many} == {name for name, _ in some}


def flat(arguments: dict[str, Any]) -> set[tuple[str, str]]:
    """Names and values, those of dictionaries within too."""
    found: set[tuple[str, str]] = set()
    for name, value in arguments.items():
        found |= flat(value) if isinstance(value, dict) else {(name, repr(value))}
    return found


OWN_ORDER = {
    "EDMPrecond": ["sigma_min", "sigma_max", "sigma_data", "model_type"],
    "VPPrecond": ["beta_d", "beta_min", "M", "epsilon_t", "model_type"],
    "VEPrecond": ["sigma_min", "sigma_max", "model_type"],
    "iDDPMPrecond": ["C_1", "C_2", "M", "model_type"],
}


@pytest.mark.parametrize("seed", SEEDS)
def test_any_denoiser(seed, tmp_path):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    class_name, arguments = draw_denoiser(rng)
    args, kwargs = some_by_position(rng, arguments, DENOISER_ORDER + OWN_ORDER[class_name])
    shapes = original_shapes.edm(class_name, arguments)
    path = tmp_path / "d.pkl"
    path.write_bytes(pickle.dumps({"ema": record_of(class_name, shapes, args, kwargs)}))
    loaded = load_teacher(str(path))
    stored = {name: tensor.read() for name, tensor in named_tensors(loaded.record).items()}
    state = loaded.network.state_dict()
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[name], value) for name, value in stored.items()), json.dumps(arguments)
    x = torch.randn(2, arguments["img_channels"], arguments["img_resolution"], arguments["img_resolution"])
    estimate = loaded.network(x, torch.tensor([0.5, 3.0]), torch.eye(2, arguments.get("label_dim", 0)))
    assert estimate.shape == x.shape and estimate.dtype == torch.float32
