"""Residual, objective and gradient error of every solver, iteration by iteration, on one problem."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from implicit_bregman import (
    ConvergenceWarning,
    QuadraticEnergy,
    Solution,
    attach_gradient,
    find_critical_point,
)
from implicit_bregman.adjoints import Implicit, Unrolled
from implicit_bregman.experiments.convergence.settings import (
    ConvergenceSettings,
    find_problem,
)
from implicit_bregman.experiments.learning.gradients import gradient_check
from implicit_bregman.experiments.learning.training import cpu_threads
from implicit_bregman.experiments.reference.oracle import (
    Reference,
    reference_gradient,
    reference_solution,
    weight_gradient,
)
from implicit_bregman.experiments.reference.problems import Problem
from implicit_bregman.solvers import MM, Anderson, Broyden, Newton, Solver, TorchDEQ, Trace

UNROLLED = "unrolled"
GRADIENT_POINTS = 40  # iterations, evenly spread on a log scale, at which the gradient is computed
Curve = tuple[tuple[int, float], ...]
"""Pairs of an iteration and a value."""


@dataclass(frozen=True)
class SolverCurves:
    """What one solver did.

    Attributes:
        name: The solver, or "unrolled" for the gradient through all MM steps.
        residual: Largest relative residual of any sample, per iteration.
        objective: Largest F(z) − F(best point any solver found) of any sample, relative to 1 + |F|; empty
            where W has no objective.
        gradient_error: ‖g − g*‖ / ‖g*‖ per iteration, g the derivative of a random linear loss in W and c;
            empty where the exact one is not known.
        iterations: Mean number of iterations of a sample.
        evaluations: Mean number of evaluations of ∇f of a sample.
        converged: Share of the samples that converged.
    """

    name: str
    residual: Curve
    objective: Curve
    gradient_error: Curve
    iterations: float
    evaluations: float
    converged: float


@dataclass(frozen=True)
class Convergence:
    """A finished run.

    Attributes:
        settings: What was run.
        problem: Facts about the problem.
        solvers: One entry per solver, and the unrolled gradient.
    """

    settings: ConvergenceSettings
    problem: dict[str, object]
    solvers: tuple[SolverCurves, ...]


def run_convergence(
    settings: ConvergenceSettings,
    problem: Problem | None = None,
    progress: Callable[[float, str], None] = lambda share, text: None,
) -> Convergence:
    """Run every solver on the problem, in float64 and without the exact solve, and follow it.

    Args:
        settings: What to run.
        problem: The problem; None: `find_problem(settings.problem)`.
        progress: Told the share of the work that is done and what is being done.

    Returns:
        The curves.

    Raises:
        ValueError: For an unknown problem or settings that a solver refuses.
    """
    problem = find_problem(settings.problem) if problem is None else problem
    case = _Case.of(problem)
    traces = []
    names = settings.solvers
    with warnings.catch_warnings(), cpu_threads(1):  # the problems are small
        # The share of converged samples is part of the result.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for position, name in enumerate(names):
            progress(position / (2 * len(names) + 1), f"{name}: solving")
            traces.append(case.solve(_solver(name, settings)))
        best = _best_objective(traces)
        found = []
        for position, (name, solution) in enumerate(zip(names, traces, strict=True)):
            progress((len(names) + position) / (2 * len(names) + 1), f"{name}: gradients")
            found.append(case.curves(name, solution, best))
        progress(2 * len(names) / (2 * len(names) + 1), "unrolled: gradients")
        longest = max(len(curves.residual) - 1 for curves in found)
        found.append(case.unrolled(longest))
    progress(1.0, "done")
    return Convergence(settings, _facts(problem), tuple(found))


@dataclass(frozen=True)
class _Case:
    """A problem, its exact answer, and a random linear loss ⟨cotangent, z⟩, differentiated in W and c."""

    problem: Problem
    reference: Reference | None
    exact: Tensor | None
    cotangent: Tensor

    @classmethod
    def of(cls, problem: Problem) -> _Case:
        generator = torch.Generator().manual_seed(0)
        cotangent = torch.randn(problem.offset.shape, generator=generator, dtype=torch.float64)
        geometry, gamma = problem.geometry, problem.regularization
        try:
            reference = reference_solution(problem.weight, problem.offset, geometry, gamma)
            kept = reference.reached
            value, active = reference.value[kept], reference.active[kept]
            adjoint = reference_gradient(
                problem.weight, problem.offset[kept], value, active, geometry, gamma, cotangent[kept]
            )
        except (
            RuntimeError,
            ValueError,
        ):  # the oracle has no answer here; residuals and objectives still have
            return cls(problem, None, None, cotangent)
        exact = torch.cat([weight_gradient(adjoint, value).reshape(-1), adjoint.reshape(-1)])
        return cls(problem, reference, exact if len(value) else None, cotangent)

    def solve(self, solver: Solver) -> Solution:
        """The solution with its trace, from the default start."""
        energy = QuadraticEnergy.from_matrices(self.problem.weight)
        return find_critical_point(
            energy,
            self.problem.geometry,
            self.problem.offset,
            regularization=self.problem.regularization,
            solver=solver,
        )

    def curves(self, name: str, solution: Solution, best: Tensor | None) -> SolverCurves:
        """What is plotted of one solver."""
        trace = _trace_of(solution)
        residual = _filled(trace.residual).amax(-1)
        objective: Curve = ()
        if best is not None:
            gap = (_filled(trace.objective) - best) / (1 + best.abs())
            objective = _numbered(gap.amax(-1).tolist())
        duals = _filled(trace.dual)
        errors = []
        if self.exact is not None:
            errors = [(k, self._implicit_error(duals[k])) for k in _spread(len(duals) - 1)]
        return SolverCurves(
            name=name,
            residual=_numbered(residual.tolist()),
            objective=objective,
            gradient_error=tuple(errors),
            iterations=float(solution.iterations.double().mean()),
            evaluations=float(solution.evaluations.double().mean()),
            converged=float(solution.converged.double().mean()),
        )

    def unrolled(self, longest: int) -> SolverCurves:
        """The gradient through L MM steps, for comparison."""
        errors = [] if self.exact is None else [(k, self._unrolled_error(k)) for k in _spread(longest) if k > 0]
        return SolverCurves(UNROLLED, (), (), tuple(errors), longest, longest, 0.0)

    def _implicit_error(self, dual: Tensor) -> float:
        energy, leaves = self._leaves()
        value = attach_gradient(
            energy,
            self.problem.geometry,
            leaves[1],
            dual,
            regularization=self.problem.regularization,
            adjoint=Implicit(on_failure="ignore"),
        )
        return self._error(value, leaves)

    def _unrolled_error(self, steps: int) -> float:
        energy, leaves = self._leaves()
        solution = find_critical_point(
            energy,
            self.problem.geometry,
            leaves[1],
            regularization=self.problem.regularization,
            adjoint=Unrolled(steps=steps),
        )
        return self._error(solution.value, leaves)

    def _leaves(self) -> tuple[QuadraticEnergy, tuple[Tensor, Tensor]]:
        weight = self.problem.weight.clone().requires_grad_()
        offset = self.problem.offset.clone().requires_grad_()
        return QuadraticEnergy.from_matrices(weight), (weight, offset)

    def _error(self, value: Tensor, leaves: tuple[Tensor, Tensor]) -> float:
        assert self.reference is not None
        assert self.exact is not None
        kept = self.reference.reached
        loss = (self.cotangent[kept] * value[kept]).sum()
        by_weight, by_offset = torch.autograd.grad(loss, leaves)
        return gradient_check(torch.cat([by_weight.reshape(-1), by_offset[kept].reshape(-1)]), self.exact).error


def _solver(name: str, settings: ConvergenceSettings) -> Solver:
    tol, max_iter = settings.tol, settings.max_iter
    if name == "torchdeq":
        return TorchDEQ(method="anderson", tol=tol, max_iter=max_iter, trace=True)
    kind = {"mm": MM, "anderson": Anderson, "broyden": Broyden, "newton": Newton}[name]
    return kind(tol=tol, max_iter=max_iter, trace=True)


def _trace_of(solution: Solution) -> Trace:
    if solution.trace is None:
        raise ValueError("the solver recorded no trace: construct it with trace=True")
    return solution.trace


def _best_objective(solutions: Sequence[Solution]) -> Tensor | None:
    """The smallest objective that any solver saw, per sample; None where there is no objective."""
    objectives = [_filled(_trace_of(solution).objective).amin(0) for solution in solutions]
    best = torch.stack(objectives).amin(0)
    return best if bool(torch.isfinite(best).all()) else None


def _filled(trace: Tensor) -> Tensor:
    """A trace in which a sample that has stopped keeps its last value instead of NaN."""
    rows = list(trace.unbind(0))
    for k in range(1, len(rows)):
        rows[k] = torch.where(torch.isnan(rows[k]), rows[k - 1], rows[k])
    return torch.stack(rows)


def _numbered(values: Sequence[float]) -> Curve:
    return tuple(enumerate(values))


def _spread(last: int) -> list[int]:
    """0, `last`, and whole numbers in between, evenly spread on a log scale."""
    points = torch.logspace(0, math.log10(max(last, 1)), GRADIENT_POINTS, dtype=torch.float64).round()
    return sorted({0, last, *(min(int(point), last) for point in points)})


def _facts(problem: Problem) -> dict[str, object]:
    return {
        "name": problem.name,
        "kind": problem.kind,
        "geometry": repr(problem.geometry),
        "features": problem.offset.shape[1],
        "samples": problem.offset.shape[0],
        "condition": problem.condition,
        "active_share": problem.active_share,
        "regularization": problem.regularization,
    }
