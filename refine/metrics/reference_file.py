"""Reference files: mean and covariance of a data set's features in an .npz, and how they were made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refine import pickles
from refine.errors import UserError
from refine.files.atomic import atomic_write
from refine.files.digest import file_sha256
from refine.files.jsonl import to_json
from refine.files.reading import cannot_read, reading
from refine.metrics.detectors import Detector
from refine.metrics.metric import FeatureSpec, Metric, too_few
from refine.metrics.moments import Moments
from refine.metrics.reference import Reference
from refine.metrics.sampler import Labels
from refine.runtime import distributed

INCEPTION = "fid"
EDM2_ENTRIES = (INCEPTION, "fd_dinov2")  # by `Metric.statistics`


class StatisticsReference(Reference):
    """Mean and covariance of a data set's features, as EDM and EDM2 publish them or `save_reference` writes.

    EDM's .npz files, and the entries `fid` and `fd_dinov2` of EDM2's pickles, hold `mu` [D] and `sigma` [D, D], the
    latter divided by the number of images minus 1. ADM's have `mu_s` and `sigma_s`, too, of spatial features. Ours have
    `num_images` and their origin, the labels if there are any, and on request all features.
    """

    kind = "statistics"

    def __init__(self, path: Path, *, name: str | None = None, resolution: int | None = None) -> None:
        """Reads the file.

        Args:
            path: The .npz file, or EDM2's .pkl.
            name: Its name in rows; None: the file's.
            resolution: Pixels of the images along an axis, if known from elsewhere.

        Raises:
            UserError: The file cannot be read, or is not such a file.
        """
        self.path, self.name = path, name or path.name
        entries, self._is_of_edm2 = _entries(path)
        arrays = next(iter(entries.values()))
        with reading(path):
            self.sha256 = file_sha256(path)
        self.num_images = _integer(path, arrays, "num_images")
        self.ddof = 1 if (ddof := _integer(path, arrays, "ddof")) is None else ddof
        self.detector_sha256 = str(arrays["detector_sha256"]) if "detector_sha256" in arrays else None
        # Without the number of images it does not matter which one is put in: it is divided out again.
        self._moments = {
            entry: Moments.from_covariance(*_mean_and_covariance(path, held), self.num_images or 2**31, ddof=1)
            for entry, held in entries.items()
        }
        self.features = _table(path, arrays, "features", (None, next(iter(self._moments.values())).dimension))
        in_name = re.search(r"(\d+)x\1(?!\d)", self.name) or re.search(r"^img(\d+)", self.name)
        stated = resolution or _integer(path, arrays, "resolution")
        self.resolution = stated or (int(in_name[1]) if in_name else None)
        self.num_channels = _integer(path, arrays, "num_channels") or None
        counts = _table(path, arrays, "label_counts", (None,))
        vectors = _table(path, arrays, "label_vectors", (None, None))
        if counts is not None and counts.min() >= 0 and counts.sum() > 0:
            self.labels = Labels(counts=counts.astype(np.int64))
        elif vectors is not None:
            self.labels = Labels(vectors=vectors.astype(np.float32))

    @property
    def where(self) -> str:
        """See `Reference.where`."""
        return f"{self.path} (statistics of EDM2)" if self._is_of_edm2 else str(self.path)

    def dimension_for(self, metric: Metric) -> int | None:
        """See `Reference.dimension_for`."""
        return self._moments_for(metric).dimension

    def _moments_for(self, metric: Metric) -> Moments:
        """The moments of a metric's features.

        Raises:
            UserError: The file holds those of other features.
        """
        if self.detector_sha256 is not None:  # of which `check` makes sure
            return self._moments[INCEPTION]
        entry = metric.statistics
        if entry is None or entry not in self._moments:
            held = " and ".join(self._moments)
            raise UserError(
                f"The reference {self.where} holds statistics for {held}, and {metric.name} compares other features: "
                "give the data set."
            )
        return self._moments[entry]

    def check(self, metric: Metric, detector: Detector) -> None:
        """See `Reference.check`."""
        self._moments_for(metric)
        if metric.features(detector).keep != "moments" and self.features is None:
            raise UserError(
                f"The reference {self.where} has a mean and a covariance and no features, which {metric.name} needs: "
                "give the data set, or measure the FID only."
            )
        if not metric.full:
            raise UserError(
                f"The reference {self.where} stands for a whole data set, and {metric.name} takes its first images: "
                f"ask for {metric.name}_full."
            )
        count = self.num_images if self.features is None else len(self.features)
        if count is not None and count < metric.least_images:
            raise too_few(metric.name, metric.least_images, self.where, count)
        if self.detector_sha256 is not None and self.detector_sha256 != detector.sha256:
            raise UserError(
                f"The reference {self.where} was made with another detector (sha256 {self.detector_sha256[:16]}...) "
                f"than {detector.path} ({detector.sha256[:16]}...): give that detector."
            )

    def get(self, spec: FeatureSpec, metric: Metric) -> Any:
        """See `Reference.get`."""
        if spec.keep == "moments":
            return self._moments_for(metric)
        assert self.features is not None, "checked before"
        rows = self.features[: metric.max_real]
        return rows.astype(np.float16 if spec.keep == "half" else np.float32)

    def provenance(self, metric: Metric) -> dict[str, Any]:
        """See `Reference.provenance`."""
        return {"kind": self.kind, "name": self.name, "sha256": self.sha256, "num_images": self.num_images}


def holds_statistics(path: Path) -> bool:
    """True if a file can be a reference, judging by its first bytes and, for a pickle, by its entries."""
    with reading(path), path.open("rb") as file:
        start = file.read(2)
    if start[:1] != b"\x80":
        return start == b"PK"
    try:
        held = pickles.load_arrays(path)
        return any(isinstance(held.get(entry), dict) for entry in EDM2_ENTRIES)
    except pickles.PickleError:
        return False


def _table(path: Path, arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int | None, ...]) -> np.ndarray | None:
    """An array of finite numbers of a shape, in which None stands for any number of at least 1; None without it."""
    if name not in arrays:
        return None
    array = arrays[name]
    fits = (
        array.ndim == len(shape) and array.size and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
    )
    if not fits or array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise UserError(
            f"The reference {path} holds a {name!r} {list(array.shape)} of {array.dtype}, which is not what "
            "--export-ref writes: give another."
        )
    return array


def _integer(path: Path, arrays: Mapping[str, np.ndarray], name: str) -> int | None:
    """A whole number of at least 0 among the arrays; None if it is not there."""
    if name not in arrays:
        return None
    array = arrays[name]
    if array.size != 1 or array.dtype.kind not in "iu" or array.item() < 0:
        raise UserError(f"The reference {path} holds a {name!r} that is not a number from 0: give another.")
    return int(array.item())


def _mean_and_covariance(path: Path, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    mean, sigma = np.asarray(arrays["mu"], np.float64), np.asarray(arrays["sigma"], np.float64)
    is_finite = np.isfinite(mean).all() and np.isfinite(sigma).all()
    if mean.ndim != 1 or sigma.shape != 2 * mean.shape or not is_finite:
        raise UserError(
            f"The reference {path} has a mu {list(mean.shape)} and a sigma {list(sigma.shape)}, which are not a "
            "mean and a covariance of finite numbers: download it again, or give another."
        )
    return mean, sigma


def _entries(path: Path) -> tuple[dict[str, Mapping[str, np.ndarray]], bool]:
    """Arrays of the file by entry, with `mu` and `sigma` among them, and whether it is a pickle of EDM2."""
    with reading(path), path.open("rb") as file:
        is_pickle = file.read(1) == b"\x80"
    if is_pickle:
        held = pickles.load_arrays(path)
        found = {entry: held.get(entry) for entry in EDM2_ENTRIES}
        if not any(isinstance(arrays, dict) for arrays in found.values()):
            raise UserError(f"The reference {path} is a pickle without the entry 'fid' of EDM2's: give another.")
        return {
            entry: _checked(path, {name: np.asarray(value) for name, value in arrays.items()})
            for entry, arrays in found.items()
            if isinstance(arrays, dict)
        }, True
    try:
        with np.load(path, allow_pickle=False) as npz:
            arrays = dict(npz)
    except (OSError, MemoryError) as error:
        raise cannot_read(path, error) from error
    except Exception as error:  # zipfile, NumPy's header parser, and object arrays
        raise UserError(
            f"The reference {path} is not an .npz file of numbers, or is damaged: download it again."
        ) from error
    entries = {INCEPTION: _checked(path, arrays)}
    if "mu_s" in arrays and "sigma_s" in arrays:
        entries["sfid"] = _checked(path, {**arrays, "mu": arrays["mu_s"], "sigma": arrays["sigma_s"]})
    return entries, False


def _checked(path: Path, arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    for name in ("mu", "sigma"):
        if name not in arrays:
            raise UserError(f"The reference {path} has no entry {name!r}: give an .npz with mu and sigma.")
        if arrays[name].dtype.kind not in "fiu":
            raise UserError(f"The reference {path} holds a {name!r} of type {arrays[name].dtype}: give numbers.")
    return arrays


def save_reference(path: Path, reference: Reference, detector: Detector, metric: Metric, *, features: bool) -> None:
    """Writes a reference as an .npz that `StatisticsReference` and EDM's tools read.

    All processes call this; the first one writes.

    Args:
        path: File to write.
        reference: Data set or teacher.
        detector: Detector of the features.
        metric: Metric that decides how many images are taken.
        features: Write all features too, which KID and precision and recall need.

    Raises:
        UserError: An image cannot be read or drawn, or the file cannot be written.
    """
    moments: Moments = reference.get(FeatureSpec(detector), metric)
    arrays: dict[str, Any] = {
        "mu": moments.mean,
        "sigma": moments.covariance(ddof=1),  # as EDM's tools expect it
        "ddof": np.int64(reference.ddof),
        "num_images": np.int64(moments.count),
        "detector_name": detector.name,
        "detector_sha256": detector.sha256,
        "resolution": np.int64(reference.resolution or 0),
        "num_channels": np.int64(reference.num_channels or 0),
        "source": to_json(reference.provenance(metric)),
    }
    if reference.labels is not None:
        if reference.labels.counts is not None:
            arrays["label_counts"] = reference.labels.counts
        else:
            arrays["label_vectors"] = reference.labels.vectors
    if features:
        arrays["features"] = reference.get(FeatureSpec(detector, keep="rows"), metric)
    if distributed.is_rank0():
        with atomic_write(path) as file:
            np.savez(file, **arrays)
