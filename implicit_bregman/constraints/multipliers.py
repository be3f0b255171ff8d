"""The multipliers λ of l ≤ Vᵀz ≤ u, by Newton's method in them.

z(λ) is the critical point of F + λᵀVᵀz, and s = Vᵀz(λ). λ minimises the convex function D(λ) = σ(λ) − min_z (F + λᵀVᵀz)
with σ(λ) = Σ max(l λ, u λ). The derivative of s is −M with M = VᵀJV, J = dz/dc, of which r backward solves are made.
A step takes the constraints that are active, in the sense of the natural residual |s − Π(s + mλ)|, for equations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.legendre import MirrorMap
from implicit_bregman.objective import RowsOfTensors
from implicit_bregman.solution import Solution

#: Newton steps, lengths of one, and guesses of the active constraints of its model.
_STEPS, _TRIALS, _GUESSES = 100, 12, 20
#: How far a first step may go, in units of λ, and how much farther the next one after a full step.
_FIRST_REACH, _FARTHER = 10.0, 8.0
#: Below this length, relative to λ, no step is worth trying any more.
_LEAST_REACH = 1e-12
#: By so much of D's slope a step has to lower it, and by so much of itself the residual.
_ARMIJO, _LOWER = 1e-4, 0.1
#: A multiplier that moves s by less than so many times the tolerance cannot be told from 0.
_THIN = 10.0

Solve = Callable[[Float[Tensor, "batch d"], Solution | Tensor], tuple[Solution, Tensor]]
"""From a linear term c, and a solution or a dual to start from, to the critical point of F − ⟨c, z⟩ and to VᵀJV."""


@dataclass(frozen=True)
class At(RowsOfTensors):
    """λ, and what goes with it.

    Attributes:
        multiplier: λ, (B, r).
        reached: s = Vᵀz, (B, r).
        jacobian: M, (B, r, r).
        dual: D, (B,); NaN where there is no objective.
        gap: the natural residual, (B, r).
        error: its largest entry relative to what is tolerated, (B,).
    """

    multiplier: Tensor
    reached: Tensor
    jacobian: Tensor
    dual: Tensor
    gap: Tensor
    error: Tensor


@dataclass(frozen=True)
class Found:
    """Where it ended.

    Attributes:
        multiplier: λ, (B, r).
        active: −1 where l is active, 1 where u is or l = u, else 0, (B, r).
        jacobian: M there, (B, r, r).
        solution: z(λ) and what is known of it.
        solved: whether the constraints hold, (B,).
        refuted: whether it is proved that they cannot, (B,).
        thin: whether an active constraint has a multiplier that cannot be told from 0, (B,).
        missed: by how much the constraints are missed, relative to what is tolerated, (B,).
        steps: Newton steps, (B,).
        solves: solves for z, one number.
    """

    multiplier: Tensor
    active: Int[Tensor, "batch r"]
    jacobian: Tensor
    solution: Solution
    solved: Bool[Tensor, " batch"]
    refuted: Bool[Tensor, " batch"]
    thin: Bool[Tensor, " batch"]
    missed: Float[Tensor, " batch"]
    steps: Int[Tensor, " batch"]
    solves: int


class MultiplierProblem:
    """The constraints of a batch, their columns of length 1.

    Args:
        solve: from c to z and M.
        vectors: V, (d, r), without gradient.
        lower: l, (B, r).
        upper: u, (B, r).
        tol: by how much a constraint may be missed, relative to 1 + |its bounds|.
        unit: about what M is where no coordinate is on a bound, a number.
    """

    def __init__(
        self,
        solve: Solve,
        vectors: Float[Tensor, "d r"],
        lower: Float[Tensor, "batch r"],
        upper: Float[Tensor, "batch r"],
        tol: float,
        unit: float,
    ) -> None:
        self.solve, self.vectors, self.lower, self.upper, self.unit = solve, vectors, lower, upper, unit
        size = torch.maximum(*(torch.where(torch.isfinite(end), end.abs(), 0.0) for end in (lower, upper)))
        self.tolerated = tol * (1 + size)
        self.equation = lower == upper
        self.solves = 0

    def at(self, multiplier: Float[Tensor, "batch r"], start: Solution | Tensor) -> tuple[At, Solution]:
        """What goes with λ."""
        solution, jacobian = self.solve(-multiplier @ self.vectors.mT, start)
        self.solves += 1
        with torch.no_grad():
            reached = solution.value.flatten(1) @ self.vectors
            objective = solution.objective
            dual = (
                torch.full_like(reached[:, 0], torch.nan) if objective is None else self.support(multiplier) - objective
            )
            aim = self._aim(multiplier, reached, jacobian)
            gap = reached - torch.minimum(torch.maximum(aim, self.lower), self.upper)
            error = (gap.abs() / self.tolerated).amax(-1)
        return At(multiplier, reached, jacobian, dual, gap, error), solution

    def support(self, multiplier: Float[Tensor, "batch r"]) -> Float[Tensor, " batch"]:
        """σ(λ)."""
        return (
            torch.where(multiplier > 0, self.upper * multiplier, 0.0)
            + torch.where(multiplier < 0, self.lower * multiplier, 0.0)
        ).sum(-1)

    def _aim(self, multiplier: Tensor, reached: Tensor, jacobian: Tensor) -> Tensor:
        """s + mλ."""
        metric = jacobian.diagonal(dim1=-2, dim2=-1).clamp_min(1e-3 * self.unit)
        return reached + metric * multiplier

    def active(self, multiplier: Tensor, reached: Tensor, jacobian: Tensor) -> Int[Tensor, "batch r"]:
        """−1 where l is active, 1 where u is or l = u, else 0."""
        aim = self._aim(multiplier, reached, jacobian)
        above = (aim > self.upper) | self.equation
        return above.to(torch.int64) - (~above & (aim < self.lower)).to(torch.int64)

    def target(self, active: Int[Tensor, "batch r"]) -> Float[Tensor, "batch r"]:
        """The active bounds; 0 for constraints that are not active."""
        return torch.where(active > 0, self.upper, torch.where(active < 0, self.lower, 0.0))

    def step(self, at: At, reach: Float[Tensor, " batch"]) -> Float[Tensor, "batch r"]:
        """The change of λ that solves the model s − M·change with complementarity, with a ridge that bounds it."""
        eye = torch.eye(at.jacobian.shape[-1], dtype=at.jacobian.dtype, device=at.jacobian.device)
        ridge = torch.linalg.vector_norm(at.gap, dim=-1) / reach
        matrix = at.jacobian + ridge[:, None, None] * eye
        active = self.active(at.multiplier, at.reached, at.jacobian)
        change = torch.zeros_like(at.multiplier)
        for _ in range(_GUESSES):
            on = (active != 0).to(matrix.dtype)
            dropped = torch.where(active == 0, -at.multiplier, 0.0)
            right = on * (at.reached - self.target(active) - (matrix @ dropped[:, :, None]).squeeze(-1))
            system = on[:, :, None] * matrix * on[:, None, :] + (1 - on)[:, :, None] * eye
            solved, _ = torch.linalg.solve_ex(system, right)
            change = torch.where(torch.isfinite(solved), solved, 0.0) + dropped
            moved = at.reached - (matrix @ change[:, :, None]).squeeze(-1)
            again = self.active(at.multiplier + change, moved, at.jacobian)
            if torch.equal(again, active):
                break
            active = again
        return change

    def slope(self, at: At, change: Float[Tensor, "batch r"]) -> Float[Tensor, " batch"]:
        """The derivative of D along a step."""
        sign = torch.where(at.multiplier != 0, at.multiplier, change)
        bound = torch.where(sign > 0, self.upper, self.lower)
        return (torch.where(change == 0, 0.0, bound * change) - at.reached * change).sum(-1)

    def is_refuted(self, at: At, geometry: MirrorMap) -> Bool[Tensor, " batch"]:
        """Whether a hyperplane proves that no z in C meets the constraints within what is tolerated."""
        lo, hi = geometry.domain
        clipped = torch.minimum(torch.maximum(at.reached, self.lower), self.upper)
        refuted = torch.zeros_like(at.error, dtype=torch.bool)
        for normal in (at.multiplier, at.reached - clipped):
            size = normal.abs().amax(-1, keepdim=True)
            normal = normal / torch.where(size > 0, size, 1.0)
            direction = normal @ self.vectors.mT
            noise = 8 * torch.finfo(direction.dtype).eps * (normal.abs() @ self.vectors.abs().mT)
            direction = torch.where(direction.abs() <= noise, 0.0, direction)
            least = torch.where(direction > 0, direction * lo, 0.0) + torch.where(direction < 0, direction * hi, 0.0)
            gap = least.sum(-1) - self.support(normal)
            margin = (normal.abs() * self.tolerated).sum(-1) + 1e-12 * torch.where(
                torch.isfinite(least), least.abs(), 0.0
            ).sum(-1)
            refuted |= torch.isfinite(gap) & (gap > margin) & (size.squeeze(-1) > 0)
        return refuted


def find_multipliers(problem: MultiplierProblem, geometry: MirrorMap, start: Float[Tensor, "batch d"]) -> Found:
    """λ, by Newton steps from 0, each sample until its own stop.

    Args:
        problem: the constraints.
        geometry: φ, for states as rows.
        start: the dual at which the first solve starts.
    """
    at, solution = problem.at(torch.zeros_like(problem.lower), start)
    steps = torch.zeros_like(at.error, dtype=torch.int64)
    reach, stuck = torch.full_like(at.error, _FIRST_REACH), torch.zeros_like(at.error, dtype=torch.bool)
    refuted = stuck
    for count in range(_STEPS):
        running = (at.error > 1) & ~stuck & ~refuted & torch.isfinite(at.error)
        if not bool(running.any()):
            break
        steps = steps + running
        change = torch.where(running[:, None], problem.step(at, reach), 0.0)
        at, solution, length = _search(problem, at, solution, change)
        reach = torch.where(length >= 1, _FARTHER * reach, reach * length.clamp_min(0.05)).clamp_max(1e30)
        stuck = running & (reach < _LEAST_REACH * (1 + at.multiplier.abs().amax(-1)))
        if count >= 1:
            refuted = refuted | (running & problem.is_refuted(at, geometry))
    active = problem.active(at.multiplier, at.reached, at.jacobian)
    pushed = (at.jacobian.diagonal(dim1=-2, dim2=-1) * at.multiplier).abs()
    near = (
        torch.minimum((at.reached - problem.lower).abs(), (at.reached - problem.upper).abs())
        <= _THIN * problem.tolerated
    )
    thin = (near & (pushed <= _THIN * problem.tolerated) & ~problem.equation).any(-1)
    gap = at.reached - torch.minimum(torch.maximum(at.reached, problem.lower), problem.upper)
    return Found(
        multiplier=at.multiplier,
        active=active,
        jacobian=at.jacobian,
        solution=solution,
        solved=at.error <= 1,
        refuted=refuted,
        thin=thin,
        missed=(gap.abs() / problem.tolerated).amax(-1),
        steps=steps,
        solves=problem.solves,
    )


def _search(problem: MultiplierProblem, at: At, solution: Solution, change: Tensor) -> tuple[At, Solution, Tensor]:
    """The longest of the trial steps that lowers D, or the residual, and its length, (B,); 0: none did."""
    slope, size = problem.slope(at, change), torch.linalg.vector_norm(at.gap, dim=-1)
    length, trial = torch.zeros_like(at.error), torch.ones_like(at.error)
    waiting = (change != 0).any(-1)
    best, known = at, solution
    for _ in range(_TRIALS):
        if not bool(waiting.any()):
            break
        tried, there = problem.at(
            torch.where(waiting[:, None], at.multiplier + trial[:, None] * change, best.multiplier), known
        )
        known = there
        falls = (slope < 0) & (tried.dual <= at.dual + _ARMIJO * trial * slope)
        # (near the end D says nothing any more, and without an objective there is none)
        level = ~(tried.dual > at.dual + 64 * torch.finfo(at.dual.dtype).eps * (1 + at.dual.abs()))
        lower = level & (torch.linalg.vector_norm(tried.gap, dim=-1) <= (1 - _LOWER * trial) * size)
        good = waiting & torch.isfinite(tried.error) & (lower | falls)
        best = tried.where(good | ~waiting, best)
        length = torch.where(good, trial, length)
        waiting = waiting & ~good
        trial = torch.where(waiting, 0.25 * trial, trial)
    if bool(waiting.any()):
        # (the solution that is kept is that of the λ that are)
        best, known = problem.at(best.multiplier, known)
    return best, known, length
