"""`python -m refine metrics --network=PKL`: measures a generator, or images in files.

Rows are those of the StyleGAN suite; those of a run's snapshots go beside them.
"""

from __future__ import annotations

import re
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
    gan_option,
    sigma_init_option,
    trust_option,
)
from refine.errors import UserError

if TYPE_CHECKING:
    from refine.config import MetricNames

_NAMED_ALIKE = ("data", "ref", "detector", "vgg", "trust_detector", "fid_seeds", "batch", "workers", "mirror") + (
    "noise_mode", "resample", "ref_images", "bootstrap", "kid_subsets", "kid_subset_size",
)  # fmt: skip


@click.command(cls=Command)
@click.option(
    "--network", type=Spec(), metavar=f"{NETWORK}|DIR",
    help="Generator to measure, or a teacher, by its sampler; DIR: all snapshots of a run.",
)  # fmt: skip
@click.option(
    "--images", type=Spec(), metavar="DIR|ZIP|NPZ",
    help="Images to measure in place of a network: files, or uint8 arr_0 [N, H, W, C].",
)  # fmt: skip
@field_options(
    "metrics", "data", "ref", "teacher", "teacher_settings", "guidance", "guide", "class_map", "detector", "vgg",
    "metric_seed", "fid_seeds", "bootstrap", "resample", "noise_mode", "device",
    metrics={"default": "fid50k_full", "help": "Metrics such as fid50k_full,pr50k3_full; any count."},
    teacher={"required": False, "help": "EDM pickle, for --ref=teacher and the zoo's statistics."},
)  # fmt: skip
@gan_option
@sigma_init_option
@click.option(
    "--kid-subsets", type=Whole(1, 1_000_000), metavar="N", default=100, show_default=True,
    help="Subsets that the KID is the mean of.",
)  # fmt: skip
@click.option(
    "--kid-subset-size", type=Whole(2, 1_000_000), metavar="N",
    help="Images of a subset. Default: 1000, or as many as there are.",
)  # fmt: skip
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
    "--neighbors", type=OutFile(".png"), metavar="PNG",
    help="Picture of the samples nearest to an image of the data, each with its nearest images there.",
)  # fmt: skip
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
    source = click.get_current_context().get_parameter_source
    names = metrics.names
    if given["images"]:
        for name in ("before", "noise_mode", "trunc"):
            if source(name) is not ParameterSource.DEFAULT:
                raise click.UsageError(f"--{name.replace('_', '-')} is for a generator: leave it out with --images.")
        if source("metrics") is ParameterSource.DEFAULT:
            names = (f"fid{_number_of_images(given['images'])}_full",)
    if metrics.auto or not names:
        raise click.UsageError(f"--metrics={metrics} measures nothing: name metrics, such as --metrics=fid5k_full.")
    if given["data"] is not None and given["ref"] not in ("auto", "data"):
        raise click.UsageError(f"--data and --ref={given['ref']} are two references: give one of them.")
    if given["guide"] is None and given["guidance"] != 1:
        raise click.UsageError(f"--guidance={given['guidance']:g} needs the denoiser to guide away from: give --guide.")
    if given["guide"] is not None and (given["guidance"] == 1 or not given["teacher"]):
        raise click.UsageError("--guide guides the --teacher by a --guidance other than 1: give both.")
    if given["ref"] == "teacher" and not given["teacher"]:
        raise click.UsageError("--ref=teacher compares with the teacher: name it with --teacher.")
    if given["before"] and not given["grid"]:
        raise click.UsageError("--before is shown in --grid: name that picture, too.")
    if given["export_features"] and not given["export_ref"]:
        raise click.UsageError("--export-features adds to --export-ref: name that file, too.")
    sources = [given[name] for name in ("network", "images", "data", "ref", "before")]
    for name in ("export_ref", "contact_sheet", "neighbors", "grid"):
        if given[name] is not None:
            check_output(given[name], given["force"], sources)

    from refine.metrics.options import MetricOptions
    from refine.runtime import distributed
    from refine.runtime.device import choose_device

    options = MetricOptions(
        metrics=names,
        seed=given["metric_seed"],
        truncation_psi=given["trunc"],
        contact_sheet=given["contact_sheet"] is not None or given["neighbors"] is not None,
        **{name: given[name] for name in _NAMED_ALIKE},
    )
    backend = "gloo" if given["device"] == "cpu" else None
    with distributed.processes(backend or _backend()) as place:
        device = choose_device(given["device"], place.local_rank if place.world_size > 1 else None)
        _measure(given, options, device)


def _number_of_images(spec: str) -> int:
    from refine.files.arrays import open_dataset
    from refine.metrics.resolve import dataset_path

    return len(open_dataset(dataset_path(spec)))


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
    from refine.metrics.evaluation import Measurable
    from refine.metrics.offline import prefetch
    from refine.metrics.reference import Teacher
    from refine.metrics.resolve import dataset_path, warn_of_recorded_data
    from refine.metrics.stored_images import StoredImages
    from refine.metrics.suite import Suite
    from refine.networks.loading import load_teacher
    from refine.pair.pair import conditions, guided_denoiser
    from refine.runs.folder import RunFolder
    from refine.runtime import distributed

    trust, images = given["trust_pickle"], given["images"]

    def get() -> tuple[Suite, list[Measurable]]:
        settings, sigma_init = given["teacher_settings"], given["sigma_init"]
        if images:
            stored = StoredImages(dataset_path(images))
            found = [Measurable(stored, stored.name)]
        else:
            found = [
                Measurable.load(spec, gan=given["gan"], trust=trust, sigma_init=sigma_init, settings=settings)
                for spec in snapshots(given["network"])
            ]
        teacher = None
        if given["teacher"]:
            loaded = load_teacher(given["teacher"], trust=trust, settings=settings)
            guide = load_teacher(given["guide"], trust=trust, settings=settings) if given["guide"] else None
            denoiser = guided_denoiser(loaded, guide, given["guidance"], device)
            digests = {} if guide is None else {"guide": file_sha256(guide.pickle.path)}
            sha256 = file_sha256(loaded.pickle.path)
            teacher = Teacher(denoiser, given["teacher"], sha256, given["class_map"], conditions(denoiser, digests))
        if options.data is None and options.ref == "auto" and found[0].loaded is not None:
            warn_of_recorded_data(found[0].loaded.pickle)
        found[0].module.to(device)
        return Suite.build(options, found[0].generator, device, teacher), found

    if given["prefetch"]:
        suite, _ = prefetch(get)
        files = sorted({str(detector.path) for detector in suite.detectors.values()})
        click.echo(f"Everything that is needed has been downloaded and tested with the network off: {', '.join(files)}")
        return
    suite, measured = get()
    if given["export_ref"]:
        _export(given, suite)
    for each in measured:
        each.module.to(device)
        for row in suite.measure(each.generator, each.name):
            if distributed.is_rank0():
                click.echo(to_json(row))
                results = " ".join(f"{name} {value:.6g}" for name, value in row["results"].items() if value is not None)
                click.echo(f"{each.name}: {results}", err=True)
                folder = each.path.parent if each.path is not None else None
                is_snapshot = re.fullmatch(r"network-.*\.(pkl|safetensors)", each.name)
                if folder is not None and is_snapshot and (folder / "training_options.json").is_file():
                    RunFolder(folder).add_metric(row)
        each.module.to("cpu")
    measured[-1].module.to(device)
    _pictures(given, suite, measured[-1].generator, device)


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
    from refine.networks.own_snapshot import open_generator
    from refine.runtime import distributed

    if given["contact_sheet"]:
        contact_sheet.write_sheet(given["contact_sheet"], suite, generator)
    if given["neighbors"]:
        contact_sheet.write_neighbors(given["neighbors"], suite, generator)
    if given["grid"] and distributed.is_rank0():
        before = None
        if given["before"]:
            sigma_init, trust = given["sigma_init"], given["trust_pickle"]
            opened = open_generator(given["before"], gan=given["gan"], trust=trust, sigma_init=sigma_init)
            before = opened.network.to(device)
        contact_sheet.write_grid(given["grid"], suite, generator, before)
