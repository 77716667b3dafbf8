"""One build by ninja: its file from a list of steps, its run, and what its failure means."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stylegan_ops.build.errors import BuildError, first_error
from stylegan_ops.build.toolchain import WINDOWS, ninja_command

MAX_JOBS = 4


@dataclass(frozen=True)
class Step:
    """A command that makes one file out of others; paths are absolute or start in the folder of the build."""

    output: Path
    inputs: Sequence[Path]
    command: Sequence[str]


def build_file(steps: Sequence[Step]) -> str:
    """The text of build.ninja."""
    lines = ["rule run", "  command = $line", "  description = $out"]
    for step in steps:
        command = subprocess.list2cmdline(step.command) if WINDOWS else shlex.join(step.command)
        inputs = " ".join(map(_escape, step.inputs))
        lines += [f"build {_escape(step.output)}: run {inputs}", f"  line = {command.replace('$', '$$')}"]
    return "\n".join(lines) + "\n"


def _escape(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def jobs() -> int:
    """Number of compilers that run at once."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_JOBS, cores)


def run(folder: Path, steps: Sequence[Step], environment: Mapping[str, str], log: Path, hint: str = "") -> None:
    """Carry out the steps in a folder.

    Args:
        folder: Gets build.ninja and ninja's own files; where the commands run.
        steps: Steps, in any order.
        environment: Variables for the commands, beyond those of this process.
        log: File for the output of the commands if one fails.
        hint: Added to the advice to read the log.

    Raises:
        BuildError: Ninja is missing or a command fails.
        OSError: The folder cannot be written.
    """
    program = ninja_command()
    (folder / "build.ninja").write_text(build_file(steps), encoding="utf-8")
    result = subprocess.run(
        [program, "-C", str(folder), "-j", str(jobs()), "-v"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # Compilers keep their temporary files in the folder too, and say "error" in English.
        env={**os.environ, **environment, "LC_ALL": "C", "TMPDIR": "."},
    )
    if result.returncode != 0:
        fail(result.stdout, log, hint)


def fail(output: str, log: Path, hint: str = "") -> None:
    """Keep a compiler's output and raise BuildError with the line that matters, or OSError if the disk is full."""
    if os.strerror(errno.ENOSPC) in output:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    log.write_text(output, encoding="utf-8")
    raise BuildError(f"compiling failed with `{first_error(output)}`", f"see {log}{hint}")
