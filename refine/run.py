"""A run from start to end: networks, folder, warm-up, ticks, snapshots, interruption and resumption."""

from __future__ import annotations

import copy
import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from refine import pickles
from refine.bridge import Shape, make_bridge
from refine.config import RunConfig
from refine.errors import UserError
from refine.loading import LoadedNetwork, load_gan, load_teacher
from refine.pickles import NetworkPickle
from refine.run_dir import RunDir
from refine.streams import stream_generator
from refine.train_layers import select_layers
from refine.trainer import Averages, Progress, Trainer

log = logging.getLogger("refine")

GRID_COLUMNS, GRID_ROWS = 10, 6
STATE_VERSION = 1


def refine(config: RunConfig, *, trust: bool = False, resume: Path | None = None) -> Path:
    """Refines a generator.

    Args:
        config: the options.
        trust: run the source embedded in the pickles where Refine has no network of its own.
        resume: a training state to continue from, in the folder that it lies in.

    Returns:
        The last snapshot's path.

    Raises:
        UserError: the pair does not fit, a file cannot be read or written, or the state is not of these options.
    """
    device = choose_device(config.device)
    gan, teacher = load_gan(config.gan, trust=trust), load_teacher(config.teacher, trust=trust)
    hashes = {name: pickles.file_sha256(n.pickle.path) for name, n in (("gan", gan), ("teacher", teacher))}
    trainer = make_trainer(config, gan, teacher, device)
    if resume is None:
        run_dir = RunDir.create(config.outdir, run_name(config, gan, teacher))
        run_dir.write_options(config.to_json())
    else:
        run_dir = RunDir(resume.parent)
        load_state(trainer, read_state(resume), hashes)
        run_dir.cut_stats(trainer.progress.cur_nimg)
    return Run(config, trainer, run_dir, gan.pickle, hashes).train()


def make_trainer(config: RunConfig, gan: LoadedNetwork, teacher: LoadedNetwork, device: torch.device) -> Trainer:
    """Copies of the networks, joined by a bridge, on the device.

    Raises:
        UserError: the pair does not fit.
    """
    bridge = make_bridge(shape_of(gan), shape_of(teacher), config.resample, config.class_map)
    generator, generator_ema = (copy.deepcopy(gan.network).to(device) for _ in range(2))
    denoiser, fake = (copy.deepcopy(teacher.network).to(device) for _ in range(2))
    select_layers(generator, config.train_layers, bridge.img_resolution)
    return Trainer(config, generator, generator_ema, denoiser, fake, bridge, device)


def shape_of(loaded: LoadedNetwork) -> Shape:
    """What the bridge has to know of a network."""
    network: Any = loaded.network
    num_classes = network.c_dim if loaded.architecture.role == "generator" else network.label_dim
    return Shape(int(network.img_resolution), int(network.img_channels), int(num_classes))


def choose_device(name: str) -> torch.device:
    """The device meant by `auto`, `cpu`, `cuda` or `mps`.

    Raises:
        UserError: this machine does not have it.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, is_there in available.items() if is_there)
    if not available[name]:
        raise UserError(f"--device={name} is not available to PyTorch here; --device=auto takes what is there.")
    return torch.device(name)


def run_name(config: RunConfig, gan: LoadedNetwork, teacher: LoadedNetwork) -> str:
    """`<gan>-<teacher>-ikl-batch<N>[-desc]`, from the names of the files."""
    names = [pickle.path.stem for pickle in (gan.pickle, teacher.pickle)]
    parts = [*names, "ikl", f"batch{config.batch}", *([config.desc] if config.desc else [])]
    return "-".join("".join(c if c.isalnum() or c in "._-" else "_" for c in part) for part in parts)


def state_of(trainer: Trainer, hashes: dict[str, str]) -> dict[str, Any]:
    """Everything that a run must remember, as tensors, numbers and text."""
    return {
        "version": STATE_VERSION,
        "hashes": hashes,
        "progress": asdict(trainer.progress),
        **{name: getattr(trainer, name).state_dict() for name in _STATEFUL},
    }


def load_state(trainer: Trainer, state: dict[str, Any], hashes: dict[str, str]) -> None:
    """The inverse of `state_of`.

    Raises:
        UserError: the state belongs to other pickles, or to another version of Refine.
    """
    if state.get("version") != STATE_VERSION:
        raise UserError("The training state was written by another version of Refine: resume it with that one.")
    for name, sha256 in hashes.items():
        if state["hashes"][name] != sha256:
            raise UserError(f"--{name} is not the file that the run was started with: put that one back.")
    trainer.progress = Progress(**state["progress"])
    for name in _STATEFUL:
        getattr(trainer, name).load_state_dict(state[name])


def read_state(path: Path) -> dict[str, Any]:
    """The content of a `training-state-*.pt`.

    Raises:
        UserError: it is damaged or something else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load fails in many ways
        raise UserError(f"{path} is no training state of Refine, or damaged: resume from an older one.") from error


_STATEFUL = ("generator", "generator_ema", "fake", "generator_optimizer", "fake_optimizer")


class Run:
    """The loop over ticks, and what is written at each."""

    def __init__(
        self, config: RunConfig, trainer: Trainer, run_dir: RunDir, origin: NetworkPickle, hashes: dict[str, str]
    ) -> None:
        self.config, self.trainer, self.run_dir, self.origin, self.hashes = config, trainer, run_dir, origin, hashes
        self.start_time = self.tick_start_time = time.time()
        self.tick_start_nimg = trainer.progress.cur_nimg
        self.maintenance_seconds = 0.0
        self.stop_signal: int | None = None
        self.saved_nimg: int | None = None

    def train(self) -> Path:
        """Warm-up, then steps until `kimg`; returns the last snapshot."""
        progress, config = self.trainer.progress, self.config
        self.say(f"Run directory: {self.run_dir.path}")
        if progress.step == 0 and progress.warmup_nimg == 0:
            self.save_images("fakes_init.png")
        with self.signals_noted():
            self.warm_up()
            if progress.step == 0 and self.stop_signal is None:
                self.say(f"Fake score fitted to {progress.warmup_nimg / 1000:.1f} kimg of the generator as it is")
                self.start_tick()
            while progress.cur_nimg < config.kimg * 1000 and self.stop_signal is None:
                self.trainer.step()
                if progress.cur_nimg - self.tick_start_nimg >= config.tick_kimg * 1000:
                    self.tick()
        if self.stop_signal is not None:
            state = self.save_state()
            self.say(f"Stopped by {signal.Signals(self.stop_signal).name}; go on with --resume={state}")
            raise KeyboardInterrupt
        if progress.cur_nimg > self.tick_start_nimg:
            self.tick()
        if self.saved_nimg != progress.cur_nimg:
            self.save()
        return self.run_dir.snapshot_path(progress.cur_nimg)

    def warm_up(self) -> None:
        """Fits the fake score to the generator as it is, with a line now and then."""
        progress, total = self.trainer.progress, self.config.warmup_kimg * 1000
        start_time, start_nimg = time.time(), progress.warmup_nimg
        said_nimg = start_nimg
        while progress.warmup_nimg < total and self.stop_signal is None:
            self.trainer.warm_up_step()
            if progress.warmup_nimg - said_nimg >= self.config.tick_kimg * 1000 and progress.warmup_nimg < total:
                said_nimg = progress.warmup_nimg
                remaining = (time.time() - start_time) / (said_nimg - start_nimg) * (total - said_nimg)
                self.say(
                    f"warm-up kimg {said_nimg / 1000:.1f} of {total / 1000:.1f} "
                    f"fake {self.trainer.averages.means()['Loss/fake']:.3f} eta {format_time(remaining)}"
                )
                self.trainer.averages = Averages()

    def tick(self) -> None:
        """A status line and a row of statistics; every so many ticks a snapshot and a state."""
        progress, config = self.trainer.progress, self.config
        now, means = time.time(), self.trainer.averages.means()
        tick_seconds, tick_kimg = now - self.tick_start_time, (progress.cur_nimg - self.tick_start_nimg) / 1000
        number = round(progress.cur_nimg / (config.tick_kimg * 1000))
        remaining = tick_seconds / tick_kimg * max(config.kimg - progress.cur_nimg / 1000, 0)
        cpu_gb = psutil.Process().memory_info().rss / 2**30
        gpu_gb = reserved_gb = 0.0
        if self.trainer.device.type == "cuda":
            gpu_gb, reserved_gb = torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / 2**30
            torch.cuda.reset_peak_memory_stats()
        self.say(
            f"tick {number:<5d} kimg {progress.cur_nimg / 1e3:<8.1f} time {format_time(now - self.start_time):<12s} "
            f"sec/tick {tick_seconds:<7.1f} sec/kimg {tick_seconds / tick_kimg:<7.2f} "
            f"maintenance {self.maintenance_seconds:<6.1f} cpumem {cpu_gb:<6.2f} gpumem {gpu_gb:<6.2f} "
            f"reserved {reserved_gb:<6.2f} augment 0.000 "
            f"gap {means.get('Score/gap', 0):<8.5f} fake {means.get('Loss/fake', 0):<8.3f} "
            f"nonfinite {progress.num_nonfinite} eta {format_time(remaining)}"
        )
        row = {
            "Progress/tick": number,
            "Progress/kimg": progress.cur_nimg / 1000,
            "Progress/cur_nimg": progress.cur_nimg,
            "Progress/num_nonfinite": progress.num_nonfinite,
            "Timing/sec_per_kimg": tick_seconds / tick_kimg,
            "Timing/maintenance_sec": self.maintenance_seconds,
            "Resources/cpu_mem_gb": cpu_gb,
            "Resources/peak_gpu_mem_gb": gpu_gb,
            **means,
            "timestamp": now,
        }
        self.run_dir.add_stats(row)
        maintenance_start = time.time()
        if number % config.snap_ticks == 0:
            self.save()
        self.start_tick()
        self.maintenance_seconds = time.time() - maintenance_start

    def start_tick(self) -> None:
        """Begins to count anew."""
        self.tick_start_time, self.tick_start_nimg = time.time(), self.trainer.progress.cur_nimg
        self.trainer.averages = Averages()

    # -- what is written ------------------------------------------------------------------------------

    def save(self) -> None:
        """A snapshot, and the state to go on from."""
        self.save_snapshot()
        self.save_state()
        self.saved_nimg = self.trainer.progress.cur_nimg

    def save_snapshot(self) -> None:
        """The pickle that came in, with the live generator as G and the moving average as G_ema, and a picture."""
        path = self.run_dir.snapshot_path(self.trainer.progress.cur_nimg)
        networks = {"G": self.trainer.generator, "G_ema": self.trainer.generator_ema}
        present = {key: n.state_dict() for key, n in networks.items() if self.origin.get(key) is not None}
        pickles.save(self.origin, path, present)
        self.save_images(f"fakes{self.trainer.progress.cur_nimg // 1000:06d}.png")

    def save_state(self) -> Path:
        """The training state; the two newest are kept."""
        return self.run_dir.save_state(self.trainer.progress.cur_nimg, state_of(self.trainer, self.hashes))

    @torch.no_grad()
    def save_images(self, name: str) -> None:
        """A grid from the moving average: the same latents in every picture of a run; a class in each column."""
        generator = self.trainer.generator_ema
        count = GRID_COLUMNS * GRID_ROWS
        z = torch.randn(count, generator.z_dim, generator=stream_generator(self.config.seed, "grid", 0))
        c = torch.zeros(count, generator.c_dim)
        if generator.c_dim:
            c[torch.arange(count), torch.arange(count) % GRID_COLUMNS % generator.c_dim] = 1
        pairs = zip(z.split(12), c.split(12), strict=True)
        device = self.trainer.device
        images = [generator(zs.to(device), cs.to(device), noise_mode="const").cpu() for zs, cs in pairs]
        self.run_dir.save_images(name, torch.cat(images), GRID_COLUMNS)

    def say(self, line: str) -> None:
        """One line for the user and for `log.txt`."""
        log.info(line)
        self.run_dir.log(line)

    @contextmanager
    def signals_noted(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the loop after the step in hand; a second one ends the process."""

        def note(number: int, frame: Any) -> None:
            self.stop_signal = number
            for which, handler in previous.items():
                signal.signal(which, handler)

        previous = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}
        for which in previous:
            signal.signal(which, note)
        try:
            yield
        finally:
            for which, handler in previous.items():
                signal.signal(which, handler)


def resumed_config(state: Path, changes: dict[str, Any]) -> RunConfig:
    """The stored options of the run that a state lies in, with those changed that may change.

    Raises:
        UserError: an option that decides what the run does would change.
    """
    config = RunConfig.from_dict(RunDir(state.parent).read_options())
    fixed = [n for n, v in changes.items() if n not in ("kimg", "tick_kimg", "snap_ticks") and v != config[n]]
    if fixed:
        raise UserError(f"--{fixed[0].replace('_', '-')} cannot change in a resumed run: leave it out.")
    return replace(config, **changes)


def format_time(seconds: float) -> str:
    """`1h 38m 21s`, as the StyleGAN suite writes it."""
    total = round(seconds)
    days, hours, minutes = total // 86400, total // 3600 % 24, total // 60 % 60
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (total % 60, "s")]
    while len(parts) > 1 and parts[0][0] == 0:
        parts.pop(0)
    return " ".join(f"{n}{unit}" if i == 0 else f"{n:02d}{unit}" for i, (n, unit) in enumerate(parts[:3]))
