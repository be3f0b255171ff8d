"""The optimality conditions of the quadratic problems, and two ways to satisfy them to rounding.

`min f(z) + γ φ(z)` over C with `f(z) = -½ zᵀWz - cᵀz`. With the force `Wz + c = -∇f(z)`: inside C the force
equals γφ'(z), at a bound the difference points out of C. Both methods are local: they need the active set, or
a good start.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from implicit_bregman.legendre import MirrorMap


def on_host(tensor: Tensor) -> Tensor:
    """The tensor without its graph, in float64 on the CPU."""
    return tensor.detach().to("cpu", torch.float64)


@dataclasses.dataclass(frozen=True, eq=False)
class Conditions:
    """W, c, φ and γ in float64, and what all methods need of them."""

    weight: Tensor
    offset: Tensor
    geometry: MirrorMap
    regularization: float

    @classmethod
    def checked(cls, weight: Tensor, offset: Tensor, geometry: MirrorMap, regularization: float) -> Conditions:
        """From tensors of any precision and device; a W that is symmetric up to rounding is made so exactly.

        Raises:
            ValueError: The shapes do not fit, or γ is negative or not finite.
        """
        if weight.ndim != 2 or weight.shape[0] != weight.shape[1]:
            raise ValueError(f"weight has shape {tuple(weight.shape)}, use a square matrix")
        if offset.ndim != 2 or offset.shape[1] != weight.shape[0]:
            raise ValueError(f"offset has shape {tuple(offset.shape)}, use (batch, {weight.shape[0]})")
        if not 0 <= regularization < math.inf:
            raise ValueError(f"regularization={regularization} is out of range, use a finite number ≥ 0")
        exact = on_host(weight)
        rounding = 8 * torch.finfo(weight.dtype).eps * exact.abs().max()
        if bool((exact - exact.T).abs().max() <= rounding):
            exact = 0.5 * (exact + exact.T)
        return cls(exact, on_host(offset), geometry, regularization)

    @property
    def symmetric(self) -> bool:
        """Whether there is an objective."""
        return bool((self.weight == self.weight.T).all())

    @property
    def largest(self) -> float:
        """Largest eigenvalue of the symmetric part of W."""
        return float(torch.linalg.eigvalsh(0.5 * (self.weight + self.weight.T)).max())

    def rows(self, index: Tensor) -> Conditions:
        """The problem of some of the samples."""
        return dataclasses.replace(self, offset=self.offset[index])

    def force(self, z: Tensor) -> Tensor:
        """-∇f(z) = Wz + c."""
        return z @ self.weight.T + self.offset

    def residual(self, z: Tensor, dual: Tensor) -> Tensor:
        """Relative residual, `(batch,)`; the dual matters only if γ > 0."""
        product = z @ self.weight.T
        low, high = self.geometry.bounds(torch.float64)
        pull = self.regularization * dual if self.regularization > 0 else torch.zeros_like(dual)
        moved = (z + product + self.offset - pull).clamp(low, high)
        scale = torch.stack((product.abs(), self.offset.abs(), pull.abs())).amax((0, -1))
        return (moved - z).abs().amax(-1) / (1 + scale)

    def solve_active(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The point with these coordinates at their bounds and force 0 on the others (γ = 0).

        Returns:
            The point and its relative residual, which is at rounding level only if the active set is right.
        """
        low, high = self.geometry.bounds(torch.float64)
        active = lower | upper
        zero = torch.zeros_like(self.offset)
        fixed = zero.masked_fill(lower, low).masked_fill(upper, high)
        system = self.weight.masked_fill(active.unsqueeze(-1) | active.unsqueeze(-2), 0.0)
        system = system + torch.diag_embed(active.double())
        z = fixed
        for _ in range(2):  # the second solve refines the first
            rhs = -self.force(z).masked_fill(active, 0.0).unsqueeze(-1)
            z = z + torch.linalg.solve_ex(system, rhs).result.squeeze(-1)
        return z, torch.nan_to_num(self.residual(z, z), nan=math.inf)

    def newton(self, dual: Tensor, max_steps: int = 200) -> tuple[Tensor, Tensor, Tensor]:
        """Solve `γp = Wρ(p) + c` for p by Newton steps, each halved until the equation's error falls (γ > 0).

        Where W ≺ γφ'' the matrix is never singular and a short enough Newton step always reduces the error:
        the start does not matter. Where ρ is constant beyond the ends of its range (sin), p runs past them
        and γ times the excess is the multiplier: one equation covers interior and active coordinates.

        Returns:
            z = ρ(p), the mask of the active coordinates, and the relative residual.
        """
        gamma, phi = self.regularization, self.geometry
        identity = torch.eye(dual.shape[-1], dtype=torch.float64)

        def error(p: Tensor) -> Tensor:
            return gamma * p - self.force(phi.activation(p))

        p, miss = dual, error(dual)
        for _ in range(max_steps):
            size = torch.linalg.vector_norm(miss, dim=-1)
            rounding = 4 * torch.finfo(torch.float64).eps * (1 + (miss - gamma * p).abs().amax(-1))
            settled = size <= rounding
            system = gamma * identity - self.weight * phi.slope(p).unsqueeze(-2)
            move = torch.linalg.solve_ex(system, miss.unsqueeze(-1)).result.squeeze(-1)
            moved = settled
            for halvings in range(40):
                if bool(moved.all()):
                    break
                length = 0.5**halvings
                candidate = p - length * move
                candidate_miss = error(candidate)
                better = torch.linalg.vector_norm(candidate_miss, dim=-1) <= (1 - 1e-4 * length) * size
                chosen = (better & ~moved).unsqueeze(-1)
                p = torch.where(chosen, candidate, p)
                miss = torch.where(chosen, candidate_miss, miss)
                moved = moved | better
            if not bool((moved & ~settled).any()):
                break
        inside = phi.project_dual(p)
        z = phi.activation(p)
        return z, inside != p, torch.nan_to_num(self.residual(z, inside), nan=math.inf)
