"""Generator and teacher: loaded once, checked once, and passed on together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refine import pickles, zoo
from refine.contracts import Denoiser, Generator
from refine.diffusion.guidance import Guided
from refine.errors import OptionError
from refine.networks import one_step, weights_file
from refine.networks.adm_settings import ADMSettings
from refine.networks.loading import LoadedNetwork, as_one_step, load_generator, load_teacher
from refine.networks.preconditioned import as_denoiser
from refine.networks.style_based import as_generator
from refine.pair.bridge import Bridge, make_bridge
from refine.pair.classes import class_notes
from refine.pickles.state_dict import StateDict


@dataclass(frozen=True)
class Pair:
    """A generator, a teacher, and the bridge between them.

    Attributes:
        generator: Generator as loaded, in float32, on the CPU; training works on a copy.
        teacher: Teacher as loaded, guided if there is a guide, in float32, on the CPU; training works on a copy.
        bridge: Conversion of the generator's images and labels to the teacher's.
        gan_file: File of the generator, which in a distillation is the teacher's; None for a network that was made in
            Python.
        teacher_file: File of the teacher; None for a network that was made in Python.
        guide_file: File of the guide; None without a guide, or for a network that was made in Python.
        digests: SHA-256 of each file, keyed by the option that names the file: `gan`, `teacher`, `guide`.
        notes: Notes on the classes of the two networks, one sentence each.
        titles: Names of networks without a file.
        options: Options of the run as JSON, which a snapshot without a pickle records.
        distills: Whether the generator starts as the teacher's own network.
    """

    generator: Generator
    teacher: Denoiser
    bridge: Bridge
    gan_file: LoadedNetwork | None = None
    teacher_file: LoadedNetwork | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    titles: tuple[str, str] = ("generator", "teacher")
    options: str = "{}"
    distills: bool = False
    guide_file: LoadedNetwork | None = None

    @property
    def teacher_key(self) -> str | None:
        """Text that is the same only for teachers that draw the same images; None for a teacher without a file."""
        if "teacher" not in self.digests:
            return None
        return f"{self.digests['teacher']} {conditions(self.teacher, self.digests)}".rstrip()

    @property
    def snapshot_suffix(self) -> str:
        """End of the names of snapshots: `.pkl`, and `.safetensors` for a generator without a pickle."""
        return weights_file.SUFFIX if self.gan_file is None else ".pkl"

    @property
    def name(self) -> str:
        """`<gan>-<teacher>`, from the names of the files; `<teacher>-distilled`."""
        if self.distills:
            return f"{self.teacher_file.pickle.path.stem if self.teacher_file else 'teacher'}-distilled"
        files = (self.gan_file, self.teacher_file)
        return "-".join(
            file.pickle.path.stem if file else title for file, title in zip(files, self.titles, strict=True)
        )

    def write_snapshot(
        self, path: Path, live: Mapping[str, Tensor], average: Mapping[str, Tensor], objective: str | None = None
    ) -> None:
        """Writes a copy of the generator's pickle with new weights; everything else stays unchanged.

        The weights of a generator without a pickle are written with the options of the run.

        Args:
            path: File to write.
            live: State dict of the live generator, for the entry `G`; `net` for a one-step generator.
            average: State dict of the moving average, for the entry `G_ema`; `ema` for a one-step generator.
            objective: Objective to record in the pickle of a one-step generator.

        Raises:
            UserError: The file cannot be written.
        """
        if self.gan_file is None:
            weights_file.write_weights(path, live, average, self.options)
            return
        pickle, network = self.gan_file.pickle, self.gan_file.network
        if isinstance(network, one_step.OneStep):
            one_step.write_snapshot(pickle, path, live, average, network.sigma_init, objective)
            return
        weights = {"G": dict(live), "G_ema": dict(average)}
        pickles.save(pickle, path, {key: value for key, value in weights.items() if pickle.get(key) is not None})


def load_pair(
    gan: str | None,
    teacher: str,
    *,
    resample: str = "lanczos",
    class_map: Sequence[int] | None = None,
    sigma_init: float | None = None,
    trust: bool = False,
    settings: ADMSettings | str | Mapping[str, Any] | None = None,
    guide: str | None = None,
    guidance: float = 1.0,
) -> Pair:
    """Loads both files and joins the networks.

    Args:
        gan: Path, URL, or zoo name of the pickle of a StyleGAN or one-step generator; None to distill the teacher.
        teacher: Path, URL, or zoo name of an EDM pickle or an ADM state dict.
        resample: Key of `resize.FILTERS`.
        class_map: Teacher class of each generator class; None if both number their classes alike.
        sigma_init: Noise level of a one-step generator; None: as its file tells, else 2.5.
        trust: Permission to run source code embedded in the pickles, for networks that Refine does not know.
        settings: What a state dict does not tell; see `networks.loading.load_teacher`.
        guide: Path, URL, or zoo name of a denoiser that the teacher is guided away from; None for none.
        guidance: Weight of the guidance; see `diffusion.guidance`.

    Raises:
        UserError: A file cannot be downloaded or read, or the two networks do not fit together.
    """
    # So that all that has to be fetched by hand is named at once.
    zoo.resolve_all([spec for spec in (gan, teacher, guide) if spec is not None])
    gan_file = None if gan is None else load_generator(gan, trust=trust, sigma_init=sigma_init)
    teacher_file = load_teacher(teacher, trust=trust, settings=settings)
    guide_file = None if guide is None else load_teacher(guide, trust=trust, settings=settings)
    if gan_file is not None:
        return pair_of(
            gan_file, teacher_file, resample=resample, class_map=class_map, guide_file=guide_file, guidance=guidance
        )
    if class_map is not None:
        raise OptionError("{class_map} joins two networks, and a distillation has one: leave it out, or give {gan}.")
    return distillation_of(teacher_file, sigma_init, guide_file=guide_file, guidance=guidance)


def pair_of(
    gan_file: LoadedNetwork,
    teacher_file: LoadedNetwork,
    *,
    resample: str = "lanczos",
    class_map: Sequence[int] | None = None,
    guide_file: LoadedNetwork | None = None,
    guidance: float = 1.0,
) -> Pair:
    """Joins networks that are already loaded; see `load_pair`."""
    generator = as_generator(gan_file.network, f"{gan_file.record.class_name} in {gan_file.pickle.path}")
    denoiser = guided_denoiser(teacher_file, guide_file, guidance)
    bridge = make_bridge(generator, denoiser, resample, class_map)
    notes = class_notes(gan_file.pickle, teacher_file.pickle, generator.c_dim, denoiser.label_dim, class_map)
    files = {"gan": gan_file, "teacher": teacher_file, **({"guide": guide_file} if guide_file else {})}
    digests = {name: pickles.file_sha256(file.pickle.path) for name, file in files.items()}
    return Pair(generator, denoiser, bridge, gan_file, teacher_file, digests, tuple(notes), guide_file=guide_file)


def distillation_of(
    teacher_file: LoadedNetwork,
    sigma_init: float | None = None,
    *,
    guide_file: LoadedNetwork | None = None,
    guidance: float = 1.0,
) -> Pair:
    """Pairs a teacher with a one-step generator that starts as the teacher's own network, without its guide.

    Args:
        teacher_file: Result of `load_teacher`.
        sigma_init: Noise level of the one evaluation; None for 2.5.
        guide_file: Denoiser that the teacher is guided away from; None for none.
        guidance: Weight of the guidance.

    Raises:
        OptionError: The teacher does not know the noise level, or its file cannot hold the generator.
    """
    if isinstance(teacher_file.record, StateDict):
        raise OptionError(
            f"{{teacher={teacher_file.pickle.path}}} is a state dict, and a distilled generator is written into the "
            "teacher's pickle: distill an EDM or EDM2 pickle, or give a generator to refine with {gan}."
        )
    gan_file = as_one_step(teacher_file, one_step.DEFAULT_SIGMA_INIT if sigma_init is None else sigma_init)
    generator, denoiser = as_generator(gan_file.network), guided_denoiser(teacher_file, guide_file, guidance)
    files = {"teacher": teacher_file, **({"guide": guide_file} if guide_file else {})}
    digests = {name: pickles.file_sha256(file.pickle.path) for name, file in files.items()}
    bridge = make_bridge(generator, denoiser)
    return Pair(generator, denoiser, bridge, gan_file, teacher_file, digests, distills=True, guide_file=guide_file)


def guided_denoiser(
    teacher: LoadedNetwork, guide: LoadedNetwork | None, guidance: float = 1.0, device: torch.device | None = None
) -> Denoiser:
    """A teacher behind the contract of a denoiser, guided if there is a guide.

    Args:
        teacher: The teacher's file.
        guide: The guide's file; None for none.
        guidance: Weight of the guidance.
        device: Device to move both to; None to leave them.

    Raises:
        UserError: The guide denoises other images, or has other classes.
    """
    if device is not None:
        for file in (teacher, guide):
            if file is not None:
                file.network.to(device)
    denoiser = as_denoiser(teacher.network)
    return denoiser if guide is None else Guided(denoiser, as_denoiser(guide.network), guidance)


def conditions(denoiser: Denoiser, digests: Mapping[str, str]) -> str:
    """What decides a teacher's images besides its file: settings of a state dict, guide and guidance; often nothing.

    Args:
        denoiser: A teacher.
        digests: SHA-256 of the guide's file, under `guide`, if there is a guide.
    """
    if not isinstance(denoiser, Guided):
        return _settings(denoiser)
    guide = f"guidance={denoiser.weight!r} guide={digests.get('guide')}"
    return " ".join(part for part in (_settings(denoiser.denoiser), guide, _settings(denoiser.guide)) if part)


def _settings(denoiser: Denoiser) -> str:
    return str(getattr(denoiser.module, "settings", ""))
