"""The dual problem for V a linear map, in its r multipliers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.legendre import MirrorMap
from implicit_bregman.operators.linear_map import LinearMap
from implicit_bregman.projection.newton import minimise
from implicit_bregman.projection.problem import FAR, HUGE, At, ProjectionProblem
from implicit_bregman.projection.sinkhorn import balanced, log_masses, scaled_to_marginals

#: Part of the tolerance, and of the target, below which a gradient that still halves is followed no further.
_NOTHING = 1e-9
#: The same of a transport plan, whose steps are expensive and its last ones quadratic.
_NOTHING_OF_PLANS = 1e-2
#: The same for s·y⁰ with s < 1, and the steps that may be made there.
_ON_THE_WAY, _STEPS_ON_THE_WAY = 1e-2, 30
#: A ridge that only keeps a singular system solvable, relative to its diagonal.
_LEAST_RIDGE = 1e-13
#: No multiplier of a transport plan moves further in one step.
_LONGEST = 1e3


@dataclass(frozen=True)
class MapProblem(ProjectionProblem):
    """The problem in coordinates μ = λ·lengths, in which the columns of V have the length 1.

    Attributes:
        map: V, in float64.
        lengths: those of its columns, (r,); in a tuple because it has no row per sample.
    """

    map: LinearMap
    lengths: tuple[Tensor]

    def evaluate(self, mu: Float[Tensor, "batch k"], y: Float[Tensor, "batch d"]) -> At:
        z, slope = self.geometry.activation(y), self.geometry.slope(y)
        if not self.is_tame:
            z, slope = z.clamp(-HUGE, HUGE), slope.clamp(max=HUGE)
        lengths, magnitude = self.lengths[0], self.map.magnitude()
        gradient = self.map.product(z, adjoint=True) / lengths - self.target
        terms = torch.addcmul(z.abs(), slope, y.abs().clamp_(max=FAR))
        noise = magnitude.product(terms, adjoint=True) / lengths + self.target.abs()
        if self.softness:
            pull = self.softness * mu / lengths.square()
            gradient, noise = gradient + pull, noise + pull.abs()
        rounding = 4 * torch.finfo(z.dtype).eps * noise.amax(-1)
        return At(mu, y, slope, gradient, torch.linalg.vector_norm(gradient, dim=-1), rounding)

    def direction(self, at: At, reach: Float[Tensor, " batch"]) -> tuple[Float[Tensor, "batch k"], Tensor]:
        lengths = self.lengths[0]
        least = _LEAST_RIDGE * self.map.gram_diagonal(at.slope)
        shift = self.softness + torch.maximum((at.size / reach)[:, None] * lengths.square(), least)
        return self._step(at, shift)

    def _step(self, at: At, shift: Float[Tensor, "batch r"]) -> tuple[Tensor, Tensor]:
        lengths = self.lengths[0]
        found = self.map.inverted_gram(at.slope, shift)(at.gradient * lengths)
        return -lengths * found, torch.isnan(found.sum(-1)).int()

    def across(self, mu: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch d"]:
        return self.map.product(mu / self.lengths[0])

    def across_sizes(self, mu: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch d"]:
        return self.map.magnitude().product(mu / self.lengths[0])

    def missed(self, gradient: Float[Tensor, "batch k"]) -> Float[Tensor, "batch r"]:
        return gradient * self.lengths[0]

    def weights(self, mu: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch r"]:
        return mu / self.lengths[0]


@dataclass(frozen=True)
class PlanProblem(MapProblem):
    """That of a transport plan, ρ = exp: V gives the sums of rows and columns.

    Every iterate has the right row sums: those multipliers are known in closed form (a half-step of Sinkhorn's), and so
    the Newton steps are those of the semi-dual problem, which is better behaved. A row or a column without mass is 0
    throughout, with duals at which exp underflows.

    Attributes:
        masses: β, balanced, of samples that have a plan, (B, r); ones for others, whose results nobody uses.
        logs: their logarithms.
        size: the length of the target, (B,).
        rounding: the rounding error of the gradient's entries, (B,).
        first: λ to begin with, (B, r); None: those that Sinkhorn's iterations find.
    """

    masses: Tensor
    logs: Tensor
    size: Tensor
    rounding: Tensor
    first: Tensor | None = None

    @property
    def _plan(self) -> tuple[int, int]:
        assert self.map.plan is not None
        return self.map.plan

    def begin(self) -> At:
        multiplier = self._by_sinkhorn() if self.first is None else self.first
        return self.evaluate(multiplier * self.lengths[0], self.start + self.map.product(multiplier))

    def _by_sinkhorn(self) -> Float[Tensor, "batch r"]:
        tol = float((self.nothing / self.size.clamp_min(1e-300)).amin()) if len(self.size) else 0.0
        start = self.start.unflatten(-1, self._plan)
        return scaled_to_marginals(start, self.masses, self.logs, tol, self._on_the_way)

    def _on_the_way(self, s: float, multiplier: Float[Tensor, "batch r"]) -> Float[Tensor, "batch r"]:
        """About λ for s·y⁰, by Newton's method from another λ."""
        start = s * self.start
        level = replace(self, start=start, nothing=_ON_THE_WAY * self.size, first=multiplier)
        moved = (minimise(level, _STEPS_ON_THE_WAY).dual - start).unflatten(-1, self._plan)
        of_columns = moved[:, 0]
        return torch.cat([moved[:, :, 0] - of_columns[:, :1], of_columns], -1)

    def evaluate(self, mu: Float[Tensor, "batch k"], y: Float[Tensor, "batch d"]) -> At:
        rows, _ = self._plan
        lengths, matrix, logs = self.lengths[0], y.unflatten(-1, self._plan), self.logs[:, :rows]
        top = matrix.amax(-1, keepdim=True)
        plan = torch.exp(matrix - top)
        total = plan.sum(-1, keepdim=True)
        plan *= logs.exp()[..., None] / total
        lift = logs - (top + total.log()).squeeze(-1)
        mu = torch.cat([mu[:, :rows] + lift * lengths[:rows], mu[:, rows:]], -1)
        columns = (plan.sum(-2) - self.masses[:, rows:]) / lengths[rows:]
        gradient = torch.cat([torch.zeros_like(lift), columns], -1)
        size = torch.linalg.vector_norm(gradient, dim=-1)
        return At(mu, (matrix + lift[..., None]).flatten(-2), plan.flatten(-2), gradient, size, self.rounding)

    def direction(self, at: At, reach: Float[Tensor, " batch"]) -> tuple[Float[Tensor, "batch k"], Tensor]:
        # Where ρ = exp, a step is long or short by how much it multiplies z: the ridge is one of the masses.
        miss = at.size / self.size.clamp_min(1e-300)
        ridge = (miss / reach).clamp_min(_LEAST_RIDGE)
        return self._step(at, ridge[:, None] * self.masses)

    def most_length(self, at: At, change: Float[Tensor, "batch d"]) -> Tensor:
        return _LONGEST / change.abs().amax(-1).clamp_min(1e-300)

    def is_infeasible(self, at: At) -> Bool[Tensor, " batch"]:
        return torch.zeros_like(at.size, dtype=torch.bool)


def map_problem(
    equations: LinearMap,
    lengths: Float[Tensor, " r"],
    target: Float[Tensor, "batch r"],
    geometry: MirrorMap,
    start: Float[Tensor, "batch d"],
    softness: float,
    tol: float,
) -> MapProblem:
    """The problem of projecting ρ(y⁰) onto {Vᵀz + ελ = β}; all tensors are in float64.

    Args:
        equations: V.
        lengths: of its columns; 1 for one of zeros.
        target: β.
        geometry: φ.
        start: y⁰.
        softness: ε ≥ 0.
        tol: by how much each equation may be missed, relative to its size.
    """
    size = torch.linalg.vector_norm(target / lengths, dim=-1)
    return MapProblem(
        geometry=geometry,
        start=start,
        target=target / lengths,
        tolerated=tol * (lengths + target.abs()),
        nothing=_NOTHING * tol * torch.where(size > 0, size, 1.0).clamp_max(1.0),
        softness=softness,
        map=equations,
        lengths=(lengths,),
    )


def plan_problem(
    equations: LinearMap,
    lengths: Float[Tensor, " r"],
    target: Float[Tensor, "batch r"],
    has_plan: Bool[Tensor, " batch"],
    geometry: MirrorMap,
    start: Float[Tensor, "batch d"],
    tol: float,
) -> PlanProblem:
    """The same for an entropic transport plan and ε = 0.

    Args:
        equations: see `map_problem`, as the others are.
        lengths: of V's columns.
        target: β.
        has_plan: the samples whose masses are not negative and have one sum, (B,).
        geometry: φ.
        start: y⁰.
        tol: by how much each equation may be missed.
    """
    assert equations.plan is not None
    if not bool(has_plan.all()):
        uniform = equations.product(target.new_ones(1, equations.shape[0]), adjoint=True)
        target = torch.where(has_plan[:, None], target, uniform)
    masses = balanced(target, equations.plan[0])
    scaled = masses / lengths
    size, logs = torch.linalg.vector_norm(scaled, dim=-1), log_masses(masses)
    return PlanProblem(
        geometry=geometry,
        start=start,
        target=scaled,
        tolerated=tol * (lengths + target.abs()),
        nothing=_NOTHING_OF_PLANS * tol * size,
        softness=0.0,
        map=equations,
        lengths=(lengths,),
        masses=masses,
        logs=logs,
        size=size,
        # (each sum has terms p, whose duals log p are right to a few digits)
        rounding=4 * torch.finfo(target.dtype).eps * (scaled * (10 - logs)).amax(-1),
    )


def is_plan(equations: LinearMap, geometry: MirrorMap) -> bool:
    """Whether z is an entropic transport plan."""
    return equations.plan is not None and geometry.is_exponential
