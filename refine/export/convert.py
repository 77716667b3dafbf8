"""Conversion of a generator between its pickle and another format.

Each format module has `write(loaded, file)` and `images(path, loaded, probe)`: what the written file computes, by
something other than the network that it was written from wherever the format allows it. A file gets its name only
after the two agree. Modules whose files can be brought back also have `read(path, ours)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refine.errors import UserError
from refine.export.agreement import Probe, agreement, images_of_network
from refine.export.formats import FORMATS, module_of
from refine.files.atomic import atomic_write
from refine.networks import one_step
from refine.networks.loading import load_generator
from refine.networks.own_snapshot import OwnSnapshot, open_generator
from refine.pickles import NetworkRecord, writer
from refine.pickles.finite import require_finite


@dataclass(frozen=True)
class Exported:
    """A written file.

    Attributes:
        difference: Largest difference of any pixel from the images of the source, images being in [-1, 1].
        note: Note for the user about the file; empty for none.
    """

    difference: float
    note: str = ""


def export(
    network: str,
    kind: str,
    out: Path,
    *,
    gan: str | None = None,
    sigma_init: float | None = None,
    trust: bool = False,
) -> Exported:
    """Writes a generator in another format.

    Args:
        network: Path, http(s) URL or zoo name of the pickle of a StyleGAN or one-step generator, or of a snapshot of a
            network of the user's own.
        kind: A key of `FORMATS`; "onnx" for such a snapshot.
        out: File to write.
        gan: `module.py:function` that makes the network of such a snapshot; None: as it tells.
        sigma_init: Noise level of a one-step generator; None: as its file tells, else 2.5.
        trust: Permission to run that Python file, or the source embedded in the pickle.

    Raises:
        UserError: The generator cannot be loaded, the format has no place for it, a package is missing, or the file
            does not make the same images.
    """
    module = module_of(kind)
    loaded = open_generator(network, gan=gan, trust=trust, sigma_init=sigma_init)
    path = loaded.path if isinstance(loaded, OwnSnapshot) else loaded.pickle.path
    if isinstance(loaded, OwnSnapshot) and kind != "onnx":
        raise UserError(
            f"{path} is a snapshot of a network of your own, and --format={kind} is for pickles: use --format=onnx, or "
            "the snapshot itself, which is a safetensors file."
        )
    probe = Probe.of(loaded.network)
    expected = probe.images(images_of_network(loaded.network))
    if not expected.isfinite().all():
        raise UserError(f"{path} makes images that are not finite: use an earlier snapshot.")
    with atomic_write(out) as file:
        module.write(loaded, file)
        file.flush()
        difference = agreement(expected, module.images(Path(file.name), loaded, probe), f"{out} ({kind})")
    if kind == "pkl-ema" and not isinstance(loaded, OwnSnapshot):
        writer.warn_of_code(loaded.pickle, out)
    return Exported(difference, f"Open it with {module.usage(loaded)}" if kind == "rosinality" else "")


def bring_back(
    weights: Path, like: str, out: Path, *, sigma_init: float | None = None, trust: bool = False
) -> Exported:
    """Writes a pickle whose generators have the weights of a file in another format.

    Args:
        weights: A file of a format that comes back.
        like: Path, http(s) URL or zoo name of a pickle of the same architecture.
        out: File to write.
        sigma_init: Noise level of a one-step generator; None: as its file tells, else 2.5.
        trust: Permission to run the source embedded in the pickle.

    Raises:
        UserError: A file cannot be read, the two do not fit, or the pickle does not make the same images.
    """
    kinds = {made.suffix: kind for kind, made in FORMATS.items() if made.comes_back}
    if weights.suffix not in kinds:
        raise UserError(f"{weights} cannot be brought back: give a {' or '.join(kinds)} file as --network.")
    module = module_of(kinds[weights.suffix])
    loaded = load_generator(like, trust=trust, sigma_init=sigma_init)
    ours = loaded.network.state_dict()
    state = module.read(weights, ours)
    for name in [*(n for n in ours if n not in state), *(n for n in state if n not in ours)]:
        raise UserError(f"{weights} does not fit {loaded.pickle.path}: only one of them has a tensor {name}.")
    for name, tensor in ours.items():
        if state[name].shape != tensor.shape:
            raise UserError(
                f"{weights} does not fit {loaded.pickle.path}: {name} is {list(state[name].shape)} in the former and "
                f"{list(tensor.shape)} in the latter."
            )
    require_finite(state, str(weights))
    probe = Probe.of(loaded.network)
    expected = module.images(weights, loaded, probe)
    network, pickle = loaded.network, loaded.pickle
    is_one_step = isinstance(network, one_step.OneStep)
    if isinstance(network, one_step.OneStep):
        pickle = one_step.described(pickle, network.sigma_init)
    names = (one_step.LIVE, one_step.AVERAGE) if is_one_step else ("G", "G_ema")
    entries = [key for key in names if isinstance(pickle.get(key), NetworkRecord)]
    with atomic_write(out) as file:
        writer.write(pickle, file, dict.fromkeys(entries, state))
        file.flush()
        written = load_generator(file.name, trust=trust).network
        difference = agreement(expected, probe.images(images_of_network(written)), str(out))
    writer.warn_of_code(loaded.pickle, out)
    note = f"{' and '.join(entries)} hold its weights, the rest is as in {loaded.pickle.path}"
    return Exported(difference, note)
