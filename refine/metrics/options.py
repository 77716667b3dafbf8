"""Options of metrics."""

from __future__ import annotations

import math
from dataclasses import dataclass

from refine.errors import OptionError, literal
from refine.metrics.bootstrap import LEAST_REPETITIONS
from refine.metrics.metric import parse_metric
from refine.pair.bridge import FILTERS

NOISE_MODES = ("random", "const", "none")


@dataclass(frozen=True, kw_only=True)
class MetricOptions:
    """Options of a measurement.

    Attributes:
        metrics: Names of the StyleGAN suite such as `fid50k_full`; see `metric.parse_metric`.
        data: StyleGAN data set to compare with: ZIP, folder or zoo name.
        ref: `auto`, `data`, `teacher`, or statistics (.npz) by path, URL or zoo name. `auto` takes `data` if given,
            else the zoo's statistics for the teacher, else the teacher.
        detector: TorchScript module that turns images into features: path, URL or zoo name; None: $REFINE_DETECTOR,
            else the official Inception and, for precision and recall, the official VGG.
        vgg: TorchScript module for precision, recall and path length; None: $REFINE_VGG, else `detector` for
            precision and recall if given, else the official VGG.
        trust_detector: Load a detector from the internet whose sha256 is not a known official one.
        seed: Seed of latents, labels and noise, 0 to 2^31 - 1: the same for every snapshot, so that snapshots compare.
        fid_seeds: Ranges of latents that distances (FID, KID, CMMD and their kin) are computed for; with 3, each, their
            minimum as EDM gives it, mean and standard deviation.
        bootstrap: Repetitions with resampled generated images, for a 95 % interval of FID and KID; 0: none.
        kid_subsets: Subsets that the KID is the mean of.
        kid_subset_size: Images of a subset; None: 1000, or as many as there are.
        batch: Images per pass through generator and detector, per process; None: see `batch_size.BatchSize`.
        workers: Processes that decode images of a data set; None: by the number of pixels; 0: none.
        mirror: Show legacy metrics each image of the data set mirrored too.
        noise_mode: The generator's own noise: `random` (drawn for each image from the seed), `const` or `none`.
        truncation_psi: Truncation; published values use 1.
        ref_images: Images that the teacher draws as a reference; None: as many as the metric takes of the generator.
        resample: Filter for images that are larger than the reference's, a key of `bridge.FILTERS`.
        contact_sheet: Keep the nearest and farthest samples for a picture.
    """

    metrics: tuple[str, ...] = ("fid50k_full",)
    data: str | None = None
    ref: str = "auto"
    detector: str | None = None
    vgg: str | None = None
    trust_detector: bool = False
    seed: int = 0
    fid_seeds: int = 1
    bootstrap: int = 0
    kid_subsets: int = 100
    kid_subset_size: int | None = None
    batch: int | None = None
    workers: int | None = None
    mirror: bool = False
    noise_mode: str = "random"
    truncation_psi: float = 1.0
    ref_images: int | None = None
    resample: str = "lanczos"
    contact_sheet: bool = False

    def __post_init__(self) -> None:
        for name in self.metrics:
            parse_metric(name)
        if self.bootstrap and self.bootstrap < LEAST_REPETITIONS:
            raise OptionError(
                f"{{bootstrap}} must be 0 or at least {LEAST_REPETITIONS} repetitions, not {self.bootstrap}."
            )
        least_values = {
            "fid_seeds": 1, "batch": 1, "workers": 0, "ref_images": 2, "kid_subsets": 1, "kid_subset_size": 2,
        }  # fmt: skip
        for option, least in least_values.items():
            value = getattr(self, option)
            if value is not None and value < least:
                raise OptionError(f"{{{option}}} must be at least {least}, not {value}.")
        if not 0 <= self.seed < 2**31:
            raise OptionError(f"{{seed}} must be from 0 to 2^31 - 1, not {self.seed}.")
        if self.noise_mode not in NOISE_MODES:
            given = literal(repr(self.noise_mode))
            raise OptionError(f"{{noise_mode}} must be one of {', '.join(NOISE_MODES)}, not {given}.")
        if not math.isfinite(self.truncation_psi):
            raise OptionError(f"{{truncation_psi}} must be a finite number, not {self.truncation_psi}.")
        if self.resample not in FILTERS:
            raise OptionError(f"{{resample}} must be one of {', '.join(FILTERS)}, not {literal(repr(self.resample))}.")
        if self.ref == "data" and self.data is None:
            raise OptionError("{ref=data} compares with a data set: name it with {data}.")
