"""One problem of the study of gradient errors: a cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from implicit_bregman.experiments.reference.problems import make_problem
from implicit_bregman.experiments.study.hypergradient.curves import DAMPINGS, TRUNCATED, Measurement, spread
from implicit_bregman.experiments.study.hypergradient.settings import Case
from implicit_bregman.experiments.study.hypergradient.theory import Exact


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
