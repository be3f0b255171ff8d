"""The objective F = f_θ(·; x) + γφ + ι_C at a fixed input, in dual coordinates y = ∇φ(z)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.energy.contract import BoundEnergy
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.legendre.mirror import Ends
from implicit_bregman.majorization import automatic_step, inner_step, mm_step

Rows = TypeVar("Rows", bound="RowsOfTensors")


@dataclass(frozen=True)
class RowsOfTensors:
    """A dataclass whose fields are tensors with one row per sample, or None, or what does not depend on rows."""

    def select(self: Rows, index: Int[Tensor, " kept"]) -> Rows:
        """The rows of some samples."""
        return replace(self, **{name: rows[index] for name, rows in self._tensors()})

    def where(self: Rows, mask: Bool[Tensor, " batch"], other: Rows) -> Rows:
        """Rows of `self` where `mask` holds, of `other` elsewhere."""
        merged = {}
        for name, rows in self._tensors():
            column = mask.reshape(-1, *[1] * (rows.dim() - 1))
            merged[name] = torch.where(column, rows, getattr(other, name))
        return replace(self, **merged)

    @classmethod
    def cat(cls: type[Rows], parts: Sequence[Rows]) -> Rows:
        """The rows of several, one after the other."""
        columns = {name: torch.cat([getattr(part, name) for part in parts]) for name, _ in parts[0]._tensors()}
        return replace(parts[0], **columns)

    def to(self: Rows, dtype: torch.dtype) -> Rows:
        """The same in another precision."""
        floats = {name: rows.to(dtype) for name, rows in self._tensors() if rows.is_floating_point()}
        return replace(self, **floats)

    def replace_rows(self: Rows, index: Int[Tensor, " some"], other: Rows) -> Rows:
        """These rows, with those of some samples replaced by the rows of `other`."""
        merged = {name: rows.index_copy(0, index, getattr(other, name)) for name, rows in self._tensors()}
        return replace(self, **merged)

    def _tensors(self) -> list[tuple[str, Tensor]]:
        pairs = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return [(name, value) for name, value in pairs if isinstance(value, Tensor)]


@dataclass(frozen=True)
class Point(RowsOfTensors):
    """An iterate, what was computed there, and its next MM iterate.

    Attributes:
        dual, value: y and z = ρ(y), (B, d).
        gradient: ∇f(z; x), (B, d).
        objective: F(z), (B,), or None where there is no objective.
        residual: how far z is from critical in the coordinate where it is farthest, (B,): see `Objective.residual`.
        scale: what each entry of ∇f is measured against, (B, d): see `Objective.scale`.
        step: τ, (B, 1), as long as `inner_step` lets it be; NaN where no MM steps were made.
        next_dual: the MM iterate after this one, (B, d).
    """

    dual: Tensor
    value: Tensor
    gradient: Tensor
    objective: Tensor | None
    residual: Tensor
    scale: Tensor
    step: Tensor
    next_dual: Tensor

    @property
    def finite(self) -> Bool[Tensor, " batch"]:
        """Whether everything that the next step depends on is finite."""
        # (the largest entry, since finite duals as large as the dtype holds have an infinite sum)
        largest = torch.linalg.vector_norm(self.next_dual, torch.inf, -1)
        return torch.isfinite(largest) & torch.isfinite(self.value.sum(-1) + self.residual)


class Objective:
    """F = f + γφ + ι_C for a batch of samples.

    Args:
        energy: f at the batch's inputs.
        geometry: φ and C.
        regularization: γ ≥ 0.
        unique: whether F is known to have one critical point only; default: found from the energy.
    """

    def __init__(
        self,
        energy: BoundEnergy,
        geometry: MirrorMap,
        regularization: float,
        unique: bool | None = None,
    ) -> None:
        self.energy = energy
        self.geometry = geometry
        self.regularization = regularization
        self._found_step: tuple[Tensor | None, ...] = ()
        self.unique = (
            energy.is_strictly_convex(
                regularization * geometry.strong_convexity,
                # Where φ'' is not constant, γφ is strictly convex beyond its bound γσ.
                regularization > 0 and geometry.is_steeper_somewhere,
            )
            if unique is None
            else unique
        )

    @cached_property
    def convex(self) -> bool:
        """Whether F is known to be convex: with one critical point, or with a convex set of minimisers."""
        return self.unique or (self.regularization == 0 and self.energy.is_convex)

    @property
    def step(self) -> Tensor | None:
        """τ, a 0-d tensor, or None where no curvature bound is known and MM has to backtrack.

        It takes the spectrum of W, and is computed for those who make MM steps alone.
        """
        if not self._found_step:
            shared = self.energy.factored if self.energy.symmetric else None
            matrix = None if shared is None else shared.operator.matrix
            known = automatic_step(self.energy.curvature, self.geometry, matrix)
            one = known is None and self.energy.is_field
            self._found_step = (torch.ones((), dtype=self.energy.dtype) if one else known,)
        return self._found_step[0]

    @property
    def backtracks(self) -> bool:
        """Whether the MM step has to be found per sample."""
        return self.step is None

    @property
    def lengthens(self) -> bool:
        """Whether a step that had to be short far out may be longer again.

        Several critical points ask for the path as it is, but not where a step ends before the surrogate's minimum.
        """
        return self.unique or not self.geometry.has_every_dual

    @property
    def is_coercive(self) -> bool:
        """Whether F is known to grow without bound wherever C does, so that no iterate can run away."""
        growth = self.regularization and self.regularization * self.geometry.curvature_at_infinity
        return self.energy.affine and self.energy.is_strictly_convex(growth, False)

    def initial_step(self, like: Float[Tensor, "batch d"]) -> Float[Tensor, "batch 1"]:
        """τ for the first step of each sample, (B, 1)."""
        return like.new_ones(len(like), 1) if self.step is None else self.step.to(like.dtype).expand(len(like), 1)

    def evaluate(self, dual: Float[Tensor, "batch d"], step: Float[Tensor, "batch 1"]) -> Point:
        """Everything that solvers need to know of the iterate `dual`: one evaluation of ∇f."""
        with torch.no_grad():
            z = self.geometry.activation(dual)
            at = self.energy.evaluate(z)
            return self.point(dual, z, at.gradient, at.value, step)

    def point(
        self,
        dual: Float[Tensor, "batch d"],
        z: Float[Tensor, "batch d"],
        gradient: Float[Tensor, "batch d"],
        value: Float[Tensor, " batch"] | None,
        step: Float[Tensor, "batch 1"],
    ) -> Point:
        """The same, of f and ∇f that have been evaluated at z = ρ(`dual`)."""
        gamma = self.regularization
        with torch.no_grad():
            total = self.total(gradient, dual)
            scale = self.scale(self.energy.terms(gradient))
            residual = self.residual(z, total, scale)
            if value is not None and gamma:
                value = value + self.potential(dual)
            step = inner_step(self.geometry, dual, gradient, step)
            next_dual = mm_step(self.geometry, dual, gradient, step, gamma)
        return Point(dual, z, gradient, value, residual, scale, step, next_dual)

    @cached_property
    def unit(self) -> float | Float[Tensor, " d"]:
        """A length that counts as large for a coordinate of z: see `MirrorMap.unit`."""
        unit = self.geometry.unit
        return unit.to(self.energy.dtype) if isinstance(unit, Tensor) else unit

    @cached_property
    def _counts_in_units(self) -> bool:
        """Whether a unit is not 1."""
        return isinstance(self.unit, Tensor) or self.unit != 1.0

    def in_units(self, lengths: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """Lengths relative to the units of their coordinates."""
        return lengths / self.unit if self._counts_in_units else lengths

    def movable(self, coordinates: Bool[Tensor, "batch d"]) -> Bool[Tensor, "batch d"]:
        """Without those that have lo = hi, of which nothing is in doubt: they are at both bounds."""
        pinned = self.geometry.pinned
        return coordinates if pinned is None else coordinates & ~pinned

    def total(self, gradient: Float[Tensor, "batch d"], dual: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """g = ∇f + γy along C: see `total`."""
        return total(self.geometry, self.regularization, gradient, dual)

    def scale(self, terms: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """What each entry of ∇f is measured against, (B, d).

        The size of its own terms, and `floor`: the entries of other coordinates do not count, and multiplying F by a
        small number changes nothing.
        """
        return self.geometry.common_scale(terms + self.floor)

    @cached_property
    def floor(self) -> Tensor | float:
        """What a change of z by `unit` and of y by 1 makes of the entries of ∇f + γy, but no more than 1."""
        stiffness = self.energy.stiffness
        if stiffness is None:
            return 1.0
        # (burg's y = −1/z has no unit: the terms of ∇f alone count)
        dual = self.regularization if self.geometry.has_every_dual else 0.0
        return (stiffness * self.unit + dual).clamp(torch.finfo(stiffness.dtype).tiny, 1.0)

    def residual(
        self,
        z: Float[Tensor, "batch d"],
        total: Float[Tensor, "batch d"],
        scale: Float[Tensor, "batch d"],
        bounds: Ends | None = None,
    ) -> Float[Tensor, " batch"]:
        """How far z is from critical, (B,): the largest over the coordinates of min(|g_j|/s_j, δ_j/t).

        With g = ∇f + γy, s the scale of ∇f, t = `unit`, and δ_j the distance to the bound that −g_j pushes z_j to:
        |Π_C(z − g) − z| with each entry of g in its own units and z in those of C. A coordinate passes if its equation
        holds relative to its own terms, or if it is as good as at the bound that holds it.

        Args:
            z: the points.
            total: g.
            scale: s.
            bounds: the ends of C; default those of z's precision.
        """
        bounds = self.geometry.bounds(z.dtype) if bounds is None else bounds
        step = self.geometry.feasible_step(z, self.relative_step(total, scale), bounds)
        return self.in_units(step.abs_()).amax(-1)

    def relative_step(self, total: Float[Tensor, "batch d"], scale: Float[Tensor, "batch d"]) -> Tensor:
        """g/s in units of C, (B, d)."""
        step = total / scale
        return step.mul_(self.unit) if self._counts_in_units else step

    def potential(self, dual: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """γ Σ φ(ρ(y)), (B,)."""
        return potential(self.geometry, self.regularization, dual)

    def restep(self, point: Point, step: Float[Tensor, "batch 1"]) -> Point:
        """The same iterate with another τ: no new evaluation of ∇f."""
        step = inner_step(self.geometry, point.dual, point.gradient, step)
        next_dual = mm_step(self.geometry, point.dual, point.gradient, step, self.regularization)
        return replace(point, step=step, next_dual=next_dual)

    def primal_step(self, point: Point) -> tuple[Float[Tensor, "batch d"], Float[Tensor, " batch"]]:
        """ρ(y⁺) − ρ(y), which the accelerated methods drive to 0, and its rounding error where that matters (a norm).

        Where the two agree to a few digits their difference has lost them: (y⁺ − y)√(ρ'(y)ρ'(y⁺)), with y⁺ − y
        before rounding, equals it to second order and keeps them.

        The error matters in float32 for γ > 0. In float64 tolerances are far above it. For γ = 0 the residual of a
        coordinate next to a bound is rightly smaller than the rounding error of the others.
        """
        geometry, gamma, step = self.geometry, self.regularization, point.step
        plain = geometry.activation(point.next_dual) - point.value
        slope = (geometry.slope(point.dual) * geometry.slope(point.next_dual)).sqrt()
        move = step * (point.gradient + gamma * point.dual) / (1 + step * gamma)
        along = geometry.derivative(slope, -move)
        residual = torch.where(plain.abs() > 1e-2 * (1 + point.value.abs()), plain, along)
        eps = torch.finfo(plain.dtype).eps if gamma and plain.dtype == torch.float32 else 0.0
        noise = eps * slope * (step * point.scale + point.dual.abs())
        return residual, torch.linalg.vector_norm(noise, dim=-1)

    def promised_decrease(self, point: Point) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """A lower bound of what an MM step that majorizes takes off F, and the rounding error of F's change, each (B,).

        The bound is half the slope of F along the step.
        """
        slope = point.gradient + self.regularization * point.dual if self.regularization else point.gradient
        step = self.geometry.activation(point.next_dual) - point.value
        noise = 4 * torch.finfo(step.dtype).eps * torch.linalg.vecdot(point.scale, step.abs())
        return -0.5 * torch.linalg.vecdot(slope, step), noise

    def iterate(self, dual: Float[Tensor, "batch d"], step: Float[Tensor, "batch 1"]) -> Float[Tensor, "batch d"]:
        """One MM step that autograd can follow."""
        gradient = self.energy.gradient(self.geometry.activation(dual))
        step = inner_step(self.geometry, dual, gradient, step)
        return mm_step(self.geometry, dual, gradient, step, self.regularization)

    def increase(self, old: Point, new: Point) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """F(new) − F(old), and the rounding error that this difference may have, each (B,).

        The trapezoidal rule ½⟨∇f(old) + ∇f(new), Δz⟩ does not cancel. It is exact for a quadratic f, and elsewhere
        good enough where the values differ by less than their rounding error.
        """
        eps = torch.finfo(old.value.dtype).eps
        move = new.value - old.value
        terms = 0.5 * (old.gradient + new.gradient) * move
        amount, noise = terms.sum(-1), 4 * eps * (terms.abs() + old.scale * move.abs()).sum(-1)
        if self.regularization:
            before = self.geometry.dual_potential(old.dual)
            after = self.geometry.dual_potential(new.dual)
            amount = amount + self.regularization * (after - before).sum(-1)
            noise = noise + 4 * eps * self.regularization * (after.abs() + before.abs()).sum(-1)
        if self.energy.affine:
            return amount, noise
        difference, uncertain = _value_difference(old, new)
        clear = difference.abs() > 4 * uncertain
        return torch.where(clear, difference, amount), torch.where(clear, uncertain, noise)

    def majorized(self, old: Point, new: Point, share: float = 1.0) -> Bool[Tensor, " batch"]:
        """Whether the surrogate at `old` lies above f at `new`, (B,): the test of backtracking.

        Args:
            old: the iterates.
            new: those that MM's step gives.
            share: the part of the divergence's term that has to be enough.
        """
        eps = torch.finfo(old.value.dtype).eps
        move = new.value - old.value
        divergence = self.geometry.dual_divergence(new.dual, old.dual)
        allowed = share * divergence / old.step.squeeze(-1)
        # f(z⁺) − f(z) − ⟨∇f(z), Δz⟩ = ½⟨∇f(z⁺) − ∇f(z), Δz⟩ for a quadratic f, which does not cancel
        excess = 0.5 * ((new.gradient - old.gradient) * move).sum(-1)
        noise = 4 * eps * (old.scale * move.abs()).sum(-1)
        if not self.energy.affine:
            difference, uncertain = _value_difference(old, new)
            slope = old.gradient + self.regularization * old.dual
            by_value = difference - (slope * move).sum(-1) - self.regularization * divergence
            excess = torch.where(allowed > 100 * uncertain, by_value, excess)
        # (what overflows is no proof)
        return (excess <= allowed + noise) & torch.isfinite(excess)

    def degenerate(self, point: Point, margin: float) -> Bool[Tensor, " batch"]:
        """Whether a coordinate is at a bound with a multiplier that cannot be told from 0, (B,)."""
        if self.regularization and self.geometry.is_legendre:
            return torch.zeros_like(point.residual, dtype=torch.bool)
        lo, hi = self.geometry.bounds(point.value.dtype)
        gap = torch.minimum(point.value - lo, hi - point.value)
        multiplier = self.total(point.gradient, point.dual)
        thin = self.movable(gap <= margin * self.unit)
        return (thin & (multiplier.abs() <= margin * point.scale)).any(-1)

    def double(self) -> Objective:
        """The same objective in float64, of a quadratic f."""
        return Objective(self.energy.double(), self.geometry, self.regularization, self.unique)

    def select(self, index: Int[Tensor, " kept"]) -> Objective:
        """The objective of some of the samples."""
        part = Objective(self.energy.select(index), self.geometry, self.regularization, self.unique)
        part._found_step = self._found_step
        return part


def total(
    geometry: MirrorMap, regularization: float, gradient: Float[Tensor, "batch d"], dual: Float[Tensor, "batch d"]
) -> Float[Tensor, "batch d"]:
    """g = ∇f + γy along C, (B, d), which is 0 at a critical point but for coordinates at a bound."""
    whole = torch.add(gradient, dual, alpha=regularization) if regularization else gradient
    return geometry.tangential(whole, dual)


def potential(geometry: MirrorMap, regularization: float, dual: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    """γ Σ φ(ρ(y)), (B,)."""
    return regularization * geometry.dual_potential(dual).sum(-1)


def _value_difference(old: Point, new: Point) -> tuple[Tensor, Tensor]:
    """F(new) − F(old) from the values, and its rounding error, each (B,)."""
    if old.objective is None or new.objective is None:
        raise TypeError("there is no objective to compare: a field without one must be affine")
    eps = torch.finfo(old.value.dtype).eps
    noise = 4 * eps * (old.objective.abs() + new.objective.abs() + old.scale.amax(-1))
    return new.objective - old.objective, noise
