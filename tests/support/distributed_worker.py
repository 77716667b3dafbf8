"""One of several processes, for tests/runtime/test_distributed.py."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from datetime import timedelta

import torch
from trainers import golden_pair, modules, trainer_of

from refine import RunConfig, load_teacher, run
from refine.errors import UserError
from refine.pair.pair import distillation_of
from refine.runs.folder import RunFolder
from refine.runtime import distributed
from refine.runtime.logs import ALL_RANKS
from refine.training.statistics import RunningMeans
from refine.training.trainer import Trainer


def train(gan: str, teacher: str, out: str, objective: str = "ikl", gan_weight: str = "0") -> None:
    """A few float64 steps on the golden pair; the first process saves what came of them."""
    with distributed.processes():
        options = {
            "batch": 7, "batch_gpu": None, "glr": 1e-3, "flr": 1e-3, "kimg": 1.0, "clip_grad": 5.0,
            "noise_mode": "const", "fake_dropout": False, "fake_steps": 2, "ema_halflife_kimg": 0.05,
            "objective": objective, "gan_weight": float(gan_weight), "ratio_samples": 10,
        }  # fmt: skip
        trainer = trainer_of(golden_pair(gan, teacher, double=True), **options)
        for _ in range(2):
            trainer.warm_up_step()
        for _ in range(3):
            trainer.step()
        means = trainer.statistics.means()
        if distributed.is_rank0():
            weights = {
                f"{name}.{key}": value
                for name, module in modules(trainer).items()
                for key, value in module.state_dict().items()
            }
            torch.save({"weights": weights, "means": means}, out)


def distill(teacher: str, out: str) -> None:
    """A few float64 steps of a distillation; the first process saves what came of them."""
    with distributed.processes():
        loaded = load_teacher(teacher)
        loaded.network.double()
        options = {
            "batch": 7, "glr": 1e-3, "flr": 1e-3, "kimg": 1.0, "objective": "sid", "fake_dropout": False,
            "gan_dropout": False, "ema_halflife_kimg": 0.05,
        }  # fmt: skip
        trainer = trainer_of(distillation_of(loaded), **options)
        trainer.warm_up_step()
        for _ in range(3):
            trainer.step()
        if distributed.is_rank0():
            torch.save(
                {
                    f"{name}.{key}": value
                    for name, module in modules(trainer).items()
                    for key, value in module.state_dict().items()
                },
                out,
            )


def collectives() -> None:
    """Every function once, against what it must give."""
    with distributed.processes() as place:
        rank, size = place.rank, place.world_size
        assert (distributed.rank(), distributed.world_size()) == (rank, size) and distributed.is_rank0() == (rank == 0)
        tensors = [torch.full([2, 2], float(rank + 1)), torch.tensor(10.0 * rank)]
        distributed.all_reduce_sum_(tensors)
        assert tensors[0].eq(sum(range(1, size + 1))).all() and tensors[1] == 10 * sum(range(size))
        assert distributed.gather(("x", rank)) == [("x", r) for r in range(size)]
        assert distributed.broadcast(f"from {rank}") == "from 0"
        assert distributed.any_process(rank == size - 1) and not distributed.any_process(False)
        shares = distributed.gather(distributed.share(7))
        assert [i for share in shares for i in range(7)[share]] == list(range(7))
        means = RunningMeans()
        means.add("a", torch.full([rank + 1], float(rank)))
        means.add_by_band("b", torch.tensor([float(rank)]), torch.tensor([0.05 if rank == 0 else 2.0]))
        assert means.means() == {"a": 2 / 3, "b": 0.5, "b/sigma_0_0.1": 0.0, "b/sigma_1.5_6": 1.0}
        distributed.barrier()


def logs() -> None:
    """Records of several levels, before, in and after the block that joins the processes."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    log = logging.getLogger("refine")
    with distributed.processes() as place:
        log.info(f"info {place.rank}")
        log.warning(f"warning {place.rank}")
        log.warning(f"flagged {place.rank}", extra=ALL_RANKS)
        log.error(f"error {place.rank}")
    log.info(f"after {place.rank}")


def lost() -> None:
    """The last process ends without a word; the first one says what it was waiting for."""
    with distributed.processes(timeout=timedelta(seconds=3)) as place:
        distributed.barrier()
        if place.rank:
            time.sleep(60)
            return
        try:
            with distributed.phase("the drill"):
                distributed.barrier()
        except UserError as error:
            print(error, flush=True)


def interrupted(gan: str, teacher: str, outdir: str) -> None:
    """A run that is told to stop while the first process is slow to save, as a launcher would do it: and again."""
    save, states = RunFolder.remove_old_states, []

    def slow_save(self: RunFolder) -> None:
        states.append(1)
        if len(states) > 1:  # the first one is that of the warm-up's end
            os.kill(os.getpid(), signal.SIGTERM)  # the launcher's echo
            time.sleep(3)
            os.kill(os.getpid(), signal.SIGTERM)
        save(self)

    RunFolder.remove_old_states = slow_save  # type: ignore[method-assign]
    step = Trainer.step

    def step_then_stop(self: Trainer) -> None:
        step(self)
        if distributed.rank() == 1 and self.progress.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    Trainer.step = step_then_stop  # type: ignore[method-assign]
    config = RunConfig(
        gan=gan, teacher=teacher, outdir=outdir, batch=4, kimg=1, warmup_kimg=0.004, device="cpu", preflight=False
    )
    try:
        run(config)
    except KeyboardInterrupt:
        print("interrupted", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    parts = (train, distill, collectives, logs, lost, interrupted)
    {part.__name__: part for part in parts}[sys.argv[1]](*sys.argv[2:])
