"""Loop of a run: warm-up and refinement, status lines, snapshots, interruption."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from refine.config import RunConfig
from refine.errors import UserError
from refine.files.image_grid import grid_shape, save_grid
from refine.files.images import to_uint8
from refine.networks.sampling import labels_in_turn
from refine.pair.pair import Pair
from refine.pair.preflight import Preflight, preflight
from refine.report import REPORT, try_write_report
from refine.runs.evaluation import Evaluate, is_measured, real_images, record
from refine.runs.folder import RunFolder, snapshot_tag
from refine.runs.interrupts import StopRequest
from refine.runs.provenance import write_preflight
from refine.runs.status import Tick, resources, tick_line, tick_row, warm_up_row
from refine.runs.tensorboard import TensorBoard
from refine.runs.tracker import Tracker, Trackers
from refine.runs.wandb import WeightsAndBiases
from refine.runs.writer import Origin, Writer
from refine.runtime import distributed
from refine.runtime.random import stream_generator
from refine.runtime.text import format_time
from refine.training.drift import DriftProbe
from refine.training.memory import memory_advice
from refine.training.statistics import RunningMeans
from refine.training.trainer import Trainer

log = logging.getLogger("refine")

MAX_GRID_IMAGES_ON_CPU, MAX_GRID_PIXELS_ON_CPU = 240, 2**21  # of a grid, where drawing is slow
GRID_BATCH = 24  # images drawn at once
STATE_SECONDS = 600.0  # at most so much work is lost if the process is killed

OnTick = Callable[[Mapping[str, Any]], object]
OnSnapshot = Callable[[Path], object]


@dataclass(frozen=True)
class Callbacks:
    """Functions that a run calls; see `start.run`.

    Attributes:
        evaluate: Measures a snapshot; None for no metrics.
        on_tick: Gets the row of statistics of each status line; a true result ends the run.
        on_snapshot: Gets the path of each snapshot.
    """

    evaluate: Evaluate | None = None
    on_tick: OnTick | None = None
    on_snapshot: OnSnapshot | None = None


@dataclass(frozen=True)
class Phase:
    """A stretch of a run that repeats one kind of step.

    Attributes:
        title: Title of the progress bar; None for none.
        total_nimg: Images at its end.
        nimg: Images so far.
        step: One step.
        tick: Status line and statistics, by the number of the tick.
        has_snapshots: Whether snapshots are taken.
    """

    title: str | None
    total_nimg: float
    nimg: Callable[[], int]
    step: Callable[[], None]
    tick: Callable[[int], None]
    has_snapshots: bool


def preflight_of(pair: Pair, trainer: Trainer) -> Preflight:
    """The trial of a pair on the trainer's device, in float32."""
    return preflight(trainer.generator.network, trainer.teacher, pair.bridge, seed=trainer.options.seed)


def position(config: RunConfig, trainer: Trainer) -> int:
    """Place on the axis of statistics: images of generator updates; those of the warm-up lie before 0."""
    progress = trainer.progress
    if progress.step or not trainer.needs_warm_up:
        return progress.cur_nimg
    return min(progress.warmup_nimg - round(config.warmup_kimg * 1000), 0)


class Run:
    """The loop over ticks, and what is written at each. Only the first of several processes writes and speaks."""

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
        # A run that was finished already has its last snapshot.
        finished = trainer.progress.cur_nimg >= config.kimg * 1000
        has_snapshot = finished and self.snapshot_path().exists()
        self.saved_nimg = trainer.progress.cur_nimg if has_snapshot else None
        self.stopping = self.ending = False
        self.trackers = Trackers(self._choose_trackers() if distributed.is_first() else [])

    def go(self) -> Path:
        """Warm-up, then refinement until `kimg`; returns the last snapshot."""
        self.say(f"Run directory: {self.folder.path}")
        with ExitStack() as stack:
            stack.enter_context(logging_redirect_tqdm([log]))
            stack.callback(self.trackers.close)
            stack.enter_context(self.stop.listening())
            stack.enter_context(self.writer)  # whatever ends the run, it ends with complete files
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
        """Preflight, first snapshot and first metrics of a new run."""
        progress = self.trainer.progress
        if progress.step == 0 and progress.warmup_nimg == 0:
            self.trackers.add_options(self.config.to_dict())
            self.try_pair()
            self.save_grid("fakes_init.png", self.draw_grid(), "before refinement")
            self.save_reals()
            self.writer.save(snapshot=True)
            self.evaluate()
            self.report()
        elif progress.step == 0 and not self.start_is_measured():
            self.evaluate()  # the run was stopped before that was done

    def warm_up(self) -> Phase:
        """Fitting of the fake score to the generator as it is."""
        return Phase(
            title="warm-up",
            total_nimg=self.config.warmup_kimg * 1000,
            nimg=lambda: self.trainer.progress.warmup_nimg,
            step=self.trainer.warm_up_step,
            tick=self.warm_up_tick,
            has_snapshots=False,
        )

    def refinement(self) -> Phase:
        """Refinement of the generator."""
        return Phase(
            title=None,
            total_nimg=self.config.kimg * 1000,
            nimg=lambda: self.trainer.progress.cur_nimg,
            step=self.trainer.step,
            tick=self.tick,
            has_snapshots=True,
        )

    def phase(self, phase: Phase) -> None:
        """Steps until the end of a phase, with a status line at each tick and files where they are due."""
        with self.progress_bar(phase) as bar:
            self.phase_time, self.phase_nimg = time.perf_counter(), phase.nimg()
            while phase.nimg() < phase.total_nimg and not self.should_stop():
                # Ticks lie on a grid that no interruption shifts.
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
        """State and first tick of the refinement, unless the warm-up was stopped."""
        if self.stopping:
            return
        self.trainer.statistics = RunningMeans()
        self.save_state()
        self.tick_end_time = time.perf_counter()
        self.start_tick()
        kimg = self.trainer.progress.warmup_nimg / 1000
        self.say(f"Fake score fitted to {kimg:.1f} kimg of the generator as it is")

    def finish(self) -> None:
        """Last status line, snapshot and metrics; or the state of a run that was stopped.

        Raises:
            KeyboardInterrupt: The run was stopped.
        """
        progress = self.trainer.progress
        if not self.stopping:
            if progress.cur_nimg > self.tick_start_nimg:
                self.tick(self.tick_number() + 1)  # what is left, shorter than the others
                self.start_tick()
            if self.saved_nimg != progress.cur_nimg:
                self.save()
            self.say(f"Report: {self.folder.path / REPORT}")
        self.writer.wait()
        self.should_stop()  # somebody may have asked for it while the last snapshot was saved
        if self.stopping:
            state = self.save_state()
            self.writer.wait()
            distributed.barrier()  # a process that ends makes the launcher end all, one of which is still saving
            self.say(f"Stopped by {self.stop.name}; go on with --resume={state}")
            raise KeyboardInterrupt

    def try_pair(self) -> None:
        """Says what the teacher makes of the generator's images, so that a hopeless pair is noticed at once."""
        if self.config.preflight and distributed.is_first():
            found = preflight_of(self.pair, self.trainer)
            write_preflight(self.folder.path, found)
            for line in found.lines():
                self.say(line)

    def should_stop(self) -> bool:
        """Whether any process was told to stop, or the run ends early; the same answer at all of them.

        Raises:
            UserError: A file could not be written.
        """
        self.writer.check()
        with distributed.phase(f"step {self.trainer.progress.step}"):
            self.stopping = distributed.any_process(self.stop.number is not None)
        return self.stopping or self.ending

    # -- status lines ---------------------------------------------------------------------------------

    def warm_up_tick(self, number: int) -> None:
        """A status line and a row of statistics of the warm-up."""
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
        """A status line and a row of statistics of the refinement.

        Raises:
            UserError: Nothing that the generator draws, or no gradient since the last tick, is finite.
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
        if distributed.is_first():
            problem = self.gradient_problem(values)
            values |= self.drift.measure(self.trainer.generator.network) | resources(self.trainer.device)
            row = tick_row(tick, values, progress.num_nonfinite)
            self.say(tick_line(tick, values, progress.num_nonfinite))
            self.add_row(row)
            if problem is None and self.callbacks.on_tick is not None:
                end = bool(self.callbacks.on_tick(row))
        self.ending |= distributed.broadcast(end)
        self.raise_everywhere(problem)
        self.trainer.statistics = RunningMeans()
        self.tick_end_time = now

    def gradient_problem(self, values: Mapping[str, float]) -> str | None:
        """A sentence where no gradient since the last tick was finite; a loss scale that adapts may take its time."""
        finite = "Gradient/generator_norm" in values or not self.trainer.progress.num_nonfinite
        if finite or self.trainer.precision == "fp16":
            return None
        return "No gradient of the generator was finite since the last status line"

    def raise_everywhere(self, problem: str | None) -> None:
        """Ends a run that has come to nothing.

        Raises:
            UserError: The first process has a problem.
        """
        problem = distributed.broadcast(problem)
        if problem is None:
            return
        self.writer.wait()
        good = self.folder.last_snapshot()
        kept = f"the last good snapshot is {good}" if good else "there is no snapshot"
        raise UserError(
            f"{problem}: {kept}. Begin a new run from it (--init) with lower --glr and --flr, or --precision=fp32."
        )

    def add_row(self, row: dict[str, Any]) -> None:
        """A row of statistics, for `stats.jsonl` and for TensorBoard."""
        if distributed.is_first():
            self.folder.add_stats(row | {"timestamp": time.time()})
            self.trackers.add_numbers(row, row["Progress/cur_nimg"], time.time())

    def tick_number(self) -> int:
        """Whole ticks since the start of the run, before any interruption."""
        return self.trainer.progress.cur_nimg // self.tick_nimg

    def start_tick(self) -> None:
        """Begins to count anew, after whatever was saved and measured."""
        self.tick_start_time, self.tick_start_nimg = time.perf_counter(), self.trainer.progress.cur_nimg
        self.maintenance_seconds = self.tick_start_time - self.tick_end_time

    def progress_bar(self, phase: Phase) -> Any:
        """A progress bar where there is somebody at a terminal."""
        silent = None if distributed.is_first() else True  # None: only at a terminal
        total, done = int(phase.total_nimg), phase.nimg()
        return tqdm(
            total=total, initial=done, desc=phase.title, unit="img", unit_scale=True, leave=False, disable=silent
        )

    def say(self, line: str) -> None:
        """One line for the user and for `log.txt`."""
        if distributed.is_first():
            log.info(line)
            self.folder.log(line)

    # -- files ----------------------------------------------------------------------------------------

    def save(self) -> None:
        """A snapshot, the state to go on from, and then the metrics, which may be interrupted.

        Raises:
            UserError: The moving average draws images that are not finite; nothing is written then.
        """
        grid = self.draw_grid()
        problem = "The generator draws images that are not finite"
        self.raise_everywhere(problem if grid is not None and not grid.isfinite().all() else None)
        self.writer.save(snapshot=True, state=True)
        self.state_time = time.perf_counter()
        self.save_grid(f"fakes{self.tag()}.png", grid, f"{self.trainer.progress.cur_nimg / 1000:g} kimg")
        self.saved_nimg = self.trainer.progress.cur_nimg
        self.evaluate()
        self.report()
        if self.callbacks.on_snapshot is not None and distributed.is_first():
            self.writer.wait()
            self.callbacks.on_snapshot(self.snapshot_path())

    def tag(self) -> str:
        """Tag of the present moment in the names of files."""
        return snapshot_tag(self.trainer.progress.cur_nimg, self.config.batch)

    def snapshot_path(self) -> Path:
        """Path of this moment's pickle."""
        return self.folder.snapshot_path(self.tag())

    def save_state(self) -> Path:
        """Begins to write the training state; the two newest are kept."""
        self.writer.save(state=True)
        self.state_time = time.perf_counter()
        return self.folder.state_path(self.trainer.progress.cur_nimg)

    def state_is_due(self) -> bool:
        """Whether the last state is so old that too much would be lost; the first process's clock decides."""
        return distributed.broadcast(time.perf_counter() - self.state_time > STATE_SECONDS)

    def grid_shape(self) -> tuple[int, int]:
        """Columns and rows of a grid of images."""
        generator = self.averaged_generator()
        most = None
        if self.trainer.device.type != "cuda":
            most = max(min(MAX_GRID_IMAGES_ON_CPU, MAX_GRID_PIXELS_ON_CPU // generator.img_resolution**2), 1)
        return grid_shape(generator.img_resolution, generator.c_dim, most)

    def save_reals(self) -> None:
        """A grid of the data set, where there is one, with the classes of the fakes in its columns."""
        if self.config.data is None or not distributed.is_first():
            return
        (columns, rows), num_classes = self.grid_shape(), self.averaged_generator().c_dim
        classes = [place % columns % num_classes if num_classes else None for place in range(columns * rows)]
        images = real_images(self.config.data, classes, self.config.seed)
        save_grid(self.folder.path / "reals.png", images, columns, "real images", self.column_names())
        self.trackers.add_picture("reals", self.folder.path / "reals.png", 0, time.time())

    @torch.no_grad()
    def draw_grid(self) -> Tensor | None:
        """Images of the moving average: the same latents in every grid of a run, a class in each column.

        Returns:
            [N, C, R, R] on the CPU; None at all processes but the first.
        """
        if not distributed.is_first():
            return None
        generator, device = self.averaged_generator(), self.trainer.device
        columns, rows = self.grid_shape()
        z = torch.randn(columns * rows, *generator.z_shape, generator=stream_generator(self.config.seed, "grid", 0))
        c = labels_in_turn(columns * rows, generator.c_dim, columns)
        pairs = zip(z.split(GRID_BATCH), c.split(GRID_BATCH), strict=True)
        return torch.cat([generator(z.to(device), c.to(device), noise_mode="const").images.cpu() for z, c in pairs])

    def column_names(self) -> list[str]:
        """Classes of the columns of a grid; empty for a generator without classes."""
        num_classes = self.averaged_generator().c_dim
        return [str(column % num_classes) for column in range(self.grid_shape()[0])] if num_classes else []

    def save_grid(self, name: str, images: Tensor | None, title: str) -> None:
        """Writes a grid of images as PNG."""
        if images is not None:
            path = self.folder.path / name
            save_grid(path, to_uint8(images).numpy(), self.grid_shape()[0], title, self.column_names())
            self.trackers.add_picture("fakes", path, self.trainer.progress.cur_nimg, time.time())

    def report(self) -> None:
        """Writes the report of the run so far."""
        if distributed.is_first():
            self.writer.wait()
            try_write_report(self.folder.path)

    def averaged_generator(self) -> Any:
        """The moving average of the generator, which snapshots are judged by."""
        assert self.trainer.generator.average is not None
        return self.trainer.generator.average.network

    # -- evaluation -----------------------------------------------------------------------------------

    def evaluate(self) -> None:
        """Measures the snapshot, links the best one, and notes whether the FID keeps rising.

        Ctrl-C while this goes on loses this measurement and nothing else.
        """
        evaluate = self.callbacks.evaluate
        if evaluate is None or not self.evaluation_is_due() or self.should_stop():
            return
        self.writer.wait()  # the measured snapshot is there, whatever becomes of the measurement
        path = self.snapshot_path()
        # One of several processes cannot leave alone; all is saved, so the launcher may end them.
        self.stop.urgent = distributed.size() == 1
        try:
            with distributed.phase(f"metrics of {path.name}"):
                rows = evaluate(self.averaged_generator().module, path.name)
        except KeyboardInterrupt:
            self.say(f"The metrics of {path.name} were interrupted and are not recorded")
            return
        finally:
            self.stop.urgent = False
        for row in rows if distributed.is_first() else ():
            self.say(" ".join(f"{name} {value:.6g}" for name, value in row["results"].items()))
            results = {f"Metrics/{name}": value for name, value in row["results"].items()}
            self.trackers.add_numbers(results, self.trainer.progress.cur_nimg, time.time())
        worse = record(self.folder, rows, self.config.stop_if_worse) if distributed.is_first() else None
        if worse is not None:
            self.say(worse)
        self.ending |= distributed.broadcast(worse is not None)

    def start_is_measured(self) -> bool:
        """Whether an earlier process measured the generator as it came."""
        return distributed.broadcast(is_measured(self.folder, self.snapshot_path().name))

    def evaluation_is_due(self) -> bool:
        """Whether this snapshot is one of those to measure; the last one is in any case."""
        number = self.tick_number() // self.config.snap_ticks
        at_end = self.trainer.progress.cur_nimg >= self.config.kimg * 1000
        return number % self.config.metric_every == 0 or at_end
