"""The rivals of a quadratic cell, each where it applies."""

from __future__ import annotations

from collections.abc import Mapping

from implicit_bregman.experiments.benchmark.peers import mondeq, osqp, proxqp
from implicit_bregman.experiments.benchmark.peers.contenders import (
    BOTH,
    FORWARD,
    Found,
    our_contenders,
    unrolled_contenders,
)
from implicit_bregman.experiments.benchmark.peers.mondeq import mondeq_contenders
from implicit_bregman.experiments.benchmark.peers.osqp import osqp_contenders
from implicit_bregman.experiments.benchmark.peers.proxqp import proxqp_contenders
from implicit_bregman.experiments.benchmark.peers.splitting import dense_splitting, splitting_contenders, unique
from implicit_bregman.experiments.benchmark.peers.torchdeq import mirror_equations
from implicit_bregman.experiments.benchmark.peers.torchdeq_sweep import torchdeq_contenders
from implicit_bregman.experiments.benchmark.settings import BenchmarkSettings
from implicit_bregman.experiments.benchmark.truth import PreparedQuadratic

# Shares of a cell's cap. What the searches leave goes to the timing.
_TORCHDEQ_SHARE, _PROXQP_SHARE, _UNROLLED_SHARE = 0.38, 0.1, 0.06
_SPLITTING_SHARE, _MONDEQ_SHARE, _OSQP_SHARE, _TUNING_SHARE = 0.13, 0.08, 0.02, 0.035


def quadratic_contenders(
    prepared: PreparedQuadratic, settings: BenchmarkSettings, missing: Mapping[str, str]
) -> list[Found]:
    """This library and every rival that solves such a problem."""
    cap, levels, quick = settings.seconds_per_cell, settings.accuracies, settings.quick
    symmetric = prepared.cell.kind != "general"  # the others have no MM: neither unrolled nor torchdeq's maps
    found = [our_contenders(prepared, levels, BOTH, _TUNING_SHARE * cap)]
    if symmetric:
        found.append(unrolled_contenders(prepared, levels, _UNROLLED_SHARE * cap))
    if symmetric and "torchdeq" not in missing:
        equations = mirror_equations(prepared, quick)
        found.append(torchdeq_contenders(prepared, equations, levels, _TORCHDEQ_SHARE * cap, quick))
    if unique(prepared):
        found.append(our_contenders(prepared, levels, FORWARD, _TUNING_SHARE * cap))
        found.append(splitting_contenders(dense_splitting(prepared), levels, _SPLITTING_SHARE * cap))
    if mondeq.applies(prepared):
        found.append(mondeq_contenders(prepared, levels, _MONDEQ_SHARE * cap))
    if "proxsuite" not in missing and proxqp.applies(prepared):
        found.append(proxqp_contenders(prepared, levels, _PROXQP_SHARE * cap, settings.used_threads))
    if "osqp" not in missing and osqp.applies(prepared):
        found.append(osqp_contenders(prepared, levels, _OSQP_SHARE * cap))
    return found
