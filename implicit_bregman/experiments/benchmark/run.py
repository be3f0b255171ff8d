"""The benchmark: every cell, the feed-forward layers, MM's limits, the scaling plots."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict

import torch

from implicit_bregman.experiments.benchmark.families import contenders, prepare
from implicit_bregman.experiments.benchmark.feedforward import ACTIVATIONS, Size, compare_layers
from implicit_bregman.experiments.benchmark.limits import POOLS, share_on_limit
from implicit_bregman.experiments.benchmark.peers.contenders import BOTH, OURS
from implicit_bregman.experiments.benchmark.prepared import Prepared
from implicit_bregman.experiments.benchmark.results import (
    Benchmark,
    CellResult,
    Entry,
    FeedForwardRow,
    LimitRow,
    ScalingPoint,
)
from implicit_bregman.experiments.benchmark.scaling import held_bytes, places, scaling_points
from implicit_bregman.experiments.benchmark.settings import BenchmarkSettings
from implicit_bregman.experiments.benchmark.timing import measure
from implicit_bregman.experiments.learning.training import cpu_threads
from implicit_bregman.experiments.machine.versions import hardware, today, versions

Progress = Callable[[float, str], None]
"""Called with the share of all the work that is done, in 0 … 1, and what is being done."""

_TIMING_SHARE = 0.2  # of a cell's cap, and what the searches leave of it
_LIMIT_SAMPLES, _QUICK_LIMIT_SAMPLES = 100, 24
_QUICK_POOLS = 3
_SIZES = (Size(), Size(512, 512))
PEERS = ("torchdeq", "proxsuite", "osqp", "bregmanet")
INSTALL = "pip install 'implicit-bregman[benchmark]'"
_OTHER_SECONDS = 1.0  # for the repeats of one feed-forward row, and of one place of a scaling plot


def run_benchmark(
    settings: BenchmarkSettings,
    progress: Progress = lambda share, text: None,
    missing: dict[str, str] | None = None,
) -> Benchmark:
    """Run everything that was asked for, in this process.

    Args:
        settings: What to measure.
        progress: Told about the progress.
        missing: Peers to do without, and why; None: those that are not installed.

    Returns:
        The results.
    """
    absent = missing_peers() if missing is None else missing
    cells = settings.chosen_cells()
    pools = POOLS[:_QUICK_POOLS] if settings.quick else POOLS
    layers = [(name, size) for size in (_SIZES[:1] if settings.quick else _SIZES) for name in ACTIVATIONS]
    spots = places(settings.quick) if settings.scaling else []

    done, total = 0.0, settings.seconds_per_cell * len(cells)
    others = 2.0 * len(pools) + 1.0 * len(layers) if settings.others else 0.0
    total += others + 2.0 * len(spots)

    def report(seconds: float, text: str) -> None:
        nonlocal done
        progress(done / total, text)
        done += seconds

    measured: list[CellResult] = []
    skipped: dict[str, str] = {}
    feedforward: list[FeedForwardRow] = []
    limits: list[LimitRow] = []
    scaling: list[ScalingPoint] = []
    with warnings.catch_warnings(), cpu_threads(settings.used_threads):
        # What fails is told by its error; peers warn about themselves.
        warnings.simplefilter("ignore")
        for cell in cells:
            report(settings.seconds_per_cell, f"cell {cell.name}")
            try:
                prepared = prepare(cell, settings.seed)
            except RuntimeError as error:  # nothing to judge the contenders by
                skipped[cell.name] = str(error)
                continue
            measured.append(run_cell(prepared, settings, absent))
        if settings.others:
            for pool in pools:
                report(2.0, f"MM's limits, {pool.geometry}")
                samples = _QUICK_LIMIT_SAMPLES if settings.quick else _LIMIT_SAMPLES
                with cpu_threads(1):  # not timed, and small matrices are fastest so
                    limits.append(share_on_limit(pool, samples))
            if "bregmanet" not in absent:
                for name, size in layers:
                    report(1.0, f"feed-forward layers, {name}")
                    feedforward.append(compare_layers(name, size, 10 * settings.used_repeats, _OTHER_SECONDS))
        for axis, at in spots:
            report(2.0, f"scaling, {axis} = {at:g}")
            scaling += scaling_points(axis, at, "torchdeq" not in absent, settings.used_repeats, _OTHER_SECONDS)
    progress(1.0, "done")
    return Benchmark(
        command=settings.command,
        settings=_shown(settings),
        environment=_environment(settings.used_threads),
        missing=absent,
        cells=tuple(measured),
        feedforward=tuple(feedforward),
        limits=tuple(limits),
        scaling=tuple(scaling),
        skipped=skipped,
    )


def run_cell(prepared: Prepared, settings: BenchmarkSettings, missing: dict[str, str]) -> CellResult:
    """Sweep and time every contender on one cell.

    Args:
        prepared: The cell.
        settings: Cap, threads, repeats, accuracies.
        missing: Peers to do without.
    """
    start, cell = time.perf_counter(), prepared.cell
    able, failures = contenders(prepared, settings, missing)
    # What the searches left of the cap, and a share of it in any case.
    left = settings.seconds_per_cell - (time.perf_counter() - start)
    budget = max(_TIMING_SHARE * settings.seconds_per_cell, left)
    entries = measure(prepared, able, settings.used_repeats, budget)
    entries += [
        Entry(item.name, item.task, item.accuracy, False, item.settings, item.value_error, item.gradient_error)
        for item in failures
    ]
    ours = next(entry for entry in entries if (entry.contender, entry.task) == (OURS, BOTH))
    held: int | None = None
    with contextlib.suppress(RuntimeError):  # the entries tell of it
        held = held_bytes(prepared, prepared.ours())
    gc.collect()
    return CellResult(
        name=cell.name,
        text=cell.text,
        facts=cell.facts,
        reference=prepared.method,
        excluded=prepared.excluded,
        value_error=_known(ours.value_error),
        gradient_error=_known(ours.gradient_error),
        held_bytes=held,
        allowed_bytes=prepared.allowed_bytes,
        seconds=time.perf_counter() - start,
        entries=tuple(entries),
    )


def _known(error: float | None) -> float:
    return math.inf if error is None else error


def _shown(settings: BenchmarkSettings) -> dict[str, object]:
    return asdict(settings) | {
        "cells": [cell.name for cell in settings.chosen_cells()],
        "accuracies": list(settings.accuracies),
        "cap": settings.seconds_per_cell,
        "threads": settings.used_threads,
        "repeats": settings.used_repeats,
    }


def missing_peers() -> dict[str, str]:
    """The peers that are not installed, and how to install them."""
    return {name: f"not installed: {INSTALL}" for name in PEERS if importlib.util.find_spec(name) is None}


def _environment(threads: int) -> dict[str, object]:
    """Machine, versions and date, for the report."""
    return {
        "date": today(),
        **hardware(),
        "threads": threads,
        **versions("python", "implicit_bregman", "torch", "numpy", *PEERS),
        "GPU": f"not measured ({torch.cuda.get_device_name(0)})" if torch.cuda.is_available() else "none",
    }
