"""The benchmark: every cell, the feed-forward layers, MM's limits, the scaling plots."""

from __future__ import annotations

import contextlib
import gc
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict

from implicit_bregman.experiments.benchmark import mondeq_peer, osqp_peer, qp_peer
from implicit_bregman.experiments.benchmark.contenders import (
    BOTH,
    FORWARD,
    OURS,
    Contender,
    Failure,
    Found,
    library_value,
    our_contenders,
    unrolled_contenders,
)
from implicit_bregman.experiments.benchmark.feedforward import ACTIVATIONS, Size, compare_layers
from implicit_bregman.experiments.benchmark.limits import POOLS, share_on_limit
from implicit_bregman.experiments.benchmark.machine import environment, missing_peers
from implicit_bregman.experiments.benchmark.mondeq_peer import mondeq_contenders
from implicit_bregman.experiments.benchmark.osqp_peer import osqp_contenders
from implicit_bregman.experiments.benchmark.qp_peer import proxqp_contenders
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
from implicit_bregman.experiments.benchmark.splitting_peer import splitting_contenders, unique
from implicit_bregman.experiments.benchmark.timing import measure
from implicit_bregman.experiments.benchmark.torchdeq_sweep import torchdeq_contenders
from implicit_bregman.experiments.benchmark.truth import Prepared, prepare
from implicit_bregman.experiments.training import cpu_threads

Progress = Callable[[float, str], None]
"""Called with the share of all the work that is done, in 0 … 1, and what is being done."""

# Shares of a cell's cap. What the searches leave goes to the timing.
_TORCHDEQ_SHARE, _PROXQP_SHARE, _UNROLLED_SHARE, _TIMING_SHARE = 0.38, 0.1, 0.06, 0.2
_SPLITTING_SHARE, _MONDEQ_SHARE, _OSQP_SHARE, _TUNING_SHARE = 0.13, 0.08, 0.02, 0.035
_LIMIT_SAMPLES, _QUICK_LIMIT_SAMPLES = 100, 24
_QUICK_POOLS = 3
_SIZES = (Size(), Size(512, 512))
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
        environment=environment(settings.used_threads),
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
    contenders, failures = _contenders(prepared, settings, missing)
    # What the searches left of the cap, and a share of it in any case.
    left = settings.seconds_per_cell - (time.perf_counter() - start)
    budget = max(_TIMING_SHARE * settings.seconds_per_cell, left)
    entries = measure(prepared, contenders, settings.used_repeats, budget)
    entries += [
        Entry(item.name, item.task, item.accuracy, False, item.settings, item.value_error, item.gradient_error)
        for item in failures
    ]
    ours = next(entry for entry in entries if (entry.contender, entry.task) == (OURS, BOTH))
    batch, dim = prepared.offset.shape
    size = prepared.offset.element_size()
    held: int | None = None
    with contextlib.suppress(RuntimeError):  # the entries tell of it
        held = held_bytes(prepared, library_value(prepared))
    gc.collect()
    return CellResult(
        name=cell.name,
        text=cell.text,
        facts=asdict(cell),
        reference=prepared.method,
        excluded=prepared.excluded,
        value_error=_known(ours.value_error),
        gradient_error=_known(ours.gradient_error),
        held_bytes=held,
        # The input is c itself: n = d.
        allowed_bytes=size * (6 * batch * dim + batch * dim + 2 * dim * dim),
        seconds=time.perf_counter() - start,
        entries=tuple(entries),
    )


def _contenders(prepared: Prepared, settings: BenchmarkSettings, missing: dict[str, str]) -> Found:
    cap, levels = settings.seconds_per_cell, settings.accuracies
    symmetric = prepared.cell.kind != "general"  # the others have no MM: neither unrolled nor torchdeq's maps
    parts = [our_contenders(prepared, levels, BOTH, _TUNING_SHARE * cap)]
    if symmetric:
        parts.append(unrolled_contenders(prepared, levels, _UNROLLED_SHARE * cap))
    if symmetric and "torchdeq" not in missing:
        parts.append(
            torchdeq_contenders(prepared, levels, _TORCHDEQ_SHARE * cap, settings.quick, 2 if settings.quick else 3)
        )
    if unique(prepared):
        parts.append(our_contenders(prepared, levels, FORWARD, _TUNING_SHARE * cap))
        parts.append(splitting_contenders(prepared, levels, _SPLITTING_SHARE * cap))
    if mondeq_peer.applies(prepared):
        parts.append(mondeq_contenders(prepared, levels, _MONDEQ_SHARE * cap))
    if "proxsuite" not in missing and qp_peer.applies(prepared):
        parts.append(proxqp_contenders(prepared, levels, _PROXQP_SHARE * cap, settings.used_threads))
    if "osqp" not in missing and osqp_peer.applies(prepared):
        parts.append(osqp_contenders(prepared, levels, _OSQP_SHARE * cap))
    contenders: list[Contender] = []
    failures: list[Failure] = []
    for found, failed in parts:
        contenders += found
        failures += failed
    return contenders, failures


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
