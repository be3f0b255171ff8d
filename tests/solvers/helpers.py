"""The shared problems, their references, and own computations to judge solvers by."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.experiments.reference.oracle import Reference, reference_solution
from implicit_bregman.experiments.reference.problems import Problem, collection

PROBLEMS = {problem.name: problem for problem in collection()}

#: Geometries whose iterates approach an active bound like a power of 1/k when γ = 0.
SLOW_AT_BOUND = ("isru", "arctan", "bent", "burg", "double_burg")

TORCHDEQ = ("anderson", "broyden", "fixed_point_iter")
#: Solvers that go step by step through first-order information, so that many small steps are expected of them.
FIRST_ORDER = ("mm", "anderson", "broyden")
ITERATIVE = (*FIRST_ORDER, "newton")
ALL = (*ITERATIVE, *(f"torchdeq {method}" for method in TORCHDEQ))

#: With and without the exact solve at the end.
exact_or_not = pytest.mark.parametrize("exactly", [True, False], ids=["exact", "plain"])


def solver_of(name: str, **settings: object) -> ib.solvers.Solver:
    """A solver by its name in `ALL`, silent about failures unless told otherwise."""
    settings = {"on_failure": "ignore", **settings}
    if name.startswith("torchdeq "):
        return ib.solvers.TorchDEQ(name.removeprefix("torchdeq "), **settings)
    kinds = {
        "mm": ib.solvers.MM,
        "anderson": ib.solvers.Anderson,
        "broyden": ib.solvers.Broyden,
        "newton": ib.solvers.Newton,
    }
    return kinds[name](**settings)


def is_unique(problem: Problem) -> bool:
    """Whether γφ + f is strictly convex, so that there is one critical point."""
    least = float(torch.linalg.eigvalsh(-0.5 * (problem.weight + problem.weight.T))[0])
    return least + problem.regularization * problem.geometry.strong_convexity > 0


def approaches_bounds_slowly(problem: Problem) -> bool:
    """Whether no method without exact solve gets far: an active bound in one of the slow geometries."""
    at_bound = problem.active_share > 0 and problem.regularization == 0
    return at_bound and problem.geometry.name in SLOW_AT_BOUND


def some(problem: Problem, rows: Tensor | list[int]) -> Problem:
    """The same problem for some of its samples, in this order."""
    return replace(problem, offset=problem.offset[rows])


def names(*, unique: bool) -> list[str]:
    """The problems with one critical point, or those with several."""
    return [name for name, problem in PROBLEMS.items() if is_unique(problem) is unique]


@functools.cache
def reference(name: str) -> Reference:
    """The float64 reference of a problem of the collection."""
    problem = PROBLEMS[name]
    return reference_of(problem)


def reference_of(problem: Problem) -> Reference:
    """The float64 reference of any problem."""
    return reference_solution(problem.weight, problem.offset, problem.geometry, problem.regularization)


def solve(
    problem: Problem, solver: str | ib.solvers.Solver, initial: Tensor | ib.Solution | None = None, **settings: object
) -> ib.Solution:
    """`find_critical_point` on a problem; W carries no gradient."""
    method = solver_of(solver, **settings) if isinstance(solver, str) else solver
    energy = ib.QuadraticEnergy.from_matrices(problem.weight)
    return ib.find_critical_point(
        energy,
        problem.geometry,
        problem.offset,
        initial,
        regularization=problem.regularization,
        solver=method,
    )


def relative_error(found: Tensor, exact: Tensor) -> Tensor:
    """Largest error of a coordinate, relative to 1 + the largest coordinate, (B,)."""
    return (found.double() - exact).abs().amax(-1) / (1 + exact.abs().amax(-1))


def own_residual(problem: Problem, dual: Tensor) -> Tensor:
    """The largest min(|g|/s, distance to the bound that −g pushes to / t) over the coordinates, (..., B)."""
    z = problem.geometry.activation(dual)
    product = z @ problem.weight.mT
    force = product + problem.offset - problem.regularization * dual
    lo, hi = problem.geometry.bounds(z.dtype)
    width = min(1.0, hi - lo)
    floor = (problem.weight.abs().sum(-1) * width + problem.regularization).clamp(max=1.0)
    equation = force.abs() / (floor + torch.maximum(product.abs(), problem.offset.abs()))
    distance = torch.where(force > 0, hi - z, z - lo) / width
    return torch.minimum(equation, distance).amax(-1)


def own_objective(problem: Problem, dual: Tensor) -> Tensor:
    """F, (..., B)."""
    z = problem.geometry.activation(dual)
    f = -(0.5 * z * (z @ problem.weight.mT) + problem.offset * z).sum(-1)
    return f + problem.regularization * problem.geometry.dual_potential(dual).sum(-1)


def in_domain(problem: Problem, z: Tensor) -> bool:
    """Whether every coordinate is finite and in the closed domain."""
    lo, hi = problem.geometry.domain
    inside = torch.isfinite(z) & (z.double() >= lo) & (z.double() <= hi)
    return bool(inside.all())


def assert_honest(problem: Problem, found: ib.Solution, exact: Reference, tolerance: float) -> None:
    """What is claimed holds, what is not reached is said, and nothing is NaN."""
    assert in_domain(problem, found.value)
    assert bool(torch.isfinite(found.dual).all())
    assert bool(torch.isfinite(found.residual).all())
    judged = found.converged & exact.reached
    error = relative_error(found.value, exact.value)
    assert bool((error[judged] <= tolerance).all()), f"claimed, but off by {float(error[judged].max()):.1e}"
    failed = {ib.Status(int(code)) for code in found.status[~found.converged]}
    assert failed <= {ib.Status.MAX_ITER, ib.Status.STALLED}


def every(problem_names: list[str]) -> pytest.MarkDecorator:
    """Parametrize a test by problems of the collection."""
    return pytest.mark.parametrize("name", problem_names)
