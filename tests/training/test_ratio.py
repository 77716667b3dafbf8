"""The density ratio without data: against exact ratios, in every form of a step, and what is kept of the samples."""

from __future__ import annotations

import math

import pytest
import torch
from toy import Affine, PointGenerator, eight_modes, two_gaussians
from trainers import golden_pair, gradients_kept, modules, trainer_of

from refine.errors import UserError
from refine.metrics import cache
from refine.networks.preconditioned import as_denoiser
from refine.pair.bridge import Bridge
from refine.pair.pair import Pair
from refine.training import ratio, ratio_head
from refine.training import teacher_samples as samples_module
from refine.training.ratio import NoRatio
from refine.training.ratio_head import NUM_BINS, BinTally, FeatureTaps, RatioHead
from refine.training.state import load_state, read_state, state_of
from refine.training.statistics import SIGMA_BANDS, RunningMeans
from refine.training.teacher_samples import SampleRequest, teacher_samples

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def shared_cache(tmp_path_factory):
    """A cache of this file's own, so that the golden teacher's samples are drawn once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DNNLIB_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    return cache.directory()


# -- against exact ratios --------------------------------------------------------------------------------


def points_trainer(teacher, module, **options):
    pair = Pair(PointGenerator(module), as_denoiser(teacher), Bridge(1, 0))
    noise = {"sigma": "lognormal:-1,1", "fake_sigma": "lognormal:-1,1"}
    return trainer_of(pair, **({"batch": 256, "kimg": 100.0, "rlr": 2e-3, "beta1": 0.9} | noise | options))


def draw(teacher, count, rng):
    mode = torch.multinomial(teacher.weights, count, replacement=True, generator=rng)
    return (teacher.modes[mode] + teacher.std * torch.randn(count, 2, generator=rng)).detach()


@torch.no_grad()
def ratio_errors(trainer, teacher, own, count=4000):
    """(root mean square error, standard deviation of what is estimated) of ln r, at points of teacher and generator."""
    rng, errors = torch.Generator().manual_seed(5), []
    generated = trainer.generator.network(torch.randn(count, 2, generator=rng), None).images.flatten(1)
    for x0 in (draw(teacher, count, rng), generated):
        sigma = (-1 + torch.randn(count, generator=rng)).exp()
        x_t = x0 + sigma[:, None] * torch.randn(count, 2, generator=rng)
        images, head = x_t[:, :, None, None], trainer.ratio.head
        logit = head.calibrated(head(images, trainer.teacher(images, sigma), [], sigma, None), sigma)
        total = own.root @ own.root.t() + sigma[:, None, None] ** 2 * torch.eye(2)
        log_q = torch.distributions.MultivariateNormal(own.mean, total).log_prob(x_t)
        exact = (teacher.log_density(x_t, sigma) - log_q).clamp(math.log(0.1), math.log(20))
        off = logit.clamp(math.log(0.1), math.log(20)) - exact
        errors.append((float(off.square().mean().sqrt()), float(exact.std())))
    return errors


PROBLEMS = {
    "two Gaussians": (two_gaussians, [[0.5, 0.1], [0.0, 0.4]], 400, 0.45),
    "eight modes": (eight_modes, [[0.8, 0.1], [0.0, 0.7]], 1500, 0.5),
}


@pytest.mark.parametrize("name", ["two Gaussians", pytest.param("eight modes", marks=pytest.mark.slow)])
def test_head_learns_the_exact_ratio(name):
    """Within the range that objectives use, by a stated share of what there is to know; and its mean over q is 1."""
    make, root, steps, share = PROBLEMS[name]
    teacher, own = make(), Affine(torch.tensor([0.2, -0.1]), torch.tensor(root))
    trainer = points_trainer(teacher, own, objective="f:kl")
    before = ratio_errors(trainer, teacher, own)
    for step in range(steps):
        trainer.ratio.fit(trainer, "ratio", step)
    after = ratio_errors(trainer, teacher, own)
    for (start, _), (end, spread) in zip(before, after, strict=True):
        assert end < share * spread and end < 0.6 * start, (before, after)
    means = trainer.ratio.head.bin_means
    assert (means - 1).abs().max() < 0.2 and not (means == 1).all()


def test_few_samples_are_learned_by_heart(monkeypatch):
    """The held-out loss tells: far above that on the fitted samples with 20 of them, beside it with 1000."""
    monkeypatch.setattr(ratio, "HELD_OUT", 0.5)
    gaps = {}
    for count in (40, 2000):
        own = Affine(torch.tensor([0.2, -0.1]), torch.tensor([[0.5, 0.1], [0.0, 0.4]]))
        trainer = points_trainer(two_gaussians(), own, objective="f:kl", ratio_samples=count, sigma="lognormal:-3,0.5")
        for step in range(240):
            if step == 160:
                trainer.statistics = RunningMeans()
            trainer.ratio.fit(trainer, "ratio", step)
        means = trainer.statistics.means()
        gaps[count] = means["Ratio/held_out_loss"] - means["Ratio/samples_loss"]
    assert gaps[40] > 0.15 and abs(gaps[2000]) < 0.06, gaps


def test_calibration_is_by_bins_of_ln_sigma():
    head = RatioHead([], 1, 1, 0)
    sigma = torch.tensor([1e-4, 0.002001, 0.7, 79.9, 500.0])
    assert head.log_bins(sigma).tolist() == [0, 0, 5, 9, 9]
    counts = torch.bincount(head.log_bins(torch.logspace(math.log10(0.002), math.log10(80), 1001)[:-1]))
    assert len(counts) == NUM_BINS and counts.min() >= 99 and counts.max() <= 101
    tally = BinTally(head.log_bins)
    tally.add(torch.tensor([math.log(3.0), math.log(5.0), math.inf, 50.0]), torch.tensor([0.7, 0.7, 0.7, 20.0]))
    head.update_calibration(tally)
    rate = 1 - 0.5 ** (2 / ratio_head.BIN_MEMORY)
    assert head.bin_means[5] == pytest.approx(1 + rate * (4 - 1))
    assert (head.bin_means == 1).sum() == NUM_BINS - 2  # the other one saw a ratio of at most exp(MAX_LOGIT)
    logit = torch.zeros(5)
    assert head.calibrated(logit, sigma)[2] == pytest.approx(-math.log(float(head.bin_means[5])))


# -- in a step ---------------------------------------------------------------------------------------------


def golden_trainer(*, double=False, **changes):
    options = {"batch": 4, "glr": 1e-3, "flr": 1e-3, "kimg": 1.0, "noise_mode": "const", "ratio_samples": 10}
    return trainer_of(golden_pair(double=double), **(options | changes))


def weights(trainer):
    found = {f"{n}.{k}": v.clone() for n, m in modules(trainer).items() for k, v in m.state_dict().items()}
    return found | {f"ratio.{k}": v.clone() for k, v in trainer.ratio.head.state_dict().items()}


def test_none_where_none_is_needed():
    trainer = golden_trainer()
    assert type(trainer.ratio) is NoRatio and [n.name for n in trainer.networks] == ["generator", "fake_score"]
    assert trainer.ratio.fit(trainer, "ratio", 0) is None


def test_features_are_the_ends_of_the_encoder():
    trainer = golden_trainer(objective="f:js")
    teacher, taps = trainer.teacher, trainer.ratio.taps
    names = {module: name for name, module in teacher.module.named_modules()}
    ends = [names[block] for block, _ in ratio_head._encoder_ends(teacher, CPU)]
    assert ends == ["model.enc.16x16_block0", "model.dec.8x8_block1"] and [r for _, r in taps.shapes] == [16, 8]
    x, labels = torch.randn(3, teacher.img_channels, 16, 16), torch.eye(teacher.label_dim)[:3]
    with taps.watching():
        teacher(x, torch.ones(3), labels)
    taken = taps.taken()
    assert [tuple(f.shape) for f in taken] == [(3, c, r, r) for c, r in taps.shapes]
    teacher(x, torch.ones(3), labels)
    assert taps.taken() == []  # nothing is kept of a pass that nobody watches


def test_denoisers_without_known_blocks_have_no_features():
    teacher = as_denoiser(two_gaussians())
    assert FeatureTaps(teacher, CPU).shapes == []


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"objective": "f:kl"}, marks=pytest.mark.slow),
        {"objective": "fisher:js", "batch_gpu": 2},
        {"objective": "ikl", "gan_weight": 0.5, "share_unet": True},
        pytest.param({"objective": "sid", "gan_weight": 0.5, "share_forward": True}, marks=pytest.mark.slow),
        {"objective": "smart", "gan_weight": 0.5, "paired_dropout": True},
        {"objective": "f:skew:alpha=0.3", "checkpoint": True, "gan_weight": 0.1},
    ],
)
def test_steps_of_every_form(changes):
    """All networks move, statistics are there by band, and two equal trainers agree bit for bit."""
    first, second = golden_trainer(**changes), golden_trainer(**changes)
    start = weights(first)
    for trainer in (first, second):
        trainer.warm_up_step()
        trainer.step()
        trainer.step()
    a, b = weights(first), weights(second)
    assert all(torch.equal(a[name], b[name]) for name in a)
    moved = {name.split(".")[0] for name in a if not torch.equal(a[name], start[name])}
    assert {"generator", "generator_ema", "ratio"} <= moved and ("fake" in moved) == first.objective.needs_fake
    means = first.statistics.means()
    assert 0 <= means["Ratio/accuracy"] <= 1 and means["Loss/ratio"] > 0 and means["Gradient/ratio_norm"] > 0
    assert any(name.startswith("Ratio/accuracy/sigma_") for name in means) and len(SIGMA_BANDS) > 2
    assert ("Loss/gan" in means) == (first.options.gan_weight > 0)
    assert first.progress.num_nonfinite == 0 and first.progress.warmup_nimg == 4


def test_each_update_moves_its_own_network_alone():
    """The generator's gradient passes through the head and leaves the head's own gradient alone, and the reverse."""
    trainer = golden_trainer(objective="fisher:kl", gan_weight=0.3)
    trainer.warm_up_step()
    trainer.ratio.fit(trainer, "ratio", 0)
    with gradients_kept(trainer) as kept:
        trainer.move_generator()
    assert kept.keys() == {"generator"}
    others = [p for network in trainer.networks[1:] for p in network.module.parameters()]
    assert all(p.grad is None and p.requires_grad for p in others)
    assert all(p.grad is None and not p.requires_grad for p in trainer.teacher.module.parameters())
    with gradients_kept(trainer) as kept:
        trainer.ratio.fit(trainer, "ratio", 1)
    assert kept.keys() == {"ratio"} and all(g is not None for g in kept["ratio"])
    assert all(p.grad is None for network in trainer.networks[:2] for p in network.module.parameters())


def gradient_of(trainer):
    with gradients_kept(trainer) as kept:
        trainer.move_generator()
    return torch.cat([g.flatten() for g in kept["generator"] if g is not None])


def gan_gradient_by_hand(trainer):
    """-ln sigmoid(logit) through features, estimate and noisy image, from the networks alone."""
    total = 0.0
    for inputs in trainer.inputs("generator", trainer.progress.step):
        images = trainer.generator.network(inputs.z, inputs.c, noise_mode="const").images
        x_t = images + inputs.sigma.reshape(-1, 1, 1, 1) * inputs.noise
        kept = []
        hooks = [
            block.register_forward_hook(lambda module, given, output, kept=kept: kept.append(output))
            for block, _ in ratio_head._encoder_ends(trainer.teacher, CPU)
        ]
        denoised = trainer.teacher(x_t, inputs.sigma, trainer.bridge.labels(inputs.c))
        for hook in hooks:
            hook.remove()
        head = trainer.ratio.head
        logit = head(x_t, denoised, kept, inputs.sigma, trainer.bridge.labels(inputs.c))
        logit = logit - torch.stack([head.bin_means[b].log() for b in head.log_bins(inputs.sigma)])
        total = total + torch.log1p((-logit).exp()).sum()
    parameters = trainer.generator.optimizer.parameters
    loss = trainer.options.gan_weight * total / trainer.options.batch
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, parameters, materialize_grads=True, allow_unused=True)]
    )


def test_adversarial_gradient_is_that_computed_by_hand():
    """The objective's own part cancels between two weights."""
    gradients = []
    for weight in (0.0, 0.7):
        trainer = golden_trainer(double=True, objective="f:rkl", gan_weight=weight, batch_gpu=2)
        trainer.warm_up_step()
        expected = gan_gradient_by_hand(trainer)
        gradients.append(gradient_of(trainer))
    difference = gradients[1] - gradients[0]
    assert difference.abs().max() > 1e-6
    assert (difference - expected).abs().max() < 1e-10 * expected.abs().max() + 1e-14


@pytest.mark.parametrize("changes", [{"objective": "f:kl"}, {"objective": "fisher:kl"}, {"gan_weight": 1.0}])
def test_micro_batches_and_recomputation_add_up_exactly(changes):
    gradients = []
    for form in ({}, {"batch_gpu": 2}, {"checkpoint": True}):
        trainer = golden_trainer(double=True, fake_dropout=False, **changes, **form)
        trainer.warm_up_step()
        trainer.ratio.fit(trainer, "ratio", 0)
        gradients.append(gradient_of(trainer))
    for other in gradients[1:]:
        assert (gradients[0] - other).abs().max() <= 1e-9 * gradients[0].abs().max()


def test_processes_share_the_work(monkeypatch):
    """The heads' gradients of two processes add up to that of one."""
    whole = golden_trainer(double=True, objective="f:kl", fake_dropout=False)
    parts = [golden_trainer(double=True, objective="f:kl", fake_dropout=False) for _ in range(2)]
    kept = []
    for index, trainer in enumerate([whole, *parts]):
        trainer.ratio.samples  # noqa: B018 (drawn before the work is divided)
        if index:
            part = slice(2 * index - 2, 2 * index)
            monkeypatch.setattr("refine.runtime.distributed.share", lambda count, part=part: part)
        with gradients_kept(trainer) as gradients:
            trainer.ratio.fit(trainer, "ratio", 0)
        kept.append(gradients["ratio"])
    for a, b, c in zip(*kept, strict=True):
        assert (a - b - c).abs().max() <= 1e-9 * max(float(a.abs().max()), 1e-12)


def test_goes_on_as_if_never_stopped(tmp_path):
    changes = {"objective": "f:js", "gan_weight": 0.1, "noise_mode": "random"}
    whole, first, second = (golden_trainer(**changes) for _ in range(3))
    for trainer in (whole, first):
        trainer.warm_up_step()
        trainer.step()
    path = tmp_path / "training-state-000000.pt"
    torch.save(state_of(first, {}), path)
    state = read_state(path)
    assert state["networks"]["ratio"]["module"]["bin_means"].shape == (NUM_BINS,)
    load_state(second, state, {})
    for trainer in (whole, second):
        trainer.step()
    a, b = weights(whole), weights(second)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert whole.statistics.means() == second.statistics.means()


# -- samples of the teacher --------------------------------------------------------------------------------


def get(trainer, count=6, sha256="a" * 64, **changes):
    request = SampleRequest(count, changes.pop("seed", 0), trainer.generator.network.c_dim)
    return teacher_samples(trainer.teacher, trainer.bridge, request, CPU, teacher_sha256=sha256, batch=4, **changes)


@pytest.fixture
def draws(monkeypatch):
    """Counts the calls of the sampler."""
    calls = []
    plain = samples_module.heun_sample

    def counted(*args):
        calls.append(args)
        return plain(*args)

    monkeypatch.setattr(samples_module, "heun_sample", counted)
    return calls


def test_samples_are_kept_by_content(draws, cache_folder):
    trainer = golden_trainer()
    first = get(trainer)
    assert len(first) == 6 and first.images.shape == (6, 3, 16, 16) and len(draws) == 2
    assert first.c.argmax(1).tolist() == [0, 1, 2, 3, 4, 0] and first.images.dtype == torch.float32
    again = get(trainer)
    assert len(draws) == 2 and torch.equal(first.images, again.images) and torch.equal(first.c, again.c)
    assert len(list(cache_folder.glob("*.npz"))) == 1
    for changes in ({"count": 5}, {"seed": 1}, {"sha256": "b" * 64}):
        before = len(draws)
        get(trainer, **changes)
        assert len(draws) > before
    before = len(draws)
    refreshed = get(trainer, refresh=True)
    assert len(draws) == before + 2 and torch.equal(first.images, refreshed.images)


def test_samples_of_a_teacher_without_a_file_are_not_kept(draws, cache_folder):
    trainer = golden_trainer()
    get(trainer, sha256=None)
    get(trainer, sha256=None)
    assert len(draws) == 4 and not cache_folder.exists()


def test_damaged_cache_is_drawn_anew(draws, cache_folder):
    trainer = golden_trainer()
    first = get(trainer)
    next(cache_folder.glob("*.npz")).write_bytes(b"PK\x03\x04 half a file")
    assert torch.equal(get(trainer).images, first.images) and len(draws) == 4
    assert cache.load(next(cache_folder.glob("*.npz")).stem) is not None


def test_teacher_that_draws_nonsense():
    trainer = golden_trainer()
    next(trainer.teacher.module.parameters()).data.fill_(math.nan)
    with pytest.raises(UserError, match="not finite"):
        get(trainer)


def test_samples_follow_the_teacher():
    """Exact denoiser of two Gaussians: shares and spread of the modes."""
    teacher = two_gaussians()
    trainer = points_trainer(teacher, Affine(torch.zeros(2), torch.eye(2)), objective="f:kl")
    points = trainer.ratio.samples.images.flatten(1)
    mode = torch.cdist(points, teacher.modes.detach()).argmin(1)
    assert float((mode == 1).float().mean()) == pytest.approx(0.7, abs=0.03)
    assert torch.allclose(points.mean(0), (teacher.weights[:, None] * teacher.modes.detach()).sum(0), atol=0.05)
