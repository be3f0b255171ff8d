"""What is computed of a matrix once, when it is first asked for: its spectrum, inverses, and whether it is definite."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.linalg.chebyshev import Preconditioner
from implicit_bregman.linalg.spectrum import Spectrum, spectrum
from implicit_bregman.operators.costs import DEFAULT_COSTS, Costs
from implicit_bregman.operators.packing import packed

#: A matrix counts as definite if its least eigenvalue exceeds so many rounding errors of its Frobenius norm.
_ROUNDING = 4
#: The largest relative error of an inverse that refinement may be left to correct.
_ROUGH = 0.05
#: A least eigenvalue counts as 0 up to so many rounding errors of the largest, and of a matrix that is declared
#: positive semidefinite up to so many times its width.
_NOISE, _DECLARED = 16, 64
#: Damped inverses that are kept.
_KEPT = 3
#: Power iterations behind a guess of λ_max.
_POWER_STEPS = 6


@dataclass(frozen=True)
class Damped:
    """(H + s·I)⁻¹ of a symmetric H, to precondition with.

    Attributes:
        shift: s.
        inverse: (d, d).
    """

    shift: float
    inverse: Float[Tensor, "d d"]

    def __call__(self, v: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        return v.detach() @ self.inverse.to(v.dtype)

    def scaled(self, by: float, dtype: torch.dtype) -> Preconditioner:
        """(b, v, beta, alpha) ↦ beta·b + alpha·by·(H + s·I)⁻¹v in this precision."""
        inverse = self.inverse.to(dtype)
        return lambda b, v, beta, alpha: torch.addmm(b, v, inverse, beta=beta, alpha=alpha * by)


class Factor:
    """What is known of one matrix H; everything else is computed when it is first asked for, and kept.

    It lives as long as the operators that own it: one call and its backward pass, or a `frozen` context.

    Args:
        matrix: H, (d, d), without gradient.
        symmetric: whether it is.
        least: a number that all eigenvalues of H are known to exceed, or None.
        convex: whether H is declared, or known, to be positive semidefinite.
        given: the precision that H was rounded to, where that is less than its own.
        costs: what decides between routes.

    Attributes:
        known_inverse: `inverse`, if it has been found.
        known_semidefinite: `semidefinite`, if it has been found.
        damped: the damped inverse that was asked for last, or None.
    """

    def __init__(
        self,
        matrix: Float[Tensor, "d d"],
        symmetric: bool,
        least: float | None = None,
        convex: bool = False,
        given: torch.dtype | None = None,
        costs: Costs = DEFAULT_COSTS,
    ) -> None:
        self.matrix = matrix
        self.symmetric = symmetric
        self.least = least
        self.convex = convex
        self.given = given
        self.costs = costs
        self.known_inverse: Tensor | None = None
        self.known_semidefinite: Factor | None = None
        self.damped: Damped | None = None
        self._inverse_sought, self._semidefinite_sought = False, False
        self._spectrum: Spectrum | None = None
        self._step: float | None = None
        self._all_damped: tuple[Damped, ...] = ()
        self._definite_from: float | None = None
        self._factored: tuple[float, Tensor | None] = (1.0, None)
        self._reflection: tuple[tuple[float, float], Tensor] | None = None

    def pack(self, splits: bool = False) -> tuple[tuple[Tensor, ...], Callable[..., Factor]]:
        """The inverse and damped inverse that are known, and what makes the same of H and them.

        Args:
            splits: whether the reflection is wanted too.
        """
        about = (self.symmetric, self.least, self.known_semidefinite is not None, self.given, self.costs)
        known, rebuild = packed((self.known_inverse, self.damped, self._step, self._reflection if splits else None))
        return known, partial(_rebuild, about, rebuild)

    def transposed(self) -> Factor:
        """That of Hᵀ."""
        return Factor(self.matrix.mT, self.symmetric, self.least, self.convex, self.given, self.costs)

    @cached_property
    def wide(self) -> Factor:
        """That of the same matrix in float64."""
        own = self.matrix.dtype
        if own == torch.float64:
            return self
        return Factor(self.matrix.double(), self.symmetric, self.least, self.convex, own, self.costs)

    @cached_property
    def symmetric_part(self) -> Factor:
        """That of (H + Hᵀ)/2."""
        if self.symmetric:
            return self
        half = 0.5 * (self.matrix + self.matrix.mT)
        return Factor(half, True, self.least, given=self.given, costs=self.costs)

    def product(self, v: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """H v, in v's precision."""
        return v @ self._in(v.dtype).mT

    def excess(self, z: Float[Tensor, "batch d"], b: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """H z − b, in the precision of z."""
        return torch.addmm(b, z, self._in(z.dtype).mT, beta=-1)

    def _in(self, dtype: torch.dtype) -> Tensor:
        return self.matrix if dtype == self.matrix.dtype else self.wide.matrix.to(dtype)

    # The spectrum -------------------------------------------------------------------------------------------------

    @property
    def spectrum(self) -> Spectrum:
        """The ends of the spectrum, by a full decomposition: slow for large d."""
        if self._spectrum is None:
            self._spectrum = spectrum(self.matrix, self.symmetric)
        return self._spectrum

    @property
    def gradient_step(self) -> float:
        """1/λ_max(H), to within some 20 % unless the spectrum is known: for guesses, not for proofs."""
        if self._step is None:
            if self._spectrum is None:
                self._step = _power_step(self.matrix, self.norm)
            else:
                largest = float(self._spectrum.curvature)
                self._step = 1 / largest if largest > 0 else 1.0
        return self._step

    def ends_guess(self) -> tuple[float, float]:
        """About the least and the largest eigenvalue of (H + Hᵀ)/2."""
        if not math.isfinite(self.norm):
            return 0.0, math.inf
        if not self.symmetric:
            _ = self.symmetric_part.inverse  # which costs less than a spectrum
            return self.symmetric_part.ends_guess()
        inverse = self.known_inverse
        if self._spectrum is not None or inverse is None:
            return float(self.spectrum.lowest), float(self.spectrum.highest)
        # λ_min is 1/λ_max(H⁻¹).
        return 1.1 * _power_step(inverse, float(torch.linalg.vector_norm(inverse))), 1 / self.gradient_step

    def sizes_guess(self) -> tuple[float, float]:
        """About the least and the largest singular value of H."""
        if self.symmetric or not math.isfinite(self.norm):
            return self.ends_guess()
        inverse, info = torch.linalg.inv_ex(self.matrix)
        if int(info) != 0:
            return self.ends_guess()
        return 1 / _largest_singular_value(inverse), _largest_singular_value(self.matrix)

    @cached_property
    def norm(self) -> float:
        """The Frobenius norm."""
        return float(torch.linalg.vector_norm(self.matrix))

    @cached_property
    def row_sizes(self) -> Float[Tensor, " d"]:
        """The sums of |H| over each row."""
        return self.matrix.abs().sum(-1)  # (several times as fast as a norm of order 1)

    # Shifted inverses ---------------------------------------------------------------------------------------------

    def inverse_shifted(self, shift: float) -> Float[Tensor, "d d"]:
        """(shift·I + H)⁻¹; NaN if there is none."""
        matrix = self.matrix.clone()
        matrix.diagonal().add_(shift)
        if self.symmetric:
            factor, info = torch.linalg.cholesky_ex(matrix)
            if int(info) == 0:
                return torch.cholesky_inverse(factor)
        inverse, info = torch.linalg.inv_ex(matrix)
        return inverse if int(info) == 0 else torch.full_like(inverse, torch.nan)

    def reflection(self, step: float, more: float = 0.0) -> Float[Tensor, "d d"]:
        """2(I + step·(H + more·I))⁻¹ − I; the last is kept."""
        if self._reflection is None or self._reflection[0] != (step, more):
            reflection = (2 / step) * self.inverse_shifted(1 / step + more)
            reflection.diagonal().sub_(1.0)
            self._reflection = (step, more), reflection
        return self._reflection[1]

    # Definiteness -------------------------------------------------------------------------------------------------

    def is_definite(self, shift: float = 0.0, or_semidefinite: bool = False) -> bool:
        """Whether H + shift·I is positive definite beyond rounding (or semidefinite up to rounding, if asked)."""
        if self.least is not None and self.least + shift > self._rounding:
            return True
        if self._definite_from is not None and shift >= self._definite_from:
            return True
        if self.symmetric and shift >= 0:
            # A factor of H + shift·I, for a shift far above rounding, is proof enough, and serves as preconditioner.
            if self.is_proved_definite(shift):
                self._definite_from = shift
                return True
            # What is lost in rounding here may be clear in float64.
            if self.wide is not self and self.wide.is_proved_definite(shift):
                self._definite_from = shift
                return True
        if not self.symmetric and self.symmetric_part.is_definite(shift):
            return True
        return self.spectrum.is_definite(shift, or_semidefinite)

    def is_proved_definite(self, shift: float) -> bool:
        """Whether a factorization of H + shift·I, or of H, proves the sum positive definite; shift ≥ 0."""
        large = shift > 1e3 * self._rounding
        return self._damped_factor(shift) is not None if large else self._is_proved_definite

    @property
    def semidefinite(self) -> Factor | None:
        """That of H in float64 without negative eigenvalues, if those that it has are within rounding; else None.

        Where H was given in less than float64, so much of the identity is added as they are below 0.

        Raises:
            ValueError: if H is declared to be positive semidefinite and has an eigenvalue clearly below 0.
        """
        if not self._semidefinite_sought:
            self.known_semidefinite, self._semidefinite_sought = self._made_semidefinite(), True
        return self.known_semidefinite

    def _made_semidefinite(self) -> Factor | None:
        if not self.symmetric:
            return None
        ends = self.wide.spectrum
        lowest, size = float(ends.lowest), max(float(ends.highest.abs()), float(ends.lowest.abs()))
        noise = max(_NOISE, _DECLARED * self.matrix.shape[0] if self.convex else 0)
        if lowest < -noise * torch.finfo(self.matrix.dtype).eps * size:
            if self.convex:
                raise ValueError(
                    f"the energy was declared convex, but -W has the eigenvalue {lowest:.3g} (and the largest "
                    f"{float(ends.highest):.3g}): leave out convex=True, or take the negative part out of -W"
                )
            return None
        if lowest >= -_NOISE * torch.finfo(torch.float64).eps * size:
            return self.wide
        raised = self.wide.matrix.clone()
        raised.diagonal().sub_(lowest)
        return Factor(raised, True, convex=True, given=self.matrix.dtype, costs=self.costs)

    # Inverses -----------------------------------------------------------------------------------------------------

    def pays_to_invert(self, batch: int) -> bool:
        """Whether an inverse costs less than solving for so many samples by iteration."""
        return self.costs.pays_to_invert(self.matrix.shape[0], batch)

    @property
    def inverse(self) -> Float[Tensor, "d d"] | None:
        """H⁻¹ for use with refinement (its relative error is below 5 %), or None if H is not known to be definite.

        In H's own precision where the condition allows it, else in float64.
        """
        if self.known_inverse is None and not self._inverse_sought:
            self.known_inverse, self._inverse_sought = self._made_inverse(), True
        return self.known_inverse

    def _made_inverse(self) -> Tensor | None:
        if not self.symmetric:
            return None
        if self._plain_inverse is not None and self._is_proved_definite:
            inverse, norm = self._plain_inverse
            if norm * self._rounding <= _ROUGH:
                return inverse
        if not self.is_definite():
            return None
        if self.wide is not self:
            return self.wide.inverse
        factor, info = torch.linalg.cholesky_ex(self.matrix)
        return torch.cholesky_inverse(factor) if int(info) == 0 else None

    def damped_inverse(self, shift: float) -> Damped | None:
        """(H + s·I)⁻¹ in H's own precision, s within a factor of 2 of `shift`; None if that is not definite.

        The last few are kept, and returned for shifts within a factor of 2 of their own.
        """
        known = [one for one in self._all_damped if 0.5 * one.shift <= shift <= 2.0 * one.shift]
        if known:
            self.damped = known[-1]
            return self.damped
        factor = self._damped_factor(shift)
        if factor is None:
            return None
        self.damped = Damped(self._factored[0], torch.cholesky_inverse(factor))
        self._all_damped = (*self._all_damped[1 - _KEPT :], self.damped)
        return self.damped

    def _damped_factor(self, shift: float) -> Tensor | None:
        """The Cholesky factor of H + s·I, s within a factor of 2 of `shift`; None if that is not definite."""
        known, factor = self._factored
        if factor is None or not 0.5 * known <= shift <= 2.0 * known:
            matrix = self.matrix.clone()
            matrix.diagonal().add_(shift)
            factor, info = torch.linalg.cholesky_ex(matrix)
            if int(info) != 0:
                return None
            self._factored = (shift, factor)
        return factor

    @cached_property
    def _is_proved_definite(self) -> bool:
        """Whether a factorization proves all eigenvalues to exceed the rounding error.

        By the norm of the inverse, whose reciprocal bounds the least eigenvalue from below, where the inverse is
        cheap. Else by the Cholesky factor of H less so much of the identity.
        """
        if self.matrix.shape[0] <= self.costs.inverse_width:
            return self._plain_inverse is not None and self._plain_inverse[1] * self._rounding < 1
        return self._shifted_factor is not None

    @cached_property
    def _plain_inverse(self) -> tuple[Tensor, float] | None:
        """H⁻¹ in H's own precision and its norm, or None where the factorization fails."""
        if self.matrix.shape[0] <= self.costs.inverse_width:
            factor, info = torch.linalg.cholesky_ex(self.matrix)
            if int(info) != 0:
                return None
        elif self._shifted_factor is None:
            return None
        else:
            factor = self._shifted_factor
        inverse = torch.cholesky_inverse(factor)
        norm = float(torch.linalg.vector_norm(inverse))
        return (inverse, norm) if math.isfinite(norm) else None

    @cached_property
    def _shifted_factor(self) -> Tensor | None:
        """The Cholesky factor of H less its rounding error times I, or None if that is not definite."""
        matrix = self.matrix.clone()
        matrix.diagonal().sub_(self._rounding)
        factor, info = torch.linalg.cholesky_ex(matrix)
        return factor if int(info) == 0 else None

    @cached_property
    def _rounding(self) -> float:
        """What an eigenvalue has to exceed to be told from 0."""
        own = _ROUNDING * torch.finfo(self.matrix.dtype).eps
        # Rounding moves no entry by more than half its error, and no eigenvalue by more than all of these together.
        before = 0.0 if self.given is None else 0.5 * torch.finfo(self.given).eps
        return max(own, before) * self.norm


def _power_step(matrix: Tensor, norm: float) -> float:
    """About 1/λ_max, divided by 1.1, by a few steps of the power method; 1 where that fails."""
    # Divided by its norm, no power of the matrix can overflow, and few of these steps cannot vanish.
    if not 0 < norm < math.inf:
        return 1.0
    # (the ramp is no eigenvector, as a constant is of many matrices)
    ramp = torch.linspace(0.5e-3, 1.5e-3, matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    v = torch.add(matrix.diagonal(), matrix.sum(0), alpha=0.1).div_(norm).add_(ramp)
    for _ in range(_POWER_STEPS):
        v = torch.addmv(v, matrix, v, beta=0, alpha=1 / norm)
    after = torch.mv(matrix, v)
    before, size = torch.linalg.vector_norm(torch.stack((v, after)), dim=-1).tolist()
    return before / (1.1 * size) if size > 0 and before > 0 else 1.0


def _largest_singular_value(matrix: Tensor) -> float:
    """About that, by a few steps of the power method, and a tenth more, since it is approached from below."""
    v = torch.linspace(0.5, 1.0, matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    for _ in range(_POWER_STEPS):
        for side in (matrix, matrix.mT):
            v = torch.mv(side, v)
            v = v / torch.linalg.vector_norm(v, torch.inf)
    before, size = torch.linalg.vector_norm(torch.stack((v, torch.mv(matrix, v))), dim=-1).tolist()
    return 1.1 * size / before


def _rebuild(
    about: tuple[bool, float | None, bool, torch.dtype | None, Costs],
    rebuild: Callable[
        ..., tuple[Tensor | None, Damped | None, float | None, tuple[tuple[float, float], Tensor] | None]
    ],
    matrix: Tensor,
    *known: Tensor,
) -> Factor:
    made = Factor(matrix, *about)
    made.known_inverse, made.damped, made._step, made._reflection = rebuild(*known)
    made._all_damped = () if made.damped is None else (made.damped,)
    return made
