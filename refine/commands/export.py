"""`python -m refine export --network=PKL --format=safetensors|rosinality|onnx|pkl-ema --out=FILE`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import click

from refine.commands.base import Command
from refine.commands.locate import network_file
from refine.commands.options import NETWORK, OutFile, Spec, check_output, force_option, trust_option
from refine.errors import UserError

# Format -> the module that writes it, and the packages of the extra `export` that it needs.
FORMATS: dict[str, tuple[str, tuple[str, ...]]] = {
    "safetensors": ("safetensors_file", ("safetensors",)),
    "rosinality": ("rosinality", ()),
    "onnx": ("onnx_file", ("onnx", "onnxscript", "onnxruntime")),
    "pkl-ema": ("compact_pickle", ()),
}
WEIGHT_FILES = {".safetensors": "safetensors", ".pt": "rosinality"}  # what --format=pkl brings back
SUFFIXES = {"safetensors": ".safetensors", "rosinality": ".pt", "onnx": ".onnx", "pkl-ema": ".pkl", "pkl": ".pkl"}


@click.command(cls=Command)
@click.option(
    "--network",
    required=True,
    type=Spec(),
    metavar=NETWORK,
    help="StyleGAN pickle; for --format=pkl, a file of weights.",
)
@click.option(
    "--format", "kind", required=True, type=click.Choice([*FORMATS, "pkl"]),
    help="Format to write; pkl brings weights back.",
)  # fmt: skip
@click.option("--out", required=True, type=OutFile(), metavar="FILE", help="File to write.")
@click.option("--like", type=Spec(), metavar=NETWORK, help="For --format=pkl: a pickle of the same architecture.")
@force_option
@trust_option
def main(network: str, kind: str, out: Path, like: str | None, force: bool, trust_pickle: bool) -> None:
    """Write a generator in another format, once the file has been found to make the same images."""
    if (kind == "pkl") != (like is not None):
        raise click.UsageError("--format=pkl and --like belong together: weights are brought back into such a pickle.")
    if out.suffix.lower() != SUFFIXES[kind]:
        raise UserError(f"--format={kind} writes {SUFFIXES[kind]} files: give --out such a name, not {out}.")
    network = network_file(network)
    check_output(out, force, (network, like))
    if kind == "pkl":
        assert like is not None
        difference, note = _bring_back(Path(network), network_file(like), out, trust_pickle)
    else:
        difference, note = _export(network, kind, out, trust_pickle)
    size = out.stat().st_size
    click.echo(f"Wrote {out} ({size:,} bytes): its images are the same within {difference:.1e}{note}")


def _export(network: str, kind: str, out: Path, trust: bool) -> tuple[float, str]:
    from refine.export.agreement import Probe, agreement, images_of_network
    from refine.files.atomic import atomic_write
    from refine.networks import loading
    from refine.pickles.writer import warn_of_code

    module = _module(kind)
    loaded = loading.load_gan(network, trust=trust)
    probe = Probe.of(loaded.network)
    expected = probe.images(images_of_network(loaded.network))
    if not expected.isfinite().all():
        raise UserError(f"{loaded.pickle.path} draws images that are not finite: take an earlier snapshot.")
    with atomic_write(out) as file:
        module.write(loaded, file)
        file.flush()
        difference = agreement(expected, module.images(Path(file.name), loaded, probe), f"{out} ({kind})")
    if kind == "pkl-ema":
        warn_of_code(loaded.pickle, out)
    note = f". Open it with {module.usage(loaded)}" if kind == "rosinality" else ""
    return difference, note


def _bring_back(weights: Path, like: str, out: Path, trust: bool) -> tuple[float, str]:
    from refine.export.agreement import Probe, agreement, images_of_network
    from refine.files.atomic import atomic_write
    from refine.networks import loading
    from refine.pickles import PersistentObject, writer

    kind = WEIGHT_FILES.get(weights.suffix)
    if kind is None:
        raise UserError(f"{weights} cannot be brought back: give a {' or '.join(WEIGHT_FILES)} file as --network.")
    module = _module(kind)
    loaded = loading.load_gan(like, trust=trust)
    ours = loaded.network.state_dict()
    state = module.read(weights) if kind == "safetensors" else module.read(weights, ours)
    for name in [*(n for n in ours if n not in state), *(n for n in state if n not in ours)]:
        raise UserError(f"{weights} does not fit {loaded.pickle.path}: only one of them has a tensor {name}.")
    for name, tensor in ours.items():
        if state[name].shape != tensor.shape:
            raise UserError(
                f"{weights} does not fit {loaded.pickle.path}: {name} is {list(state[name].shape)} in one and "
                f"{list(tensor.shape)} in the other."
            )
    probe = Probe.of(loaded.network)
    expected = module.images(weights, loaded, probe)
    entries = [key for key in ("G", "G_ema") if isinstance(loaded.pickle.get(key), PersistentObject)]
    with atomic_write(out) as file:
        writer.write(loaded.pickle, file, dict.fromkeys(entries, state))
        file.flush()
        written = loading.load_gan(file.name, trust=trust).network
        difference = agreement(expected, probe.images(images_of_network(written)), str(out))
    writer.warn_of_code(loaded.pickle, out)
    return difference, f"; {' and '.join(entries)} hold its weights, the rest is as in {loaded.pickle.path}"


def _module(kind: str) -> Any:
    """The module of a format.

    Raises:
        UserError: a package is missing.
    """
    name, packages = FORMATS[kind]
    missing = [package for package in packages if not _is_installed(package)]
    if missing:
        raise UserError(f"--format={kind} needs {', '.join(missing)}: python -m pip install {' '.join(missing)}")
    return importlib.import_module(f"refine.export.{name}")


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
