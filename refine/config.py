"""Options of a run: one section for each part that needs them, and `RunConfig`, which has them all.

A section is passed on as `config.section(TrainingOptions)`. This module imports torch only when a record is made, so
that `--help` does not wait for it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refine.errors import OptionError, UserError, literal
from refine.options import MAX_INT, Option, Section, named, option
from refine.presets import PRESETS, choose_preset

if TYPE_CHECKING:
    from refine.diffusion.noise_levels import Schedule
    from refine.networks.adm_settings import ADMSettings
    from refine.objectives import Objective
    from refine.pair.freeze import Layers
    from refine.runtime.decay import Decays

DEVICES = ("auto", "cpu", "cuda", "mps")
FILTERS = ("lanczos", "bicubic", "box")
LR_DECAYS = ("none", "cosine")
NOISE_MODES = ("random", "const", "none")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")

GROUPS = (
    "Pair", "Run", "Length", "Method", "Noise levels", "Optimization", "Networks", "Metrics", "Machine",
)  # fmt: skip

FIRST = ("gan", "teacher")  # to give first, and listed first

_NETWORK = "PKL|URL|NAME"
_MODULE = "PATH|URL|NAME"
_SCHEDULE = "refine.diffusion.noise_levels:parse_schedule"


@dataclass(frozen=True, kw_only=True)
class SeedOptions(Section):
    """Seed, which several parts use."""

    seed: int = option(0, "Random seed.", "Machine", metavar="N", minimum=0, maximum=MAX_INT)


@dataclass(frozen=True, kw_only=True)
class LengthOptions(Section):
    """Length of a run in images; 1 kimg is a thousand images."""

    kimg: float = option(
        1000.0, "Length of the run, in thousands of images.", "Length", metavar="KIMG", above=0, maximum=1e9
    )
    warmup_kimg: float = option(
        20.0, "Length of the fake score's warm-up, before the generator changes, in thousands of images.", "Length",
        metavar="KIMG", minimum=0, maximum=1e9,
    )  # fmt: skip
    batch: int = option(
        128, "Images per step, over all processes.", "Optimization", metavar="N", minimum=1, maximum=2**20
    )


@dataclass(frozen=True, kw_only=True)
class BridgeOptions(Section):
    """Conversion of the generator's images and classes to the teacher's."""

    class_map: tuple[int, ...] | None = option(
        None, "The teacher's class for each of the generator's classes, such as 3,0,1.", "Pair", metavar="K,K,.."
    )
    resample: str = option(
        "lanczos", "Filter that reduces images to the teacher's size: lanczos, bicubic or box.", "Networks",
        metavar="FILTER", choices=FILTERS,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PairOptions(BridgeOptions):
    """Generator, teacher, and the bridge between them."""

    gan: str | None = option(
        None, "StyleGAN pickle to refine. Without it, the teacher is distilled into a one-step generator.", "Pair",
        metavar=_NETWORK, path=True,
    )  # fmt: skip
    teacher: str = option(help="EDM pickle or ADM state dict to learn from.", group="Pair", metavar=_NETWORK, path=True)
    sigma_init: float | None = option(
        None, "Noise level of a one-step generator. Default: as its file tells, else 2.5.", "Pair",
        metavar="SIGMA", above=0,
    )  # fmt: skip
    teacher_settings: ADMSettings = option(
        "none", "What an ADM state dict does not tell, such as num_head_channels=64,attention_order=old.", "Pair",
        metavar="N=V,..", parse="refine.networks.adm_settings:parse_settings",
    )  # fmt: skip
    guidance: float = option(
        1.0, "Weight W of the teacher's guidance by --guide: guide + W (teacher - guide).", "Pair",
        metavar="W", minimum=0, maximum=1000,
    )  # fmt: skip
    guide: str | None = option(
        None, "Smaller, less trained or unconditional denoiser that the teacher is guided away from.", "Pair",
        metavar=_NETWORK, path=True,
    )  # fmt: skip
    init: str | None = option(
        None, "Start from the weights in this pickle or training state.", "Pair", metavar="PKL|PT", path=True
    )
    preflight: bool = option(True, "Test the pair before the first step.", "Pair", metavar="0|1")

    def check(self) -> None:
        """Refuses a guidance without a guide, and a guide without a guidance."""
        super().check()
        if self.guidance != 1 and self.guide is None:
            raise OptionError(
                f"{{guidance={self.guidance:g}}} guides the teacher away from another denoiser: name it with {{guide}}."
            )
        if self.guidance == 1 and self.guide is not None:
            raise OptionError(
                f"{{guide={literal(self.guide)}}} has no effect with {{guidance=1}}: give a weight such as "
                "{guidance=1.7}."
            )


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(SeedOptions, LengthOptions):
    """Options of the training step."""

    objective: Objective = option(
        "ikl",
        "Objective: ikl, sid, sim, fgm, uid, f, fisher, smart or sds, with parameters as in ikl:weighting=dmd.",
        "Method", metavar="NAME[:P=V]", parse="refine.objectives:parse_objective",
    )  # fmt: skip
    gan_weight: float = option(
        0.0, "Weight of an adversarial term against samples of the teacher.", "Method", metavar="WEIGHT", minimum=0
    )
    ratio_samples: int = option(
        5000, "Samples of the teacher to train the density ratio with, if one is needed.", "Method",
        metavar="N", minimum=2, maximum=2**24,
    )  # fmt: skip
    ratio_refresh: bool = option(False, "Draw new samples even if the cache has some.", "Method", metavar="0|1")
    backtrack: int = option(
        0, "Intermediate teachers, kept from the warm-up and followed in reverse at the start.", "Method",
        metavar="N", minimum=0, maximum=1000,
    )  # fmt: skip
    fake_steps: int = option(1, "Updates of the fake score per generator update.", "Method", metavar="N", minimum=1)
    share_forward: bool = option(False, "Use one generator pass for both updates.", "Method", metavar="0|1")
    share_unet: bool = option(False, "Use one pass of the fake score for both updates, too.", "Method", metavar="0|1")
    guide_fake: bool = option(False, "Guide the fake score as the teacher is guided.", "Method", metavar="0|1")
    fake_dropout: bool = option(True, "Train the fake score with dropout.", "Method", metavar="0|1")
    fake_augment: float = option(
        0.0, "Probability of each augmentation of the fake score's training images.", "Method",
        metavar="P", minimum=0, maximum=1,
    )  # fmt: skip
    gan_dropout: bool = option(True, "Train a one-step generator with dropout.", "Method", metavar="0|1")
    paired_dropout: bool = option(
        False, "Use the same dropout masks in both U-Nets for the generator's update.", "Method", metavar="0|1"
    )
    noise_mode: str = option(
        "random", "The generator's noise inputs: random, const or none.", "Method", metavar="MODE", choices=NOISE_MODES
    )
    sigma: Schedule = option(
        "lognormal:-1.2,1.2",
        "Noise levels of generator updates: lognormal:MEAN,STD or karras:MIN,MAX,RHO; A->B moves over the run.",
        "Noise levels", metavar="DIST", parse=_SCHEDULE,
    )  # fmt: skip
    fake_sigma: Schedule = option(
        "lognormal:-1.2,1.2",
        "Noise levels of the fake score's training.",
        "Noise levels",
        metavar="DIST",
        parse=_SCHEDULE,
    )
    batch_gpu: int | None = option(
        None, "Images per pass through the networks; divides the batch.", "Optimization", metavar="N", minimum=1
    )
    glr: float = option(1e-5, "Learning rate of the generator.", "Optimization", metavar="RATE", above=0)
    flr: float = option(1e-5, "Learning rate of the fake score.", "Optimization", metavar="RATE", above=0)
    rlr: float = option(1e-3, "Learning rate of the density ratio.", "Optimization", metavar="RATE", above=0)
    lr_rampup_kimg: float = option(
        0.0, "Thousands of images over which learning rates rise from 0.", "Optimization", metavar="KIMG", minimum=0
    )
    lr_decay: str = option(
        "none", "Decay of the generator's learning rate: none, or cosine to 0 at the end of the run.", "Optimization",
        metavar="NAME", choices=LR_DECAYS,
    )  # fmt: skip
    beta1: float = option(0.0, "Adam beta1.", "Optimization", metavar="BETA", minimum=0, below=1)
    beta2: float = option(0.999, "Adam beta2.", "Optimization", metavar="BETA", minimum=0, below=1)
    clip_grad: float | None = option(
        None, "Largest norm of each network's gradient.", "Optimization", metavar="NORM", above=0
    )
    ema_halflife_kimg: float = option(
        500.0, "Half-life of the moving average of the generator's weights.", "Optimization", metavar="KIMG", minimum=0
    )
    ema_rampup: float | None = option(
        0.05, "Limit of that half-life, as a share of the images so far.", "Optimization", metavar="SHARE", above=0
    )
    ema_more: Decays = option(
        "none", "Further moving averages: half-lives or EDM2's profiles, such as 0.5,2,power:0.1.", "Optimization",
        metavar="LIST", parse="refine.runtime.decay:parse_decays",
    )  # fmt: skip
    anchor: float = option(
        0.0, "Weight of the penalty on changes in detail that the teacher cannot see.", "Networks",
        metavar="WEIGHT", minimum=0,
    )  # fmt: skip
    train_layers: Layers = option(
        "auto", "Layers to train: auto (those the teacher can see), all, or resolutions such as 4,8,16.", "Networks",
        metavar="LAYERS", parse="refine.pair.freeze:parse_layers",
    )  # fmt: skip
    precision: str = option(
        "auto", "Precision of the U-Nets: auto, fp32, bf16 or fp16.", "Machine", metavar="TYPE", choices=PRECISIONS
    )
    compile: bool = option(False, "Compile the networks' blocks with torch.compile.", "Machine", metavar="0|1")
    cuda_graphs: bool = option(False, "Replay passes without gradients as CUDA graphs.", "Machine", metavar="0|1")
    checkpoint: bool = option(
        False, "Recompute activations in the backward pass: slower, with less memory.", "Machine", metavar="0|1"
    )

    @property
    def one_batch(self) -> bool:
        """True if the generator's update and an update of the fake score use the same images."""
        return self.share_forward or self.share_unet

    def check(self) -> None:
        """Refuses a `batch_gpu` that does not divide the batch, and options that exclude each other."""
        super().check()
        if self.batch_gpu is not None and self.batch % self.batch_gpu:
            raise OptionError(f"{{batch_gpu}} must divide the batch of {self.batch}, and {self.batch_gpu} does not.")
        if self.share_unet:
            self._check_one_pass()
        if self.backtrack:
            self._check_backtrack()

    def _check_backtrack(self) -> None:
        """Refuses intermediate teachers that cannot be kept, and a ratio that knows only the teacher."""
        if not self.objective.needs_fake or not self.warmup_kimg:
            without = "warmup_kimg=0" if self.objective.needs_fake else f"objective={self.objective}"
            raise OptionError(
                f"{{backtrack={self.backtrack}}} keeps states of the fake score from the warm-up, and with "
                f"{{{without}}} there are none: leave it out."
            )
        if self.objective.needs_ratio or self.gan_weight:
            by = f"objective={self.objective}" if self.objective.needs_ratio else f"gan_weight={self.gan_weight:g}"
            raise OptionError(
                f"{{backtrack={self.backtrack}}} changes the teacher, and the density ratio of {{{by}}} is that of the "
                "teacher itself: leave one of them out."
            )

    def _check_one_pass(self) -> None:
        """Refuses options that are impossible with one fake-score pass for both updates."""
        if not self.objective.needs_fake or self.objective.through_networks:
            raise OptionError(
                f"{{share_unet=True}} is impossible with {{objective={self.objective}}}, which has no pass to share: "
                "leave it out."
            )
        if self.sigma != self.fake_sigma:
            raise OptionError(
                f"{{share_unet=True}} needs one distribution of noise levels, not {{sigma={self.sigma}}} and "
                f"{{fake_sigma={self.fake_sigma}}}: use the same for both."
            )
        if self.fake_augment:
            raise OptionError(
                "{share_unet=True} uses one pass for both updates, and the generator's update has no augmentation: use "
                "{fake_augment=0}."
            )
        if self.paired_dropout and not self.fake_dropout:
            raise OptionError(
                "{share_unet=True} uses one pass for both updates, with or without dropout: leave out "
                "{paired_dropout=True} or {fake_dropout=False}."
            )


@dataclass(frozen=True, kw_only=True)
class RunOptions(SeedOptions, LengthOptions):
    """Place of a run, and intervals of reporting and saving."""

    preset: str | None = option(
        None, f"Settings that go together: {', '.join(PRESETS)}. Default: by the teacher.", "Pair",
        metavar="NAME", choices=tuple(PRESETS),
    )  # fmt: skip
    outdir: str = option("training-runs", "Folder that gets a folder for the run.", "Run", metavar="DIR", path=True)
    desc: str | None = option(None, "Text to append to the name of the run's folder.", "Run", metavar="TEXT")
    tick_kimg: float = option(
        4.0, "Thousands of images between two status lines.", "Run", metavar="KIMG", above=0, spellings=("tick",)
    )
    snap_ticks: int = option(
        50, "Status lines between two snapshots.", "Run", metavar="TICKS", minimum=1, spellings=("snap",)
    )
    wandb: bool = option(False, "Show the run in Weights & Biases, if wandb is installed.", "Run", metavar="0|1")
    device: str = option("auto", "Device: auto, cpu, cuda or mps.", "Machine", metavar="NAME", choices=DEVICES)


@dataclass(frozen=True)
class MetricNames:
    """Metrics to measure.

    Attributes:
        names: Names of the StyleGAN suite such as `fid50k_full`, each once; empty for none.
        auto: Whether the device decides: fid50k_full on a GPU if it can be measured, and nothing on a CPU.
    """

    names: tuple[str, ...] = ()
    auto: bool = False

    def __str__(self) -> str:
        return "auto" if self.auto else ",".join(self.names) or "none"

    @classmethod
    def parse(cls, text: str | MetricNames) -> MetricNames:
        """Parses `auto`, `none`, or names joined by commas.

        Raises:
            UserError: A name is unknown.
        """
        if isinstance(text, MetricNames):
            return text
        if not isinstance(text, str):
            raise UserError(f"metrics are text such as fid50k_full,pr50k3_full, not {text!r}.")
        if text.strip().lower() == "auto":
            return cls(auto=True)
        return cls(tuple(named("refine.metrics.metric:parse_metrics")(text)))


parse_metric_names = MetricNames.parse


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(BridgeOptions):
    """Evaluation of snapshots, and the end of a run that gets worse."""

    metrics: MetricNames = option(
        "auto", "Metrics such as fid50k_full,pr50k3_full or fid5k_full; none; auto: by device.", "Metrics",
        metavar="NAMES", parse="refine.config:parse_metric_names",
    )  # fmt: skip
    data: str | None = option(None, "StyleGAN data set to compare with.", "Metrics", metavar="ZIP|DIR", path=True)
    ref: str = option(
        "auto", "Reference: data, teacher, statistics, or auto: the first of data, statistics and teacher.", "Metrics",
        metavar="auto|teacher|NPZ", path=True,
    )  # fmt: skip
    detector: str | None = option(
        None,
        "TorchScript module in place of Inception; dinov2=FILE, clip=FILE: weights.",
        "Metrics",
        metavar=_MODULE,
        path=True,
    )
    vgg: str | None = option(
        None, "TorchScript module in place of the official VGG.", "Metrics", metavar=_MODULE, path=True
    )
    metric_seed: int = option(
        0,
        "Seed of latents, labels and noise, the same for every snapshot.",
        "Metrics",
        metavar="N",
        minimum=0,
        maximum=MAX_INT,
    )
    fid_seeds: int = option(
        1, "Ranges of latents for FID and KID; with 3, also minimum (as EDM's), mean and spread.", "Metrics",
        metavar="N", minimum=1, maximum=1000,
    )  # fmt: skip
    bootstrap: int = option(
        0, "Repetitions with resampled images, for a 95 % interval of FID and KID; from 10.", "Metrics",
        metavar="N", minimum=0, maximum=100_000,
    )  # fmt: skip
    metric_every: int = option(1, "Measure every n-th snapshot, and the last one.", "Metrics", metavar="N", minimum=1)
    stop_if_flat: int | None = option(
        None, "End the run when the estimated divergence has not fallen over N status lines.", "Length",
        metavar="N", minimum=3,
    )  # fmt: skip
    stop_if_worse: int | None = option(
        None, "End the run when the FID has risen for N snapshots in a row.", "Length", metavar="N", minimum=1
    )

    def check(self) -> None:
        """Refuses two references, a missing reference, and early stopping without an FID."""
        super().check()
        if self.ref == "data" and self.data is None:
            raise OptionError("{ref=data} needs a data set: give one with {data}.")
        if self.data is not None and self.ref not in ("auto", "data"):
            raise OptionError(
                f"{{data={literal(self.data)}}} and {{ref={literal(self.ref)}}} are two references: give one of them."
            )
        if self.stop_if_worse is not None and not self._watches_a_distance():
            raise OptionError(
                f"{{stop_if_worse={self.stop_if_worse}}} needs an FID, and {{metrics={self.metrics}}} has none: "
                "add one, such as fid5k_full."
            )

    def _watches_a_distance(self) -> bool:
        from refine.metrics.metric import FRECHET_DISTANCES  # with torch

        return self.metrics.auto or any(name.startswith(FRECHET_DISTANCES) for name in self.metrics.names)


@dataclass(frozen=True, kw_only=True)
class RunConfig(EvaluationOptions, RunOptions, TrainingOptions, PairOptions):
    """All options of a run; `python refine.py --help` lists them with a line for each.

    Options that are not given have the defaults below, for every pair. `RunConfig.from_preset` starts from the preset
    that suits the pair, like the command line.

    Raises:
        OptionError: An option has an impossible value, or two contradict each other.
    """

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        """All options, in the order of `--help`: those to give first, then by group."""
        return tuple(sorted(super().options(), key=lambda each: (each.name not in FIRST, GROUPS.index(each.group))))

    def check(self) -> None:
        """Refuses what has no effect or needs another network: a watch, guidance, a generator of one's own."""
        super().check()
        if self.gan is None:
            self._check_distillation()
        if self.guide_fake and self.guide is None:
            raise OptionError(
                "{guide_fake=True} guides the fake score as the teacher is guided, which it is not: give {guide} and "
                "{guidance}, or leave it out."
            )
        if self.guide_fake and not self.objective.needs_fake:
            raise OptionError(
                f"{{guide_fake=True}} guides the fake score, and {{objective={self.objective}}} has none: leave it out."
            )
        if self.stop_if_flat is not None and not self.objective.needs_fake:
            raise OptionError(
                f"{{stop_if_flat={self.stop_if_flat}}} watches the divergence that the fake score tells of, and "
                f"{{objective={self.objective}}} has no fake score: leave it out."
            )

    def _check_distillation(self) -> None:
        """Refuses options that have no meaning for a copy of the teacher."""
        if self.class_map is not None:
            raise OptionError(
                "{class_map} joins the classes of two networks, and without {gan} the generator is a copy of the "
                "teacher: leave it out, or give {gan}."
            )
        if self.train_layers.resolutions:
            raise OptionError(
                f"{{train_layers={self.train_layers}}} chooses blocks of a StyleGAN, and without {{gan}} the generator "
                "is a copy of the teacher's U-Net, whose blocks all work for the whole image: leave it out."
            )
        if self.anchor:
            raise OptionError(
                f"{{anchor={self.anchor:g}}} preserves detail that the teacher cannot see, and without {{gan}} there "
                "is none: leave it out."
            )

    def __new__(cls, **given: Any) -> RunConfig:
        """Refuses the name of a preset that would have no effect."""
        name = given.get("preset")
        if name in PRESETS and not PRESETS[name].options.keys() <= given.keys():
            raise UserError(
                f"preset={name!r} stands for options that RunConfig(...) leaves at their defaults: "
                f"write RunConfig.from_preset({name!r}, gan=..., teacher=...)."
            )
        return super().__new__(cls)

    @classmethod
    def from_preset(cls, name: str | None = None, /, *, trust: bool = False, **given: Any) -> RunConfig:
        """Options of a new run: the given options, and for the others the preset that suits the pair.

        The teacher's file is opened, and downloaded if necessary, after the given options are checked.

        Args:
            name: Key of `presets.PRESETS`; None to choose by the teacher's content and resolution.
            trust: Permission to run source code embedded in a pickle, for networks that Refine does not know.
            given: Options, including `gan` and `teacher`; they win over the preset.

        Raises:
            UserError: An option is unknown or impossible, two contradict each other, or a file cannot be read.
        """
        known = {each.name: each for each in cls.options()}
        for each_name in given.keys() - known.keys():
            close = difflib.get_close_matches(each_name, known, 1)
            raise UserError(f"There is no option {each_name}{f': did you mean {close[0]}?' if close else '.'}")
        for each in known.values():
            if each.default is MISSING and each.name not in given:
                raise OptionError(f"Give {{{each.name}}}, the {each.help}")
        given = {each_name: known[each_name].checked(value) for each_name, value in given.items()}
        name = known["preset"].checked(given.pop("preset", None) if name is None else name)
        cls._check_alone(name, given)
        gan, teacher = given.get("gan"), given["teacher"]
        resolution, conditional, path = _teacher_facts(gan, teacher, given.get("teacher_settings"), trust)
        chosen = name or choose_preset(resolution, path, distills=gan is None)
        return cls(**(_preset_options(chosen, conditional, given) | given | {"preset": chosen}))

    @classmethod
    def _check_alone(cls, preset: str | None, given: dict[str, Any]) -> None:
        """Refuses options that are impossible with every teacher, before any file is opened."""
        depends = set() if "batch" in given else {"batch_gpu"}  # on the preset's batch
        depends |= {"share_unet", "stop_if_worse"}  # on its noise levels and metrics
        cls(**{name: value for name, value in given.items() if name not in depends})
        if preset is not None:
            for conditional in (True, False):
                options = _preset_options(preset, conditional, given) | given | {"preset": preset}
                cls(**(options if "share_unet" not in given else options | {"share_unet": False}))

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> RunConfig:
        """Options of a run from its parsed `training_options.json`, of this or an earlier version.

        Raises:
            UserError: An option is unknown, missing, or has an impossible value.
        """
        known = {each.name: each for each in cls.options()}
        given = migrated(options)
        unknown = sorted(given.keys() - known.keys())
        if unknown:
            raise UserError(
                f"The stored options have an entry {unknown[0]!r} that this version of Refine does not know."
            )
        values = {each.name: each.default for each in known.values() if each.default is not MISSING} | given
        missing = [each.name for each in known.values() if each.name not in values]
        if missing:
            raise UserError(f"The stored options are incomplete: they have no entry {missing[0]!r}.")
        if values["data"] is not None and values["ref"] not in ("auto", "data"):
            values["data"] = None  # earlier versions ignored the one where the other was given
        return cls(**values)


def migrated(options: Mapping[Any, Any]) -> dict[Any, Any]:
    """Options that an earlier version wrote, by the names of this one."""
    values = dict(options)
    weighting = values.pop("weighting", "uniform")  # an option of its own until November 2026
    if weighting != "uniform":
        values["objective"] = f"{values.get('objective', 'ikl')}:weighting={weighting}"
    return values


def _preset_options(name: str, conditional: bool, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a preset, without its data set if another reference is given."""
    options = PRESETS[name].options_for(conditional)
    if given.get("ref", "auto") not in ("auto", "data"):
        options["data"] = None
    return options


def _teacher_facts(gan: str | None, teacher: str, settings: Any, trust: bool) -> tuple[int, bool, Path]:
    """Resolution of the teacher's images, whether it has labels, and its file.

    Raises:
        UserError: A file cannot be found or downloaded, or the teacher cannot be read.
    """
    from refine import zoo
    from refine.networks.loading import load_teacher
    from refine.networks.plain_denoiser import as_denoiser_contract
    from refine.networks.python_file import make_network, parse_python_spec

    files = [spec for spec in (gan, teacher) if spec is not None and parse_python_spec(spec) is None]
    try:
        zoo.resolve_all(files)
    except UserError as error:
        if gan is None or not re.fullmatch(r"[\w-]+", gan):
            raise
        try:  # a word may be the name of a generator that is given in Python
            zoo.resolve_all([spec for spec in files if spec != gan])
        except UserError:
            raise error from None
    own = parse_python_spec(teacher)
    if own is not None:
        denoiser = as_denoiser_contract(make_network(own, "teacher", trust=trust))
        return int(denoiser.img_resolution), bool(denoiser.label_dim), own.path
    loaded = load_teacher(teacher, trust=trust, settings=settings)
    network: Any = loaded.network
    return int(network.img_resolution), bool(network.label_dim), loaded.pickle.path


__all__ = [
    "DEVICES", "FILTERS", "GROUPS", "LR_DECAYS", "MAX_INT", "NOISE_MODES", "PRECISIONS",
    "BridgeOptions", "EvaluationOptions", "LengthOptions", "MetricNames", "PairOptions", "RunConfig", "RunOptions",
    "SeedOptions", "TrainingOptions", "migrated",
]  # fmt: skip
