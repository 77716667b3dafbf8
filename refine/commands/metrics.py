"""`python -m refine metrics --network=PKL`: measures a generator as the StyleGAN suite does, beside its snapshots."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

from refine.commands.base import Command
from refine.errors import UserError


@click.command(cls=Command)
@click.option("--network", required=True, metavar="PKL|URL|NAME|DIR", help="Generator; DIR: all snapshots of a run.")
@click.option("--metrics", default="fid50k_full", show_default=True, help="Such as fid50k_full,pr50k3_full; any count.")
@click.option("--data", metavar="ZIP|DIR", help="StyleGAN data set to compare with.")
@click.option("--ref", default="auto", show_default=True, metavar="auto|teacher|NPZ|NAME", help="What to compare with.")
@click.option("--teacher", metavar="PKL|URL|NAME", help="EDM pickle, for --ref=teacher and the zoo's statistics.")
@click.option("--detector", metavar="PATH|URL", help="TorchScript module instead of the official Inception.")
@click.option("--vgg", metavar="PATH|URL", help="TorchScript module instead of the official VGG.")
@click.option("--trust-detector", is_flag=True, help="Load a detector from the internet whose digest is not known.")
@click.option("--trust-pickle", is_flag=True, help="Run embedded source where Refine has no network of its own.")
@click.option("--metric-seed", default=0, show_default=True, help="Of latents, labels and noise.")
@click.option("--fid-seeds", default=1, show_default=True, help="Ranges of latents; 3: each and the minimum, as EDM.")
@click.option("--batch", type=int, help="Images at once. Default: by trial on a GPU, 64 on a CPU.")
@click.option("--workers", type=int, help="Processes that decode images. Default: by their number.")
@click.option("--mirror", default=False, type=bool, help="Legacy metrics see each image of the data mirrored too.")
@click.option("--trunc", default=1.0, show_default=True, help="Truncation psi.")
@click.option("--noise-mode", default="random", show_default=True, help="random, const or none.")
@click.option("--resample", default="lanczos", show_default=True, help="Filter down to a smaller reference.")
@click.option("--ref-images", type=int, help="Images that the teacher draws.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--export-ref", type=click.Path(path_type=Path), help="Write the reference's statistics to this .npz.")
@click.option("--export-features", is_flag=True, help="Write its features there too, for KID, precision and recall.")
@click.option("--contact-sheet", type=click.Path(path_type=Path), help="Picture of nearest and farthest samples.")
@click.option(
    "--grid", type=click.Path(path_type=Path), help="Picture of samples; with --before, of both side by side."
)
@click.option("--before", metavar="PKL|URL|NAME", help="Generator to show beside it in --grid, at the same latents.")
@click.option("--prefetch", is_flag=True, help="Download all that is needed, prove that it works offline, and stop.")
def main(**given: Any) -> None:
    """Measure a generator as the StyleGAN suite does; rows go to stdout, and beside the snapshot in a run's folder."""
    from refine.metrics.metric import parse_metrics
    from refine.metrics.options import MetricOptions
    from refine.runtime import distributed
    from refine.runtime.device import choose_device

    options = MetricOptions(
        metrics=parse_metrics(given["metrics"]),
        seed=given["metric_seed"],
        truncation_psi=given["trunc"],
        contact_sheet=given["contact_sheet"] is not None,
        **{
            name: given[name]
            for name in ("data", "ref", "detector", "vgg", "trust_detector", "fid_seeds", "batch", "workers", "mirror")
            + ("noise_mode", "resample", "ref_images")
        },
    )
    if given["before"] and not given["grid"]:
        raise click.UsageError("--before is shown in --grid: name that picture too.")
    backend = "gloo" if given["device"] == "cpu" else None
    with distributed.processes(backend or _backend()) as place:
        device = choose_device(given["device"], place.local_rank if place.size > 1 else None)
        _measure(given, options, device)


def _backend() -> str:
    import torch

    return "nccl" if torch.cuda.is_available() else "gloo"


def _measure(given: dict[str, Any], options: Any, device: Any) -> None:
    from refine import pickles
    from refine.metrics.offline import prefetch
    from refine.metrics.reference import Teacher
    from refine.metrics.resolve import warn_of_recorded_data
    from refine.metrics.suite import Suite
    from refine.networks.loading import load_gan, load_teacher
    from refine.runs.folder import RunFolder
    from refine.runtime import distributed

    trust = given["trust_pickle"]

    def get() -> tuple[Suite, list[tuple[Path, Any]]]:
        networks = [(Path(spec), load_gan(spec, trust=trust)) for spec in _snapshots(given["network"])]
        teacher = None
        if given["teacher"]:
            loaded = load_teacher(given["teacher"], trust=trust)
            network: Any = loaded.network.to(device)
            teacher = Teacher(network, given["teacher"], pickles.file_sha256(loaded.pickle.path))
        if options.data is None and options.ref == "auto":
            warn_of_recorded_data(networks[0][1].pickle)
        return Suite.build(options, networks[0][1].network.to(device), device, teacher), networks

    if given["prefetch"]:
        suite, _ = prefetch(get)
        files = sorted({str(detector.path) for detector in suite.detectors.values()})
        click.echo(f"All that is needed is here and was tried out with the network off: {', '.join(files)}")
        return
    suite, networks = get()
    if given["export_ref"]:
        _export(given, suite)
    for spec, loaded in networks:
        generator = loaded.network.to(device)
        folder = loaded.pickle.path.parent
        for row in suite.measure(generator, loaded.pickle.path.name):
            if distributed.is_first():
                click.echo(json.dumps(row))
                if (folder / "training_options.json").is_file() and re.fullmatch(r"network-.*\.pkl", spec.name):
                    RunFolder(folder).add_metric(row)
        generator.to("cpu")
    generator = networks[-1][1].network.to(device)
    _pictures(given, suite, generator, device)


def _snapshots(spec: str) -> list[str]:
    """The pickle, or all snapshots of a run's folder in their order."""
    if not Path(spec).is_dir():
        return [spec]
    found = sorted(str(path) for path in Path(spec).glob("network-snapshot-*.pkl"))
    if not found:
        raise UserError(f"{spec} holds no network-snapshot-*.pkl: give a run's folder or a pickle.")
    return found


def _export(given: dict[str, Any], suite: Any) -> None:
    from refine.metrics.reference_file import save_reference

    spec = next((spec for spec in suite.specs if spec.needs_reference and spec.kind != "pr"), None)
    if spec is None or suite.reference is None or suite.reference.kind == "statistics":
        raise UserError("--export-ref writes the statistics of a data set or teacher for a FID or KID: name those.")
    detector = suite.detectors[spec.name]
    save_reference(given["export_ref"], suite.reference, detector, spec, features=given["export_features"])
    click.echo(f"Wrote {given['export_ref']}", err=True)


def _pictures(given: dict[str, Any], suite: Any, generator: Any, device: Any) -> None:
    from refine.metrics import contact_sheet
    from refine.networks.loading import load_gan
    from refine.runtime import distributed

    if given["contact_sheet"]:
        contact_sheet.write_sheet(given["contact_sheet"], suite, generator)
    if given["grid"] and distributed.is_first():
        before = load_gan(given["before"], trust=given["trust_pickle"]).network.to(device) if given["before"] else None
        contact_sheet.write_grid(given["grid"], suite, generator, before)
