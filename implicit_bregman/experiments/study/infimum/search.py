"""The search for the infima of one training problem: a cell."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from implicit_bregman.experiments.study.infimum.descent import Descent, Vector, descend
from implicit_bregman.experiments.study.infimum.problem import FAMILIES, Problem, make_data
from implicit_bregman.experiments.study.infimum.settings import Effort
from implicit_bregman.experiments.study.task import without_warnings

# What is added to γ on the way to the limit; L steps smooth about as much as γ = 1/L.
HOMOTOPY = (0.01, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5)
KICKS = (0.1, 0.01)  # standard deviations, in u
EXCHANGES = 10
ROUNDING = 1e-14


@dataclass(frozen=True)
class Sought:
    """Asks for the infima of one training problem, for all depths and the limit."""

    family: str
    seed: int
    depths: tuple[int, ...]
    samples: int
    effort: Effort


@dataclass(frozen=True)
class Candidate:
    """The end of one descent, and how it was started."""

    end: Descent
    origin: str


class Search:
    """Candidates for the minimiser of F_L, for every L, and of F_∞ (None).

    Args:
        sought: The training problem.
        number: Of the search; each has its own random starts.
    """

    def __init__(self, sought: Sought, number: int) -> None:
        self.sought = sought
        self.problem = Problem(FAMILIES[sought.family], *make_data(sought.seed, sought.samples))
        self.generator = np.random.default_rng((sought.seed, number))
        self.found: dict[int | None, list[Candidate]] = {steps: [] for steps in (*sought.depths, None)}

    def descend(self, steps: int | None, start: Vector, origin: str, factor: float = 1.0) -> None:
        """Descend, and keep the end as a candidate."""
        count = int(factor * self.sought.effort.evaluations)
        end = descend(partial(self.problem.loss, steps=steps), start, count)
        self.found[steps].append(Candidate(end, origin))

    def join(self, other: Search) -> None:
        """Take over the candidates of another search, and its count of evaluations."""
        for steps, candidates in other.found.items():
            self.found[steps] += candidates
        self.problem.evaluations += other.problem.evaluations
        self.problem.failed += other.problem.failed

    def best(self, steps: int | None) -> Candidate:
        """The lowest candidate."""
        return min(self.found[steps], key=lambda candidate: candidate.end.value)

    def explore(self) -> None:
        """From random starts at every depth and in the limit."""
        effort = self.sought.effort
        for steps in self.found:
            for start in self.problem.starts(self.generator, steps, effort.starts, effort.tries):
                self.descend(steps, start, "random", 0.5)
        self.sweep()

    def sweep(self) -> None:
        """Hand the best of each depth on: from the limit down to the first one, and up to the limit again."""
        depths = self.sought.depths
        down: tuple[int | None, ...] = (None, *depths[::-1])
        for deeper, steps in itertools.pairwise(down):
            self.descend(steps, self.best(deeper).end.place, "from above")
        for shallower, steps in itertools.pairwise(depths):
            self.descend(steps, self.best(shallower).end.place, "from below")
        self.to_the_limit(self.best(depths[-1]).end.place)
        self.exchange()

    def to_the_limit(self, place: Vector) -> None:
        """Descend in F_∞, directly and, where it has kinks, along γ → 0, which smooths them."""
        self.descend(None, place, "from below", 2)
        if self.problem.family.regularization > 0:
            return
        for extra in HOMOTOPY:
            smoothed = partial(self.problem.loss, steps=None, extra=extra)
            place = descend(smoothed, place, self.sought.effort.evaluations).place
        self.descend(None, place, "smoothed", 2)

    def exchange(self) -> None:
        """Until no minimiser of one depth is better than the best known at another, as with infima it cannot be."""
        for _ in range(EXCHANGES):
            before = self.values()
            for steps, other in itertools.permutations(self.found, 2):
                place = self.best(other).end.place
                if self.problem.value(place, steps) < self.best(steps).end.value - ROUNDING:
                    self.descend(steps, place, "exchanged", 2)
            if self.values() == before:
                return

    def values(self) -> list[float]:
        """The lowest values so far, one per depth and the limit's."""
        return [self.best(steps).end.value for steps in self.found]

    def improve(self) -> None:
        """Start again at the best of each depth and near it."""
        for steps in self.found:
            place = self.best(steps).end.place
            self.descend(steps, place, self.best(steps).origin, 2)
            for size in KICKS:
                shift = size * self.generator.standard_normal(self.problem.parameters)
                self.descend(steps, place + shift, "kick")
        self.exchange()


def find_infima(sought: Sought) -> dict[str, Any]:
    """The cell: inf_L for every L and inf_∞, each the lowest of several descents.

    Returns:
        One entry per depth in `inf`, `limit_of` (F_∞(θ_L)), `at_limit` (F_L(θ_∞)), `slope` (largest entry of the
        gradient), `gap` (by how much the worst of the independent searches ended above the best), `before` (inf before
        the last restarts), `origin` and `spread` (how far the median descent ended above the best); the limit is the
        last entry of each.
    """
    order: tuple[int | None, ...] = (*sought.depths, None)
    with without_warnings():
        searches = [Search(sought, number) for number in range(sought.effort.searches)]
        for search in searches:
            search.explore()
        ends = list(zip(*(search.values() for search in searches), strict=True))
        search = searches[0]
        for other in searches[1:]:
            search.join(other)
        search.sweep()
        before = search.values()
        search.improve()
    problem, limit = search.problem, search.best(None).end
    best = [search.best(steps) for steps in order]
    return {
        "inf": [item.end.value for item in best],
        "limit_of": [problem.value(item.end.place, None) for item in best],
        "at_limit": [problem.value(limit.place, steps) for steps in order],
        "slope": [item.end.gradient for item in best],
        "gap": [max(values) - min(values) for values in ends],
        "before": before,
        "origin": [item.origin for item in best],
        "spread": [
            float(np.median([item.end.value for item in search.found[steps]])) - search.best(steps).end.value
            for steps in order
        ],
        "evaluations": problem.evaluations,
        "failed": problem.failed,
    }
