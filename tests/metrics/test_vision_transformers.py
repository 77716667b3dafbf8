"""DINOv2 and CLIP from files of weights: against their definitions in float64, transformers, and Pillow."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor, nn

from benchmarks.studies.random_vision_transformers import clip_weights, dinov2_weights
from refine.commands.metrics import main
from refine.errors import UserError
from refine.metrics import MetricOptions, make_measure
from refine.metrics.detectors import Detector, DetectorChoices, load_detector
from refine.metrics.vision_transformers import DINO_OFFSET, resampled_positions, resized

HEADS = 2
CPU = torch.device("cpu")


def images(resolution: int = 32, count: int = 3) -> Tensor:
    return torch.randint(256, (count, 3, resolution, resolution), generator=torch.Generator().manual_seed(7)).byte()


def saved(weights: Any, path: Path) -> str:
    torch.save(weights, path)
    return str(path)


# -- definitions, in float64 ----------------------------------------------------------------------------


def layer_norm(x: Tensor, w: dict[str, Tensor], name: str, eps: float) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return x @ w[f"{name}.weight"].t() + w[f"{name}.bias"]


def attention(qkv: Tensor) -> Tensor:
    """Of queries, keys and values [N, T, 3 D]: [N, T, D]."""
    q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in qkv.chunk(3, dim=-1))
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def tokens(pictures: Tensor, size: int, mean: Any, std: Any, weight: Tensor, bias: Tensor | None) -> Tensor:
    x = resized(pictures, size).double() / 255
    x = (x - torch.tensor(mean).double()[:, None, None]) / torch.tensor(std).double()[:, None, None]
    return nn.functional.conv2d(x, weight, bias, stride=14).flatten(2).transpose(1, 2)


def dinov2_by_hand(weights: dict[str, Tensor], pictures: Tensor) -> Tensor:
    w = {name: x.double() for name, x in weights.items()}
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    x = tokens(pictures, 224, mean, std, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"])
    positions = w["pos_embed"][0]
    positions = torch.cat([positions[:1], resampled_positions(positions[1:], 16)])
    x = torch.cat([w["cls_token"].expand(len(x), 1, -1), x], dim=1) + positions
    for i in range(2):
        b = f"blocks.{i}"
        y = attention(linear(layer_norm(x, w, f"{b}.norm1", 1e-6), w, f"{b}.attn.qkv"))
        x = x + w[f"{b}.ls1.gamma"] * linear(y, w, f"{b}.attn.proj")
        y = linear(layer_norm(x, w, f"{b}.norm2", 1e-6), w, f"{b}.mlp.fc1")
        y = y * (1 + torch.erf(y / math.sqrt(2))) / 2
        x = x + w[f"{b}.ls2.gamma"] * linear(y, w, f"{b}.mlp.fc2")
    return layer_norm(x[:, 0], w, "norm", 1e-6)


def clip_by_hand(weights: dict[str, Tensor], pictures: Tensor, size: int) -> Tensor:
    w = {name.removeprefix("visual."): x.double() for name, x in weights.items()}
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    x = tokens(pictures, size, mean, std, w["conv1.weight"], None)
    x = torch.cat([w["class_embedding"].expand(len(x), 1, -1), x], dim=1) + w["positional_embedding"]
    x = layer_norm(x, w, "ln_pre", 1e-5)
    for i in range(2):
        b = f"transformer.resblocks.{i}"
        y = layer_norm(x, w, f"{b}.ln_1", 1e-5) @ w[f"{b}.attn.in_proj_weight"].t() + w[f"{b}.attn.in_proj_bias"]
        x = x + linear(attention(y), w, f"{b}.attn.out_proj")
        y = linear(layer_norm(x, w, f"{b}.ln_2", 1e-5), w, f"{b}.mlp.c_fc")
        x = x + linear(y / (1 + torch.exp(-1.702 * y)), w, f"{b}.mlp.c_proj")
    return layer_norm(x[:, 0], w, "ln_post", 1e-5) @ w["proj"]


def close(found: Tensor, expected: Tensor) -> bool:
    return float((found.double() - expected).abs().max() / expected.abs().max()) < 2e-5


def test_dinov2_is_its_definition(tmp_path: Path) -> None:
    weights = dinov2_weights()
    detector = load_detector(saved(weights, tmp_path / "dinov2.pth"), role="dinov2")
    found = detector.features(images())
    assert found.shape == (3, 128) and found.dtype == torch.float32
    assert close(found, dinov2_by_hand(weights, images()))
    assert not detector.official and detector.provenance()["name"] == "dinov2.pth"
    assert not any(p.requires_grad for p in detector.module.parameters()) and not detector.module.training


def test_clip_is_its_definition(tmp_path: Path) -> None:
    weights = clip_weights()
    detector = load_detector(saved(weights, tmp_path / "clip.pt"), role="clip")
    found = detector.features(images(64))
    assert found.shape == (3, 48) and close(found, clip_by_hand(weights, images(64), 42))


def test_clip_as_openai_publishes_it(tmp_path: Path) -> None:
    """A TorchScript module with weights in float16, of which only these count."""

    class Holder(nn.Module):
        def __init__(self, tensors: dict[str, Tensor]) -> None:
            super().__init__()
            children: dict[str, dict[str, Tensor]] = {}
            for name, value in tensors.items():
                head, _, rest = name.partition(".")
                if rest:
                    children.setdefault(head, {})[rest] = value
                else:
                    self.register_buffer(head, value)
            for head, inner in children.items():
                self.add_module(head, Holder(inner))

        def forward(self, x: Tensor) -> Tensor:
            return x

    weights = {name: x.half() for name, x in clip_weights().items()}
    path = tmp_path / "ViT.pt"
    torch.jit.script(Holder(weights)).save(str(path))
    found = load_detector(str(path), role="clip").features(images())
    assert close(found, clip_by_hand(weights, images(), 42))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_of_either_kind(tmp_path: Path, suffix: str) -> None:
    weights, path = dinov2_weights(), tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"teacher": weights, "epoch": 3}, path)
    else:
        pytest.importorskip("safetensors.torch").save_file(weights, path)
    other = load_detector(saved(weights, tmp_path / "plain.pth"), role="dinov2")
    assert torch.equal(load_detector(str(path), role="dinov2").features(images()), other.features(images()))


# -- transformers ---------------------------------------------------------------------------------------


def randomized(network: nn.Module) -> nn.Module:
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return network.eval()


def written(network: Any, folder: Path) -> str:
    network.save_pretrained(folder)
    return str(folder / "model.safetensors")


def test_dinov2_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    settings = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": HEADS, "patch_size": 14}
    network = randomized(transformers.Dinov2Model(transformers.Dinov2Config(image_size=224, **settings)))
    detector = load_detector(written(network, tmp_path), role="dinov2")
    with torch.no_grad():
        theirs = network(detector.module.prepare(images())).pooler_output
    assert close(detector.features(images()), theirs.double())


def test_clip_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=128, intermediate_size=512, projection_dim=48, num_hidden_layers=2, num_attention_heads=HEADS,
        image_size=42, patch_size=14,
    )  # fmt: skip
    network = randomized(transformers.CLIPVisionModelWithProjection(config))
    detector = load_detector(written(network, tmp_path), role="clip")
    with torch.no_grad():
        theirs = network(detector.module.prepare(images(100))).image_embeds
    assert close(detector.features(images(100)), theirs.double())


# -- sizes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("resolution", "target"), [(32, 224), (224, 32), (100, 42), (33, 224), (64, 64)])
def test_resizing_is_pillows(resolution: int, target: int) -> None:
    """In floating point, plane by plane, which is torchvision's rule, too; and within a level of that for bytes.

    Bytes are clipped between rows and columns, so they have no values here that overshoot.
    """
    picture = images(resolution, 1)[0] // 2 + 64
    found = resized(picture[None], target)[0]
    for plane, ours in zip(picture, found, strict=True):
        theirs = Image.fromarray(plane.float().numpy(), "F").resize((target, target), Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(theirs) - ours.numpy()).max() < 1e-3
    rgb = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((target, target), Image.Resampling.BICUBIC)
    rounded = found.round().clamp(0, 255).permute(1, 2, 0).numpy()
    assert np.abs(np.asarray(rgb).astype(int) - rounded.astype(int)).max() <= 1


def test_position_embeddings_are_resampled_as_in_the_published_network() -> None:
    """Cubic convolution, a = -0.75, at (i + 1/2) M / (n + 0.1) - 1/2, edges repeated."""
    side, target = 37, 16
    grid = torch.randn(side, side, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def kernel(x: float) -> float:
        a, x = -0.75, abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    matrix = torch.zeros(target, side, dtype=torch.float64)
    for i in range(target):
        center = (i + 0.5) * side / (target + DINO_OFFSET) - 0.5
        for j in range(math.floor(center) - 1, math.floor(center) + 3):
            matrix[i, min(max(j, 0), side - 1)] += kernel(center - j)
    expected = torch.einsum("ia,jb,abc->ijc", matrix, matrix, grid).flatten(0, 1)
    assert torch.allclose(resampled_positions(grid.flatten(0, 1), target), expected, atol=1e-6)
    assert resampled_positions(grid.flatten(0, 1), side) is not None
    with pytest.raises(ValueError, match="10"):
        resampled_positions(torch.zeros(10, 3), 16)


# -- wrong files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["dinov2", "clip"])
@pytest.mark.parametrize("content", ["empty", "text", "other", "cut", "incomplete", "shape", "nan", "list"])
def test_wrong_files_are_named(tmp_path: Path, role: str, content: str) -> None:
    weights = dinov2_weights(depth=1, side=2) if role == "dinov2" else clip_weights(depth=1)
    path = tmp_path / "own.pth"
    last = max(name for name in weights if name.endswith(("norm.weight", "ln_post.weight")))
    made: dict[str, Any] = {
        "other": {"conv.weight": torch.zeros(3)},
        "incomplete": {name: x for name, x in weights.items() if name != last},
        "shape": {**weights, last: torch.zeros(7)},
        "nan": {**weights, last: torch.full_like(weights[last], math.nan)},
        "list": [torch.zeros(3)],
    }
    if content in made:
        torch.save(made[content], path)
    else:
        torch.save(weights, path)
        path.write_bytes({"empty": b"", "text": b"<html>", "cut": path.read_bytes()[:999]}[content])
    with pytest.raises(UserError) as caught:
        load_detector(str(path), role=role)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_networks_with_registers_are_another_one(tmp_path: Path) -> None:
    weights = {**dinov2_weights(depth=1, side=2), "register_tokens": torch.zeros(1, 4, 128)}
    with pytest.raises(UserError, match="registers"):
        load_detector(saved(weights, tmp_path / "reg4.pth"), role="dinov2")


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "was-here",)

    path = saved({"pos_embed": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"evil\.pth"):
        load_detector(path, role="dinov2")
    assert not (tmp_path / "was-here").exists()


# -- as detectors of metrics ------------------------------------------------------------------------------


def test_roles_in_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    choices = DetectorChoices.of_options("own,=.pt,dinov2=a=b.pth,clip=c.pt", "v.pt")
    assert dict(choices.own) == {"inception": "own,=.pt", "dinov2": "a=b.pth", "clip": "c.pt", "vgg": "v.pt"}
    monkeypatch.setenv("REFINE_CLIP", "env.pt")
    assert DetectorChoices.of_options("dinov2=a.pth", None)["clip"] == "env.pt"
    assert DetectorChoices.of_options(None, None)["dinov2"] == "dinov2_vitl14_pretrain.pth"
    with pytest.raises(UserError, match=r"a\.pt and b\.pt .* vgg"):
        DetectorChoices.of_options("vgg=a.pt", "b.pt")


def test_rows_of_the_new_feature_spaces(
    generator: Any, data: str, detectors: dict[str, str], tmp_path: Path, inception: Detector
) -> None:
    dino = saved(dinov2_weights(), tmp_path / "dino.pth")
    clip = saved(clip_weights(), tmp_path / "clip.pt")
    names = ("fid20_full", "fd_dinov2_20_full", "clip_fid20_full", "cmmd20")
    option = f"{detectors['detector']},dinov2={dino},clip={clip}"
    measure = make_measure(MetricOptions(metrics=names, data=data, detector=option, batch=10), generator, CPU)
    rows = measure(generator, "x.pkl")
    assert [next(iter(row["results"])) for row in rows] == list(names)
    assert [row["provenance"]["detector"]["name"] for row in rows] == [
        "tiny_inception_s.pt", "dino.pth", "clip.pt", "clip.pt",
    ]  # fmt: skip
    assert rows[3]["provenance"]["reference"]["num_images"] == 20
    assert "20 images for 128 dimensions" in rows[1]["provenance"]["warning"]
    assert all(row["results"][row["metric"]] > 0 for row in rows)


def test_a_weights_file_from_the_internet_needs_trust_and_is_prefetched(fixture_path: Any, data: str) -> None:
    from refine import zoo
    from refine.files import download

    entry = zoo.find("dinov2_vitl14_pretrain.pth")
    assert entry is not None and entry.url is not None
    path = download.place_by_hand(entry.url)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dinov2_weights(), path)
    with pytest.raises(UserError, match="trust_detector"):
        load_detector(entry.name, role="dinov2")
    assert load_detector(entry.name, role="dinov2", trust=True).name == entry.name
    arguments = [f"--network={fixture_path('sg2ada/a_uncond32.pkl')}", f"--data={data}", "--device=cpu", "--prefetch"]
    result = CliRunner().invoke(main, [*arguments, "--metrics=fd_dinov2_20_full", "--trust-detector"])
    assert result.exit_code == 0 and str(path) in result.stdout, result.output
