"""Start of a run, new or resumed: networks, folder and loop made from the options."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from refine import zoo
from refine.config import RunConfig, TrainingOptions
from refine.errors import OptionError, UserError
from refine.networks.python_file import parse_python_spec
from refine.networks.weights_file import load_state as load_module_state
from refine.pair.own import own_pair
from refine.pair.pair import Pair, load_pair
from refine.report import try_write_report
from refine.runs.evaluation import Evaluate, evaluation_for
from refine.runs.folder import RunFolder
from refine.runs.log import RunLog
from refine.runs.provenance import add_session, session
from refine.runs.run import Callbacks, OnSnapshot, OnTick, Run, position
from refine.runs.wandb import require_wandb
from refine.runs.writer import Origin
from refine.runtime import distributed
from refine.runtime.device import choose_device, would_use_cuda
from refine.runtime.logs import WARNING, LineFormatter
from refine.training.drift import DriftProbe
from refine.training.state import load_state, load_weights, read_state, remember_start
from refine.training.trainer import Trainer

log = logging.getLogger("refine")

# Options that a resumed run may change; batch_gpu depends on the machine.
RESUMABLE_CHANGES = (
    *("kimg", "tick_kimg", "snap_ticks", "batch_gpu"),
    *("metrics", "data", "ref", "detector", "vgg", "metric_every"),
    *("gan", "teacher", "guide"),  # a new place of the same file, which the state recognizes by its digest
)
FILES = ("gan", "teacher", "guide", "data", "ref", "detector", "vgg")  # options that may name a file


def run(
    config: RunConfig,
    *,
    generator: Any = None,
    teacher: Any = None,
    trust: bool = False,
    trust_detector: bool = False,
    resume: str | Path | None = None,
    evaluate: Evaluate | None = None,
    on_tick: OnTick | None = None,
    on_snapshot: OnSnapshot | None = None,
) -> Path:
    """Refines a generator.

    If `torchrun` has started several processes, all of them call this with the same arguments and share the work.

    Args:
        config: Options of the run. With `generator` or `teacher`, the options `gan` or `teacher` only name the run.
        generator: Generator in place of a file: a module from latents [N, *z_shape] (and one-hot labels) to images,
            with an attribute `z_dim` or `z_shape`, or an object that fulfills `Generator`; see docs/own-networks.md. It
            is copied, not changed; a snapshot is a safetensors file.
        teacher: Teacher in place of a file: a module or function from noisy images and noise levels (and labels) to
            denoised images, with attributes `img_resolution` and `img_channels`, or an object that fulfills `Denoiser`.
        trust: Permission to run Python files that `gan` or `teacher` name, and source code embedded in the pickles, for
            networks that Refine does not know.
        trust_detector: Permission to load a downloaded detector whose digest is not known.
        resume: Training state to continue from; the run continues in its folder. None for a new run.
        evaluate: Function that measures each snapshot, beginning with the unrefined generator: (network, file name) ->
            rows of `metric-<name>.jsonl`. None for the metrics in the options.
        on_tick: Function that rank 0 calls with the statistics of each status line; a true result ends the run like
            Ctrl-C, with its state saved, but without an exception.
        on_snapshot: Function that rank 0 calls with the path of each snapshot, after it is written and measured.

    Returns:
        Path of the last snapshot.

    Raises:
        UserError: The pair does not fit, a file cannot be read or written, the state belongs to other options, or the
            run has diverged.
        KeyboardInterrupt: A signal stopped the run; its state is saved.
    """
    if config.wandb:
        require_wandb()
    backend = "nccl" if would_use_cuda(config.device) else "gloo"
    with _log_shown(), distributed.processes(backend) as place, RunLog(log, distributed.is_rank0()) as run_log:
        device = choose_device(config.device, place.local_rank if place.world_size > 1 else None)
        if place.world_size > config.batch:
            raise OptionError(
                f"{{batch={config.batch}}} is less than the {place.world_size} processes: use at least "
                f"{{batch={place.world_size}}}."
            )
        if generator is not None and config.gan is None:
            config = replace(config, gan=type(getattr(generator, "module", generator)).__name__)
        pair = pair_for(config, generator=generator, teacher=teacher, trust=trust)
        config = with_lasting_paths(config)
        trainer = Trainer(pair, config.section(TrainingOptions), device)
        for note in pair.notes if resume is None else ():
            log.log(logging.WARNING if note.startswith(WARNING) else logging.INFO, note)
        if pair.distills and resume is None:
            log.info(f"No --gan: {distillation_line(pair)}")
        # A copy of the teacher varies hardly more than the teacher in any direction, which the cautions are about.
        caution = None if pair.distills else trainer.objective.caution()
        if caution is not None:
            log.warning(caution)
        if evaluate is None:
            evaluate = evaluation_for(config, pair, trainer, trust_detector=trust_detector)
        callbacks = Callbacks(evaluate, on_tick, on_snapshot)
        if resume is None:
            made = _new_run(config, pair, trainer, callbacks, trust=trust)
        else:
            made = _resumed_run(config, pair, trainer, callbacks, Path(resume))
        made.say(f"Run directory: {made.folder.path}")
        run_log.use(made.folder)
        try:
            return made.go()
        except Exception as error:
            run_log.end(error)
            if distributed.is_rank0():
                try_write_report(made.folder.path)
            raise


@contextmanager
def _log_shown() -> Iterator[None]:
    """Shows the log in a program or notebook that has not configured logging."""
    if log.hasHandlers():
        yield
        return
    handler, level = logging.StreamHandler(), log.level
    handler.setFormatter(LineFormatter())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def pair_for(config: RunConfig, *, generator: Any = None, teacher: Any = None, trust: bool = False) -> Pair:
    """Loads the pair that the options name, or joins the networks that are given in their place."""
    options: dict[str, Any] = {
        "resample": config.resample,
        "class_map": config.class_map,
        "sigma_init": config.sigma_init,
        "settings": config.teacher_settings,
        "guide": config.guide,
        "guidance": config.guidance,
        "trust": trust,
    }
    if generator is None and teacher is None and not any(map(parse_python_spec, (config.gan, config.teacher))):
        return load_pair(config.gan, config.teacher, **options)
    return own_pair(
        config.gan if generator is None else generator,
        config.teacher if teacher is None else teacher,
        names=(_own_name(config.gan, generator), _own_name(config.teacher, teacher)),
        **options,
    )


def distillation_line(pair: Pair) -> str:
    """What becomes of the teacher in a distillation, with the noise level of the one evaluation."""
    sigma: Any = pair.generator.module.sigma_init
    return (
        "the teacher is distilled into a one-step generator, which starts as the teacher's own network at sigma_init "
        f"{sigma:g}"
    )


def _own_name(option: str | None, network: Any) -> str | None:
    """Name of a network given in Python: that in the options, up to a suffix."""
    return None if network is None or not option else Path(option).stem


def _new_run(config: RunConfig, pair: Pair, trainer: Trainer, callbacks: Callbacks, *, trust: bool) -> Run:
    start = None
    if config.init is not None:
        path = zoo.resolve(config.init).path
        config = replace(config, init=str(path.resolve()))
        load_weights(trainer, path, trust=trust)
    if config.init is not None or pair.gan_file is None:
        start = copy.deepcopy(trainer.generator.module.state_dict())
    drift = DriftProbe(trainer.generator.network, trainer.bridge, config.seed)
    if not drift.start_images.isfinite().all():
        raise UserError(
            f"The generator in {config.init or config.gan or config.teacher} makes images that are not finite: use an "
            "earlier snapshot."
        )
    config = replace(config, precision=trainer.precision)
    folder = RunFolder(distributed.broadcast(_new_folder(config, pair)), pair.snapshot_suffix)
    pair = replace(pair, options=config.to_json())
    _record_session(folder, pair, trainer, 0)
    return Run(config, pair, trainer, folder, Origin(pair.digests, start), drift, callbacks)


def _resumed_run(config: RunConfig, pair: Pair, trainer: Trainer, callbacks: Callbacks, path: Path) -> Run:
    state = read_state(path)
    start = state["start"]
    if pair.gan_file is None and "gan" in state["digests"]:
        raise OptionError("{gan} is not the file that the run was started with: give the original file.")
    if start is not None:  # the file that the run started from may be gone
        load_module_state(trainer.generator.module, start, str(path))
    remember_start(trainer, trainer.generator.module.state_dict())
    drift = DriftProbe(trainer.generator.network, trainer.bridge, config.seed)
    load_state(trainer, state, pair.digests)
    folder, pair = RunFolder(path.parent, pair.snapshot_suffix), replace(pair, options=config.to_json())
    done = trainer.progress.cur_nimg / 1000
    if config.kimg < done - config.batch / 1000:
        raise OptionError(f"{{kimg={config.kimg:g}}} is less than the {done:g} kimg done so far: use a larger value.")
    if done >= config.kimg:
        log.info(f"The run is complete at {config.kimg:g} kimg; a larger --kimg continues it.")
    if distributed.is_rank0():
        folder.write_options(config.to_json())
        folder.cut_rows(position(config, trainer))
        folder.set_aside(trainer.progress.cur_nimg)
    _record_session(folder, pair, trainer, position(config, trainer))
    return Run(config, pair, trainer, folder, Origin(pair.digests, start), drift, callbacks)


def _record_session(folder: RunFolder, pair: Pair, trainer: Trainer, cur_nimg: int) -> None:
    """Records program, machine and date in the run's folder."""
    if distributed.is_rank0():
        add_session(folder.path, session(trainer.device, distributed.world_size(), pair.digests, cur_nimg))


def _new_folder(config: RunConfig, pair: Pair) -> Path | None:
    """Makes the run's folder, with its options in it, on rank 0; None on other ranks."""
    if not distributed.is_rank0():
        return None
    folder = RunFolder.create(config.outdir, run_name(config, pair))
    folder.write_options(config.to_json())
    return folder.path


def run_name(config: RunConfig, pair: Pair) -> str:
    """Name of a run, `<gan>-<teacher>-<objective>-batch<N>[-desc]`, from the names of the files."""
    parts = [pair.name, config.objective.name, f"batch{config.batch}", *([config.desc] if config.desc else [])]
    return "-".join("".join(c if c.isalnum() or c in "._-" else "_" for c in part) for part in parts)


def lasting(spec: str, *, folders: bool = False) -> str:
    """Absolute path of a file that exists; other text unchanged.

    Args:
        spec: Path, URL or zoo name.
        folders: Whether folders count as well.
    """
    if (python := parse_python_spec(spec)) is not None:
        return str(python._replace(path=python.path.resolve()))
    path = Path(spec).expanduser()
    return str(path.resolve()) if path.is_file() or (folders and path.is_dir()) else zoo.lasting(spec)


def with_lasting_paths(config: RunConfig) -> RunConfig:
    """Options with absolute paths, so that the run can be resumed from another folder."""
    changed: dict[str, Any] = {
        name: lasting(config[name], folders=name == "data") for name in FILES if config[name] is not None
    }
    return replace(config, **changed)


def resumed_config(state: Path, changes: Mapping[str, Any]) -> RunConfig:
    """Stored options of a run, with changes.

    Args:
        state: Training state in the run's folder.
        changes: New values of options, by name.

    Raises:
        UserError: The stored options cannot be read, or an option may not change in a resumed run.
    """
    stored = RunFolder(state.parent).read_options()
    config = RunConfig.from_dict(stored | {name: _moved(value) for name, value in stored.items() if name in FILES})
    changes = {
        name: lasting(value, folders=name == "data") if name in FILES and isinstance(value, str) else value
        for name, value in changes.items()
    }
    changed = replace(config, **changes)
    fixed = [name for name in changes if name not in RESUMABLE_CHANGES and changed[name] != config[name]]
    if fixed:
        raise OptionError(f"{{{fixed[0]}}} cannot change in a resumed run: leave it out.")
    if changed.kimg != config.kimg and config.lr_decay != "none":
        log.warning(
            f"kimg changes from {config.kimg:g} to {changed.kimg:g}, which changes the {config.lr_decay} decay of the "
            "learning rate: the result differs from that of a run with this length from the start."
        )
    return changed


def _moved(spec: Any) -> Any:
    """Name of a built-in file, if an earlier version stored its path and the file has moved since."""
    if not isinstance(spec, str) or Path(spec).exists():
        return spec
    name = spec.replace("\\", "/").rpartition("/")[2]
    return name if "/" in spec.replace("\\", "/") and (entry := zoo.find(name)) is not None and entry.path else spec
