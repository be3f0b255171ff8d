"""Error of the gradient against the number of iterations, measured on one problem for every way of differentiating."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from implicit_bregman import QuadraticEnergy, Solution, attach_gradient, find_critical_point
from implicit_bregman.adjoints import Adjoint, Implicit, OneStep, Phantom, Shine, Unrolled
from implicit_bregman.experiments.learning.gradients import gradient_check
from implicit_bregman.experiments.study.hypergradient.theory import Exact, flat
from implicit_bregman.experiments.study.hypergradient.work import counted
from implicit_bregman.majorization import mm_step
from implicit_bregman.solvers import Anderson, Broyden, Newton, Solver
from implicit_bregman.status import Status

TRUNCATED = (1, 5, 20)
DAMPINGS = (0.5, 1.0)
POINTS = 22
# Where the work is counted at every point, which is slow,
FEW_POINTS = 12
# and the largest k of the methods other than MM's own steps.
MOST_ANDERSON = 150
MOST_BROYDEN = 100
MOST_NEWTON = 10
MOST_PRODUCTS = 100
REFINEMENTS = (0, 1, 2, 4, 8, 16, 32)
# Asked of the forward solvers: less than what any curve resolves.
TOL = 1e-13

Curve = dict[str, list[float]]
"""Lists "k", "work", "error" and "cosine", one entry per point."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """Runs methods on a problem and notes their errors.

    Attributes:
        exact: The problem and its answer.
        failures: Per method, samples whose forward or backward solve ended otherwise than by converging or by the
            number of iterations it was given.
    """

    exact: Exact
    failures: dict[str, int] = field(default_factory=dict)

    def after_iterations(self, steps: int) -> dict[str, Curve]:
        """The forward pass is stopped after k iterations.

        Args:
            steps: Largest k of MM.
        """
        found = {"unrolled": self._steps("unrolled", spread(steps), lambda k: Unrolled(steps=k))}
        for last in TRUNCATED:
            places = [k for k in spread(steps) if k >= last]
            name = f"truncated-{last}"
            found[name] = self._steps(name, places, partial(_truncated, last))
        found["implicit-mm"], found["forward"] = self._after_mm(spread(steps))
        found["implicit-anderson"] = self._after_anderson(min(steps, MOST_ANDERSON))
        implicit = Implicit(method="dense", on_failure="ignore")
        found["implicit-newton"] = self._each(
            "implicit-newton",
            range(1, MOST_NEWTON + 1),
            lambda k: (Newton(tol=TOL, max_iter=k, trace=True, on_failure="ignore"), implicit),
        )
        found["shine"] = self._each(
            "shine", spread(min(steps, MOST_BROYDEN), FEW_POINTS), lambda k: (_broyden(k), Shine())
        )
        return found

    def after_exact_solve(self, steps: int) -> dict[str, Curve]:
        """The forward pass is exact, or Broyden's to the end for SHINE; the backward pass has k steps or products.

        Args:
            steps: Largest k of the phantom gradient.
        """
        found = {"one-step": self._each("one-step", [1], lambda k: ("auto", OneStep()))}
        for damping in DAMPINGS:
            name = f"phantom-{damping:g}"
            found[name] = self._linear(name, spread(steps), partial(_phantom, damping), (1, 3))
        for method in ("cg", "gmres"):
            found[method] = self._each(
                method,
                spread(MOST_PRODUCTS, FEW_POINTS),
                partial(_limited, method),
            )
        if self.exact.problem.regularization > 0:
            found["chebyshev"] = self._chebyshev()
        found["dense"] = self._each("dense", [1], lambda k: ("auto", Implicit(method="dense", on_failure="ignore")))
        broyden = _broyden(min(steps, MOST_BROYDEN))
        refined = self._linear("shine-refined", REFINEMENTS, lambda k: (broyden, Shine(refine=k)), (1, 2))
        refined["k"] = [k + 2 for k in refined["k"]]  # two products come before the first refinement
        found["shine-refined"] = refined
        return found

    def _steps(self, name: str, places: Sequence[int], adjoint: Callable[[int], Adjoint]) -> Curve:
        """MM's own steps: the work is linear in their number."""
        first = places[0]
        return self._linear(name, places, lambda k: ("auto", adjoint(k)), (first, first + 2))

    def _linear(
        self,
        name: str,
        places: Sequence[int],
        method: Callable[[int], tuple[Solver | str, Adjoint]],
        ends: tuple[int, int],
    ) -> Curve:
        """A method whose work is known to be linear in k is counted at two k, because counting is slow."""
        low, high = (self._counted(name, *method(k))[1] for k in ends)
        each = (high - low) / (ends[1] - ends[0])
        curve = _curve()
        for k in places:
            _append(curve, k, low + each * (k - ends[0]), self._solved(name, *method(k)))
        return curve

    def _each(self, name: str, places: Sequence[int], method: Callable[[int], tuple[Solver | str, Adjoint]]) -> Curve:
        """A method whose work is counted at every k."""
        curve = _curve()
        for k in places:
            check, work = self._counted(name, *method(k))
            _append(curve, k, work, check)
        return curve

    def _chebyshev(self) -> Curve:
        """Chebyshev steps take the number that their tolerance asks for."""
        curve = _curve()
        for power in range(1, 14):
            adjoint = Implicit(method="auto", tol=10.0**-power, on_failure="ignore")
            (solution, check), work = counted(partial(self._run, "auto", adjoint), *self._sizes)
            assert solution.adjoint.iterations is not None  # the backward pass has run
            products = int(solution.adjoint.iterations.max())
            self._note("chebyshev", solution)
            _append(curve, products, work, check)
        return curve

    def _after_mm(self, places: Sequence[int]) -> tuple[Curve, Curve]:
        """The implicit gradient at MM's iterates, and the error of these."""
        problem = self.exact.problem
        step = torch.tensor(problem.step, dtype=torch.float64)
        dual = torch.zeros_like(problem.offset)
        implicit, forward = _curve(), _curve()
        _, adjoint_work = counted(lambda: self._attached(torch.zeros_like(problem.offset)), *self._sizes)
        for k in range(1, places[-1] + 1):
            z = problem.geometry.activation(dual)
            dual = mm_step(
                problem.geometry, dual, -(z @ problem.weight.T + problem.offset), step, problem.regularization
            )
            if k in places:
                check, value = self._attached(dual)
                _append(implicit, k, k + adjoint_work, check)
                error = float((value - self.exact.value).norm() / self.exact.value.norm())
                _append(forward, k, k, (error, math.nan))
        return implicit, forward

    def _after_anderson(self, steps: int) -> Curve:
        """The implicit gradient at Anderson's iterates."""
        problem = self.exact.problem
        solver = Anderson(tol=TOL, max_iter=steps, trace=True, on_failure="ignore")
        solution, work = counted(lambda: self._solve(solver, "implicit", problem.weight, problem.offset), *self._sizes)
        self._note("implicit-anderson", solution)
        assert solution.trace is not None  # it was asked for
        duals = solution.trace.dual
        last = len(duals) - 1
        # A sample that has stopped keeps its last iterate.
        running = torch.isfinite(duals.sum(-1))
        places = torch.arange(len(duals))[:, None].where(running, 0).cummax(0).values
        _, adjoint_work = counted(lambda: self._attached(duals[0]), *self._sizes)
        curve = _curve()
        for k in spread(steps):
            at = min(k, last)
            dual = duals[places[at], torch.arange(len(problem.offset))]
            _append(curve, k, work * at / last + adjoint_work, self._attached(dual)[0])
        return curve

    def _attached(self, dual: Tensor) -> tuple[tuple[float, float], Tensor]:
        """Error and cosine of the implicit gradient at an iterate, and the iterate."""
        problem = self.exact.problem
        weight, offset = self._leaves()
        energy = QuadraticEnergy.from_matrices(weight)
        adjoint = Implicit(method="dense", on_failure="ignore")
        value = attach_gradient(energy, problem.geometry, offset, dual, problem.regularization, adjoint)
        return self._check(value, weight, offset), value.detach()

    def _counted(self, name: str, solver: Solver | str, adjoint: Adjoint) -> tuple[tuple[float, float], float]:
        return counted(lambda: self._solved(name, solver, adjoint), *self._sizes)

    def _solved(self, name: str, solver: Solver | str, adjoint: Adjoint) -> tuple[float, float]:
        solution, check = self._run(solver, adjoint)
        self._note(name, solution)
        return check

    def _run(self, solver: Solver | str, adjoint: Adjoint) -> tuple[Solution, tuple[float, float]]:
        weight, offset = self._leaves()
        solution = self._solve(solver, adjoint, weight, offset)
        return solution, self._check(solution.value, weight, offset)

    def _solve(self, solver: Solver | str, adjoint: Adjoint | str, weight: Tensor, offset: Tensor) -> Solution:
        problem = self.exact.problem
        return find_critical_point(
            QuadraticEnergy.from_matrices(weight),
            problem.geometry,
            offset,
            regularization=problem.regularization,
            solver=solver,
            adjoint=adjoint,
        )

    def _check(self, value: Tensor, weight: Tensor, offset: Tensor) -> tuple[float, float]:
        """Relative error and cosine of the gradient of ½‖value − t‖² in W and c."""
        loss = 0.5 * (value - self.exact.target).square().sum()
        check = gradient_check(flat(*torch.autograd.grad(loss, (weight, offset))), self.exact.gradient)
        return check.error, check.cosine

    def _leaves(self) -> tuple[Tensor, Tensor]:
        problem = self.exact.problem
        return problem.weight.clone().requires_grad_(), problem.offset.clone().requires_grad_()

    def _note(self, name: str, solution: Solution) -> None:
        """Count what did not end as asked; MAX_ITER is what most runs are stopped by."""
        statuses = [solution.status] + ([] if solution.adjoint.status is None else [solution.adjoint.status])
        codes = [Status(code) for code in itertools.chain.from_iterable(part.tolist() for part in statuses)]
        count = sum(code.failed and code is not Status.MAX_ITER for code in codes)
        self.failures[name] = self.failures.get(name, 0) + count

    @property
    def _sizes(self) -> tuple[int, int]:
        batch, dim = self.exact.problem.offset.shape
        return batch, dim


def spread(last: int, points: int = POINTS) -> list[int]:
    """Whole numbers from 1 to `last`, about evenly spread on a log scale."""
    places = torch.logspace(0, math.log10(last), points, dtype=torch.float64).round()
    return sorted({min(int(place), last) for place in places})


def _truncated(last: int, steps: int) -> Adjoint:
    return Unrolled(steps=steps, last=last)


def _phantom(damping: float, steps: int) -> tuple[str, Adjoint]:
    return "auto", Phantom(steps=steps, damping=damping)


def _limited(method: str, products: int) -> tuple[str, Adjoint]:
    return "auto", Implicit(method=method, max_iter=products, tol=1e-15, on_failure="ignore")


def _broyden(steps: int) -> Broyden:
    return Broyden(memory=MOST_BROYDEN, exact=False, tol=TOL, max_iter=steps, on_failure="ignore")


def _curve() -> Curve:
    return {"k": [], "work": [], "error": [], "cosine": []}


def _append(curve: Curve, k: int, work: float, check: tuple[float, float]) -> None:
    for name, value in zip(("k", "work", "error", "cosine"), (k, work, *check), strict=True):
        curve[name].append(value)
