"""Ends of the spectrum of a shared matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Spectrum:
    """What the solvers need to know of a Hessian H that all samples share.

    Attributes:
        lowest: the least eigenvalue of (H + Hᵀ)/2, a 0-d tensor.
        highest: the largest eigenvalue of (H + Hᵀ)/2, a 0-d tensor.
        curvature: the constant that bounds the step. H symmetric: max(highest, 0). H unsymmetric: the reciprocal
            of the cocoercivity constant β = λ_min((H⁻¹ + H⁻ᵀ)/2) if H is strongly monotone, for which a step
            τ ≤ σ/curvature converges as in the symmetric case; else ‖H‖₂, with no guarantee.
    """

    lowest: Tensor
    highest: Tensor
    curvature: Tensor

    def is_definite(self, shift: float = 0.0, or_semidefinite: bool = False) -> bool:
        """Whether H + shift·I is positive definite beyond rounding (or semidefinite up to rounding, if asked)."""
        rounding = 16 * torch.finfo(self.lowest.dtype).eps * torch.maximum(self.highest.abs(), self.lowest.abs())
        least = self.lowest + shift
        return bool(least >= -rounding) if or_semidefinite else bool(least > rounding)


def spectrum(matrix: Float[Tensor, "d d"], symmetric: bool) -> Spectrum:
    """The ends of the spectrum of `matrix`, by a full eigenvalue decomposition (values only).

    Raises:
        ValueError: if the matrix has entries that are not finite.
    """
    with torch.no_grad():
        try:
            eigenvalues = torch.linalg.eigvalsh(matrix if symmetric else 0.5 * (matrix + matrix.mT))
        except torch.linalg.LinAlgError as error:
            raise ValueError(f"the weight of the energy is not finite, or too large to decompose: {error}") from None
        lowest, highest = eigenvalues[0], eigenvalues[-1]
        if not bool(torch.isfinite(eigenvalues).all()):
            raise ValueError("the weight of the energy has NaN or infinite entries: check the last parameter update")
        curvature = highest.clamp_min(0) if symmetric else _inverse_cocoercivity(matrix, lowest)
    return Spectrum(lowest, highest, curvature)


def _inverse_cocoercivity(matrix: Tensor, lowest: Tensor) -> Tensor:
    if bool(lowest > 0):
        inverse = torch.linalg.inv(matrix)
        beta = torch.linalg.eigvalsh(0.5 * (inverse + inverse.mT))[0]
        if bool(beta > 0):
            return 1 / beta
    return torch.linalg.matrix_norm(matrix, 2)
