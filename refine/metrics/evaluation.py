"""Evaluation: metrics of a generator, a pickle or all snapshots of a run, from Python."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refine import zoo
from refine.errors import UserError
from refine.files.digest import file_sha256
from refine.files.listing import open_files
from refine.metrics.metric import parse_metric, parse_metrics
from refine.metrics.options import MetricOptions
from refine.metrics.reference import Teacher
from refine.metrics.reference_file import holds_statistics
from refine.metrics.resolve import dataset_path
from refine.metrics.stored_images import StoredImages
from refine.metrics.suite import Suite
from refine.metrics.teacher_samples import TeacherSamples
from refine.networks.loading import LoadedNetwork, load_teacher
from refine.networks.own_snapshot import OwnSnapshot, is_snapshot, open_generator
from refine.networks.plain_module import as_contract
from refine.networks.preconditioned import as_denoiser
from refine.networks.weights_file import SUFFIX
from refine.runtime.device import choose_device

log = logging.getLogger("refine")

OPTIONS = {field.name for field in fields(MetricOptions)} - {"metrics", "data", "ref", "contact_sheet"}


def evaluate(
    generator: Any,
    metrics: str | Sequence[str] = "fid50k_full",
    reference: Any = None,
    *,
    device: str | torch.device = "auto",
    trust: bool = False,
    **options: Any,
) -> list[dict[str, Any]]:
    """Measures a generator, or all snapshots of a run.

        evaluate("ffhq", "fid50k_full,pr50k3_full", "datasets/ffhq-1024x1024.zip")
        evaluate(G, ["fid5k_full"], "edm-cifar10-cond", seed=1)

    Under torchrun, all processes call this with the same arguments and share the work.

    Args:
        generator: One of: path, URL or zoo name of a StyleGAN pickle, or of a snapshot of a network that a Python file
            makes; folder of a run, all of whose snapshots are measured; a `LoadedNetwork`; a `refine.Generator`; or a
            module or function with an attribute `z_dim`, called as `G(z)` or `G(z, c)` with z [N, z_dim] and one-hot
            labels c [N, c_dim] for images [N, C, R, R] in [-1, 1], and with `truncation_psi` and `noise_mode` if it
            takes them. Its attributes `c_dim`, `img_channels` and `img_resolution` may be missing: then it has no
            classes, and an image is drawn to see.
            Images are measured, too: a folder, ZIP or .npz file of them, an array, uint8 [N, H, W, C], or
            `refine.metrics.StoredImages`; and so is a diffusion model, by path, URL, zoo name or `LoadedNetwork`, whose
            images EDM's Heun sampler draws.
        metrics: Names of the StyleGAN suite with any count, in a list or separated by commas; see
            `refine.metrics.parse_metric`.
        reference: Reference to compare with: a StyleGAN data set (ZIP, folder or zoo name), statistics (.npz by path,
            URL or zoo name, or EDM2's .pkl), or a diffusion model, whose samples are the reference (pickle by path,
            URL or zoo name, a `LoadedNetwork` or a `Teacher`). None if no metric needs one (inception score, path
            lengths).
        device: Device: `auto`, `cpu`, `cuda`, `mps` or a torch.device; `auto` is the device of a module's parameters.
        trust: Permission to run source code embedded in pickles, for networks that Refine does not know, and the Python
            file of a snapshot.
        options: Further fields of `refine.metrics.MetricOptions`: detector, vgg, trust_detector, seed, fid_seeds,
            bootstrap, kid_subsets, kid_subset_size, batch, workers, mirror, noise_mode, truncation_psi, ref_images,
            resample.

    Returns:
        A row for each snapshot and metric, as in `metric-<name>.jsonl`: {"results": {"fid50k_full": 2.71}, "metric":
        "fid50k_full", ..., "provenance": {...}}. Nothing is written.

    Raises:
        UserError: Something cannot be had or read, does not fit, or is not finite.
        TypeError: An option is unknown, or the generator is none of the above.
    """
    unknown = sorted(options.keys() - OPTIONS)
    if unknown:
        raise TypeError(f"evaluate() has no option {unknown[0]!r}; its options are {', '.join(sorted(OPTIONS))}")
    names = parse_metrics(metrics if isinstance(metrics, str) else ",".join(metrics))
    snapshots = _snapshots(generator)
    place = _device(device, snapshots[0])
    needing = [name for name in names if parse_metric(name).needs_reference]
    if needing and reference is None:
        raise UserError(f"{needing[0]} compares with a reference: give `reference`, such as the path of a data set.")
    teacher, where = _reference(reference, place, trust)
    chosen = MetricOptions(metrics=names, **where, **options)
    rows: list[dict[str, Any]] = []
    suite = None
    for snapshot in snapshots:
        found = _measurable(snapshot, trust)
        with _ready(getattr(found.generator, "module", found.generator), place):
            drawn = as_contract(found.generator)
            suite = suite or Suite.build(chosen, drawn, place, teacher)
            rows += suite.measure(drawn, found.name)
    return rows


@dataclass(frozen=True)
class Measurable:
    """Something that metrics can be computed of.

    Attributes:
        generator: A `contracts.Generator`, or a module or function that is called as it is.
        name: Its name in rows.
        loaded: The network and its file, if that is a pickle.
        path: Its file, if it is a network.
    """

    generator: Any
    name: str
    loaded: LoadedNetwork | None = None
    path: Path | None = None

    @property
    def module(self) -> torch.nn.Module:
        """The module that lies on a device."""
        module: torch.nn.Module = getattr(self.generator, "module", self.generator)
        return module

    @classmethod
    def of(cls, loaded: LoadedNetwork | OwnSnapshot) -> Measurable:
        """A network; a denoiser draws by EDM's Heun sampler."""
        if isinstance(loaded, OwnSnapshot):
            path = loaded.path.resolve()
            return cls(loaded.drawn, path.name, path=path)
        path = loaded.pickle.path.resolve()  # network-best.pkl is a link to a snapshot
        draws = hasattr(loaded.network, "z_shape") or hasattr(loaded.network, "z_dim")  # as one-step generators do
        if loaded.architecture.role == "denoiser" and not draws:
            return cls(TeacherSamples(as_denoiser(loaded.network)), path.name, loaded, path)
        return cls(loaded.network, path.name, loaded, path)

    @classmethod
    def load(
        cls,
        spec: str,
        *,
        gan: str | None = None,
        trust: bool = False,
        sigma_init: float | None = None,
        settings: str | None = None,
    ) -> Measurable:
        """The network of a file: a generator, else a denoiser.

        Args:
            spec: Path, URL or zoo name.
            gan: `module.py:function` that makes the network of a snapshot without a pickle; see `open_generator`.
            trust: Permission to run source code embedded in pickles, for networks that Refine does not know.
            sigma_init: Noise level of a one-step generator; see `load_generator`.
            settings: Settings of a teacher's state dict; see `load_teacher`.

        Raises:
            UserError: The file cannot be had, or holds neither.
        """
        path = zoo.resolve(spec).path  # once, so that a file that cannot be had is one error
        try:
            return cls.of(open_generator(spec, gan=gan, trust=trust, sigma_init=sigma_init))
        except UserError as error:
            if gan is not None or is_snapshot(path):
                raise
            try:
                found = cls.of(load_teacher(spec, trust=trust, settings=settings))
            except UserError as other:  # of a state dict, which a teacher's is, this one tells what is missing
                raise other if path.suffix.lower() in (".pt", ".pth") else error from None
        log.info(f"{path} holds a denoiser: {found.generator.about['sampler']} draw its images")
        return found


def snapshots_of(folder: Path) -> list[Path]:
    """Snapshots of a run, in their order.

    Raises:
        UserError: There are none.
    """
    found = sorted(path for path in folder.glob("network-snapshot-*") if path.suffix in (".pkl", SUFFIX))
    if not found:
        raise UserError(
            f"{folder} contains no network-snapshot-*.pkl and no images: give the folder of a run or of images, or a "
            "pickle."
        )
    return found


def _snapshots(generator: Any) -> list[Any]:
    if isinstance(generator, np.ndarray):
        return [StoredImages(generator)]
    if not isinstance(generator, (str, os.PathLike)):
        return [generator]
    path = Path(os.path.expanduser(os.fspath(generator)))
    if path.suffix.lower() in (".zip", ".npz"):
        return [StoredImages(dataset_path(os.fspath(path)))]
    if not path.is_dir():
        return [os.fspath(generator)]
    if not any(path.glob("network-snapshot-*")) and open_files(path).listing.images:
        return [StoredImages(path)]
    return list(snapshots_of(path))


def _measurable(snapshot: Any, trust: bool) -> Measurable:
    if isinstance(snapshot, (str, os.PathLike)):
        return Measurable.load(os.fspath(snapshot), trust=trust)
    if isinstance(snapshot, LoadedNetwork):
        return Measurable.of(snapshot)
    if isinstance(snapshot, StoredImages):
        return Measurable(snapshot, snapshot.name)
    if not callable(snapshot):
        raise TypeError(f"a generator is a path, a name, a LoadedNetwork, a module or a function, not {snapshot!r:.80}")
    named = getattr(snapshot, "module", snapshot)
    return Measurable(snapshot, getattr(named, "__name__", type(named).__name__))


def _device(device: str | torch.device, generator: Any) -> torch.device:
    if isinstance(device, torch.device):
        return device
    network = getattr(generator, "module", generator)
    if device == "auto" and isinstance(network, torch.nn.Module):
        parameter = next(network.parameters(), None)
        if parameter is not None:
            return parameter.device
    return choose_device(device)


def _reference(reference: Any, device: torch.device, trust: bool) -> tuple[Teacher | None, dict[str, Any]]:
    """The teacher, if the reference is one, and the options that name the reference."""
    if reference is None:
        return None, {}
    if isinstance(reference, Teacher):
        return reference, {"ref": "teacher"}
    if isinstance(reference, (str, os.PathLike)):
        spec = os.path.expanduser(os.fspath(reference))
        if os.path.isdir(spec):
            return None, {"data": spec}
        if not _names_a_network(spec):
            return None, {"ref": spec}
        reference = load_teacher(spec, trust=trust)
    else:
        spec = None
    if not isinstance(reference, LoadedNetwork):
        raise TypeError(f"a reference is a path, a name, a LoadedNetwork or a Teacher, not {reference!r:.80}")
    network = as_denoiser(reference.network.to(device))
    path = reference.pickle.path
    return Teacher(network, spec or str(path), file_sha256(path)), {"ref": "teacher"}


def _names_a_network(spec: str) -> bool:
    entry = zoo.find(Path(spec).name)
    if entry is not None and not os.path.isfile(spec):
        return entry.kind in ("denoiser", "generator")
    suffix = Path(spec).suffix.lower()
    return suffix in (".pt", ".pth") or (suffix == ".pkl" and not holds_statistics(zoo.resolve(spec).path))


@contextmanager
def _ready(network: Any, device: torch.device) -> Iterator[None]:
    """Context in which a module lies on the device, in evaluation mode; after it the module is as it was."""
    if not isinstance(network, torch.nn.Module):
        yield
        return
    training = {module: module.training for module in network.modules()}
    parameter = next(network.parameters(), None)
    before = device if parameter is None else parameter.device
    try:
        network.eval().to(device)
        yield
    finally:
        network.to(before)
        for module, mode in training.items():
            module.training = mode
