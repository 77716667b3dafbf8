"""Names of metrics, as the StyleGAN suite spells them, and what they stand for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from refine.errors import UserError

OFFICIAL_COUNT = 50_000
NUM_SPLITS = 10  # of the inception score
NUM_SUBSETS, MAX_SUBSET_SIZE = 100, 1000  # of the KID
_MAX_REAL_FULL: dict[str, int | None] = {"fid": None, "fdd": None, "kid": 1_000_000, "pr": 200_000}

_FORMS = (
    re.compile(r"(?P<kind>fid|fdd|kid)(?P<count>\d+)(?P<thousand>k?)(?P<full>_full)?"),
    re.compile(r"(?P<kind>pr)(?P<count>\d+)(?P<thousand>k)(?P<nhood>\d+)(?P<full>_full)?"),
    re.compile(r"(?P<kind>is)(?P<count>\d+)(?P<thousand>k?)"),
    re.compile(r"(?P<kind>ppl)2_(?P<path>wend)(?:(?P<count>\d+)(?P<thousand>k?))?"),
    re.compile(r"(?P<kind>ppl)_(?P<path>[zw](?:full|end))(?:(?P<count>\d+)(?P<thousand>k?))?"),
)


@dataclass(frozen=True)
class MetricSpec:
    """What a name stands for.

    Attributes:
        name: as it was written.
        kind: "fid", "fdd" (the Fréchet distance with another detector), "kid", "pr", "is" or "ppl".
        num_gen: images (for "ppl": pairs) drawn from the generator.
        full: compare with the whole data set, unmirrored; else with its first images, as a legacy metric.
        max_real: most images taken from the data set; None: all.
        nhood_size: k of the nearest neighbours, for "pr".
        space: "z" or "w", where a path is interpolated, for "ppl".
        sampling: "full" or "end", where on the path steps begin, for "ppl".
        crop: take the middle of a face, for "ppl".
    """

    name: str
    kind: str
    num_gen: int
    full: bool = True
    max_real: int | None = None
    nhood_size: int = 0
    space: str = ""
    sampling: str = ""
    crop: bool = False

    @property
    def needs_reference(self) -> bool:
        """Whether images are compared with others."""
        return self.kind in ("fid", "fdd", "kid", "pr")

    @property
    def note(self) -> str | None:
        """Why the value must not be compared with published ones; None if it may."""
        if self.num_gen == OFFICIAL_COUNT:
            return None
        return f"{self.num_gen} images: does not compare with {OFFICIAL_COUNT // 1000}k"


def parse_metric(name: str) -> MetricSpec:
    """`fid50k_full`, `kid50k_full`, `pr50k3_full`, `is50k`, `ppl2_wend` and their like, with any count.

    `fid5k_full` takes 5000 images and `fid500_full` 500; `ppl2_wend` may be followed by a count too. Without `_full`
    it is the legacy metric: as many images of the data set as of the generator.

    Raises:
        UserError: it is none of these.
    """
    match = next((m for form in _FORMS if (m := form.fullmatch(name))), None)
    if match is None:
        raise UserError(
            f"There is no metric {name!r}: take fid50k_full, kid50k_full, pr50k3_full, is50k or ppl2_wend, with any "
            "count in the name."
        )
    found = match.groupdict()
    kind = found["kind"]
    count = OFFICIAL_COUNT
    if found["count"]:
        count = int(found["count"]) * (1000 if found["thousand"] else 1)
    if not 2 <= count <= 10_000_000:
        raise UserError(f"The metric {name!r} would take {count} images: take from 2 to 10 million.")
    if kind == "ppl":
        legacy = not name.startswith("ppl2")
        space, sampling = found["path"][0], found["path"][1:]
        return MetricSpec(name, kind, count, space=space, sampling=sampling, crop=legacy)
    if kind == "is":
        if count < NUM_SPLITS:
            raise UserError(f"The metric {name!r} needs at least {NUM_SPLITS} images.")
        return MetricSpec(name, kind, count)
    full = found["full"] is not None
    nhood_size = int(found.get("nhood") or 0)
    if kind == "pr" and not 1 <= nhood_size < count:
        raise UserError(f"The metric {name!r} counts {nhood_size} nearest neighbours: take at least 1.")
    return MetricSpec(name, kind, count, full, _MAX_REAL_FULL[kind] if full else count, nhood_size)


def parse_metrics(text: str) -> tuple[str, ...]:
    """`fid50k_full,kid50k_full` -> their names, each once; `none` -> no names.

    Raises:
        UserError: one of them is unknown.
    """
    if text.strip().lower() in ("none", ""):
        return ()
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        parse_metric(name)
    return names
