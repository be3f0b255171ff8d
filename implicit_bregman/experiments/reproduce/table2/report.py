"""Table 2 in rows, sentences and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from implicit_bregman.experiments.output.statistics import mean_and_spread
from implicit_bregman.experiments.reproduce.figures import LABELS


@dataclass(frozen=True)
class Outcome:
    """One architecture in one row.

    Attributes:
        row: Name of the row.
        kind: "standard", "euclidean" or "bregman".
        rate: The learning rate that was chosen.
        values: Test accuracy in percent of every seed.
        paper: The paper's mean; None if it has none.
    """

    row: str
    kind: str
    rate: float
    values: tuple[float, ...]
    paper: float | None

    @property
    def mean(self) -> float:
        """Mean over the seeds, in percent."""
        return mean_and_spread(self.values)[0]


class _Rates(Protocol):
    """Settings with learning rates."""

    @property
    def rates(self) -> tuple[float, ...]: ...
    @property
    def adam_rates(self) -> tuple[float, ...]: ...


def table_rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One dict per row: mean, spread, learning rate and the paper's figure of every architecture."""
    rows: dict[str, dict[str, Any]] = {}
    for outcome in outcomes:
        row = rows.setdefault(outcome.row, {"row": outcome.row})
        row[f"{outcome.kind}_mean"], row[f"{outcome.kind}_spread"] = mean_and_spread(outcome.values)
        row[f"{outcome.kind}_rate"] = outcome.rate
        row[f"{outcome.kind}_paper"] = outcome.paper
    return list(rows.values())


def findings(outcomes: Sequence[Outcome], settings: _Rates) -> tuple[str, ...]:
    """The order of the architectures in every row, the paper's beside it, and how often a rate is an extreme one."""
    told = []
    leads = []
    for name in dict.fromkeys(outcome.row for outcome in outcomes):
        three = [outcome for outcome in outcomes if outcome.row == name]
        order = sorted(three, key=lambda outcome: -outcome.mean)
        text = f"{name}: {_order([(LABELS[o.kind], o.mean) for o in order])}"
        if all(outcome.paper is not None for outcome in three):
            papers = sorted(three, key=lambda outcome: -(outcome.paper or 0.0))
            text += f"; the paper: {_order([(LABELS[o.kind], o.paper or 0.0) for o in papers])}"
        told.append(f"{text}.")
        leads.append(order[0].kind == "bregman")
    told.append(f"Bregman has the highest mean in {sum(leads)} of {len(leads)} rows; the paper says in all of its own.")
    ends = {min(settings.rates), max(settings.rates), min(settings.adam_rates), max(settings.adam_rates)}
    at_end = sum(outcome.rate in ends for outcome in outcomes)
    told.append(f"In {at_end} of {len(outcomes)} cases the chosen learning rate is the smallest or largest offered.")
    return tuple(told)


def _order(pairs: Sequence[tuple[str, float]]) -> str:
    return " > ".join(f"{label} {value:.2f}" for label, value in pairs)
