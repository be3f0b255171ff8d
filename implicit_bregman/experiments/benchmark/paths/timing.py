"""What the main paths take on the CPU and on a GPU."""

from __future__ import annotations

import statistics
import time
import warnings
from dataclasses import dataclass

import torch

from implicit_bregman.experiments.benchmark.paths.layers import Path, Run

# Per path and device: repeats go on for so many seconds, and at most so many times.
SECONDS, MOST = 2.0, 30


@dataclass(frozen=True)
class Times:
    """Of one run, forward and backward.

    Attributes:
        cpu: median seconds on the CPU.
        gpu: median seconds on the GPU.
        waits: how often the host waited for the GPU, as CUDA tells it.
        megabytes: the largest memory held on the GPU, in 2^20 bytes.
    """

    cpu: float
    gpu: float
    waits: int
    megabytes: float


def times_of(path: Path) -> Times:
    """Time a path on both; needs a GPU."""
    gpu = torch.device("cuda")
    cpu_seconds = _median(path.make(torch.device("cpu")))
    run = path.make(gpu)
    gpu_seconds = _median(run)
    torch.cuda.reset_peak_memory_stats()
    waits = _waits(run)
    return Times(cpu_seconds, gpu_seconds, waits, torch.cuda.max_memory_allocated() / 2**20)


def _median(run: Run) -> float:
    run()
    taken: list[float] = []
    while sum(taken) < SECONDS and len(taken) < MOST:
        _finish()
        start = time.perf_counter()
        run()
        _finish()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _waits(run: Run) -> int:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return sum("synchronizing" in str(warning.message) for warning in caught)
