"""Python code run by several processes that `torch.distributed` joins over gloo."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_joined(code: str, folder: Path, num_processes: int = 2) -> list[str]:
    """Runs `code` in processes of rank 0, 1, ...; it finds torch, dist and rank. What each of them prints."""
    # A file in which they find each other, since a port that is free now may be taken a moment later.
    start = f"""
    import sys
    sys.path.insert(0, {str(ROOT)!r})
    import torch
    import torch.distributed as dist
    torch.set_num_threads(1)
    rank = int(sys.argv[1])
    store = dist.FileStore({str(folder / "joined")!r}, {num_processes})
    dist.init_process_group("gloo", store=store, rank=rank, world_size={num_processes})
    """
    # Together to the end: a process whose gloo threads still run when it exits may be terminated by C++ for that.
    end = """
    dist.barrier()
    dist.destroy_process_group()
    """
    program = "".join(textwrap.dedent(part) for part in (start, code, end))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(rank)],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_processes)
    ]
    outputs = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
            outputs.append(out)
    finally:
        for process in processes:
            process.kill()
    return outputs
