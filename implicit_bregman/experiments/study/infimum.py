"""Does the infimum of training L unrolled steps converge to that of training the implicit layer, and how fast?

Small full-batch problems, trained to optimality from several starts. The paper leaves the question open.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from implicit_bregman.experiments.cells import Cell, library_version
from implicit_bregman.experiments.grid import Grid
from implicit_bregman.experiments.study import descent, infimum_problem
from implicit_bregman.experiments.study.descent import Descent, Vector, descend
from implicit_bregman.experiments.study.infimum_problem import FAMILIES, Problem, make_data
from implicit_bregman.experiments.study.task import without_warnings
from implicit_bregman.settings import check_choice, check_count

DEPTHS = (1, 2, 4, 8, 16, 32, 64)
# What is added to γ on the way to the limit; L steps smooth about as much as γ = 1/L.
HOMOTOPY = (0.01, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5)
KICKS = (0.1, 0.01)  # standard deviations, in u
EXCHANGES = 10
ROUNDING = 1e-14


@dataclass(frozen=True)
class Effort:
    """How hard the infima are searched for.

    A search may miss the infimum without noticing: its last restarts win nothing. So independent ones are compared.

    Attributes:
        searches: Independent searches, at least two.
        starts: Starts of each search at each depth and in the limit, the best of `tries` random ones.
        tries: How many of these.
        evaluations: Of the loss in one descent; from random starts half, in restarts of the best twice as many.

    Raises:
        ValueError: For a number out of range.
    """

    searches: int = 2
    starts: int = 40
    tries: int = 400
    evaluations: int = 100

    def __post_init__(self) -> None:
        for name in ("starts", "tries", "evaluations"):
            check_count(name, getattr(self, name))
        check_count("searches", self.searches, 2)


@dataclass(frozen=True)
class InfimumSettings:
    """Settings of the study of the infimum.

    Attributes:
        seed: First seed; it draws data and starts.
        seeds: Number of seeds: seed, seed + 1, …
        depths: Numbers of steps L, at least two, ascending.
        families: Sets of layers, of `FAMILIES`.
        samples: N.
        effort: How hard the infima are searched for.

    Raises:
        ValueError: For a setting out of range.
    """

    seed: int = 0
    seeds: int = 3
    depths: tuple[int, ...] = DEPTHS
    families: tuple[str, ...] = tuple(FAMILIES)
    samples: int = 20
    effort: Effort = field(default_factory=Effort)

    def __post_init__(self) -> None:
        check_count("seed", self.seed, 0)
        for name in ("seeds", "samples"):
            check_count(name, getattr(self, name))
        for depth in self.depths:
            check_count("depths", depth)
        if len(self.depths) < 2 or list(self.depths) != sorted(set(self.depths)):
            raise ValueError(f"depths must be at least two numbers in ascending order, got {self.depths}")
        if not self.families:
            raise ValueError(f"families must name at least one of {', '.join(FAMILIES)}")
        for name in self.families:
            check_choice("families", name, tuple(FAMILIES))

    @classmethod
    def quick(cls, seed: int = 0) -> InfimumSettings:
        """A subset for a look: 2 seeds, 4 families, L up to 32, a fifth of the starts."""
        return replace(
            cls(seed=seed),
            seeds=2,
            depths=(1, 2, 4, 8, 16, 32),
            families=("convex", "convex-reg", "semidefinite", "low-rank"),
            effort=Effort(starts=8, tries=80, evaluations=60),
        )


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


def measure_infimum(settings: InfimumSettings, grid: Grid) -> dict[str, list[dict[str, Any]]]:
    """What `find_infima` returned, per family one entry per seed."""
    version = library_version(descent, infimum_problem, Search, find_infima)
    cells = [
        Cell(
            f"{family} seed {seed}",
            find_infima,
            Sought(family, seed, settings.depths, settings.samples, settings.effort),
            version,
        )
        for seed in range(settings.seed, settings.seed + settings.seeds)
        for family in settings.families
    ]
    results = grid.run(cells)
    found: dict[str, list[dict[str, Any]]] = {family: [] for family in settings.families}
    for cell, result in zip(cells, results, strict=True):
        found[cell.settings.family].append(result)
    return found
