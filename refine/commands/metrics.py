"""`python -m refine metrics --network=PKL`: measures a generator, or images in files.

Rows are those of the StyleGAN suite; those of a run's snapshots go beside them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from refine.commands.base import Command
from refine.commands.locate import snapshots
from refine.commands.options import (
    NETWORK,
    Finite,
    OutFile,
    Spec,
    Whole,
    check_output,
    field_options,
    force_option,
    sigma_init_option,
    trust_option,
)
from refine.errors import UserError

if TYPE_CHECKING:
    from refine.config import MetricNames

_NAMED_ALIKE = ("data", "ref", "detector", "vgg", "trust_detector", "fid_seeds", "batch", "workers", "mirror") + (
    "noise_mode", "resample", "ref_images",
)  # fmt: skip


@click.command(cls=Command)
@click.option(
    "--network", type=Spec(), metavar=f"{NETWORK}|DIR",
    help="Generator to measure; DIR: all snapshots of a run.",
)  # fmt: skip
@click.option(
    "--images", type=Spec(), metavar="ZIP|DIR", help="Images to measure in place of a generator's, all of one size."
)
@field_options(
    "metrics", "data", "ref", "teacher", "class_map", "detector", "vgg", "metric_seed", "fid_seeds", "resample",
    "noise_mode", "device",
    metrics={"default": "fid50k_full", "help": "Metrics such as fid50k_full,pr50k3_full; any count."},
    teacher={"required": False, "help": "EDM pickle, for --ref=teacher and the zoo's statistics."},
)  # fmt: skip
@sigma_init_option
@click.option("--trust-detector", is_flag=True, help="Load a downloaded detector whose digest is not known.")
@click.option(
    "--batch",
    type=Whole(1, 2**20),
    metavar="N",
    help="Images per pass. Default: by trial on a GPU, 64 on a CPU.",
)
@click.option(
    "--workers",
    type=Whole(0, 4096),
    metavar="N",
    help="Processes that decode images. Default: by their number.",
)
@click.option(
    "--mirror",
    type=bool,
    default=False,
    metavar="0|1",
    help="Add each image's mirror image to the data of legacy metrics.",
)
@click.option(
    "--trunc",
    type=Finite(),
    metavar="PSI",
    default=1.0,
    show_default=True,
    help="Truncation psi; 1 for published values.",
)
@click.option(
    "--ref-images", type=Whole(2, 10_000_000), metavar="N",
    help="Images the teacher draws as the reference. Default: as many as the generator draws.",
)  # fmt: skip
@click.option(
    "--export-ref", type=OutFile(".npz"), metavar="NPZ", help="Write the reference's statistics to this file."
)
@click.option("--export-features", is_flag=True, help="Write its features there, too, for KID, precision and recall.")
@click.option(
    "--contact-sheet", type=OutFile(".png"), metavar="PNG", help="Picture of the nearest and farthest samples."
)
@click.option(
    "--grid", type=OutFile(".png"), metavar="PNG", help="Picture of samples; with --before, of both side by side."
)
@click.option(
    "--before", type=Spec(), metavar=NETWORK, help="Generator to show next to this one in --grid, at the same latents."
)
@click.option(
    "--check-data", type=Spec(), metavar="ZIP|DIR", help="List everything that is wrong with a data set, and stop."
)
@click.option("--prefetch", is_flag=True, help="Download all that is needed, prove that it works offline, and stop.")
@force_option
@trust_option
def main(metrics: MetricNames, **given: Any) -> None:
    """Measure a generator, or images in files, as the StyleGAN suite does; rows go to stdout and beside snapshots."""
    if given["check_data"]:
        _check_data(given["check_data"])
        return
    if not given["network"] and not given["images"]:
        raise click.UsageError("Give --network, the generator to measure, --images or --check-data.")
    if given["network"] and given["images"]:
        raise click.UsageError("--network draws images and --images has them: give one of the two.")
    if given["images"]:
        source = click.get_current_context().get_parameter_source
        for name in ("before", "noise_mode", "trunc"):
            if source(name) is not ParameterSource.DEFAULT:
                raise click.UsageError(f"--{name.replace('_', '-')} is for a generator: leave it out with --images.")
    if metrics.auto or not metrics.names:
        raise click.UsageError(f"--metrics={metrics} measures nothing: name metrics, such as --metrics=fid5k_full.")
    if given["data"] is not None and given["ref"] not in ("auto", "data"):
        raise click.UsageError(f"--data and --ref={given['ref']} are two references: give one of them.")
    if given["ref"] == "teacher" and not given["teacher"]:
        raise click.UsageError("--ref=teacher compares with the teacher: name it with --teacher.")
    if given["before"] and not given["grid"]:
        raise click.UsageError("--before is shown in --grid: name that picture, too.")
    if given["export_features"] and not given["export_ref"]:
        raise click.UsageError("--export-features adds to --export-ref: name that file, too.")
    for name in ("export_ref", "contact_sheet", "grid"):
        if given[name] is not None:
            check_output(
                given[name],
                given["force"],
                (given["network"], given["images"], given["data"], given["ref"], given["before"]),
            )

    from refine.metrics.options import MetricOptions
    from refine.runtime import distributed
    from refine.runtime.device import choose_device

    options = MetricOptions(
        metrics=metrics.names,
        seed=given["metric_seed"],
        truncation_psi=given["trunc"],
        contact_sheet=given["contact_sheet"] is not None,
        **{name: given[name] for name in _NAMED_ALIKE},
    )
    backend = "gloo" if given["device"] == "cpu" else None
    with distributed.processes(backend or _backend()) as place:
        device = choose_device(given["device"], place.local_rank if place.world_size > 1 else None)
        _measure(given, options, device)


def _check_data(path: str) -> None:
    """Prints every problem of a data set, a line each, and what it holds.

    Raises:
        UserError: There are problems.
    """
    from refine.files.dataset import check_dataset
    from refine.metrics.resolve import dataset_path
    from refine.runtime.text import counted

    found = check_dataset(dataset_path(path))
    for line in (*found.problems, *found.notes, found.summary):
        click.echo(line)
    if found.problems:
        problems = counted(len(found.problems), "problem")
        raise UserError(f"{path} has {problems}, listed above: fix or remove these files.")


def _backend() -> str:
    import torch

    return "nccl" if torch.cuda.is_available() else "gloo"


def _measure(given: dict[str, Any], options: Any, device: Any) -> None:
    from refine.files.digest import file_sha256
    from refine.files.jsonl import to_json
    from refine.metrics.offline import prefetch
    from refine.metrics.reference import Teacher
    from refine.metrics.resolve import dataset_path, warn_of_recorded_data
    from refine.metrics.stored_images import StoredImages
    from refine.metrics.suite import Suite
    from refine.networks.loading import load_generator, load_teacher
    from refine.runs.folder import RunFolder
    from refine.runtime import distributed

    trust, images = given["trust_pickle"], given["images"]

    def get() -> tuple[Suite, list[tuple[Any, Path]]]:
        """The suite, and what it is to measure with its file; `network-best.pkl` is a link to a snapshot."""
        sigma_init = given["sigma_init"]
        specs = snapshots(given["network"]) if not images else []
        networks = [load_generator(spec, trust=trust, sigma_init=sigma_init) for spec in specs]
        measured = [(each.network, each.pickle.path.resolve()) for each in networks]
        if images:
            stored = StoredImages(dataset_path(images))
            measured.append((stored, stored.dataset.path))
        teacher = None
        if given["teacher"]:
            loaded = load_teacher(given["teacher"], trust=trust)
            network: Any = loaded.network.to(device)
            sha256 = file_sha256(loaded.pickle.path)
            teacher = Teacher(network, given["teacher"], sha256, given["class_map"])
        if options.data is None and options.ref == "auto" and networks:
            warn_of_recorded_data(networks[0].pickle)
        return Suite.build(options, _on(measured[0][0], device), device, teacher), measured

    if given["prefetch"]:
        suite, _ = prefetch(get)
        files = sorted({str(detector.path) for detector in suite.detectors.values()})
        click.echo(f"Everything that is needed has been downloaded and tested with the network off: {', '.join(files)}")
        return
    suite, measured = get()
    if given["export_ref"]:
        _export(given, suite)
    for generator, path in measured:
        for row in suite.measure(_on(generator, device), path.name):
            if distributed.is_rank0():
                click.echo(to_json(row))
                results = " ".join(f"{name} {value:.6g}" for name, value in row["results"].items() if value is not None)
                click.echo(f"{path.name}: {results}", err=True)
                if (path.parent / "training_options.json").is_file() and re.fullmatch(r"network-.*\.pkl", path.name):
                    RunFolder(path.parent).add_metric(row)
        _on(generator, "cpu")
    _pictures(given, suite, _on(measured[-1][0], device), device)


def _on(generator: Any, device: Any) -> Any:
    """A network on a device; stored images as they are."""
    return generator.to(device) if hasattr(generator, "to") else generator


def _export(given: dict[str, Any], suite: Any) -> None:
    from refine.metrics.reference_file import save_reference

    compared = [metric for metric in suite.metrics if metric.needs_reference]
    metric = next((m for m in compared if m.features(suite.detectors[m.name]).keep != "half"), None)
    if metric is None or suite.reference is None or suite.reference.kind == "statistics":
        raise UserError("--export-ref writes the statistics of a data set or teacher for a FID or KID: name those.")
    detector = suite.detectors[metric.name]
    save_reference(given["export_ref"], suite.reference, detector, metric, features=given["export_features"])
    click.echo(f"Wrote {given['export_ref']}", err=True)


def _pictures(given: dict[str, Any], suite: Any, generator: Any, device: Any) -> None:
    from refine.metrics import contact_sheet
    from refine.networks.loading import load_generator
    from refine.runtime import distributed

    if given["contact_sheet"]:
        contact_sheet.write_sheet(given["contact_sheet"], suite, generator)
    if given["grid"] and distributed.is_rank0():
        before = None
        if given["before"]:
            sigma_init, trust = given["sigma_init"], given["trust_pickle"]
            before = load_generator(given["before"], trust=trust, sigma_init=sigma_init).network.to(device)
        contact_sheet.write_grid(given["grid"], suite, generator, before)
