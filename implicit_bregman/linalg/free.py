"""Solves with the free blocks of a shared definite matrix through its inverse, one free set per sample.

With K = H⁻¹ and A the active set of a sample, the point with z_A given and (Hz)_F = b_F is z = K(b + E_A m), where
m solves the small system K_AA m = z_A − (Kb)_A: d²  operations per sample and a factorization of the size of its
active set. Where most coordinates are active the free block itself is the smaller system.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.linalg.cg import conjugate_gradient
from implicit_bregman.linalg.chunks import chunk_slices
from implicit_bregman.linalg.shared import SharedMatrix

#: Largest size m of a factorized block: beyond m³ = this · d², iterations with K as preconditioner cost less.
_LARGEST_BLOCK = 36
#: Relative residual asked of those iterations; refinement does the rest.
_COARSE = 1e-3
#: Most rounds of refinement with a float64 residual.
_REFINEMENTS = 8
#: A round that does not halve the residual is the last.
_CONTRACTION = 0.5


def solve_free_blocks(
    shared: SharedMatrix,
    free: Bool[Tensor, "batch d"],
    rhs: Float[Tensor, "batch d"],
    fixed: Float[Tensor, "batch d"] | None = None,
    tol: float = 1e-13,
) -> tuple[Float[Tensor, "batch d"], Float[Tensor, "batch d"], Bool[Tensor, " batch"], int]:
    """z with z_A = fixed_A and (H z)_F = rhs_F, refined with float64 residuals.

    Args:
        shared: H, with an inverse.
        free: F, (B, d).
        rhs: b, (B, d); its entries outside F do not matter.
        fixed: values outside F, (B, d); None: 0.
        tol: bound on the largest entry of (H z − b)_F, relative to the size of b and Hz, at which refinement ends.

    Returns:
        z, (B, d), in float64; H z − b there, (B, d), with b taken for 0 outside F; whether the residual became small,
        (B,); and the number of products with H.
    """
    blocks = _Blocks(shared, free)
    wide = shared.wide
    b, mask = rhs.double(), free.double()
    # A right-hand side that is 0 outside F keeps what stands there, NaN for one, out of the products.
    inside = b if blocks.interior else torch.where(free, b, 0.0)
    target = None if fixed is None or blocks.interior else torch.where(free, 0.0, fixed.double())
    z = blocks.solve(inside.to(blocks.dtype), None if target is None else target.to(blocks.dtype)).double()
    z = _with_fixed(z, mask, target, blocks.interior)
    before, products, scale = None, 0, torch.ones_like(b[:, 0])
    for _ in range(_REFINEMENTS):
        products += 1
        product = wide.product(z)
        excess = product - inside
        error = excess if blocks.interior else excess * mask
        size = error.abs().amax(-1)
        if products == 1:
            scale = torch.maximum(product.abs().amax(-1), inside.abs().amax(-1))
        bad = size > tol * scale
        if not bool(bad.any()) or (before is not None and not bool(((size < _CONTRACTION * before) & bad).any())):
            break
        before = size
        # Scaled to its own size, a residual keeps its digits in float32.
        unit = torch.where(size > 0, size, 1.0)[:, None]
        correction = blocks.solve((error / unit).to(blocks.dtype), None).double()
        z = _with_fixed(torch.addcmul(z, unit, correction, value=-1), mask, target, blocks.interior)
    solved = (size <= max(1e3 * tol, _EXACT) * scale) & torch.isfinite(size)
    return z, excess, solved, products


def _with_fixed(z: Tensor, mask: Tensor, target: Tensor | None, interior: bool) -> Tensor:
    """z with its entries outside F replaced."""
    if interior:
        return z
    return z * mask if target is None else torch.addcmul(target, z, mask)


#: Relative residual beyond which a solve has failed, whatever was asked.
_EXACT = 1e-10


class _Blocks:
    """The factorized blocks of one batch of free sets."""

    def __init__(self, shared: SharedMatrix, free: Tensor) -> None:
        inverse = shared.inverse
        assert inverse is not None  # the caller has checked
        self.inverse = inverse
        self.dtype = inverse.dtype
        self.shared = shared if inverse.dtype == shared.weight.dtype else shared.wide
        self.free = free
        d = free.shape[-1]
        active = ~free
        most_active = int(active.sum(-1).max()) if len(free) else 0
        most_free = int(free.sum(-1).max()) if len(free) else 0
        self.interior = most_active == 0
        # The size of the systems, and whether they are blocks of K on A or of H on F.
        self.on_active = most_active <= most_free
        self.size = min(most_active, most_free)
        self.iterates = self.size**3 > _LARGEST_BLOCK * d * d
        if self.interior or self.iterates or self.size == 0:
            return
        members = active if self.on_active else free
        matrix = inverse if self.on_active else self.shared.matrix
        self.index, self.valid = _positions(members, self.size)
        self.factor = _factorize(matrix, self.index, self.valid)

    def solve(self, b: Tensor, target: Tensor | None) -> Tensor:
        """z with z_A = target_A (None: 0) and (H z)_F ≈ b_F, in the inverse's precision; b is 0 outside F."""
        if self.interior:
            return b @ self.inverse
        if self.iterates:
            return self._iterate(b, target)
        if self.size == 0:
            return torch.zeros_like(b) if target is None else target
        if self.on_active:
            return self._by_multipliers(b, target)
        if target is not None:
            b = b - self.shared.product(target)
        part = _solve_factored(self.factor, torch.where(self.valid, b.gather(1, self.index), 0.0))
        z = torch.zeros_like(b).scatter_add(1, self.index, torch.where(self.valid, part, 0.0))
        return z if target is None else z + target

    def _by_multipliers(self, b: Tensor, target: Tensor | None) -> Tensor:
        plain = (b @ self.inverse).gather(1, self.index)
        wanted = -plain if target is None else target.gather(1, self.index) - plain
        m = _solve_factored(self.factor, torch.where(self.valid, wanted, 0.0))
        return b.scatter_add(1, self.index, torch.where(self.valid, m, 0.0)) @ self.inverse

    def _iterate(self, b: Tensor, target: Tensor | None) -> Tensor:
        mask = self.free.to(b.dtype)
        if target is not None:
            b = mask * (b - self.shared.product(target))
        found = conjugate_gradient(
            lambda v: mask * self.shared.product(mask * v) + (1 - mask) * v,
            b,
            lambda r: mask * ((mask * r) @ self.inverse) + (1 - mask) * r,
            _COARSE,
            10 * b.shape[-1],
        )
        return found.value if target is None else mask * found.value + (1 - mask) * target


def _positions(members: Bool[Tensor, "batch d"], size: int) -> tuple[Int[Tensor, "batch m"], Bool[Tensor, "batch m"]]:
    """The members of each row, padded to `size`, and which entries are not padding."""
    rows, columns = members.nonzero(as_tuple=True)
    rank = members.cumsum(-1)[rows, columns] - 1
    index = torch.zeros(len(members), size, dtype=torch.int64, device=members.device)
    index[rows, rank] = columns
    valid = torch.arange(size, device=members.device) < members.sum(-1, keepdim=True)
    return index, valid


def _factorize(matrix: Tensor, index: Tensor, valid: Tensor) -> Float[Tensor, "batch m m"]:
    """Cholesky factors of the blocks of a matrix; NaN where one is not definite."""
    size = index.shape[-1]
    parts = []
    identity = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    full = bool(valid.all())
    for rows in chunk_slices(len(index), size * size):
        block = matrix[index[rows, :, None], index[rows, None, :]]
        if not full:
            mask = valid[rows]
            block = torch.where(mask[:, :, None] & mask[:, None, :], block, identity)
        factor, info = torch.linalg.cholesky_ex(block)
        if bool((info != 0).any()):
            factor = torch.where((info == 0)[:, None, None], factor, torch.nan)
        parts.append(factor)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _solve_factored(factor: Tensor, rhs: Tensor) -> Tensor:
    return torch.cholesky_solve(rhs[:, :, None], factor).squeeze(-1)
