"""The options of a run: one frozen dataclass, checked when it is made, stored as JSON beside the run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args, get_type_hints

from refine.diffusion.noise_levels import parse_schedule
from refine.errors import UserError
from refine.metrics.metric import parse_metrics
from refine.objectives import parse_objective
from refine.pair.freeze import parse_train_layers
from refine.pair.resize import FILTERS
from refine.training.optimizer import LR_DECAYS
from refine.training.precision import PRECISIONS


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what a run does.

    Attributes:
        gan: StyleGAN pickle: path, URL or zoo name.
        teacher: EDM pickle: path, URL or zoo name.
        outdir: folder in which the run gets a folder of its own.
        desc: appended to that folder's name.
        preset: the name of the settings that the options below started from, for the record.
        init: pickle or training state whose weights the run starts from instead of those in `gan`.
        preflight: whether the pair is tried out before the first step.
        seed: of everything that is drawn.
        objective: Objective and its parameters, such as `ikl:weighting=dmd`; see `objectives.parse_objective`.
        sigma: noise levels of generator steps, as `noise_levels.parse_schedule` reads them.
        fake_sigma: noise levels that the fake score is fitted at.
        fake_steps: updates of the fake score for each update of the generator.
        share_forward: one forward pass of the generator for its own and the fake score's update.
        share_unet: that, and one forward pass of the fake score: the estimate from which it learns moves the generator.
            Both then see one noise level and one noise, and the teacher the same dropout masks as the fake score.
        batch: images of a step, over all processes and micro-batches.
        batch_gpu: images that go through the networks at once; None: the whole batch.
        glr, flr: learning rates of the generator and of the fake score.
        beta1, beta2: of Adam, for both.
        lr_rampup_kimg: kimg over which the generator's learning rate rises from 0.
        lr_decay: `none`, or `cosine`: the generator's learning rate falls to 0 at the end of the run.
        clip_grad: largest norm of each network's gradient; None: any.
        anchor: weight of the penalty on detail, invisible to the teacher, that leaves the starting generator's.
        noise_mode: the generator's own noise while training: `random`, `const` or `none`.
        fake_dropout: whether the fake score is fitted with its dropout on.
        fake_augment: probability of each of EDM's augmentations when the fake score is fitted; 0: none.
        paired_dropout: in the generator's step both U-Nets have their dropout on, with the same masks.
        kimg: length of the run, in thousands of images of generator updates.
        warmup_kimg: thousands of images that the fake score is fitted to before the generator moves.
        tick_kimg: thousands of images between two status lines.
        snap_ticks: ticks between two snapshots.
        ema_halflife_kimg: half-life of the moving average of the generator's weights.
        ema_rampup: the half-life is at most this share of the images so far; None: no ramp.
        train_layers: `auto` (freeze what the teacher cannot see), `all`, or resolutions such as `4,8,16`.
        resample: filter that reduces the generator's images to the teacher's size, a key of `bridge.FILTERS`.
        class_map: the teacher's class for each class of the generator.
        metrics: names of `metrics.registry`, `none`, or `auto`: fid50k_full on a GPU, where it can be had.
        data: StyleGAN data set to compare with, ZIP or folder.
        ref: what to compare with: `auto`, `data`, `teacher`, or statistics by path, URL or zoo name.
        detector: TorchScript module that turns images into features; None: the official ones.
        vgg: the one for precision, recall and path length, where that is another.
        metric_seed: of the latents, labels and noise that metrics are computed from.
        fid_seeds: ranges of latents that the FID is computed for; with 3, the minimum is given too, as EDM does.
        metric_every: snapshots from one measurement to the next; the first and the last one are measured always.
        stop_if_worse: end the run after so many snapshots in a row whose FID rose; None: never.
        precision: of the U-Nets: `auto` (by device), `fp32`, `bf16` or `fp16`.
        compile: run the blocks of all networks through torch.compile.
        cuda_graphs: replay passes of teacher and fake score without gradients as CUDA graphs; elsewhere no effect.
        checkpoint: compute activations again in the backward pass instead of keeping them: slower, with less memory.
        device: `auto`, `cpu`, `cuda` or `mps`.
    """

    gan: str
    teacher: str
    outdir: str = "training-runs"
    desc: str | None = None
    preset: str | None = None
    init: str | None = None
    preflight: bool = True
    seed: int = 0
    objective: str = "ikl"
    sigma: str = "lognormal:-1.2,1.2"
    fake_sigma: str = "lognormal:-1.2,1.2"
    fake_steps: int = 1
    share_forward: bool = False
    share_unet: bool = False
    batch: int = 128
    batch_gpu: int | None = None
    glr: float = 1e-5
    flr: float = 1e-5
    beta1: float = 0.0
    beta2: float = 0.999
    lr_rampup_kimg: float = 0.0
    lr_decay: str = "none"
    clip_grad: float | None = None
    anchor: float = 0.0
    noise_mode: str = "random"
    fake_dropout: bool = True
    fake_augment: float = 0.0
    paired_dropout: bool = False
    kimg: float = 1000.0
    warmup_kimg: float = 20.0
    tick_kimg: float = 4.0
    snap_ticks: int = 50
    ema_halflife_kimg: float = 500.0
    ema_rampup: float | None = 0.05
    train_layers: str = "auto"
    resample: str = "lanczos"
    class_map: tuple[int, ...] | None = None
    metrics: str = "auto"
    data: str | None = None
    ref: str = "auto"
    detector: str | None = None
    vgg: str | None = None
    metric_seed: int = 0
    fid_seeds: int = 1
    metric_every: int = 1
    stop_if_worse: int | None = None
    precision: str = "auto"
    compile: bool = False
    cuda_graphs: bool = False
    checkpoint: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, annotation in get_type_hints(RunConfig).items():
            kinds = get_args(annotation) or (annotation,)
            self._require(name, any(_is_a(self[name], kind) for kind in kinds), " or ".join(map(_described, kinds)))
        for name in ("fake_steps", "batch", "snap_ticks", "fid_seeds", "metric_every"):
            self._require(name, self[name] >= 1, "a whole number of at least 1")
        for name in ("seed", "metric_seed"):
            self._require(name, 0 <= self[name] < 2**31, "a whole number from 0 to 2^31 - 1")
        if self.batch_gpu is not None:
            divides = self.batch_gpu >= 1 and self.batch % self.batch_gpu == 0
            self._require("batch_gpu", divides, f"a number that divides the batch of {self.batch}")
        for name in ("glr", "flr", "kimg", "tick_kimg"):
            self._require(name, 0 < self[name] < math.inf, "a number above 0")
        for name in ("lr_rampup_kimg", "warmup_kimg", "ema_halflife_kimg", "anchor"):
            self._require(name, 0 <= self[name] < math.inf, "a number of at least 0")
        for name in ("beta1", "beta2"):
            self._require(name, 0 <= self[name] < 1, "a number from 0 to below 1")
        for name in ("clip_grad", "ema_rampup"):
            self._require(name, self[name] is None or 0 < self[name] < math.inf, "a number above 0")
        self._require("fake_augment", 0 <= self.fake_augment <= 1, "a probability from 0 to 1")
        patience = self.stop_if_worse is None or self.stop_if_worse >= 1
        self._require("stop_if_worse", patience, "a number of snapshots of at least 1")
        self._require("lr_decay", self.lr_decay in LR_DECAYS, f"one of {', '.join(LR_DECAYS)}")
        self._require("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        parse_objective(self.objective)
        self._require("noise_mode", self.noise_mode in ("random", "const", "none"), "one of random, const, none")
        self._require("resample", self.resample in FILTERS, f"one of {', '.join(FILTERS)}")
        self._require("device", self.device in ("auto", "cpu", "cuda", "mps"), "one of auto, cpu, cuda, mps")
        schedules = parse_schedule(self.sigma), parse_schedule(self.fake_sigma)
        if self.share_unet:
            self._require_one_pass(schedules[0] == schedules[1])
        parse_train_layers(self.train_layers)
        if self.metrics != "auto":
            parse_metrics(self.metrics)
        self._require("ref", self.ref != "data" or self.data is not None, "something else, or --data given with it")

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def _require(self, name: str, condition: bool, what: str) -> None:
        if not condition:
            raise UserError(f"--{name.replace('_', '-')} must be {what}, not {self[name]!r}.")

    @property
    def one_batch(self) -> bool:
        """Whether the generator's update and one of the fake score look at the same images."""
        return self.share_forward or self.share_unet

    def _require_one_pass(self, equal_schedules: bool) -> None:
        """What a pass of the fake score that serves both updates needs.

        Raises:
            UserError: something else was asked for as well.
        """
        objective = parse_objective(self.objective)
        if not objective.needs_fake or objective.through_networks:
            raise UserError(f"--share-unet=1 has nothing to share with --objective={self.objective}: leave it out.")
        if not equal_schedules:
            raise UserError(
                f"--share-unet=1 needs one distribution of noise levels, not --sigma={self.sigma} and "
                f"--fake-sigma={self.fake_sigma}: give both the same."
            )
        if self.fake_augment:
            raise UserError(
                "--share-unet=1 has one pass for both updates, and the generator's sees no augmented images: use "
                "--fake-augment=0."
            )
        if self.paired_dropout and not self.fake_dropout:
            raise UserError(
                "--share-unet=1 has one pass for both updates, with dropout or without: --paired-dropout=1 and "
                "--fake-dropout=0 cannot both be."
            )

    def to_json(self) -> str:
        """The options as text for `training_options.json`."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> RunConfig:
        """The inverse of `to_json`, from parsed JSON.

        Raises:
            UserError: an option is unknown or has an impossible value.
        """
        known = {field.name for field in fields(cls)}
        options = dict(options)
        weighting = options.pop("weighting", "uniform")  # an option of its own until November 2026
        if weighting != "uniform":
            options["objective"] = f"{options['objective']}:weighting={weighting}"
        unknown = sorted(options.keys() - known)
        if unknown:
            raise UserError(
                f"The stored options have an entry {unknown[0]!r} that this version of Refine does not know."
            )
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
        }
        try:
            return cls(**values)
        except TypeError as error:
            raise UserError(f"The stored options are incomplete: {error}.") from error


_KINDS: dict[Any, tuple[str, tuple[type, ...]]] = {  # by annotation: in words, and the types that will do
    str: ("text", (str,)),
    bool: ("True or False", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    tuple[int, ...]: ("a tuple of whole numbers", (tuple,)),
    type(None): ("None", (type(None),)),
}


def _described(kind: Any) -> str:
    return _KINDS[kind][0]


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type; a bool is no number."""
    if isinstance(value, bool):
        return kind is bool
    if kind == tuple[int, ...] and isinstance(value, tuple):
        return all(_is_a(entry, int) for entry in value)
    return isinstance(value, _KINDS[kind][1])
