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
STEPS, _TRIALS, _GUESSES = 100, 12, 20
#: How far a first step may go, in units of λ, and how much farther the next one after a full step.
#: (without an objective M is not symmetric, and a ridge may point elsewhere)
_FIRST_REACH, _FARTHER, _WITHOUT_OBJECTIVE = 10.0, 8.0, 1e8
#: Below this length, relative to λ, no step is worth trying any more.
_LEAST_REACH = 1e-12
#: By so much of D's slope a step has to lower it, and by so much of itself the residual.
_ARMIJO, _LOWER = 1e-4, 0.1
#: So many rounding errors of the terms of s are always tolerated.
_ROUNDING = 16.0
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
        missed: by how much the constraints are missed, relative to the tolerance, (B,).
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
        tol: by how much a constraint may be missed, relative to `size` + |its bounds|.
        unit: about what M is where no coordinate is on a bound, a number.
        size: about how large Vᵀz is, (r,).
    """

    def __init__(
        self,
        solve: Solve,
        vectors: Float[Tensor, "d r"],
        lower: Float[Tensor, "batch r"],
        upper: Float[Tensor, "batch r"],
        tol: float,
        unit: float,
        size: Float[Tensor, " r"],
    ) -> None:
        self.solve, self.vectors, self.lower, self.upper, self.unit = solve, vectors, lower, upper, unit
        bounds = torch.maximum(*(torch.where(torch.isfinite(end), end.abs(), 0.0) for end in (lower, upper)))
        self.tolerated = tol * (size + bounds)
        self.equation = lower == upper
        self.solves = 0

    def at(self, multiplier: Float[Tensor, "batch r"], start: Solution | Tensor) -> tuple[At, Solution]:
        """What goes with λ."""
        solution, jacobian = self.solve(-multiplier @ self.vectors.mT, start)
        self.solves += 1
        with torch.no_grad():
            rows = solution.value.flatten(1)
            reached = rows @ self.vectors
            objective = solution.objective
            dual = (
                torch.full_like(reached[:, 0], torch.nan) if objective is None else self.support(multiplier) - objective
            )
            aim = self._aim(multiplier, reached, jacobian)
            gap = reached - aim.clamp(self.lower, self.upper)
            # (λ and the sums in s have rounding errors of their own)
            terms = (jacobian.diagonal(dim1=-2, dim2=-1) * multiplier).abs() + rows.abs() @ self.vectors.abs()
            error = (gap.abs() / (self.tolerated + _ROUNDING * torch.finfo(gap.dtype).eps * terms)).amax(-1)
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
        """Whether a hyperplane proves that no z in C meets the constraints within what is tolerated.

        At an infinite end of C what is 0 up to rounding counts as 0: it refutes all but gigantic z.
        """
        refuted = torch.zeros_like(at.error, dtype=torch.bool)
        eps = torch.finfo(at.reached.dtype).eps
        for normal in (at.multiplier, at.reached - at.reached.clamp(self.lower, self.upper)):
            size = normal.abs().amax(-1, keepdim=True)
            normal = normal / torch.where(size > 0, size, 1.0)
            noise = 8 * eps * (normal.abs() @ self.vectors.abs().mT)
            least, doubt = _least(geometry, normal @ self.vectors.mT, noise)
            bounds = torch.where(normal > 0, self.upper, torch.where(normal < 0, self.lower, 0.0))
            margin = (normal.abs() * (self.tolerated + 8 * eps * bounds.abs())).sum(-1) + doubt
            gap = least - self.support(normal)
            refuted |= torch.isfinite(gap) & (gap > margin) & (size.squeeze(-1) > 0)
        return refuted


def _least(
    geometry: MirrorMap, direction: Float[Tensor, "batch d"], noise: Float[Tensor, "batch d"]
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """The least value of ⟨direction, z⟩ on C, −∞ where there is none, and what rounding makes of it, (B,)."""
    lo, hi = (torch.as_tensor(end, dtype=direction.dtype, device=direction.device) for end in geometry.domain)
    coupling = geometry.coupling
    if coupling is not None:
        # All at lo, and what is left of the sum where it costs least.
        blocks, room = coupling.split(direction).sort(-1).values, hi - lo
        count = torch.arange(blocks.shape[-1], dtype=direction.dtype, device=direction.device)
        left = coupling.total - blocks.shape[-1] * lo
        shares = torch.minimum((left - count * room).clamp_min(0.0), room)
        whole = (blocks * (lo + shares)).flatten(1).sum(-1)
        most = torch.maximum(lo.abs(), hi.abs())
        return whole, (noise * most).sum(-1)
    up, down = direction > 0, direction < 0
    # (an infinite end is not reached by what is only noise)
    up, down = up & (torch.isfinite(lo) | (direction > noise)), down & (torch.isfinite(hi) | (direction < -noise))
    terms = torch.where(up, direction * lo, 0.0) + torch.where(down, direction * hi, 0.0)
    size = torch.maximum(*(torch.where(torch.isfinite(end), end.abs(), 0.0) for end in (lo, hi)))
    return terms.sum(-1), (noise * size).sum(-1)


def find_multipliers(
    problem: MultiplierProblem,
    geometry: MirrorMap,
    start: Float[Tensor, "batch d"],
    multiplier: Float[Tensor, "batch r"] | None = None,
) -> Found:
    """λ, by Newton steps, each sample until its own stop.

    Args:
        problem: the constraints.
        geometry: φ, for states as rows.
        start: the dual at which the first solve starts.
        multiplier: λ to begin with; None: 0.
    """
    at, solution = problem.at(torch.zeros_like(problem.lower) if multiplier is None else multiplier, start)
    steps = torch.zeros_like(at.error, dtype=torch.int64)
    reach = torch.where(torch.isnan(at.dual), _WITHOUT_OBJECTIVE, _FIRST_REACH).to(at.error)
    stuck = torch.zeros_like(at.error, dtype=torch.bool)
    refuted = stuck
    for count in range(STEPS):
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
    gap = at.reached - at.reached.clamp(problem.lower, problem.upper)
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
    """A step along `change` that lowers D, or the residual, and its length, (B,); 0: none was found.

    D is convex: where its slope at the end of a step is not positive yet, it has fallen all the way. Where it is, the
    next length is that at which the slope would be 0 if it changed evenly.
    """
    slope, size = problem.slope(at, change), torch.linalg.vector_norm(at.gap, dim=-1)
    length, trial = torch.zeros_like(at.error), torch.ones_like(at.error)
    waiting, known, best = (change != 0).any(-1), solution, at
    rounding = 64 * torch.finfo(at.dual.dtype).eps * (1 + at.dual.abs())
    for _ in range(_TRIALS):
        if not bool(waiting.any()):
            break
        moved = torch.where(waiting[:, None], at.multiplier + trial[:, None] * change, best.multiplier)
        tried, known = problem.at(moved, known)
        ended = problem.slope(tried, change)
        falls = (slope < 0) & ((ended <= 0) | (tried.dual <= at.dual + _ARMIJO * trial * slope))
        # (near the end D says nothing any more, and without an objective there is none)
        level = torch.isnan(at.dual) | (tried.dual <= at.dual + rounding)
        lower = level & (torch.linalg.vector_norm(tried.gap, dim=-1) <= (1 - _LOWER * trial) * size)
        good = waiting & torch.isfinite(tried.error) & (lower | falls)
        best = tried.where(good | ~waiting, best)
        length = torch.where(good, trial, length)
        waiting = waiting & ~good
        even = slope / (slope - ended)
        share = torch.where(torch.isfinite(even), even, 0.25).clamp(0.05, 0.5)
        trial = torch.where(waiting, share * trial, trial)
    if bool(waiting.any()):
        # (the solution that is kept is that of the λ that are)
        best, known = problem.at(best.multiplier, known)
    return best, known, length
