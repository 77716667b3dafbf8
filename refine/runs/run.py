"""A run from start to end: networks, folder, warm-up, ticks, snapshots, interruption and resumption."""

from __future__ import annotations

import copy
import logging
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from refine import pickles, zoo
from refine.config import RunConfig
from refine.errors import UserError
from refine.metrics import Teacher
from refine.networks.loading import LoadedNetwork, load_gan, load_teacher
from refine.objectives import OBJECTIVES
from refine.pair.classes import class_notes
from refine.pair.preflight import Preflight, preflight
from refine.pickles import NetworkPickle
from refine.runs.best import is_measured, record
from refine.runs.evaluation import Measure, measure_for, real_images
from refine.runs.folder import RunDir, moment
from refine.runs.interrupts import StopRequest
from refine.runs.start import choose_device, make_trainer, run_name, shape_of, with_lasting_paths, would_use_cuda
from refine.runs.status import Tick, format_time, resources, tick_line, tick_row, warm_up_row
from refine.runs.tensorboard import EventWriter
from refine.runs.writer import Origin, Saver
from refine.runtime import distributed
from refine.runtime.random import stream_generator
from refine.training.drift import Probe
from refine.training.inputs import labels_in_turn
from refine.training.memory import memory_advice
from refine.training.state import load_state, load_weights, read_state, remember_start
from refine.training.statistics import Averages
from refine.training.trainer import Progress, Trainer

log = logging.getLogger("refine")

GRID_COLUMNS, GRID_ROWS = 10, 6
STATE_SECONDS = 600.0  # at most so much work is lost if the process is killed


def refine(
    config: RunConfig,
    *,
    trust: bool = False,
    trust_detector: bool = False,
    resume: Path | None = None,
    measure: Measure | None = None,
) -> Path:
    """Refines a generator.

    Started by `torchrun`, all processes call this with the same arguments and share the work.

    Args:
        config: the options.
        trust: run the source embedded in the pickles where Refine has no network of its own.
        trust_detector: load a detector from the internet whose digest is not known.
        resume: a training state to continue from, in the folder that it lies in.
        measure: called after each snapshot, the first one being the generator as it came; None: by the options.

    Returns:
        The last snapshot's path.

    Raises:
        UserError: the pair does not fit, a file cannot be read or written, or the state is not of these options.
        KeyboardInterrupt: the run was stopped by a signal; its state is saved.
    """
    with distributed.processes("nccl" if would_use_cuda(config.device) else "gloo") as place:
        device = choose_device(config.device, place.local_rank if place.size > 1 else None)
        if place.size > config.batch:
            raise UserError(f"--batch={config.batch} leaves nothing for some of the {place.size} processes: raise it.")
        gan, teacher = load_gan(config.gan, trust=trust), load_teacher(config.teacher, trust=trust)
        config = with_lasting_paths(config)
        files = {"gan": gan.pickle.path, "teacher": teacher.pickle.path}
        trainer = make_trainer(config, gan, teacher, device)
        num_classes = (shape_of(gan).num_classes, shape_of(teacher).num_classes)
        for note in class_notes(gan.pickle, teacher.pickle, *num_classes, config.class_map):
            if resume is None and distributed.is_first():
                log.info(note)
        hashes = {name: pickles.file_sha256(path) for name, path in files.items()}
        if measure is None:
            yardstick = Teacher(trainer.teacher, config.teacher, hashes["teacher"], config.class_map)
            measure = measure_for(config, gan, trainer.generator_ema, yardstick, trust_detector=trust_detector)
        if resume is None:
            start = None
            if config.init is not None:
                path = zoo.resolve(config.init).path
                config = replace(config, init=str(path.resolve()))
                load_weights(trainer, path, trust=trust)
                start = copy.deepcopy(trainer.generator.state_dict())
            probe = Probe(trainer.generator, trainer.bridge, config.seed)
            config = replace(config, precision=trainer.precision)
            run_dir = RunDir(distributed.broadcast(_new_folder(config, gan, teacher)))
        else:
            state = read_state(resume)
            start = state["start"]
            if start is not None:  # the file that the run began from need not be there any more
                trainer.generator.load_state_dict(start)
            remember_start(trainer, trainer.generator.state_dict())
            probe = Probe(trainer.generator, trainer.bridge, config.seed)
            load_state(trainer, state, hashes)
            run_dir = RunDir(resume.parent)
            if distributed.is_first():
                run_dir.write_options(config.to_json())
                run_dir.cut_rows(position(config, trainer.progress))
                run_dir.set_aside(trainer.progress.cur_nimg)
        return Run(config, trainer, run_dir, gan.pickle, Origin(hashes, start), probe, measure).train()


def preflight_of(trainer: Trainer) -> Preflight:
    """The trial of a trainer's pair, in float32."""
    return preflight(trainer.generator, trainer.teacher, trainer.bridge, seed=trainer.config.seed)


def _new_folder(config: RunConfig, gan: LoadedNetwork, teacher: LoadedNetwork) -> Path | None:
    """The run's folder with its options in it, made by the first process."""
    if not distributed.is_first():
        return None
    run_dir = RunDir.create(config.outdir, run_name(config, gan, teacher))
    run_dir.write_options(config.to_json())
    return run_dir.path


def position(config: RunConfig, progress: Progress) -> int:
    """Where a run is on the axis of its statistics: images of generator updates, those of the warm-up before 0."""
    if progress.step or not OBJECTIVES[config.objective].needs_fake:
        return progress.cur_nimg
    return min(progress.warmup_nimg - round(config.warmup_kimg * 1000), 0)


class Run:
    """The loop over ticks, and what is written at each. Only the first of several processes writes and speaks."""

    def __init__(
        self,
        config: RunConfig,
        trainer: Trainer,
        run_dir: RunDir,
        pickle: NetworkPickle,
        origin: Origin,
        probe: Probe,
        measure: Measure | None = None,
    ) -> None:
        self.config, self.trainer, self.run_dir = config, trainer, run_dir
        self.probe, self.measure = probe, measure
        self.saver = Saver(trainer, pickle, run_dir, origin)
        self.tick_nimg = max(round(config.tick_kimg * 1000), 1)
        self.start_time = self.tick_start_time = self.tick_end_time = self.state_time = time.perf_counter()
        self.tick_start_nimg = trainer.progress.cur_nimg
        self.maintenance_seconds = 0.0
        self.stop = StopRequest()
        # A run that was finished already has its last snapshot.
        finished = trainer.progress.cur_nimg >= config.kimg * 1000
        has_snapshot = finished and self.snapshot_path().exists()
        self.saved_nimg = trainer.progress.cur_nimg if has_snapshot else None
        self.stopping = self.worse = False
        self.events = EventWriter(run_dir.path, position(config, trainer.progress) // 1000)
        self.bar: Any = None

    def train(self) -> Path:
        """Warm-up, then steps until `kimg`; returns the last snapshot."""
        progress, config = self.trainer.progress, self.config
        self.say(f"Run directory: {self.run_dir.path}")
        with ExitStack() as stack:
            stack.enter_context(logging_redirect_tqdm([log]))
            stack.callback(self.events.close)
            stack.enter_context(self.stop.listening())
            stack.enter_context(self.saver)  # whatever ends the run, it ends with complete files
            if progress.step == 0 and progress.warmup_nimg == 0:
                self.try_pair()
                self.save_images("fakes_init.png")
                self.save_reals()
                self.saver.save(snapshot=True)
                self.take_metrics()
            elif progress.step == 0 and not self.start_is_measured():
                self.take_metrics()  # the run was stopped before that was done
            self.warm_up()
            self.start_bar(config.kimg * 1000, progress.cur_nimg)
            while progress.cur_nimg < config.kimg * 1000 and not self.should_stop():
                with memory_advice(config):
                    self.trainer.step()
                self.bar.update(config.batch)
                # Ticks lie on a grid that no interruption shifts.
                ticks_before = (progress.cur_nimg - config.batch) // self.tick_nimg
                if self.tick_number() > ticks_before:
                    self.tick(self.tick_number())
                    if self.tick_number() // config.snap_ticks > ticks_before // config.snap_ticks:
                        self.save()
                    elif self.state_is_due():
                        self.save_state()
                    self.start_tick()
            self.bar.close()
            if not self.stopping:
                if progress.cur_nimg > self.tick_start_nimg:
                    self.tick(self.tick_number() + 1)  # what is left, shorter than the others
                    self.start_tick()
                if self.saved_nimg != progress.cur_nimg:
                    self.save()
            self.saver.wait()
            self.should_stop()  # somebody may have asked for it while the last snapshot was saved
            if self.stopping:
                state = self.save_state()
                self.saver.wait()
                distributed.barrier()  # a process that ends makes the launcher end all, one of which is still saving
                self.say(f"Stopped by {self.stop.name}; go on with --resume={state}")
                raise KeyboardInterrupt
        return self.snapshot_path()

    def try_pair(self) -> None:
        """Says what the teacher makes of the generator's images, so that a hopeless pair is noticed at once."""
        if self.config.preflight and distributed.is_first():
            for line in preflight_of(self.trainer).lines():
                self.say(line)

    def warm_up(self) -> None:
        """Fits the fake score to the generator as it is, with a line now and then."""
        progress, total = self.trainer.progress, self.config.warmup_kimg * 1000
        if progress.step or not self.trainer.objective.needs_fake:
            return
        start_time, start_nimg = time.perf_counter(), progress.warmup_nimg
        said_nimg = start_nimg
        self.start_bar(total, start_nimg, "warm-up")
        while progress.warmup_nimg < total and not self.should_stop():
            with memory_advice(self.config):
                self.trainer.warm_up_step()
            self.bar.update(self.config.batch)
            if progress.warmup_nimg - said_nimg >= self.config.tick_kimg * 1000 and progress.warmup_nimg < total:
                said_nimg = progress.warmup_nimg
                remaining = (time.perf_counter() - start_time) / (said_nimg - start_nimg) * (total - said_nimg)
                values = self.trainer.averages.means()
                self.say(
                    f"warm-up kimg {said_nimg / 1000:.1f} of {total / 1000:.1f} "
                    f"fake {values['Loss/fake']:.3f} eta {format_time(remaining)}"
                )
                self.add_row(warm_up_row(position(self.config, progress), values))
                self.trainer.averages = Averages()
                if self.state_is_due():
                    self.save_state()
        self.bar.close()
        if not self.stopping:
            self.trainer.averages = Averages()
            self.save_state()
            self.tick_end_time = time.perf_counter()
            self.start_tick()
            self.say(f"Fake score fitted to {progress.warmup_nimg / 1000:.1f} kimg of the generator as it is")

    def tick(self, number: int) -> None:
        """A status line and a row of statistics."""
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
            values = self.trainer.averages.means()
        if distributed.is_first():
            values |= self.probe.measure(self.trainer.generator) | resources(self.trainer.device)
            self.say(tick_line(tick, values, progress.num_nonfinite))
            self.add_row(tick_row(tick, values, progress.num_nonfinite))
        self.trainer.averages = Averages()
        self.tick_end_time = now

    def add_row(self, row: dict[str, Any]) -> None:
        """A row of statistics, for `stats.jsonl` and for TensorBoard."""
        if distributed.is_first():
            self.run_dir.add_stats(row | {"timestamp": time.time()})
            self.events.add(row, row["Progress/cur_nimg"], time.time())

    def tick_number(self) -> int:
        """Whole ticks since the start of the run, before any interruption."""
        return self.trainer.progress.cur_nimg // self.tick_nimg

    def start_tick(self) -> None:
        """Begins to count anew, after whatever was saved and measured."""
        self.tick_start_time, self.tick_start_nimg = time.perf_counter(), self.trainer.progress.cur_nimg
        self.maintenance_seconds = self.tick_start_time - self.tick_end_time

    def start_bar(self, total: float, done: int, title: str | None = None) -> None:
        """A progress bar where there is somebody at a terminal."""
        silent = None if distributed.is_first() else True  # None: only at a terminal
        self.bar = tqdm(
            total=int(total), initial=done, desc=title, unit="img", unit_scale=True, leave=False, disable=silent
        )

    def should_stop(self) -> bool:
        """Whether any process was told to stop, or the metric says so; the same answer at all of them.

        Raises:
            UserError: a file could not be written.
        """
        self.saver.check()
        with distributed.phase(f"step {self.trainer.progress.step}"):
            self.stopping = distributed.any_process(self.stop.number is not None)
        return self.stopping or self.worse

    # -- what is written ------------------------------------------------------------------------------

    def save(self) -> None:
        """A snapshot, the state to go on from, and then the metrics, which may be interrupted."""
        self.saver.save(snapshot=True, state=True)
        self.state_time = time.perf_counter()
        self.save_images(f"fakes{self.moment()}.png")
        self.saved_nimg = self.trainer.progress.cur_nimg
        self.take_metrics()

    def moment(self) -> str:
        """The moment in the names of what is saved now."""
        return moment(self.trainer.progress.cur_nimg, self.config.batch)

    def snapshot_path(self) -> Path:
        """Where the pickle of this moment goes."""
        return self.run_dir.snapshot_path(self.moment())

    def save_state(self) -> Path:
        """The training state; the two newest are kept."""
        self.saver.save(state=True)
        self.state_time = time.perf_counter()
        return self.run_dir.state_path(self.trainer.progress.cur_nimg)

    def state_is_due(self) -> bool:
        """Whether the last state is so old that too much would be lost; the first process's clock decides."""
        return distributed.broadcast(time.perf_counter() - self.state_time > STATE_SECONDS)

    def take_metrics(self) -> None:
        """Measures the snapshot, links the best one, and notes whether the FID keeps rising.

        Ctrl-C while this goes on loses this measurement and nothing else.
        """
        if self.measure is None or not self.metrics_are_due() or self.should_stop():
            return
        self.saver.wait()  # the measured snapshot is there, whatever becomes of the measurement
        path = self.snapshot_path()
        # One of several processes cannot leave alone; all is saved, so the launcher may end them.
        self.stop.urgent = distributed.size() == 1
        try:
            with distributed.phase(f"metrics of {path.name}"):
                rows = self.measure(self.trainer.generator_ema, path.name)
        except KeyboardInterrupt:
            self.say(f"The metrics of {path.name} were interrupted and are not recorded")
            return
        finally:
            self.stop.urgent = False
        for row in rows if distributed.is_first() else ():
            self.say(" ".join(f"{name} {value:.6g}" for name, value in row["results"].items()))
            results = {f"Metrics/{name}": value for name, value in row["results"].items()}
            self.events.add(results, self.trainer.progress.cur_nimg, time.time())
        worse = record(self.run_dir, rows, self.config.stop_if_worse) if distributed.is_first() else None
        if worse is not None:
            self.say(worse)
        self.worse = distributed.broadcast(worse is not None)

    def start_is_measured(self) -> bool:
        """Whether an earlier process measured the generator as it came."""
        return distributed.broadcast(is_measured(self.run_dir, self.snapshot_path().name))

    def metrics_are_due(self) -> bool:
        """Whether this snapshot is one of those to measure; the last one is in any case."""
        number = self.tick_number() // self.config.snap_ticks
        at_end = self.trainer.progress.cur_nimg >= self.config.kimg * 1000
        return number % self.config.metric_every == 0 or at_end

    def save_reals(self) -> None:
        """A grid of the data set, where there is one."""
        if self.config.data is not None and distributed.is_first():
            images = real_images(self.config.data, GRID_COLUMNS * GRID_ROWS)
            self.run_dir.save_images("reals.png", images, GRID_COLUMNS)

    @torch.no_grad()
    def save_images(self, name: str) -> None:
        """A grid from the moving average: the same latents in every picture of a run; a class in each column."""
        if not distributed.is_first():
            return
        generator = self.trainer.generator_ema
        count = GRID_COLUMNS * GRID_ROWS
        z = torch.randn(count, generator.z_dim, generator=stream_generator(self.config.seed, "grid", 0))
        c = labels_in_turn(count, generator.c_dim, GRID_COLUMNS)
        pairs = zip(z.split(12), c.split(12), strict=True)
        device = self.trainer.device
        images = [generator(zs.to(device), cs.to(device), noise_mode="const").cpu() for zs, cs in pairs]
        self.run_dir.save_images(name, torch.cat(images), GRID_COLUMNS)

    def say(self, line: str) -> None:
        """One line for the user and for `log.txt`."""
        if distributed.is_first():
            log.info(line)
            self.run_dir.log(line)
