"""Settings and contract of the iterative solvers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.objective import Objective, Point
from implicit_bregman.operators.free import FreeBlocks
from implicit_bregman.operators.splitter import Splitter
from implicit_bregman.settings import FAILURE_MODES, Settings, check_choice, check_count, check_positive
from implicit_bregman.solvers.inverse import InverseEstimate
from implicit_bregman.status import Status

#: The residual a solve has to reach, by precision. Errors are about the residual times the condition number.
DEFAULT_TOL = {torch.float32: 1e-6, torch.float64: 1e-11}


@dataclass(frozen=True)
class Trace:
    """What happened at every iteration k = 0, 1, …, K − 1 (NaN where a sample had already stopped).

    Attributes:
        residual: (K, B).
        objective: F, (K, B); NaN where there is no objective.
        dual: y, (K, B, d), or (K, B, C, H, W) where states have this shape.
    """

    residual: Float[Tensor, "steps *batch"]
    objective: Float[Tensor, "steps *batch"]
    dual: Float[Tensor, "steps *batch *features"]


@dataclass(frozen=True)
class Outcome:
    """What a solver found, one row per sample.

    Attributes:
        point: the last accepted iterate.
        status: `Status` values, (B,).
        iterations: steps of the solver, (B,).
        evaluations: evaluations of ∇f, the exact solve's included, (B,).
        exact: whether the result was found by the exact solve on its free coordinates (γ = 0), (B,).
        free: for exact samples, which coordinates are not at a bound, (B, d).
        trace: if the solver was asked for it.
        without_steps: whether no sample's result comes from MM steps: all points are exact, and τ is not known.
        complete: whether it is known that no sample has failed.
        without_potential: whether γΣφ(z) is still to be added to the point's objective: few ask for it.
        blocks: the factors of the free blocks of exact points, if there are such.
        splitter: else the splitting by which exact points were found.
        inverse: the solver's estimate of the inverse Jacobian where each sample stopped, if it was asked for.
    """

    point: Point
    status: Int[Tensor, " batch"]
    iterations: Int[Tensor, " batch"]
    evaluations: Int[Tensor, " batch"]
    exact: Bool[Tensor, " batch"]
    free: Bool[Tensor, "batch d"]
    trace: Trace | None
    without_steps: bool = False
    complete: bool = False
    without_potential: bool = False
    blocks: FreeBlocks | None = None
    splitter: Splitter | None = None
    inverse: InverseEstimate | None = None


@dataclass(frozen=True, kw_only=True)
class Solver(Settings):
    """The settings that all solvers share.

    Args:
        tol: bound on the residual, the largest over the coordinates of min(|g|/s, δ/t) with g = ∇f + γy, s the size
            of g's own terms, δ the distance to the bound that −g pushes to and t = min(1, width of C). Default 1e-11
            in float64 and 1e-6 in float32.
        max_iter: bound on the number of iterations. The default is generous because only samples that need them
            make them: MM may take thousands of steps past a saddle where W is indefinite.
        exact: for quadratic f, finish with an exact solve: for γ = 0 on the free coordinates once the active set is
            identified, for γ > 0 by Newton's method in the dual. Without it, geometries whose iterates approach an
            active bound slowly (arctan, bent, isru) do not reach small residuals. Where there are several critical
            points, it also takes stretches over which MM hardly moves z in one step.
        trace: record residual, objective and iterate of every iteration. There is then no exact solve.
        on_failure: "warn" (once), "raise" or "ignore" when a sample fails.

    Attributes:
        is_mm: whether it makes MM's own steps, and no others.
        estimates_inverse: whether it has an estimate of the inverse Jacobian: see `solve_with_inverse`.

    Raises:
        TypeError: for an unknown setting.
        ValueError: for an impossible one.
    """

    aliases: ClassVar[Mapping[str, str]] = {"polish": "exact"}
    is_mm: ClassVar[bool] = False
    estimates_inverse: ClassVar[bool] = False

    tol: float | None = None
    max_iter: int = 20_000
    exact: bool = True
    trace: bool = False
    on_failure: str = "warn"

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        super().__post_init__()
        if self.tol is not None:
            check_positive("tol", self.tol)
        check_count("max_iter", self.max_iter)
        check_choice("on_failure", self.on_failure, FAILURE_MODES)
        for name in ("exact", "trace"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")

    def tolerance(self, dtype: torch.dtype) -> float:
        """`tol`, or its default for this precision."""
        return DEFAULT_TOL[dtype] if self.tol is None else self.tol

    def advice(self, status: Status, dtype: torch.dtype) -> str:
        """What to add to the text of a status: a remedy that helps with this solver, in this precision."""
        if status == Status.MAX_ITER:
            return ("" if self.ends_exactly else ", exact=True") + ', or use solver="auto"'
        return ", or compute in float64" if status == Status.STALLED and dtype == torch.float32 else ""

    @property
    def ends_exactly(self) -> bool:
        """Whether an exact solve may be tried."""
        return self.exact and not self.trace

    @abstractmethod
    def solve(self, objective: Objective, dual: Float[Tensor, "batch d"]) -> Outcome:
        """Go from `dual` to a critical point of `objective`, each sample until its own stop."""

    def solve_with_inverse(self, objective: Objective, dual: Float[Tensor, "batch d"]) -> Outcome:
        """The same, with the estimate that each sample ended with as the outcome's `inverse`.

        Raises:
            TypeError: if it has none.
        """
        raise TypeError(f"{type(self).__name__} has no estimate of the inverse Jacobian: use Broyden")
