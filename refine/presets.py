"""Presets: groups of settings, with their evidence. Options given besides `--preset=NAME` win over it.

The evidence, by name:

- *released*: the distillation code that the authors of Diff-Instruct published (CIFAR-10, 32 pixels).
- *SiD*: published settings of Score identity Distillation (arXiv 2404.04057) for the EDM networks of CIFAR-10, FFHQ,
  AFHQv2 (and ImageNet, with smaller steps). The objective differs, but SiD has the same teachers and the best results
  without data.
- *SiDA*: SiD's successor, which first trains the fake score on 100 kimg of a frozen generator.
- *DMD2*: Distribution Matching Distillation 2 (arXiv 2405.14867), the same gradient as here except for the weighting.
- *demo*: docs/demo.md, tries on the 16-pixel digits and three seeds of the result.
- *study*: our own, on 8-pixel digits, single runs. At ln sigma ~ N(-1.2, 1.2) an unconditional generator lost
  classes (the rarest fell from 4.4% to 0.7%) and its FID did not change; at N(1, 1.2) its FID fell from 516 to 409 and
  the rarest class kept 2.2%. With classes, the FID after 24 kimg was 39.5 at -1.2; at 0 it reached 18.4 after 96 kimg,
  and variety increased.
- *sharing*: `python -m benchmarks.studies.sharing`, three seeds of the digits at equal CPU time. A fresh batch for each
  update reached FID 48.8, one generator pass for both updates 56.0, one pass of the fake score as well 52.8: all
  presets use fresh batches.

Without a GAN, the teacher is distilled into a one-step generator (docs/distilling.md). For this:

- *SiD*, *released*, *DMD2*: as above, each with its own objective and sigma_init. What could not be taken over is named
  beside each preset. None has been run here at its full length, which takes days on several GPUs.
- *distillation study*: `python -m benchmarks.studies.distillation`, on the built-in digits.

All presets for GANs but `released` use higher noise levels than the published code: a median sigma of 1.0 or more, not
0.3, and of 2.5 or more if no labels distinguish the classes. `small` and `medium` have not been run on a GPU yet.
"""

from __future__ import annotations

import filecmp
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_DIGITS = Path(__file__).resolve().parent / "digits"
BUILT_IN_TEACHER = _DIGITS / "edm-digits.pkl"


@dataclass(frozen=True)
class Preset:
    """Options under a name.

    Attributes:
        summary: Pairs it is for.
        options: Fields of `RunConfig`.
        unconditional: Fields that differ where the teacher gets no labels.
    """

    summary: str
    options: Mapping[str, Any]
    unconditional: Mapping[str, Any] = field(default_factory=dict)

    def options_for(self, conditional: bool) -> dict[str, Any]:
        """The options for a pair with or without labels."""
        return {**self.options, **({} if conditional else self.unconditional)}


def _sid(summary: str, **changes: Any) -> Preset:
    """SiD's settings: those of CIFAR-10 with changes. Its steps begin at once, without a warm-up."""
    options: dict[str, Any] = {
        "objective": "sid:alpha=1.2",
        "sigma": "karras:0.002,24.4,7",
        "fake_sigma": "lognormal:-1.2,1.2",
        "glr": 1e-5,
        "flr": 1e-5,
        "batch": 256,
        "kimg": 500_000.0,
        "warmup_kimg": 0.0,
        "tick_kimg": 50.0,
        "snap_ticks": 200,
    }
    return Preset(summary, options | changes)


# Settings of the built-in digits. Distillation study: `lognormal:0.6,1.2` as for the refinement; no dropout.
_DIGITS_DISTILLED: dict[str, Any] = {
    "objective": "ikl",
    "sigma": "lognormal:0.6,1.2",
    "fake_sigma": "lognormal:0.6,1.2",
    "gan_dropout": False,
    "glr": 1e-3,
    "flr": 2e-3,
    "lr_rampup_kimg": 0.5,
    "lr_decay": "cosine",
    "batch": 32,
    "kimg": 24.0,
    "warmup_kimg": 0.5,
    "ema_halflife_kimg": 1.0,
    "ema_rampup": None,
    "tick_kimg": 1.5,
    "snap_ticks": 8,
}

DISTILLATION: dict[str, Preset] = {
    "distill-digits": Preset(
        "the demo of distillation: the built-in teacher on a CPU, a few minutes",
        {
            **_DIGITS_DISTILLED,
            "metrics": "fid5k_full,pr5k3_full",
            "data": "digits-test.zip",
            "detector": "digits-detector.pt",
        },
    ),
    "distill-tiny": Preset("distillation of teachers of up to 16 pixels", _DIGITS_DISTILLED),
    "sid-cifar10": _sid("distillation as in SiD, for teachers of 17 to 48 pixels: CIFAR-10"),
    # SiD's Adam beta1 of 0.9 for one of the two networks is not among our options.
    "sid-ffhq": _sid("distillation as in SiD, for 64-pixel teachers: FFHQ", batch=512),
    # SiD trains with dropout 0.05 here, and the teacher's own is 0.25.
    "sid-afhqv2": _sid("distillation as in SiD: AFHQv2", objective="sid", glr=5e-6, flr=5e-6, batch=512),
    # SiD takes fp16 with an Adam epsilon of 1e-6.
    "sid-imagenet": _sid(
        "distillation as in SiD: ImageNet",
        glr=4e-6,
        flr=4e-6,
        batch=8192,
        batch_gpu=32,
        kimg=1_000_000.0,
        ema_halflife_kimg=2000.0,
        tick_kimg=200.0,
    ),
    # Released. The number of images is the program's default; that of the published result is not known.
    "diff-instruct": Preset(
        "distillation as in the published code of Diff-Instruct, for CIFAR-10",
        {
            "objective": "ikl",
            "sigma_init": 1.0,
            "sigma": "lognormal:-1.2,1.2",
            "fake_sigma": "lognormal:-1.2,1.2",
            "fake_augment": 0.12,
            "fake_dropout": True,
            "paired_dropout": True,
            "glr": 1e-5,
            "flr": 1e-5,
            "batch": 128,
            "kimg": 200_000.0,
            "warmup_kimg": 0.0,
            "ema_halflife_kimg": 500.0,
            "ema_rampup": 0.05,
            "tick_kimg": 50.0,
            "snap_ticks": 200,
        },
    ),
    # DMD2 has AdamW with weight decay 0.01, and real images where we have samples of the teacher. The length is ours.
    "dmd2": Preset(
        "distillation as in DMD2, for ImageNet; with samples of the teacher in place of real images",
        {
            "objective": "ikl:weighting=dmd",
            "sigma_init": 80.0,
            "gan_weight": 3e-3,
            "ratio_samples": 50_000,
            "sigma": "karras:0.0032,71.7,7",
            "fake_sigma": "karras:0.002,80,7",
            "fake_steps": 5,
            "glr": 2e-6,
            "flr": 2e-6,
            "beta1": 0.9,
            "clip_grad": 10.0,
            "batch": 280,
            "kimg": 100_000.0,
            "warmup_kimg": 0.0,
            "tick_kimg": 50.0,
            "snap_ticks": 200,
        },
    ),
}

# docs/demo.md: chosen on the selection images, from the tries that are listed there. A fresh batch for each update
# costs a tenth more time here and is worth it; the high rate needs its decay.
_TINY: dict[str, Any] = {
    "objective": "sim:detach_norm=1",
    "sigma": "lognormal:0.6,1.2",
    "fake_sigma": "lognormal:0.6,1.2",
    "share_forward": False,
    "glr": 7e-3,
    "flr": 5e-3,
    "lr_rampup_kimg": 0.5,
    "lr_decay": "cosine",
    "batch": 32,
    "warmup_kimg": 2.0,
    "ema_halflife_kimg": 1.0,
    "ema_rampup": None,
}

PRESETS: dict[str, Preset] = {
    "digits": Preset(
        "the demo: the built-in pair on a CPU, a few minutes",
        {
            **_TINY,
            "kimg": 50.0,
            "tick_kimg": 2.5,
            "snap_ticks": 20,
            "metrics": "fid5k_full,pr5k3_full",
            "data": "digits-test.zip",
            "detector": "digits-detector.pt",
        },
    ),
    "tiny": Preset(
        "teachers of up to 16 pixels, such as the built-in digits",
        # The demo's settings, for longer. Without labels: docs/demo.md, the pair without labels.
        {**_TINY, "kimg": 100.0, "tick_kimg": 2.0, "snap_ticks": 12},
        {"sigma": "lognormal:1,1.2", "fake_sigma": "lognormal:1,1.2"},
    ),
    "small": Preset(
        "teachers of 17 to 48 pixels, such as CIFAR-10's",
        # SiD: sigma up to 24.4 for the generator, N(-1.2, 1.2) for the fake score, rates. SiDA: the warm-up.
        {
            "sigma": "karras:0.002,24.4,7",
            "fake_sigma": "lognormal:-1.2,1.2",
            "glr": 1e-5,
            "flr": 1e-5,
            "batch": 128,
            "kimg": 2000.0,
            "warmup_kimg": 100.0,
        },
        # DMD2: sigma over (nearly) the sampler's whole range, for both.
        {"sigma": "karras:0.0032,71.7,7", "fake_sigma": "karras:0.002,80,7"},
    ),
    "medium": Preset(
        "teachers above 48 pixels, such as the 64-pixel ones of FFHQ, AFHQv2 and ImageNet",
        # As `small`, with SiD's batch and rate for 64 pixels.
        {
            "sigma": "karras:0.002,24.4,7",
            "fake_sigma": "lognormal:-1.2,1.2",
            "glr": 5e-6,
            "flr": 5e-6,
            "batch": 256,
            "kimg": 2000.0,
            "warmup_kimg": 100.0,
        },
        {"sigma": "karras:0.0032,71.7,7", "fake_sigma": "karras:0.002,80,7"},
    ),
    "released": Preset(
        "the setting of the published distillation code",
        # Released. Only the warm-up is not in it: there, generator and fake score start from the same network.
        {
            "sigma": "lognormal:-1.2,1.2",
            "fake_sigma": "lognormal:-1.2,1.2",
            "share_forward": False,
            "fake_augment": 0.12,
            "fake_dropout": True,
            "paired_dropout": True,
            "glr": 1e-5,
            "flr": 1e-5,
            "beta1": 0.0,
            "beta2": 0.999,
            "lr_rampup_kimg": 0.0,
            "batch": 128,
            "ema_halflife_kimg": 500.0,
            "ema_rampup": 0.05,
            "warmup_kimg": 20.0,
        },
    ),
    **DISTILLATION,
}


def choose_preset(img_resolution: int, teacher: Path | None = None, *, distills: bool = False) -> str:
    """The name of the preset for a teacher; the built-in teacher has one of its own, under whatever name it lies.

    Args:
        img_resolution: Pixels along either axis of the teacher's images.
        teacher: The teacher's file; None: not the built-in one.
        distills: Whether the teacher is distilled, without a GAN.
    """
    built_in = teacher is not None and _same_content(teacher, BUILT_IN_TEACHER)
    if distills:
        if img_resolution <= 16:
            return "distill-digits" if built_in else "distill-tiny"
        return "sid-cifar10" if img_resolution <= 48 else "sid-ffhq"
    if built_in:
        return "digits"
    return "tiny" if img_resolution <= 16 else "small" if img_resolution <= 48 else "medium"


def _same_content(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and filecmp.cmp(one, other, shallow=False)
