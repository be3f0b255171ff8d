"""The solvers of the torchdeq package, driven on the dual map."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.objective import Objective, Point
from implicit_bregman.settings import check_choice
from implicit_bregman.solvers.base import Outcome, Solver
from implicit_bregman.solvers.exact.result import exact_point
from implicit_bregman.solvers.exact.solve import can_solve_exactly, solve_exactly
from implicit_bregman.solvers.recorder import Recorder
from implicit_bregman.status import Status

METHODS = ("anderson", "broyden", "fixed_point_iter")
#: What this library sets itself; everything else in torchdeq's signature may be given as an option.
_OURS = {"func", "x0", "max_iter", "tol", "stop_mode", "indexing", "return_final", "kwargs"}


@dataclass(frozen=True)
class TorchDEQ(Solver):
    """A solver of torchdeq 0.1, run on y ↦ y⁺, as a baseline.

    torchdeq stops on the norm of y⁺ − y over the whole batch, which never vanishes where a bound is active, and it
    returns NaN on z-iterates that leave C. Here it iterates y, and each sample keeps the first iterate whose
    residual (the same as for every other solver) is within `tol`; torchdeq is stopped when all samples have one.
    A singular system inside torchdeq ends the run with the best iterates so far.

    Args:
        method: "anderson", "broyden" or "fixed_point_iter".
        options: torchdeq's own settings of that method, for example {"m": 6, "lam": 1e-4, "tau": 1.0} for
            "anderson".
        max_iter: bound on torchdeq's iterations.
        tol: see `Solver`.
        exact: see `Solver`.
        trace: see `Solver`.
        on_failure: see `Solver`.

    Raises:
        ImportError: if torchdeq is not installed.
        TypeError: for an unknown option of torchdeq's method.
        ValueError: for an unknown method.
    """

    method: str = "anderson"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    max_iter: int = field(default=500, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        super().__post_init__()
        check_choice("method", self.method, METHODS)
        object.__setattr__(self, "options", dict(self.options))
        known = [name for name in inspect.signature(_torchdeq(self.method)).parameters if name not in _OURS]
        for name in self.options:
            if name not in known:
                raise TypeError(f"torchdeq's {self.method} has no option {name!r}; its options are {', '.join(known)}")

    def solve(self, objective: Objective, dual: Float[Tensor, "batch d"]) -> Outcome:
        """Run torchdeq from `dual` until each sample has an iterate within the tolerance, or max_iter."""
        watch = _Watch(objective, dual, self.tolerance(dual.dtype), self.trace)
        if len(dual) == 0:
            return watch.outcome()
        with torch.no_grad():
            with suppress(_AllDone, torch.linalg.LinAlgError):
                # tol = 0: torchdeq's own test, which is not per sample, never ends the run.
                _torchdeq(self.method)(watch, dual.detach(), max_iter=self.max_iter, tol=0.0, **self.options)
            if self.ends_exactly and can_solve_exactly(objective) and objective.unique:
                watch.solve_exactly()
        return watch.outcome()


def _torchdeq(method: str) -> Callable[..., Any]:
    try:
        from torchdeq.solver import anderson, broyden, fp_iter
    except ImportError:
        raise ImportError(
            "the TorchDEQ solver needs the torchdeq package: pip install 'implicit-bregman[experiments]'"
        ) from None
    functions: dict[str, Callable[..., Any]] = {
        "anderson": anderson.anderson_solver,
        "broyden": broyden.broyden_solver,
        "fixed_point_iter": fp_iter.fixed_point_iter,
    }
    return functions[method]


class _AllDone(Exception):
    """Every sample has an iterate within the tolerance."""


class _Watch:
    """The dual map as torchdeq sees it; it remembers each sample's first good, or else best, iterate."""

    def __init__(self, objective: Objective, dual: Tensor, tol: float, trace: bool) -> None:
        self.objective = objective
        self.tol = tol
        self.step = objective.initial_step(dual)
        self.calls = 0
        self.best: Point | None = None
        self.start = dual
        self.at = torch.zeros(len(dual), dtype=torch.int64, device=dual.device)
        self.done = torch.zeros(len(dual), dtype=torch.bool, device=dual.device)
        self.extra = torch.zeros_like(self.at)
        self.exact = torch.zeros_like(self.done)
        self.solved = torch.zeros_like(self.done)
        self.degenerate = torch.zeros_like(self.done)
        self.free = torch.ones_like(dual, dtype=torch.bool)
        self.recorder = Recorder(dual) if trace else None

    def __call__(self, dual: Tensor) -> Tensor:
        finite = torch.isfinite(dual.sum(-1))
        # What torchdeq has driven to infinity is looked at from its best iterate, so that nothing here is NaN.
        known = self.start if self.best is None else self.best.dual
        seen = self.objective.geometry.project_dual(torch.where(finite[:, None], dual, known))
        point = self.objective.evaluate(seen, self.step)
        if self.objective.backtracks and self.best is not None:
            good = self.objective.majorized(self.objective.restep(self.best, self.step), point) & finite
            self.step = torch.where(good[:, None], self.step, 0.5 * self.step)
            point = self.objective.restep(point, self.step)
        if self.recorder is not None:
            going = (~self.done).nonzero().squeeze(-1)
            self.recorder.add(going, point.select(going))
        if self.best is None:
            self.best = point
        else:
            better = (point.residual < self.best.residual) & ~self.done & point.finite
            self.best = point.where(better, self.best)
            self.at = torch.where(better, self.calls, self.at)
        self.calls += 1
        self.done = self.done | (self.best.residual <= self.tol)
        if bool(self.done.all()):
            raise _AllDone
        return torch.where(finite[:, None], point.next_dual, dual)

    def solve_exactly(self) -> None:
        """Solve exactly, where the active set of the best iterate is right."""
        assert self.best is not None
        found = solve_exactly(self.objective, self.best, self.tol)
        ok = found.accepted
        changed = exact_point(self.objective, self.best, found)
        self.best = changed.where(ok, self.best)
        self.done = self.done | ok
        self.solved = ok
        self.exact = ok & (self.objective.regularization == 0)
        self.free = torch.where(ok[:, None], found.free, self.free)
        self.degenerate = found.degenerate
        self.extra = found.tries

    def outcome(self) -> Outcome:
        """Everything, after torchdeq has returned."""
        point = self.best if self.best is not None else self.objective.evaluate(self.start, self.step)
        status = torch.where(self.done, int(Status.CONVERGED), int(Status.MAX_ITER))
        at_bound = self.done & ~self.solved & self.objective.degenerate(point, 10 * self.tol)
        status = torch.where(self.degenerate | at_bound, int(Status.DEGENERATE), status)
        iterations = torch.where(self.done & ~self.solved, self.at, max(self.calls - 1, 0))
        trace = None if self.recorder is None else self.recorder.trace()
        calls = torch.full_like(self.at, self.calls)
        return Outcome(point, status, iterations, calls + self.extra, self.exact, self.free, trace)
