"""The families of cells: how each is prepared, and who its rivals are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from implicit_bregman.experiments.benchmark import truth
from implicit_bregman.experiments.benchmark.cells import Cell
from implicit_bregman.experiments.benchmark.convolution import prepare_convolution
from implicit_bregman.experiments.benchmark.fields import field_contenders, prepare_field
from implicit_bregman.experiments.benchmark.peers.contenders import Found
from implicit_bregman.experiments.benchmark.peers.convolution import convolution_contenders
from implicit_bregman.experiments.benchmark.peers.quadratic import quadratic_contenders
from implicit_bregman.experiments.benchmark.prepared import Prepared
from implicit_bregman.experiments.benchmark.settings import BenchmarkSettings


@dataclass(frozen=True)
class _Family:
    """Its own kind of cell and of `Prepared` goes through both."""

    prepare: Callable[[Any, int], Prepared]
    contenders: Callable[[Any, BenchmarkSettings, Mapping[str, str]], list[Found]]


_FAMILIES = {
    "quadratic": _Family(truth.prepare, quadratic_contenders),
    "convolution": _Family(prepare_convolution, convolution_contenders),
    "field": _Family(prepare_field, field_contenders),
}


def prepare(cell: Cell, seed: int = 0) -> Prepared:
    """Draw a cell's problem, round it and find its truth.

    Raises:
        RuntimeError: If no truth can be found, or it does not satisfy its conditions.
    """
    return _family(cell).prepare(cell, seed)


def contenders(prepared: Prepared, settings: BenchmarkSettings, missing: Mapping[str, str]) -> Found:
    """Everything that solves a cell, with the settings that the searches chose, and what none reached.

    Args:
        prepared: The cell.
        settings: Cap, threads, accuracies.
        missing: Peers to do without.
    """
    able, failures = zip(*_family(prepared.cell).contenders(prepared, settings, missing), strict=True)
    return [item for found in able for item in found], [item for failed in failures for item in failed]


def _family(cell: Cell) -> _Family:
    return _FAMILIES[cell.family]
