"""Metric: the base class of everything that is measured, and the parsing of names.

A metric is one file with a pure function of arrays and a subclass of `Metric` beside it, and one entry in
`metric_classes`. The rest (drawing images, features, caches, processes, rows) is shared.
"""

from __future__ import annotations

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from refine.errors import UserError

if TYPE_CHECKING:
    import torch

    from refine.metrics.detectors import Detector, DetectorChoices
    from refine.metrics.drawn import DrawnImages

OFFICIAL_COUNT = 50_000
MIN_COUNT, MAX_COUNT = 2, 10_000_000
# Beginnings of names of Fréchet distances, by the first of which a run judges its snapshots.
FRECHET_DISTANCES = ("fid", "fdd", "fd_", "clip_fid", "sfid")
COUNT = r"(?P<count>[0-9]{1,9})(?P<thousand>k?)"  # 50k, 500


@dataclass(frozen=True)
class FeatureSpec:
    """Features that a metric wants of images.

    Attributes:
        detector: Network that gives them.
        output: "features" or "probabilities", a method of `Detector`.
        keep: "moments"; "rows": every feature as float32; "half": every feature rounded to float16.
    """

    detector: Detector
    output: str = "features"
    keep: str = "moments"


@dataclass(frozen=True)
class Measured:
    """Input of a metric's value.

    Attributes:
        generated: Kept features of the generator's images (`FeatureSpec.keep`), for each range of latents.
        real: Kept features of the reference; None for a metric without one.
        ddof: Covariances are divided by the number of features minus this.
        seed: Seed of random subsets and of the bootstrap.
        device: Device for large distance matrices.
        kid_subsets: Subsets that the KID is the mean of.
        kid_subset_size: Images of a subset; None: 1000, or as many as there are.
        bootstrap: Repetitions with resampled images, for an interval; 0: none.
    """

    generated: list[Any]
    real: Any
    ddof: int
    seed: int
    device: torch.device | str
    kid_subsets: int = 100
    kid_subset_size: int | None = None
    bootstrap: int = 0


@dataclass(frozen=True)
class Results:
    """Output of a metric.

    Attributes:
        values: Numbers by name, the main one first.
        notes: Further entries of the row's provenance.
    """

    values: dict[str, float]
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric(ABC):
    """Something to measure, made from its name by `parse_metric`.

    Attributes:
        name: The name as it was written, such as `fid50k_full`.
        num_gen: Images (for path lengths: pairs) drawn from the generator, 2 to 10 million.
        full: Compare with the whole data set, unmirrored; else with its first images, as a legacy metric.
        max_real: Most images taken from the data set; None: all.
    """

    name: str
    num_gen: int
    full: bool = True
    max_real: int | None = None

    forms: ClassVar[tuple[str, ...]]  # regular expressions of names
    examples: ClassVar[tuple[str, ...]]  # names to suggest
    needs_reference: ClassVar[bool] = True
    max_real_full: ClassVar[int | None] = None  # `max_real` of names with `_full`
    role: ClassVar[str] = "inception"  # of its detector, a key of `detectors.OFFICIAL`
    statistics: ClassVar[str | None] = "fid"  # its entry in files of statistics; None: there are none of its features
    resamples: ClassVar[bool] = False  # whether a bootstrap needs every generated feature
    precision: ClassVar[str] = "generator as it is, detector float32, statistics float64"

    # -- name -----------------------------------------------------------------------------------------

    @classmethod
    def parse(cls, name: str) -> Metric | None:
        """The metric of that name; None if the name is not of this class.

        Raises:
            UserError: The name is of this class, with an impossible number.
        """
        match = next((m for form in cls.forms if (m := re.fullmatch(form, name))), None)
        return None if match is None else cls.from_match(name, match.groupdict())

    @classmethod
    def from_match(cls, name: str, found: Mapping[str, str | None]) -> Metric:
        """The metric of a name that matched, from the groups of the match."""
        count, full = count_in(name, found), found.get("full") is not None
        return cls(name, count, full, cls.max_real_full if full else count)

    @property
    def least_images(self) -> int:
        """Images of the generator and of the reference without which the value is not defined."""
        return 2

    def with_count(self, count: int) -> str:
        """Its name with another number of images."""
        written = next(text for text in (f"{self.num_gen // 1000}k", str(self.num_gen)) if text in self.name)
        before, _, after = self.name.rpartition(written)
        if count % 1000 == 0:
            return f"{before}{count // 1000}k{after}"
        return f"{before}{count}{after.lstrip('0123456789')}"  # a neighbor follows a "k" only

    @property
    def note(self) -> str | None:
        """Reason not to compare the value with published ones; None if the two are comparable."""
        if self.num_gen == OFFICIAL_COUNT:
            return None
        return f"{self.num_gen} images: does not compare with {OFFICIAL_COUNT // 1000}k"

    # -- what it is measured from ---------------------------------------------------------------------

    def detector(self, choices: DetectorChoices) -> str:
        """Path, URL or zoo name of its detector.

        Raises:
            UserError: The metric needs a detector of the user's own.
        """
        return choices[self.role]

    def features(self, detector: Detector) -> FeatureSpec:
        """Features that it is computed from."""
        return FeatureSpec(detector)

    def ranges(self, fid_seeds: int) -> tuple[range, ...]:
        """Numbers of the images that it is computed from, each range for itself."""
        return (range(self.num_gen),)

    def try_out(self, detector: Detector, images: torch.Tensor) -> int | None:
        """Shows images uint8 [N, 3, H, W] to the detector; returns the dimension of features, None without any.

        Raises:
            UserError: The detector does not fit.
        """
        spec = self.features(detector)
        return int(getattr(detector, spec.output)(images).shape[1])

    def measure(self, drawn: DrawnImages) -> list[Any]:
        """Kept features for each range of `ranges`. All processes call this and get the same.

        Raises:
            UserError: Images or features are not finite.
        """
        return drawn.features(self)

    def conditions(self, truncation_psi: float, noise_mode: str) -> dict[str, Any]:
        """Conditions under which images are generated, for the row's provenance."""
        return {"truncation_psi": truncation_psi, "noise_mode": noise_mode}

    # -- value ----------------------------------------------------------------------------------------

    @abstractmethod
    def results(self, label: str, measured: Measured) -> Results:
        """Value or values.

        Args:
            label: Name of the metric in the row, such as `fid50k_full_at64`.
            measured: Features and values to compute the metric from.

        Raises:
            UserError: There are too few images.
        """


def count_in(name: str, found: Mapping[str, str | None]) -> int:
    """Number of images in a name: 50000 in `fid50k_full`; the official one in names without.

    Raises:
        UserError: It is beyond what can be measured.
    """
    count = OFFICIAL_COUNT
    if found["count"]:
        count = int(found["count"]) * (1000 if found["thousand"] else 1)
    if not MIN_COUNT <= count <= MAX_COUNT:
        raise UserError(f"The metric {name!r} asks for {count:,} images: ask for {MIN_COUNT} to {MAX_COUNT:,}.")
    return count


def require_images(label: str, least: int, **counts: int) -> None:
    """Refuses a value that so few images do not define.

    Args:
        label: Name of the metric.
        least: Images needed of each source.
        counts: Images there are, by source.

    Raises:
        UserError: There are fewer.
    """
    for source, count in counts.items():
        if count < least:
            raise too_few(label, least, f"the {source}", count)


def too_few(label: str, least: int, source: str, count: int) -> UserError:
    """The sentence for a metric that needs more images than a source has."""
    images = "1 image" if count == 1 else f"{count:,} images"
    return UserError(
        f"{label} needs at least {least} images, and {source} has {images}: give more, or choose another metric."
    )


def metric_classes() -> tuple[type[Metric], ...]:
    """Every kind of metric. A new one is a file and an entry here."""
    from refine.metrics.cmmd import CMMD
    from refine.metrics.copies import CopiesMetric, DinoCopies
    from refine.metrics.density_coverage import DC
    from refine.metrics.fid import FDD, FID, ClipFID, DinoFD, SpatialFID
    from refine.metrics.inception_score import IS
    from refine.metrics.kid import KID
    from refine.metrics.ppl import PPL
    from refine.metrics.precision_recall import PR

    return FID, FDD, KID, PR, IS, PPL, DC, SpatialFID, DinoFD, ClipFID, CMMD, CopiesMetric, DinoCopies


def parse_metric(name: str) -> Metric:
    """The metric of a name such as `fid50k_full`, `kid50k_full`, `pr50k3_full`, `is50k` or `ppl2_wend`.

    Any count will do: `fid5k_full` takes 5000 images and `fid500_full` 500; `ppl2_wend` may be followed by a count.
    `pr50k3_full` and `dc50k3_full` name the neighbor after the `k`; with another count, as in `pr512_full`, it is 3.
    Names without `_full` are the StyleGAN suite's legacy metrics: as many images of the data set as of the generator.

    Raises:
        UserError: There is no such metric.
    """
    classes = metric_classes()
    for kind in classes:
        if metric := kind.parse(name):
            return metric
    examples = [example for kind in classes for example in kind.examples]
    count = re.search(r"[0-9]+k?", name)
    spelled = [example.replace("50k", count[0]) if count else example for example in examples]
    close = difflib.get_close_matches(name.lower(), spelled, 1)
    what = f"do you mean {close[0]}?" if close else f"choose among {', '.join(examples)}, with any count in the name."
    raise UserError(f"There is no metric {name!r:.60}: {what}")


def parse_metrics(text: str) -> tuple[str, ...]:
    """Names in a list such as `fid50k_full,kid50k_full`, each once; none in `none`.

    Raises:
        UserError: There is no such metric.
    """
    if text.strip().lower() in ("none", ""):
        return ()
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        parse_metric(name)
    return names
