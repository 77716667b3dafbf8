"""Runs with teachers of every family: warm-up, steps, snapshot, and a resumed run that equals one without a stop."""

from __future__ import annotations

import json

import pytest
import torch
from adm_reference import Form, random_state_dict
from click.testing import CliRunner
from gaussian_denoiser import GaussianDenoiser

from refine import load_generator, load_teacher
from refine.commands import inspect as inspect_command
from refine.commands import metrics as metrics_command
from refine.commands import run as run_command
from refine.config import RunConfig, TrainingOptions
from refine.diffusion.guidance import Guided
from refine.errors import UserError
from refine.networks.preconditioned import as_denoiser
from refine.networks.style_based import as_generator
from refine.pair.bridge import make_bridge
from refine.pair.preflight import preflight
from refine.runs import start
from refine.runs.folder import find_state
from refine.training.cost import step_cost
from refine.training.trainer import Trainer

ADM = "image_size=16,num_heads=2,attention_order=old,noise_schedule=linear,dropout=0.1"


@pytest.fixture(scope="module")
def adm(tmp_path_factory):
    """Options of a conditional ADM teacher of five classes."""
    path = tmp_path_factory.mktemp("teacher") / "ema.pt"
    torch.save(random_state_dict(Form(classes=5, num_blocks=0)), path)
    return {"teacher": str(path), "teacher_settings": ADM}


def config(fixture_path, tmp_path, name, **options):
    sizes = {"batch": 8, "kimg": 0.024, "warmup_kimg": 0.008, "tick_kimg": 0.008, "snap_ticks": 1}
    gan = str(fixture_path("sg2ada/b_cond16.pkl"))
    given = sizes | {"gan": gan, "preflight": False, "outdir": str(tmp_path / name), "device": "cpu"} | options
    return RunConfig(**given)


def run_and_resume(fixture_path, tmp_path, **options):
    """Weights of a run without a stop, after checking that a stopped and resumed one ends with the same."""
    whole = start.run(config(fixture_path, tmp_path, "whole", **options))
    part = start.run(config(fixture_path, tmp_path, "part", **options | {"kimg": 0.016}))
    state = find_state(str(part.parent), "")
    resumed = start.run(start.resumed_config(state, {"kimg": 0.024}), resume=state)
    weights = load_generator(str(whole)).network.state_dict()
    for name, value in load_generator(str(resumed)).network.state_dict().items():
        assert torch.equal(value, weights[name]), name
    before = load_generator(str(fixture_path("sg2ada/b_cond16.pkl"))).network.state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in weights.items())
    assert all(value.isfinite().all() for value in weights.values())
    return whole


def test_adm(fixture_path, tmp_path, adm):
    whole = run_and_resume(fixture_path, tmp_path, **adm)
    options = json.loads((whole.parent / "training_options.json").read_text())
    assert "num_heads=2" in options["teacher_settings"] and "attention_order=old" in options["teacher_settings"]


def test_adm_with_gradients_through_the_teacher_and_a_ratio(fixture_path, tmp_path, adm):
    options = {"kimg": 0.008, "objective": "sid", "gan_weight": 0.01, "ratio_samples": 8, "checkpoint": True}
    snapshot = start.run(config(fixture_path, tmp_path, "sid", **adm, **options))
    assert snapshot.is_file()


def test_preset_and_preflight_know_the_settings(fixture_path, tmp_path, adm):
    gan = str(fixture_path("sg2ada/b_cond16.pkl"))
    sizes = {"batch": 8, "kimg": 0.008, "warmup_kimg": 0.008, "tick_kimg": 0.008, "outdir": str(tmp_path)}
    with pytest.raises(UserError, match="attention_order"):
        RunConfig.from_preset(gan=gan, teacher=adm["teacher"], **sizes)
    chosen = RunConfig.from_preset(gan=gan, device="cpu", metrics="none", **adm, **sizes)
    assert start.run(chosen).is_file()


def test_settings_do_not_change_in_a_resumed_run(fixture_path, tmp_path, adm):
    snapshot = start.run(config(fixture_path, tmp_path, "run", **adm, kimg=0.008))
    state = find_state(str(snapshot.parent), "")
    with pytest.raises(UserError, match="teacher_settings"):
        start.resumed_config(state, {"teacher_settings": ADM.replace("old", "new")})


# -- EDM2 ---------------------------------------------------------------------------------------------


@pytest.fixture
def edm2(fixture_path):
    return {"teacher": str(fixture_path("edm2/s1_edm2_cond16.pkl"))}


def trainer_of(config):
    return Trainer(start.pair_for(config), config.section(TrainingOptions), torch.device("cpu"))


def test_edm2(fixture_path, tmp_path, edm2):
    run_and_resume(fixture_path, tmp_path, **edm2)


def test_forced_normalization_of_the_fake_score(fixture_path, tmp_path, edm2):
    trainer = trainer_of(config(fixture_path, tmp_path, "run", **edm2, flr=1e-2))
    before = {name: p.clone() for name, p in trainer.teacher.module.named_parameters()}
    trainer.warm_up_step()
    moved = 0
    for name, weight in trainer.fake_score.module.named_parameters():
        moved += not torch.equal(weight, before[name])
        if name.endswith("weight"):
            rows = weight.detach().flatten(1).square().mean(1)
            assert float((rows - 1).abs().max()) < 1e-3, name
    assert moved == len(before)  # the estimate of the loss is trained, too
    after = dict(trainer.teacher.module.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["sid", "sim", "f:js", "sds"])
def test_edm2_with_other_objectives(fixture_path, tmp_path, edm2, objective):
    options = {"kimg": 0.008, "objective": objective, "ratio_samples": 8}
    assert start.run(config(fixture_path, tmp_path, "run", **edm2, **options)).is_file()


def test_edm2_distilled(fixture_path, tmp_path, edm2):
    """The generator starts as the teacher, keeps its weights normalized, and is written into the float16 pickle."""
    options = {**edm2, "gan": None, "kimg": 0.016, "glr": 1e-3}
    trainer = trainer_of(config(fixture_path, tmp_path, "trainer", **options))
    trainer.warm_up_step()
    trainer.step()
    for name, weight in trainer.generator.module.named_parameters():
        if name.endswith("weight"):
            assert float((weight.detach().flatten(1).square().mean(1) - 1).abs().max()) < 1e-3, name
    snapshot = start.run(config(fixture_path, tmp_path, "run", **options))
    generator = load_generator(str(snapshot)).network
    images = generator(torch.randn(2, 3, 16, 16), torch.eye(5)[:2])
    assert images.isfinite().all() and generator.sigma_init == 2.5
    assert inspected(snapshot)["ema"]["dtypes"] == ["float16"]


def inspected(path):
    return json.loads(CliRunner().invoke(inspect_command.main, [str(path), "--json"]).stdout)["entries"]


def test_adm_is_not_distilled(fixture_path, tmp_path, adm):
    with pytest.raises(UserError, match=r"ema\.pt.*state dict"):
        start.run(config(fixture_path, tmp_path, "run", **adm, gan=None))


# -- guidance -----------------------------------------------------------------------------------------


@pytest.fixture
def guided(fixture_path, edm2):
    return {**edm2, "guide": str(fixture_path("edm2/s2_edm2_uncond16.pkl")), "guidance": 1.7}


@pytest.mark.parametrize("guide_fake", [pytest.param(False, marks=pytest.mark.slow), True])
def test_guidance(fixture_path, tmp_path, guided, guide_fake):
    run_and_resume(fixture_path, tmp_path, **guided, guide_fake=guide_fake)


def test_guided_networks_of_a_trainer(fixture_path, tmp_path, guided):
    options = {"backtrack": 1, "warmup_kimg": 0.016}
    trainer = trainer_of(config(fixture_path, tmp_path, "run", **guided, **options))
    x, sigma, labels = torch.randn(2, 3, 16, 16), torch.tensor([0.5, 5.0]), torch.eye(5)[:2]
    teacher, fake = trainer.teacher, trainer.fake_score.network
    assert isinstance(teacher, Guided) and not isinstance(fake, Guided)
    assert torch.equal(fake(x, sigma, labels), teacher.denoiser(x, sigma, labels))
    reference = teacher.guide(x, sigma)
    expected = reference + 1.7 * (teacher.denoiser(x, sigma, labels) - reference)
    assert torch.allclose(teacher(x, sigma, labels), expected, atol=1e-5)
    for _ in range(2):
        trainer.warm_up_step()
    trainer.step()
    assert (step_cost(trainer).generator, step_cost(trainer).fake_score) == (3, 3)
    both = trainer_of(config(fixture_path, tmp_path, "run", **guided, guide_fake=True))
    assert (step_cost(both).generator, step_cost(both).fake_score) == (4, 4)
    fake = both.fake_score.network
    assert isinstance(fake, Guided) and torch.equal(fake(x, sigma, labels), both.teacher(x, sigma, labels))
    assert fake.module is not both.teacher.module and fake.guide is both.teacher.guide
    guide = {name: p.clone() for name, p in fake.guide.module.named_parameters()}
    both.warm_up_step()
    assert all(torch.equal(p, guide[name]) for name, p in fake.guide.module.named_parameters())
    assert not any("guide" in name for name in both.fake_score.state_dict()["module"])


def test_guidance_with_graphs_of_every_option(fixture_path, tmp_path, guided):
    options = {"kimg": 0.008, "gan_weight": 0.01, "ratio_samples": 8, "checkpoint": True, "objective": "sid"}
    assert start.run(config(fixture_path, tmp_path, "run", **guided, **options)).is_file()


def test_contradicting_options(fixture_path, tmp_path, edm2, guided):
    for options, part in (
        ({**edm2, "guidance": 2.0}, "guide"),
        ({**guided, "guidance": 1.0}, "guidance=1"),
        ({**edm2, "guide_fake": True}, "guide_fake"),
        ({**guided, "guide_fake": True, "objective": "sds"}, "objective=sds"),
    ):
        with pytest.raises(UserError, match=part):
            config(fixture_path, tmp_path, "run", **options)
    augmented = {
        "teacher": str(fixture_path("edm/s1_edm_ddpmpp_uncond16.pkl")),
        "fake_augment": 0.1,
        "guide_fake": True,
    }
    gan = {"gan": str(fixture_path("sg2ada/c_resnet16.pkl"))}
    with pytest.raises(UserError, match=r"s2_edm2_uncond16\.pkl.*fake_augment=0"):
        start.run(config(fixture_path, tmp_path, "run", **(guided | augmented | gan)))
    wrong = {**edm2, "guidance": 2.0, "guide": str(fixture_path("sg2ada/b_cond16.pkl"))}
    with pytest.raises(UserError, match=r"b_cond16\.pkl"):
        start.run(config(fixture_path, tmp_path, "run", **wrong))


def test_images_of_the_teacher_are_known_by_file_settings_and_guidance(fixture_path, tmp_path, guided, adm):
    def key(options):
        return start.pair_for(config(fixture_path, tmp_path, "run", **options)).teacher_key

    plain = {"teacher": guided["teacher"]}
    keys = [key(plain), key(guided), key(guided | {"guidance": 2.0}), key(adm)]
    keys.append(key(adm | {"teacher_settings": ADM.replace("linear", "cosine")}))
    assert len(set(keys)) == len(keys)
    assert keys[0] == start.pair_for(config(fixture_path, tmp_path, "run", **plain)).digests["teacher"]


def test_preflight_warns_of_a_guide_that_varies_less():
    generator = as_generator(load_generator("digits").network)
    teacher = as_denoiser(load_teacher("edm-digits").network)
    narrow = GaussianDenoiser(-0.5, 0.1, img_resolution=16, img_channels=teacher.img_channels)
    bridge = make_bridge(generator, teacher)
    for weight, warned in ((1.02, False), (3.0, True)):
        found = preflight(generator, Guided(teacher, narrow, weight), bridge, num_images=2)
        assert any("--guidance=3" in sentence for sentence in found.warnings) == warned


@pytest.mark.slow
def test_dry_run_names_the_guide(fixture_path, guided):
    names = {"gan": str(fixture_path("sg2ada/b_cond16.pkl")), **guided}
    arguments = [f"--{name}={value}" for name, value in names.items()]
    result = CliRunner().invoke(run_command.main, [*arguments, "--dry-run", "--device=cpu", "--preflight"])
    assert result.exit_code == 0, result.output
    assert (
        "Guide     " in result.stdout and "s2_edm2_uncond16.pkl" in result.stdout and "Guidance  1.7" in result.stdout
    )


@pytest.mark.slow
def test_metrics_with_a_guided_teacher(fixture_path, guided, tmp_path):
    detector = str(fixture_path("metrics/tiny_inception_s.pt"))
    names = {"network": str(fixture_path("sg2ada/b_cond16.pkl")), "metrics": "fid50", "ref": "teacher", **guided}
    names |= {"detector": detector, "device": "cpu"}
    arguments = [f"--{name}={value}" for name, value in names.items()]
    result = CliRunner().invoke(metrics_command.main, arguments)
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout.splitlines()[-1])
    assert "guidance=1.7" in row["provenance"]["reference"]["conditions"]
    for wrong in (["--guide=x"], ["--guidance=2"]):
        plain = [argument for argument in arguments if not argument.startswith("--guid")]
        assert CliRunner().invoke(metrics_command.main, plain + wrong).exit_code == 2
