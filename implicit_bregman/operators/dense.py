"""A dense matrix that all samples share, and what is computed of it once: its spectrum, a factor, an inverse."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, partial

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.linalg.spectrum import Spectrum, spectrum
from implicit_bregman.operators.base import ROUNDING_ERRORS, LinearOperator, Rebuild
from implicit_bregman.transforms import numbers

#: A matrix counts as definite if its least eigenvalue exceeds so many rounding errors of its Frobenius norm.
_ROUNDING = 4
#: The largest relative error of an inverse that refinement may be left to correct.
_ROUGH = 0.05
#: Up to this width an inverse costs less than the iterations of a single sample,
_ALWAYS = 512
#: and beyond it where there is a sample for every so many coordinates.
_PER_SAMPLE = 128
#: A least eigenvalue counts as 0 up to so many rounding errors of the largest, and of a matrix that is declared
#: positive semidefinite up to so many times its width.
_NOISE, _DECLARED = 16, 64
#: Damped inverses that are kept.
_KEPT = 3
#: Power iterations behind a guess of λ_max.
_POWER_STEPS = 6


class Dense(LinearOperator):
    """H, one matrix that all samples share.

    Everything is computed when it is first asked for and kept as long as the object, which is one call and its
    backward pass, or a `frozen` context.

    Args:
        matrix: H, (d, d), with its gradient.
        symmetric: whether it is; None: it is looked at.
        least: a number that all eigenvalues of H are known to exceed, or None.
        inverse: H⁻¹, if it is known.
        damped: s > 0 and (H + s·I)⁻¹, if they are known.
        step: `gradient_step`, if it is known.
        convex: whether H is declared, or known, to be positive semidefinite.
        given: the precision that H was rounded to, where that is less than its own.

    Attributes:
        source: H, with its gradient.
        matrix: H, without.
    """

    def __init__(
        self,
        matrix: Float[Tensor, "d d"],
        symmetric: bool | None = None,
        least: float | None = None,
        inverse: Float[Tensor, "d d"] | None = None,
        damped: tuple[float, Float[Tensor, "d d"]] | None = None,
        step: float | None = None,
        convex: bool = False,
        given: torch.dtype | None = None,
    ) -> None:
        self.source = matrix
        self.matrix = matrix.detach()
        self.given = given
        self.symmetric = is_symmetric(matrix) if symmetric is None else symmetric
        self.convex = convex
        self.least = least
        self.damped = damped
        self._kept: list[tuple[float, Tensor]] = [] if damped is None else [damped]
        self._definite_from: float | None = None
        self._factored: tuple[float, Tensor | None] = (1.0, None)
        if inverse is not None:
            self.__dict__["inverse"] = inverse
        if step is not None:
            self.__dict__["gradient_step"] = step

    @property
    def shared(self) -> Dense:  # type: ignore[override]
        return self

    @property
    def size(self) -> int:
        return self.matrix.shape[-1]

    def product(self, v: Float[Tensor, "batch d"], adjoint: bool = False) -> Float[Tensor, "batch d"]:
        """H v, or Hᵀ v, in v's precision."""
        matrix = self.source if v.dtype == self.source.dtype else self.wide.matrix.to(v.dtype)
        return v @ (matrix if adjoint else matrix.mT)

    def dense(self) -> Float[Tensor, "d d"]:
        return self.source

    def diagonal(self) -> Float[Tensor, " d"]:
        return self.matrix.diagonal()

    def bounds(self) -> tuple[float, float]:
        ends = self.spectrum
        return float(ends.lowest), float(ends.highest)

    def bounds_guess(self) -> tuple[float, float]:
        if not self.symmetric:
            _ = self._symmetric_part.inverse  # which costs less than a spectrum
            return self._symmetric_part.bounds_guess()
        inverse = self.known_inverse
        if "spectrum" in self.__dict__ or inverse is None:
            return self.bounds()
        # λ_min is 1/λ_max(H⁻¹).
        return 1.1 * _power_step(inverse, float(torch.linalg.vector_norm(inverse))), 1 / self.gradient_step

    def inverted(self, shift: float, adjoint: bool = False) -> Callable[[Tensor], Tensor]:
        matrix = self.matrix + shift * torch.eye(self.size, dtype=self.matrix.dtype, device=self.matrix.device)
        if self.symmetric:
            factor, info = torch.linalg.cholesky_ex(matrix)
            if int(info) == 0:
                return _times(torch.cholesky_inverse(factor))
        inverse, info = torch.linalg.inv_ex(matrix if adjoint else matrix.mT)
        return _times(inverse if int(info) == 0 else torch.full_like(inverse, torch.nan))

    def transposed(self) -> Dense:
        if self.symmetric:
            return self
        return Dense(self.source.mT, False, self.least, convex=self.convex, given=self.given)

    def has_resolvent(self, batch: int) -> bool:
        return self.symmetric and self.is_worth_inverting(batch)

    def resolvent(self, shift: float) -> Callable[[Tensor], Tensor] | None:
        found = self.damped_inverse(shift)
        return None if found is None else _times(found[1])

    def pack(self) -> tuple[tuple[Tensor, ...], Rebuild]:
        """H, and of what is known the inverse and the damped inverse."""
        inverse, damped = self.known_inverse, self.damped
        tensors = [self.source, *([] if inverse is None else [inverse]), *([] if damped is None else [damped[1]])]
        shift = None if damped is None else damped[0]
        convex = self.known_semidefinite is not None
        return tuple(tensors), partial(
            _rebuild, self.symmetric, self.least, inverse is not None, shift, self.known_step, convex, self.given
        )

    def to(self, dtype: torch.dtype) -> Dense:
        if dtype == self.matrix.dtype:
            return self
        if dtype == torch.float64:
            return self.wide
        return Dense(self.source.to(dtype), self.symmetric, self.least, convex=self.convex)

    @cached_property
    def wide(self) -> Dense:
        """The same matrix in float64."""
        if self.matrix.dtype == torch.float64:
            return self
        return Dense(self.source.double(), self.symmetric, self.least, convex=self.convex, given=self.matrix.dtype)

    @cached_property
    def semidefinite(self) -> Dense | None:
        """H in float64 without negative eigenvalues, if those that it has are within rounding; else None.

        Where H was given in less than float64, so much of the identity is added as they are below 0.

        Raises:
            ValueError: if H is declared to be positive semidefinite and has an eigenvalue clearly below 0.
        """
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
        return Dense(raised, True, convex=True, given=self.matrix.dtype)

    @property
    def known_semidefinite(self) -> Dense | None:
        """`semidefinite`, if it has been asked for."""
        known: Dense | None = self.__dict__.get("semidefinite")
        return known

    @cached_property
    def _symmetric_part(self) -> Dense:
        """(H + Hᵀ)/2."""
        return Dense(0.5 * (self.matrix + self.matrix.mT), True, self.least, given=self.given)

    @cached_property
    def spectrum(self) -> Spectrum:
        """The ends of the spectrum, by a full decomposition: slow for large d."""
        return spectrum(self.matrix, self.symmetric)

    def rounding(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """What rounding z and the sums may make of the entries of Hz, (B, d), in the precision of z."""
        return ROUNDING_ERRORS * torch.finfo(z.dtype).eps * (z.abs() @ self.matrix.abs().mT)

    def excess(self, z: Float[Tensor, "batch d"], b: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """H z − b, in H's own precision."""
        return torch.addmm(b, z, self.matrix.mT, beta=-1)

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
        if not self.symmetric and self._symmetric_part.is_definite(shift):
            return True
        return self.spectrum.is_definite(shift, or_semidefinite)

    def is_proved_definite(self, shift: float) -> bool:
        """Whether a factorization of H + shift·I, or of H, proves the sum positive definite; shift ≥ 0."""
        large = shift > 1e3 * self._rounding
        return self._damped_factor(shift) is not None if large else self._is_proved_definite

    def damped_inverse(self, shift: float) -> tuple[float, Float[Tensor, "d d"]] | None:
        """(H + s·I)⁻¹ in H's own precision, to precondition with, and s; None if that is not definite.

        The last few are kept, and returned for shifts within a factor of 2 of their own.
        """
        known = [pair for pair in self._kept if 0.5 * pair[0] <= shift <= 2.0 * pair[0]]
        if known:
            self.damped = known[-1]
            return self.damped
        factor = self._damped_factor(shift)
        if factor is None:
            return None
        self.damped = (self._factored[0], torch.cholesky_inverse(factor))
        self._kept = [*self._kept[1 - _KEPT :], self.damped]
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

    @property
    def known_inverse(self) -> Float[Tensor, "d d"] | None:
        """The inverse, if it has been computed."""
        known: Tensor | None = self.__dict__.get("inverse")
        return known

    @property
    def known_step(self) -> float | None:
        """`gradient_step`, if it has been computed."""
        step: float | None = self.__dict__.get("gradient_step")
        return step

    def is_worth_inverting(self, batch: int) -> bool:
        """Whether an inverse costs less than solving for so many samples by iteration."""
        d = self.matrix.shape[0]
        return d <= _ALWAYS or d <= _PER_SAMPLE * batch

    @cached_property
    def inverse(self) -> Float[Tensor, "d d"] | None:
        """H⁻¹ for use with refinement (its relative error is below 5 %), or None if H is not known to be definite.

        In H's own precision where the condition allows it, else in float64.
        """
        if self._plain_inverse is not None and self._is_proved_definite:
            inverse, norm = self._plain_inverse
            if norm * self._rounding <= _ROUGH:
                return inverse
        if not (self.symmetric and self.is_definite()):
            return None
        if self.wide is not self:
            return self.wide.inverse
        factor, info = torch.linalg.cholesky_ex(self.wide.matrix)
        return torch.cholesky_inverse(factor) if int(info) == 0 else None

    @cached_property
    def _is_proved_definite(self) -> bool:
        """Whether a factorization proves all eigenvalues to exceed the rounding error.

        By the norm of the inverse, whose reciprocal bounds the least eigenvalue from below, where the inverse is
        cheap. Else by the Cholesky factor of H less so much of the identity.
        """
        if self.matrix.shape[0] <= _ALWAYS:
            return self._plain_inverse is not None and self._plain_inverse[1] * self._rounding < 1
        return self._shifted_factor is not None

    @cached_property
    def _plain_inverse(self) -> tuple[Tensor, float] | None:
        """H⁻¹ in H's own precision and its norm, or None where the factorization fails."""
        if self.matrix.shape[0] <= _ALWAYS:
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
        return max(own, before) * self._norm

    @cached_property
    def _norm(self) -> float:
        """The Frobenius norm."""
        return float(torch.linalg.vector_norm(self.matrix))

    @cached_property
    def row_sizes(self) -> Float[Tensor, " d"]:
        """The sums of |H| over each row: how large the entries of Hz are at most where no |z| exceeds 1."""
        return self.matrix.abs().sum(-1)  # (several times as fast as a norm of order 1)

    @cached_property
    def gradient_step(self) -> float:
        """1/λ_max(H), to within some 20 % unless the spectrum is known: for guesses, not for proofs."""
        if "spectrum" in self.__dict__:
            largest = float(self.spectrum.curvature)
            return 1 / largest if largest > 0 else 1.0
        return _power_step(self.matrix, self._norm)


def _power_step(matrix: Tensor, norm: float) -> float:
    """About 1/λ_max, divided by 1.1, by a few steps of the power method; 1 where that fails."""
    # Divided by its norm, no power of the matrix can overflow, and few of these steps cannot vanish.
    if not 0 < norm < math.inf:
        return 1.0
    v = torch.add(matrix.diagonal(), matrix.sum(0), alpha=0.1).div_(norm).add_(1e-3)
    for _ in range(_POWER_STEPS):
        v = torch.addmv(v, matrix, v, beta=0, alpha=1 / norm)
    after = torch.mv(matrix, v)
    before, size = torch.linalg.vector_norm(torch.stack((v, after)), dim=-1).tolist()
    return before / (1.1 * size) if size > 0 and before > 0 else 1.0


def is_symmetric(matrix: Float[Tensor, "d d"]) -> bool:
    """Whether a matrix equals its transpose up to rounding."""
    with torch.no_grad():
        matrix = numbers(matrix)
        if torch.equal(matrix, matrix.mT):
            return True
        rounding = 4 * torch.finfo(matrix.dtype).eps * matrix.abs().max()
        return bool((matrix - matrix.mT).abs().max() <= rounding)


def _times(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda v: v.detach() @ matrix.to(v.dtype)


def _rebuild(
    symmetric: bool,
    least: float | None,
    has_inverse: bool,
    shift: float | None,
    step: float | None,
    convex: bool,
    given: torch.dtype | None,
    matrix: Tensor,
    *known: Tensor,
) -> Dense:
    inverse = known[0] if has_inverse else None
    damped = None if shift is None else (shift, known[-1])
    return Dense(matrix, symmetric, least, inverse, damped, step, convex, given)
