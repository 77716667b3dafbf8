"""Loop of a run: warm-up, refinement, status lines, snapshots and interruption."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from refine import zoo
from refine.config import RunConfig
from refine.contracts import Generator
from refine.diffusion.guidance import Guided
from refine.errors import OptionError, literal
from refine.pair.pair import Pair
from refine.pair.preflight import KnownFids, Preflight, preflight
from refine.report import REPORT, try_write_report
from refine.runs.evaluation import Evaluate, flat, is_measured, link_best_by_divergence, record, record_average
from refine.runs.folder import RunFolder, snapshot_tag
from refine.runs.grids import Grids
from refine.runs.interrupts import StopRequest
from refine.runs.log import IN_LOG
from refine.runs.provenance import write_preflight
from refine.runs.status import Tick, resources, tick_line, tick_row, warm_up_row
from refine.runs.tensorboard import TensorBoard
from refine.runs.tracker import Tracker, Trackers
from refine.runs.wandb import WeightsAndBiases
from refine.runs.writer import Origin, Writer
from refine.runtime import distributed
from refine.runtime.logs import WARNING
from refine.runtime.text import format_time
from refine.training.drift import IMAGE_RANGE, DriftProbe
from refine.training.memory import memory_advice
from refine.training.statistics import RunningMeans
from refine.training.trainer import Trainer

log = logging.getLogger("refine")

STATE_SECONDS = 600.0  # largest amount of work that is lost if the process is killed

OnTick = Callable[[Mapping[str, Any]], object]
OnSnapshot = Callable[[Path], object]


@dataclass(frozen=True)
class Callbacks:
    """Functions that a run calls; see `start.run`.

    Attributes:
        evaluate: Function that measures a snapshot; None for no metrics.
        on_tick: Function that receives the statistics of each status line; a true result ends the run.
        on_snapshot: Function that receives the path of each snapshot.
    """

    evaluate: Evaluate | None = None
    on_tick: OnTick | None = None
    on_snapshot: OnSnapshot | None = None


@dataclass(frozen=True)
class Phase:
    """Stretch of a run that repeats one kind of step.

    Attributes:
        title: Title of the progress bar; None for none.
        total_nimg: Number of images at the end of the phase.
        nimg: Function that returns the number of images so far.
        step: Function that takes one step.
        tick: Function that reports the tick of a given number.
        has_snapshots: Whether snapshots are saved.
    """

    title: str | None
    total_nimg: float
    nimg: Callable[[], int]
    step: Callable[[], None]
    tick: Callable[[int], None]
    has_snapshots: bool


def preflight_of(pair: Pair, trainer: Trainer) -> Preflight:
    """Preflight of a pair on the trainer's device, in float32."""
    known = known_fids(pair)
    return preflight(
        trainer.generator.network, trainer.teacher, pair.bridge, seed=trainer.options.seed, known_fids=known
    )


def known_fids(pair: Pair) -> KnownFids | None:
    """Published FIDs of a pair's files; None unless both are known, on the same data, and the teacher is not guided."""
    if isinstance(pair.teacher, Guided):
        return None
    files = (pair.gan_file, pair.teacher_file)
    entries = [None if file is None else zoo.entry_of(file.pickle.path) for file in files]
    generator, teacher = (None if entry is None else entry.fid for entry in entries)
    if generator is None or teacher is None or generator[0] != teacher[0]:
        return None
    return KnownFids(generator[0], generator[1], teacher[1])


def position(config: RunConfig, trainer: Trainer) -> int:
    """Position on the axis of statistics: images of generator updates, negative during the warm-up."""
    progress = trainer.progress
    if progress.step or not trainer.needs_warm_up:
        return progress.cur_nimg
    return min(progress.warmup_nimg - round(config.warmup_kimg * 1000), 0)


class Run:
    """Loop over steps and ticks, and the files written at each tick. Only rank 0 writes and logs.

    Args:
        config: Options of the run.
        pair: Pair of the run.
        trainer: Trainer, in the state to continue from.
        folder: Folder of the run.
        origin: Start of the run.
        drift: Probe of the generator's drift from its start.
        callbacks: Functions to call.
    """

    def __init__(
        self,
        config: RunConfig,
        pair: Pair,
        trainer: Trainer,
        folder: RunFolder,
        origin: Origin,
        drift: DriftProbe,
        callbacks: Callbacks,
    ) -> None:
        self.config, self.pair, self.trainer, self.folder = config, pair, trainer, folder
        self.drift, self.callbacks = drift, callbacks
        self.writer = Writer(trainer, pair, folder, origin)
        self.tick_nimg = max(round(config.tick_kimg * 1000), 1)
        self.start_time = self.tick_start_time = self.tick_end_time = self.state_time = time.perf_counter()
        self.tick_start_nimg = trainer.progress.cur_nimg
        self.maintenance_seconds = 0.0
        self.stop = StopRequest()
        # The last snapshot of a finished run exists already.
        finished = trainer.progress.cur_nimg >= config.kimg * 1000
        has_snapshot = finished and self.snapshot_path().exists()
        self.saved_nimg = trainer.progress.cur_nimg if has_snapshot else None
        self.stopping = self.ending = self.warned_of_drift = False
        self.trackers = Trackers(self._choose_trackers() if distributed.is_rank0() else [])
        self.grids = Grids(folder, self.trackers, self.averaged_generator(), config.seed)

    def go(self) -> Path:
        """Runs the warm-up, then the refinement until `kimg`.

        Returns:
            Path of the last snapshot.

        Raises:
            UserError: A file cannot be written, or the run has diverged.
            KeyboardInterrupt: A signal stopped the run; its state is saved.
        """
        with ExitStack() as stack:
            stack.enter_context(logging_redirect_tqdm([log]))
            stack.callback(self.trackers.close)
            stack.enter_context(self.stop.listening())
            stack.enter_context(self.writer)  # however the run ends, its files are complete
            self.begin()
            if self.trainer.needs_warm_up and not self.trainer.progress.step:
                self.phase(self.warm_up())
                self.end_warm_up()
            self.phase(self.refinement())
            self.finish()
        return self.snapshot_path()

    def _choose_trackers(self) -> list[Tracker]:
        trackers: list[Tracker] = [TensorBoard(self.folder.path, position(self.config, self.trainer))]
        return [*trackers, WeightsAndBiases(self.folder.path)] if self.config.wandb else trackers

    # -- phases ---------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Saves the first snapshot of a new run, after the preflight, and measures it."""
        progress = self.trainer.progress
        if progress.step == 0 and progress.warmup_nimg == 0:
            self.trackers.add_options(self.config.to_dict())
            self.try_pair()
            title = "one step of the teacher" if self.pair.distills else "before refinement"
            self.grids.save_fakes("fakes_init.png", self.grids.draw(), title, 0)
            self.grids.save_reals(self.config.data)
            self.writer.save(snapshot=True)
            self.evaluate()
            self.report()
        elif progress.step == 0 and not self.start_is_measured():
            self.evaluate()  # the run was stopped before this measurement

    def warm_up(self) -> Phase:
        """Phase that trains the fake score on samples from the unrefined generator."""
        return Phase(
            title="warm-up",
            total_nimg=self.config.warmup_kimg * 1000,
            nimg=lambda: self.trainer.progress.warmup_nimg,
            step=self.trainer.warm_up_step,
            tick=self.warm_up_tick,
            has_snapshots=False,
        )

    def refinement(self) -> Phase:
        """Phase that refines the generator."""
        return Phase(
            title=None,
            total_nimg=self.config.kimg * 1000,
            nimg=lambda: self.trainer.progress.cur_nimg,
            step=self.trainer.step,
            tick=self.tick,
            has_snapshots=True,
        )

    def phase(self, phase: Phase) -> None:
        """Takes steps until the end of a phase, with a status line at each tick and files when they are due."""
        with self.progress_bar(phase) as bar:
            self.phase_time, self.phase_nimg = time.perf_counter(), phase.nimg()
            while phase.nimg() < phase.total_nimg and not self.should_stop():
                # Ticks lie on a fixed grid, which interruptions do not shift.
                number_before = phase.nimg() // self.tick_nimg
                with memory_advice(self.config.batch, self.config.batch_gpu):
                    phase.step()
                bar.update(self.config.batch)
                number = phase.nimg() // self.tick_nimg
                if number > number_before:
                    phase.tick(number)
                    snap = number // self.config.snap_ticks > number_before // self.config.snap_ticks
                    if snap and phase.has_snapshots:
                        self.save()
                    elif self.state_is_due():
                        self.save_state()
                    self.start_tick()

    def end_warm_up(self) -> None:
        """Saves the state and starts the first tick of the refinement, unless the warm-up was stopped."""
        if self.stopping:
            return
        self.trainer.statistics = RunningMeans()
        self.save_state()
        self.tick_end_time = time.perf_counter()
        self.start_tick()
        kimg = self.trainer.progress.warmup_nimg / 1000
        self.say(f"Warm-up done: fake score trained on {kimg:g} kimg of samples from the unrefined generator")

    def finish(self) -> None:
        """Saves and measures the last snapshot; for a stopped run, saves the state.

        Raises:
            KeyboardInterrupt: The run was stopped.
        """
        progress = self.trainer.progress
        if not self.stopping:
            if progress.cur_nimg > self.tick_start_nimg:
                self.tick(self.tick_number() + 1)  # the remainder, shorter than other ticks
                self.start_tick()
            if self.saved_nimg != progress.cur_nimg:
                self.save()
            self.save_averages()
            self.say(f"Report: {self.folder.path / REPORT}")
        self.writer.wait()
        self.should_stop()  # a signal may have come while the last snapshot was saved
        if self.stopping:
            state = self.save_state()
            self.writer.wait()
            distributed.barrier()  # if one process ends, the launcher ends all, and rank 0 is still saving
            self.say(f"Stopped by {self.stop.name}; resume with --resume={state}")
            raise KeyboardInterrupt

    def save_averages(self) -> None:
        """Saves the further moving averages at the end of the run, and measures each if snapshots are measured."""
        generator = self.trainer.generator
        for average in generator.more_averages:
            path = self.folder.average_path(self.tag(), str(average.decay))
            if distributed.is_rank0():
                self.pair.write_snapshot(
                    path,
                    generator.module.state_dict(),
                    average.network.module.state_dict(),
                    str(self.trainer.objective),
                )
            rows = self.measured(average.network, path)
            if distributed.is_rank0():
                record_average(self.folder, str(average.decay), rows or ())

    def try_pair(self) -> None:
        """Runs the preflight, so that a pair that cannot work is noticed at once; a copy of the teacher fits it."""
        if self.config.preflight and distributed.is_rank0() and not self.pair.distills:
            found = preflight_of(self.pair, self.trainer)
            write_preflight(self.folder.path, found)
            for line in found.lines():
                self.say(line)

    def should_stop(self) -> bool:
        """True if any process received a signal, or the run ends early; the same on all processes.

        Raises:
            UserError: A file could not be written.
        """
        self.writer.check()
        with distributed.phase(f"step {self.trainer.progress.step}"):
            self.stopping = distributed.any_process(self.stop.number is not None)
        return self.stopping or self.ending

    # -- status lines ---------------------------------------------------------------------------------

    def warm_up_tick(self, number: int) -> None:
        """Writes a status line and a row of statistics of the warm-up."""
        nimg, total = self.trainer.progress.warmup_nimg, self.config.warmup_kimg * 1000
        if nimg >= total:
            return
        remaining = (time.perf_counter() - self.phase_time) / (nimg - self.phase_nimg) * (total - nimg)
        values = self.trainer.statistics.means()
        self.say(
            f"warm-up kimg {nimg / 1000:.1f} of {total / 1000:.1f} "
            f"fake {values.get('Loss/fake', float('nan')):.3f} eta {format_time(remaining)}"
        )
        self.add_row(warm_up_row(position(self.config, self.trainer), values))
        self.trainer.statistics = RunningMeans()

    def tick(self, number: int) -> None:
        """Writes a status line and a row of statistics of the refinement.

        Raises:
            UserError: No gradient since the last tick was finite.
        """
        progress, config, now = self.trainer.progress, self.config, time.perf_counter()
        tick = Tick(
            number=number,
            cur_nimg=progress.cur_nimg,
            nimg=progress.cur_nimg - self.tick_start_nimg,
            seconds=now - self.tick_start_time,
            maintenance_seconds=self.maintenance_seconds,
            total_seconds=now - self.start_time,
            remaining_nimg=max(config.kimg * 1000 - progress.cur_nimg, 0),
        )
        with distributed.phase("the statistics of a tick"):
            values = self.trainer.statistics.means()
        end, problem = False, None
        if distributed.is_rank0():
            problem = self.gradient_problem(values)
            values |= self.drift.measure(self.trainer.generator.network) | resources(self.trainer.device)
            row = tick_row(tick, values, progress.num_nonfinite)
            self.say(tick_line(tick, values, progress.num_nonfinite))
            self.warn_of_drift(values["Drift/image"])
            self.add_row(row)
            if problem is None and self.callbacks.on_tick is not None:
                end = bool(self.callbacks.on_tick(row))
            reason = flat(self.folder, config.stop_if_flat)
            if reason is not None:
                self.say(reason)
                end = True
        self.ending |= distributed.broadcast(end)
        self.raise_everywhere(problem)
        self.trainer.statistics = RunningMeans()
        self.tick_end_time = now

    def warn_of_drift(self, change: float) -> None:
        """Says once that the images are no longer images, though they are finite."""
        if change > IMAGE_RANGE and not self.warned_of_drift:
            self.warned_of_drift = True
            self.say(
                f"Warning: The images have changed by {change:.3g} (root mean square) since the start, more than their "
                f"whole range of {IMAGE_RANGE:g}: the generator has diverged. Start a new run with lower --glr and "
                "--flr."
            )

    def gradient_problem(self, values: Mapping[str, float]) -> str | None:
        """Message if no gradient since the last tick was finite; None with an adaptive loss scale, which takes time."""
        finite = "Gradient/generator_norm" in values or not self.trainer.progress.num_nonfinite
        if finite or self.trainer.precision == "fp16":
            return None
        return "No gradient of the generator has been finite since the last status line"

    def raise_everywhere(self, problem: str | None) -> None:
        """Ends a run that has diverged, on all processes.

        Args:
            problem: Message of rank 0; None for none.

        Raises:
            UserError: Rank 0 has a problem.
        """
        problem = distributed.broadcast(problem)
        if problem is None:
            return
        self.writer.wait()
        good = self.folder.last_snapshot()
        if good is None:
            raise OptionError(f"{problem}: start a new run with lower {{glr}} and {{flr}}, or {{precision=fp32}}.")
        raise OptionError(
            f"{problem}, and the last good snapshot is {literal(good)}: start a new run from it with {{init}}, with "
            "lower {glr} and {flr}, or {precision=fp32}."
        )

    def add_row(self, row: dict[str, Any]) -> None:
        """Writes a row of statistics to `stats.jsonl` and to the trackers."""
        if distributed.is_rank0():
            self.folder.add_stats(row | {"timestamp": time.time()})
            self.trackers.add_numbers(row, row["Progress/cur_nimg"], time.time())

    def tick_number(self) -> int:
        """Number of whole ticks since the start of the run, including ticks before interruptions."""
        return self.trainer.progress.cur_nimg // self.tick_nimg

    def start_tick(self) -> None:
        """Starts the next tick, after saving and measuring."""
        self.tick_start_time, self.tick_start_nimg = time.perf_counter(), self.trainer.progress.cur_nimg
        self.maintenance_seconds = self.tick_start_time - self.tick_end_time

    def progress_bar(self, phase: Phase) -> Any:
        """Progress bar of a phase, shown only on rank 0 and at a terminal."""
        silent = None if distributed.is_rank0() else True  # None: shown only at a terminal
        total, done = int(phase.total_nimg), phase.nimg()
        return tqdm(
            total=total, initial=done, desc=phase.title, unit="img", unit_scale=True, leave=False, disable=silent
        )

    def say(self, line: str) -> None:
        """Logs a line, also to `log.txt`."""
        is_warning = line.startswith(WARNING)
        log.log(logging.WARNING if is_warning else logging.INFO, line, extra=IN_LOG)
        if distributed.is_rank0():
            self.folder.log(line)

    # -- files ----------------------------------------------------------------------------------------

    def save(self) -> None:
        """Saves a snapshot and a training state, then measures the snapshot, which may be interrupted.

        Raises:
            UserError: The moving average generates images that are not finite; no file is written.
        """
        images = self.grids.draw()
        problem = "The generator's images are not finite"
        self.raise_everywhere(problem if images is not None and not images.isfinite().all() else None)
        self.writer.save(snapshot=True, state=True)
        self.state_time = time.perf_counter()
        cur_nimg = self.trainer.progress.cur_nimg
        self.grids.save_fakes(f"fakes{self.tag()}.png", images, f"{cur_nimg / 1000:g} kimg", cur_nimg)
        self.saved_nimg = self.trainer.progress.cur_nimg
        self.evaluate()
        if distributed.is_rank0():
            self.writer.wait()
            link_best_by_divergence(self.folder, self.config.batch)
        self.report()
        if self.callbacks.on_snapshot is not None and distributed.is_rank0():
            self.writer.wait()
            self.callbacks.on_snapshot(self.snapshot_path())

    def tag(self) -> str:
        """Tag of the current position in the names of files."""
        return snapshot_tag(self.trainer.progress.cur_nimg, self.config.batch)

    def snapshot_path(self) -> Path:
        """Path of the snapshot at the current position."""
        return self.folder.snapshot_path(self.tag())

    def save_state(self) -> Path:
        """Starts to write a training state; the two newest states are kept.

        Returns:
            Path of the state.
        """
        self.writer.save(state=True)
        self.state_time = time.perf_counter()
        return self.folder.state_path(self.trainer.progress.cur_nimg)

    def state_is_due(self) -> bool:
        """True if the last state is older than `STATE_SECONDS` by the clock of rank 0."""
        return distributed.broadcast(time.perf_counter() - self.state_time > STATE_SECONDS)

    def report(self) -> None:
        """Writes the report on the run so far."""
        if distributed.is_rank0():
            self.writer.wait()
            try_write_report(self.folder.path)

    def averaged_generator(self) -> Any:
        """Moving average of the generator, which is what metrics and grids show."""
        assert self.trainer.generator.average is not None
        return self.trainer.generator.average.network

    # -- evaluation -----------------------------------------------------------------------------------

    def evaluate(self) -> None:
        """Measures the snapshot, links the best snapshot, and ends the run if the FID keeps rising.

        Ctrl-C during the measurement loses only the measurement.
        """
        if self.callbacks.evaluate is None or not self.evaluation_is_due() or self.should_stop():
            return
        self.writer.wait()  # the measured snapshot exists, even if the measurement fails
        rows = self.measured(self.averaged_generator(), self.snapshot_path())
        if rows is None:
            return
        for row in rows if distributed.is_rank0() else ():
            results = {f"Metrics/{name}": value for name, value in row["results"].items()}
            self.trackers.add_numbers(results, self.trainer.progress.cur_nimg, time.time())
        worse = record(self.folder, rows, self.config.stop_if_worse) if distributed.is_rank0() else None
        if worse is not None:
            self.say(worse)
        self.ending |= distributed.broadcast(worse is not None)

    def measured(self, generator: Generator, path: Path) -> Sequence[dict[str, Any]] | None:
        """Rows of the metrics of a generator; None if they were interrupted or nothing is measured.

        Args:
            generator: Generator to measure.
            path: Its file.
        """
        evaluate = self.callbacks.evaluate
        if evaluate is None:
            return None
        # With several processes, none can leave alone; everything is saved, so the launcher may end them.
        self.stop.urgent = distributed.world_size() == 1
        try:
            with distributed.phase(f"metrics of {path.name}"):
                rows = evaluate(generator.module, path.name)
        except KeyboardInterrupt:
            self.say(f"Interrupted the metrics of {path.name}; they are not recorded")
            return None
        finally:
            self.stop.urgent = False
        for row in rows if distributed.is_rank0() else ():
            self.say(" ".join(f"{name} {value:.6g}" for name, value in row["results"].items()))
        return rows

    def start_is_measured(self) -> bool:
        """True if an earlier process has measured the unrefined generator."""
        return distributed.broadcast(is_measured(self.folder, self.snapshot_path().name))

    def evaluation_is_due(self) -> bool:
        """True if this snapshot is to be measured: every `metric_every`-th snapshot, and the last."""
        number = self.tick_number() // self.config.snap_ticks
        at_end = self.trainer.progress.cur_nimg >= self.config.kimg * 1000
        return number % self.config.metric_every == 0 or at_end
