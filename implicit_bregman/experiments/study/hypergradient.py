"""Study: how the error of the gradient falls with the number of inner iterations, for every way to differentiate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from implicit_bregman.experiments import oracle, problems
from implicit_bregman.experiments.cells import Cell, library_version
from implicit_bregman.experiments.grid import Grid
from implicit_bregman.experiments.problems import make_problem
from implicit_bregman.experiments.study import hypergradient_curves, hypergradient_theory, work
from implicit_bregman.experiments.study.hypergradient_curves import DAMPINGS, TRUNCATED, Measurement, spread
from implicit_bregman.experiments.study.hypergradient_theory import Exact
from implicit_bregman.settings import check_count


@dataclass(frozen=True)
class Case:
    """A family of convex problems, one per seed.

    Attributes:
        name: For people.
        geometry: Name of the geometry.
        condition: Condition number of W.
        active: Share of the coordinates at a bound.
        regularization: γ.
        steps: Largest number of MM steps.
    """

    name: str
    geometry: str
    condition: float
    active: float
    regularization: float
    steps: int


CASES = (
    Case("γ = 0.1, condition 10", "tanh", 10.0, 0.0, 0.1, 300),
    Case("γ = 0.1, condition 100", "tanh", 100.0, 0.0, 0.1, 400),
    Case("γ = 0, interior, condition 10", "tanh", 10.0, 0.0, 0.0, 800),
    Case("γ = 0, interior, condition 100", "tanh", 100.0, 0.0, 0.0, 5000),
    Case("γ = 0, 25 % at bounds, tanh", "tanh", 10.0, 0.25, 0.0, 800),
    Case("γ = 0, 25 % at bounds, arctan", "arctan", 10.0, 0.25, 0.0, 3000),
)


@dataclass(frozen=True)
class HypergradientSettings:
    """What to measure.

    Attributes:
        seed: First seed.
        seeds: Number of seeds, each with its own problem, start and loss.
        dim: d, more than 64: up to that width the library factorizes, and Chebyshev steps are not met.
        batch: Samples of a problem.
        longest: Largest number of MM steps, whatever the case wants; None: no bound.
        cases: The families of problems.

    Raises:
        ValueError: For numbers that are out of range, or no case.
    """

    seed: int = 0
    seeds: int = 5
    dim: int = 96
    batch: int = 8
    longest: int | None = None
    cases: tuple[Case, ...] = CASES

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("seeds", 1), ("dim", 65), ("batch", 1), ("longest", 50)):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), least)
        if not self.cases:
            raise ValueError("cases is empty: name at least one, for example CASES[:1]")

    @classmethod
    def quick(cls, seed: int = 0) -> HypergradientSettings:
        """Two seeds and at most 300 MM steps."""
        return cls(seed=seed, seeds=2, longest=300)


@dataclass(frozen=True)
class Trial:
    """One problem.

    Attributes:
        case: Its family.
        dim: d.
        batch: Samples.
        seed: Of the problem; the loss has one of its own.
    """

    case: Case
    dim: int
    batch: int
    seed: int


def measure(trial: Trial) -> dict[str, Any]:
    """All curves of one problem, and what theory says of them.

    Args:
        trial: The problem.

    Returns:
        "forward" and "backward": curves by method; "theory"; "failures" by method; "refused": why the oracle has no
        answer, or None. With a reason there is nothing else.
    """
    case = trial.case
    problem = make_problem(
        "convex",
        case.geometry,
        trial.dim,
        trial.batch,
        case.condition,
        case.active,
        case.regularization,
        seed=trial.seed,
    )
    try:
        exact = Exact.of(problem, seed=10_000 + trial.seed)
    except RuntimeError as error:
        return {"refused": str(error)}
    measured = Measurement(exact)
    return {
        "forward": measured.after_iterations(case.steps),
        "backward": measured.after_exact_solve(min(case.steps, 1000)),
        "theory": theory(exact, case.steps),
        "failures": measured.failures,
        "refused": None,
    }


def theory(exact: Exact, steps: int) -> dict[str, Any]:
    """Rates and closed forms of a problem, as JSON has them.

    Args:
        exact: The problem and its answer.
        steps: Largest number of MM steps.
    """
    phantoms = {
        f"phantom-{damping:g}": [exact.missing(k, damping) for k in spread(min(steps, 1000))] for damping in DAMPINGS
    }
    return {
        "q": exact.contraction(),
        "bound_rate": exact.bound_rate(),
        "norm_factor": exact.norm_factor(),
        "sublinear": exact.sublinear(),
        "conditions": exact.conditions(),
        "plateaus": {f"truncated-{last}": exact.missing(last) for last in TRUNCATED} | {"one-step": exact.missing(1)},
        "phantoms": phantoms,
    }


def measure_hypergradient(settings: HypergradientSettings, grid: Grid) -> dict[Case, list[dict[str, Any]]]:
    """What `measure` returned, per case one entry per seed."""
    cases = tuple(_shortened(case, settings.longest) for case in settings.cases)
    version = library_version(oracle, problems, work, hypergradient_curves, hypergradient_theory, measure, theory)
    trials = [
        Trial(case, settings.dim, settings.batch, settings.seed + number)
        for case in cases
        for number in range(settings.seeds)
    ]
    cells = [Cell(f"{trial.case.name}, seed {trial.seed}", measure, trial, version) for trial in trials]
    results = grid.run(cells)
    return {
        case: [result for trial, result in zip(trials, results, strict=True) if trial.case == case] for case in cases
    }


def _shortened(case: Case, longest: int | None) -> Case:
    return case if longest is None else replace(case, steps=min(case.steps, longest))
