"""Start of a run, new or resumed: from options to networks, folder and loop."""

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
from refine.pair.pair import Pair, load_pair
from refine.runs.evaluation import Evaluate, evaluation_for
from refine.runs.folder import RunFolder
from refine.runs.provenance import add_session, session
from refine.runs.run import Callbacks, OnSnapshot, OnTick, Run, position
from refine.runs.wandb import require_wandb
from refine.runs.writer import Origin
from refine.runtime import distributed
from refine.runtime.device import choose_device, would_use_cuda
from refine.training.drift import DriftProbe
from refine.training.state import load_state, load_weights, read_state, remember_start
from refine.training.trainer import Trainer

log = logging.getLogger("refine")

# Options that a resumed run may change; how many images fit into memory is the machine's matter.
RESUMABLE_CHANGES = (
    *("kimg", "tick_kimg", "snap_ticks", "batch_gpu"),
    *("metrics", "data", "ref", "detector", "vgg", "metric_every"),
    *("gan", "teacher"),  # another place of the same file: the state knows their digests
)
FILES = ("gan", "teacher", "data", "ref", "detector", "vgg")  # options that may name a file


def run(
    config: RunConfig,
    *,
    trust: bool = False,
    trust_detector: bool = False,
    resume: str | Path | None = None,
    evaluate: Evaluate | None = None,
    on_tick: OnTick | None = None,
    on_snapshot: OnSnapshot | None = None,
) -> Path:
    """Refines a generator.

    Started by `torchrun`, all processes call this with the same arguments and share the work.

    Args:
        config: Options of the run.
        trust: Run the source embedded in the pickles where Refine has no network of its own.
        trust_detector: Load a detector from the internet whose digest is not known.
        resume: Training state to continue from, in the folder that it lies in; None for a new run.
        evaluate: Measurement of each snapshot, the first one being the generator as it came: (network, file name) ->
            rows of `metric-<name>.jsonl`. None for the metrics of the options.
        on_tick: Called by the first process with the row of statistics of each status line; a true result ends the
            run as Ctrl-C does, with its state saved, but without an exception.
        on_snapshot: Called by the first process with the path of each snapshot, after it is written and measured.

    Returns:
        Path of the last snapshot.

    Raises:
        UserError: The pair does not fit, a file cannot be read or written, or the state is not of these options.
        KeyboardInterrupt: A signal stopped the run; its state is saved.
    """
    if config.wandb:
        require_wandb()
    backend = "nccl" if would_use_cuda(config.device) else "gloo"
    with _log_shown(), distributed.processes(backend) as place:
        device = choose_device(config.device, place.local_rank if place.size > 1 else None)
        if place.size > config.batch:
            raise UserError(f"--batch={config.batch} leaves nothing for some of the {place.size} processes: raise it.")
        pair = pair_for(config, trust=trust)
        config = with_lasting_paths(config)
        trainer = Trainer(pair, config.section(TrainingOptions), device)
        for note in pair.notes if resume is None and distributed.is_first() else ():
            log.info(note)
        if evaluate is None:
            evaluate = evaluation_for(config, pair, trainer, trust_detector=trust_detector)
        callbacks = Callbacks(evaluate, on_tick, on_snapshot)
        if resume is None:
            return _new_run(config, pair, trainer, callbacks, trust=trust).go()
        return _resumed_run(config, pair, trainer, callbacks, Path(resume)).go()


@contextmanager
def _log_shown() -> Iterator[None]:
    """Shows the log in a program or notebook that has not said where logs go."""
    if log.hasHandlers():
        yield
        return
    handler, level = logging.StreamHandler(), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def pair_for(config: RunConfig, *, trust: bool = False) -> Pair:
    """The pair that the options name."""
    return load_pair(config.gan, config.teacher, resample=config.resample, class_map=config.class_map, trust=trust)


def _new_run(config: RunConfig, pair: Pair, trainer: Trainer, callbacks: Callbacks, *, trust: bool) -> Run:
    start = None
    if config.init is not None:
        path = zoo.resolve(config.init).path
        config = replace(config, init=str(path.resolve()))
        load_weights(trainer, path, trust=trust)
        start = copy.deepcopy(trainer.generator.module.state_dict())
    drift = DriftProbe(trainer.generator.network, trainer.bridge, config.seed)
    if not drift.start_images.isfinite().all():
        raise UserError(
            f"The generator in {config.init or config.gan} draws images that are not finite: take an earlier snapshot."
        )
    config = replace(config, precision=trainer.precision)
    folder = RunFolder(distributed.broadcast(_new_folder(config, pair)))
    _record_session(folder, pair, trainer, 0)
    return Run(config, pair, trainer, folder, Origin(pair.digests, start), drift, callbacks)


def _resumed_run(config: RunConfig, pair: Pair, trainer: Trainer, callbacks: Callbacks, path: Path) -> Run:
    state = read_state(path)
    start = state["start"]
    if start is not None:  # the file that the run began from need not be there any more
        trainer.generator.module.load_state_dict(start)
    remember_start(trainer, trainer.generator.module.state_dict())
    drift = DriftProbe(trainer.generator.network, trainer.bridge, config.seed)
    load_state(trainer, state, pair.digests)
    folder = RunFolder(path.parent)
    done = trainer.progress.cur_nimg / 1000
    if config.kimg < done - config.batch / 1000:
        raise UserError(f"--kimg={config.kimg:g} is less than the {done:g} kimg that the run has done: give more.")
    if done >= config.kimg and distributed.is_first():
        log.info(f"The run has done all of its {config.kimg:g} kimg; --kimg takes it further.")
    if distributed.is_first():
        folder.write_options(config.to_json())
        folder.cut_rows(position(config, trainer))
        folder.set_aside(trainer.progress.cur_nimg)
    _record_session(folder, pair, trainer, position(config, trainer))
    return Run(config, pair, trainer, folder, Origin(pair.digests, start), drift, callbacks)


def _record_session(folder: RunFolder, pair: Pair, trainer: Trainer, cur_nimg: int) -> None:
    """Notes program, machine and date."""
    if distributed.is_first():
        add_session(folder.path, session(trainer.device, distributed.size(), pair.digests, cur_nimg))


def _new_folder(config: RunConfig, pair: Pair) -> Path | None:
    """The run's folder with its options in it, made by the first process."""
    if not distributed.is_first():
        return None
    folder = RunFolder.create(config.outdir, run_name(config, pair))
    folder.write_options(config.to_json())
    return folder.path


def run_name(config: RunConfig, pair: Pair) -> str:
    """`<gan>-<teacher>-<objective>-batch<N>[-desc]`, from the names of the files."""
    parts = [pair.name, config.objective.name, f"batch{config.batch}", *([config.desc] if config.desc else [])]
    return "-".join("".join(c if c.isalnum() or c in "._-" else "_" for c in part) for part in parts)


def lasting(spec: str, *, folders: bool = False) -> str:
    """A path that also holds from another folder; other text as it is. Folders only where one may be meant."""
    path = Path(spec).expanduser()
    return str(path.resolve()) if path.is_file() or (folders and path.is_dir()) else spec


def with_lasting_paths(config: RunConfig) -> RunConfig:
    """The options, such that a run can be resumed from another folder."""
    changed: dict[str, Any] = {
        name: lasting(config[name], folders=name == "data") for name in FILES if config[name] is not None
    }
    return replace(config, **changed)


def resumed_config(state: Path, changes: Mapping[str, Any]) -> RunConfig:
    """The stored options of the run that a state lies in, with those changed that may change.

    Raises:
        UserError: An option that decides what the run does would change.
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
            f"kimg changes from {config.kimg:g} to {changed.kimg:g}, and with it the {config.lr_decay} decay of the "
            "learning rate: the run goes on with other rates than one of that length had."
        )
    return changed


def _moved(spec: Any) -> Any:
    """A built-in file's name, where an earlier version stored its path and the file has moved since."""
    if not isinstance(spec, str) or Path(spec).exists():
        return spec
    name = spec.replace("\\", "/").rpartition("/")[2]
    return name if "/" in spec.replace("\\", "/") and (entry := zoo.find(name)) is not None and entry.path else spec
