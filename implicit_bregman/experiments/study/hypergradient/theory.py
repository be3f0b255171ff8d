"""What is known of the errors without running a method: rates and closed forms, computed from the exact solution.

At the solution, with D = ρ'(y), H = −W and F the coordinates that are not at a bound, one MM step in dual coordinates
has the Jacobian J = (I − τHD)/(1 + τγ) on F. It is similar to the symmetric S = (I − τ√D H √D)/(1 + τγ), whose
eigenvalues are between 0 and q < 1 for the automatic τ. K steps, damped by λ, differentiated at the solution give

    v_K = v − (Jᵀ_λ)ᴷ v,    J_λ = (1 − λ)I + λJ,

so that what is missing is at most (1 − λ + λq)ᴷ of v, in the norm ‖D^(−½)v‖. In ‖v‖ the bound holds up to √cond(D).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import scipy.linalg
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.experiments.reference.oracle import (
    Reference,
    reference_gradient,
    reference_solution,
    weight_gradient,
)
from implicit_bregman.experiments.reference.problems import Problem

_FAR = 1e6
"""A dual at which a geometry shows how it approaches its bound."""


@dataclass(frozen=True, eq=False)
class Exact:
    """A problem with the loss ½‖z − t‖², its solution and its gradient.

    Attributes:
        problem: The problem.
        target: t, `(B, d)`.
        value: z, `(B, d)`.
        active: Which coordinates are at a bound, `(B, d)`.
        cotangent: g = z − t, `(B, d)`.
        adjoint: v = dL/dc, `(B, d)`.
        gradient: dL/dW and dL/dc, concatenated.
    """

    problem: Problem
    target: Float[Tensor, "batch features"]
    value: Float[Tensor, "batch features"]
    active: Bool[Tensor, "batch features"]
    cotangent: Float[Tensor, "batch features"]
    adjoint: Float[Tensor, "batch features"]
    gradient: Float[Tensor, " parameters"]

    @classmethod
    def of(cls, problem: Problem, seed: int) -> Exact:
        """Solve it with the oracle; t = ρ(n) with standard normal n.

        Raises:
            RuntimeError: If the oracle does not vouch for its solution.
        """
        random = torch.Generator().manual_seed(seed)
        phi, gamma = problem.geometry, problem.regularization
        target = phi.activation(torch.randn(problem.offset.shape, generator=random, dtype=torch.float64))
        found: Reference = reference_solution(problem.weight, problem.offset, phi, gamma)
        g = found.value - target
        v = reference_gradient(problem.weight, problem.offset, found.value, found.active, phi, gamma, g)
        return cls(problem, target, found.value, found.active, g, v, flat(weight_gradient(v, found.value), v))

    @property
    def dual(self) -> Float[Tensor, "batch features"]:
        """y, saturated on active coordinates."""
        problem = self.problem
        if problem.regularization > 0:
            return self._force / problem.regularization
        return problem.geometry.inverse_activation(self.value).clamp(*problem.geometry.saturated_dual(torch.float64))

    @property
    def slope(self) -> Float[Tensor, "batch features"]:
        """D, 0 on active coordinates."""
        return self.problem.geometry.slope(self.dual).masked_fill(self.active, 0.0)

    @property
    def _force(self) -> Tensor:
        return self.value @ self.problem.weight.T + self.problem.offset

    def relative(self, adjoint: Tensor) -> float:
        """Size of the gradient that an error of v makes, relative to the exact one."""
        return float(flat(weight_gradient(adjoint, self.value), adjoint).norm() / self.gradient.norm())

    def missing(self, steps: int, damping: float = 1.0) -> float:
        """Relative error of the gradient of so many damped steps, differentiated at the solution."""
        left = torch.zeros_like(self.adjoint)
        for row, (free, values, vectors) in enumerate(self._spectra()):
            root = self.slope[row, free].sqrt()
            shrunk = (1 - damping + damping * values) ** steps
            left[row, free] = root * (vectors @ (shrunk * (vectors.T @ (self.adjoint[row, free] / root))))
        return self.relative(left)

    def contraction(self) -> float:
        """q on the free coordinates, the largest of any sample."""
        return max(float(values.max()) for _, values, _ in self._spectra())

    def norm_factor(self) -> float:
        """√cond(D) on the free coordinates, the largest of any sample."""
        slopes = [slope[~held] for slope, held in zip(self.slope, self.active, strict=True)]
        return max(math.sqrt(float(part.max() / part.min())) for part in slopes)

    def bound_rate(self) -> float | None:
        """Factor by which the slowest active coordinate nears its bound, per step; 1 if sublinearly; None: none."""
        if not bool(self.active.any()):
            return None
        far = torch.tensor(_FAR, dtype=torch.float64)
        decay = float(self.problem.geometry.log_curvature_slope(far))
        return math.exp(-self.problem.step * decay * float(self._force[self.active].abs().min()))

    def sublinear(self) -> dict[str, float] | None:
        """Constants of the errors C/k where the bound is approached like 1/y; None where it is not.

        With m the multiplier and 1/y the distance from the bound, z is off by 1/(τmk). v on an active coordinate is
        g̃/(τm²k) unrolled and half of that implicitly, g̃ = g − Hv. The rest follows by the equations on F.
        """
        far = torch.tensor(_FAR, dtype=torch.float64)
        tail = float(self.problem.geometry.slope(far)) * _FAR**2
        if not bool(self.active.any()) or not tail > 1e-3:
            return None
        tau, matrix = self.problem.step, -self.problem.weight
        reduced = self.cotangent - self.adjoint @ matrix
        moved, half = torch.zeros_like(self.value), torch.zeros_like(self.value)
        for row, held in enumerate(self.active):
            m, free = self._force[row, held], ~held
            block, across = matrix[free][:, free], matrix[free][:, held]
            moved[row, held] = -tail / (tau * m)
            moved[row, free] = torch.linalg.solve(block, -across @ moved[row, held])
            half[row, held] = tail * reduced[row, held] / (2 * tau * m.square())
        size = self.value.norm()
        found = {"forward": float(moved.norm() / size)}
        for name, times in (("implicit", 1.0), ("unrolled", 2.0)):
            error = times * half
            for row, held in enumerate(self.active):
                free = ~held
                block, across = matrix[free][:, free], matrix[free][:, held]
                error[row, free] = torch.linalg.solve(block, moved[row, free] - across @ error[row, held])
            change = flat(weight_gradient(error, self.value) + weight_gradient(self.adjoint, moved), error)
            found[name] = float(change.norm() / self.gradient.norm())
        return found

    def conditions(self) -> dict[str, float]:
        """κ of the systems that the iterative adjoint methods solve, as the library preconditions them.

        γ > 0: CG on γ/D + H with (H + sI)⁻¹, s the mean of γ/D; GMRES with the diagonal; Chebyshev's interval.
        γ = 0: CG and GMRES on H_FF with its diagonal.
        """
        gamma, matrix = self.problem.regularization, -self.problem.weight
        identity = torch.eye(len(matrix), dtype=matrix.dtype)
        found = {"cg": 1.0, "gmres": 1.0}
        if gamma == 0:
            for held in self.active:
                block = matrix[~held][:, ~held]
                found["cg"] = max(found["cg"], _condition(block, block.diagonal().diag()))
            return found | {"gmres": found["cg"]}
        ratio = gamma / self.slope
        for row in ratio:
            system = row.diag() + matrix
            found["cg"] = max(found["cg"], _condition(system, ratio.mean() * identity + matrix))
            found["gmres"] = max(found["gmres"], _condition(system, system.diagonal().diag()))
        a = gamma / float(torch.linalg.eigvalsh(matrix).max())
        return found | {"chebyshev": float((a + self.slope.max()) / (a + self.slope.min()))}

    def _spectra(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Per sample: F, and eigenvalues and eigenvectors of S."""
        tau, gamma = self.problem.step, self.problem.regularization
        found = []
        for slope, held in zip(self.slope, self.active, strict=True):
            free = ~held
            root = slope[free].sqrt()
            block = (
                torch.eye(len(root), dtype=root.dtype) + tau * root[:, None] * self.problem.weight[free][:, free] * root
            )
            found.append((free, *torch.linalg.eigh(block / (1 + tau * gamma))))
        return found


def krylov_bound(condition: float, products: int) -> float:
    """2((√κ − 1)/(√κ + 1))ᵏ, the bound of CG and of Chebyshev's semi-iteration."""
    root = math.sqrt(condition)
    return 2 * ((root - 1) / (root + 1)) ** products


def flat(by_weight: Tensor, by_offset: Tensor) -> Float[Tensor, " parameters"]:
    """dL/dW and dL/dc, concatenated."""
    return torch.cat([by_weight.reshape(-1), by_offset.reshape(-1)])


def _condition(system: Tensor, preconditioner: Tensor) -> float:
    values = scipy.linalg.eigh(system.numpy(), preconditioner.numpy(), eigvals_only=True)
    return float(values[-1] / values[0])
