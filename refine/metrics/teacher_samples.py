"""Samples of a teacher in the place of a generator's images: what a refinement can reach at best."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from refine.contracts import Denoiser, GeneratorOutput
from refine.diffusion.sampler import HeunOptions, heun_sample
from refine.errors import UserError


class TeacherSamples:
    """A teacher as a generator: images of noise go through EDM's Heun sampler; see `contracts.Generator`.

    Args:
        teacher: Denoiser on the device of the measurement.
        options: Options of the sampler; None for the defaults.

    Attributes:
        about: Entries for a row's provenance.
    """

    takes_noise_mode = False

    def __init__(self, teacher: Denoiser, options: HeunOptions | None = None) -> None:
        self.teacher, self.options = teacher, options or HeunOptions()
        self.module = teacher.module
        self.c_dim, self.img_channels = int(teacher.label_dim), int(teacher.img_channels)
        self.img_resolution = int(teacher.img_resolution)
        self.z_shape = (self.img_channels, self.img_resolution, self.img_resolution)
        self.about = {"sampler": f"Heun, {self.options.num_steps} steps"}

    def __call__(
        self,
        z: Tensor,
        c: Tensor,
        noise_mode: str = "random",
        truncation_psi: float = 1.0,
        force_fp32: bool = False,
    ) -> GeneratorOutput:
        """Samples of standard normal noise z [N, C, R, R] and labels c [N, c_dim].

        Raises:
            UserError: Truncation is asked for, which a teacher does not have.
        """
        if truncation_psi != 1:
            raise UserError(f"A teacher has no truncation, and {truncation_psi} was asked for: use 1.")
        images = heun_sample(self.teacher, z, c if self.c_dim else None, self.options)
        return GeneratorOutput(images.float(), None)

    def resolution_of(self, parameter: str) -> int | None:
        """None: a teacher is not trained."""
        return None

    def blocks(self) -> Sequence[nn.Module]:
        """Blocks of the teacher."""
        return self.teacher.blocks()

    def after_step(self, w_mean: Tensor | None) -> None:
        """Nothing: a teacher is not trained."""
