"""Generator and teacher: loaded once, checked once, and passed on together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from refine import pickles, zoo
from refine.contracts import Denoiser, Generator
from refine.errors import OptionError
from refine.networks import one_step
from refine.networks.loading import LoadedNetwork, as_one_step, load_generator, load_teacher
from refine.networks.preconditioned import as_denoiser
from refine.networks.style_based import as_generator
from refine.pair.bridge import Bridge, make_bridge
from refine.pair.classes import class_notes


@dataclass(frozen=True)
class Pair:
    """A generator, a teacher, and the bridge between them.

    Attributes:
        generator: Generator as loaded, in float32, on the CPU; training works on a copy.
        teacher: Teacher as loaded, in float32, on the CPU; training works on a copy.
        bridge: Conversion of the generator's images and labels to the teacher's.
        gan_file: File of the generator, which in a distillation is the teacher's; None for a network that was made in
            Python.
        teacher_file: File of the teacher; None for a network that was made in Python.
        digests: SHA-256 of each file, keyed by the option that names the file: `gan`, `teacher`.
        notes: Notes on the classes of the two networks, one sentence each.
        distills: Whether the generator starts as the teacher's own network.
    """

    generator: Generator
    teacher: Denoiser
    bridge: Bridge
    gan_file: LoadedNetwork | None = None
    teacher_file: LoadedNetwork | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    distills: bool = False

    @property
    def name(self) -> str:
        """`<gan>-<teacher>`, from the names of the files; `<teacher>-distilled`."""
        if self.distills:
            return f"{self.teacher_file.pickle.path.stem if self.teacher_file else 'teacher'}-distilled"
        files = (self.gan_file, self.teacher_file)
        return "-".join(
            file.pickle.path.stem if file else title
            for file, title in zip(files, ("generator", "teacher"), strict=True)
        )

    def write_snapshot(
        self, path: Path, live: Mapping[str, Tensor], average: Mapping[str, Tensor], objective: str | None = None
    ) -> None:
        """Writes a copy of the generator's pickle with new weights; everything else stays unchanged.

        Args:
            path: File to write.
            live: State dict of the live generator, for the entry `G`; `net` for a one-step generator.
            average: State dict of the moving average, for the entry `G_ema`; `ema` for a one-step generator.
            objective: Objective to record in the pickle of a one-step generator.

        Raises:
            UserError: The file cannot be written.
        """
        assert self.gan_file is not None, "a network without a file has no pickle to write"
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
) -> Pair:
    """Loads both files and joins the networks.

    Args:
        gan: Path, URL, or zoo name of the pickle of a StyleGAN or one-step generator; None to distill the teacher.
        teacher: Path, URL, or zoo name of an EDM pickle.
        resample: Key of `resize.FILTERS`.
        class_map: Teacher class of each generator class; None if both number their classes alike.
        sigma_init: Noise level of a one-step generator; None: as its file tells, else 2.5.
        trust: Permission to run source code embedded in the pickles, for networks that Refine does not know.

    Raises:
        UserError: A file cannot be downloaded or read, or the two networks do not fit together.
    """
    if gan is None:
        if class_map is not None:
            raise OptionError(
                "{class_map} joins two networks, and a distillation has one: leave it out, or give {gan}."
            )
        return distillation_of(load_teacher(teacher, trust=trust), sigma_init)
    zoo.resolve_all((gan, teacher))  # so that all that has to be fetched by hand is named at once
    gan_file = load_generator(gan, trust=trust, sigma_init=sigma_init)
    teacher_file = load_teacher(teacher, trust=trust)
    return pair_of(gan_file, teacher_file, resample=resample, class_map=class_map)


def pair_of(
    gan_file: LoadedNetwork,
    teacher_file: LoadedNetwork,
    *,
    resample: str = "lanczos",
    class_map: Sequence[int] | None = None,
) -> Pair:
    """Joins two networks that are already loaded; see `load_pair`."""
    generator = as_generator(gan_file.network, f"{gan_file.record.class_name} in {gan_file.pickle.path}")
    denoiser = as_denoiser(teacher_file.network)
    bridge = make_bridge(generator, denoiser, resample, class_map)
    notes = class_notes(gan_file.pickle, teacher_file.pickle, generator.c_dim, denoiser.label_dim, class_map)
    files = {"gan": gan_file, "teacher": teacher_file}
    digests = {name: pickles.file_sha256(file.pickle.path) for name, file in files.items()}
    return Pair(generator, denoiser, bridge, gan_file, teacher_file, digests, tuple(notes))


def distillation_of(teacher_file: LoadedNetwork, sigma_init: float | None = None) -> Pair:
    """Pairs a teacher with a one-step generator that starts as the teacher's own network.

    Args:
        teacher_file: Result of `load_teacher`.
        sigma_init: Noise level of the one evaluation; None for 2.5.

    Raises:
        OptionError: The teacher does not know the noise level.
    """
    gan_file = as_one_step(teacher_file, one_step.DEFAULT_SIGMA_INIT if sigma_init is None else sigma_init)
    generator, denoiser = as_generator(gan_file.network), as_denoiser(teacher_file.network)
    digests = {"teacher": pickles.file_sha256(teacher_file.pickle.path)}
    bridge = make_bridge(generator, denoiser)
    return Pair(generator, denoiser, bridge, gan_file, teacher_file, digests, distills=True)
