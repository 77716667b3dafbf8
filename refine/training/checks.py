"""Options that need another pair, refused before a network is copied."""

from __future__ import annotations

from refine.config import TrainingOptions
from refine.diffusion import augment
from refine.diffusion.guidance import Guided
from refine.errors import OptionError, literal
from refine.pair.pair import Pair


def check_options(pair: Pair, options: TrainingOptions) -> None:
    """Checks that the options fit the pair.

    Raises:
        OptionError: An option needs another pair.
    """
    if options.anchor and pair.bridge.img_resolution == pair.generator.img_resolution:
        raise OptionError(
            "{anchor} preserves detail that the teacher cannot see, and this teacher has the generator's resolution: "
            "leave it out."
        )
    if options.objective.needs_fake and not any(True for _ in pair.teacher.module.parameters()):
        raise OptionError(
            f"{{objective={options.objective}}} trains a copy of the teacher as the fake score, and this teacher has "
            "no parameters: give a torch.nn.Module with its weights, or use {objective=sds} or {objective=smart}."
        )
    if options.fake_augment and pair.teacher.augment_dim != augment.NUM_LABELS:
        name = pair.teacher_file.pickle.path if pair.teacher_file else "this teacher"
        raise OptionError(
            f"{{fake_augment}} needs a teacher trained with EDM's {augment.NUM_LABELS} augmentation labels, and "
            f"{literal(name)} was not: use {{fake_augment=0}}."
        )
    if options.fake_augment and options.guide_fake and isinstance(pair.teacher, Guided):
        guide = pair.teacher.guide
        if guide.augment_dim != augment.NUM_LABELS:
            name = pair.guide_file.pickle.path if pair.guide_file else "this guide"
            raise OptionError(
                f"{{guide_fake=True}} with {{fake_augment}} needs a guide trained with EDM's {augment.NUM_LABELS} "
                f"augmentation labels, and {name} was not: use {{fake_augment=0}}."
            )
