"""Solves with the free blocks of a shared definite matrix through its inverse, one free set per sample.

With K = H⁻¹ and A the active set of a sample, the point with z_A given and (Hz)_F = b_F is z = K(b + E_A m), where
m solves the small system K_AA m = z_A − (Kb)_A: d²  operations per sample and a factorization of the size of its
active set. Where most coordinates are active the free block itself is the smaller system.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.linalg.blocks import members, padded_blocks
from implicit_bregman.linalg.cg import conjugate_gradient
from implicit_bregman.linalg.chunks import chunk_slices
from implicit_bregman.operators.costs import Costs
from implicit_bregman.operators.factor import Factor

#: Relative residual asked of the iterations that stand for large blocks; refinement does the rest.
_COARSE = 1e-3
#: Most of them, besides one for every four coordinates: more, and a factorization would have cost less.
_PRODUCTS = 50
#: Most rounds of refinement with a float64 residual.
_REFINEMENTS = 8
#: A round that does not halve the residual is the last.
_CONTRACTION = 0.5
#: Relative residual beyond which a solve has failed, whatever was asked.
_EXACT = 1e-10


class FreeSolution(NamedTuple):
    """What `solve_free_blocks` found.

    Attributes:
        value: z, (B, d), in float64.
        excess: H z − b, (B, d), with b taken for 0 outside F.
        solved: whether the residual became small, (B,).
        products: the number of products with H.
        scale: what each entry of H z − b was measured against, if that was asked for: max(|Hz|, |b|) + floor, (B, d).
        residual: the largest entry of (H z − b)_F relative to the largest of b_F and H z, (B,).
    """

    value: Tensor
    excess: Tensor
    solved: Tensor
    products: int
    scale: Tensor | None
    residual: Tensor


def solve_free_blocks(
    of: Factor,
    free: Bool[Tensor, "batch d"],
    rhs: Float[Tensor, "batch d"],
    fixed: Float[Tensor, "batch d"] | None = None,
    tol: float = 1e-13,
    blocks: FreeBlocks | None = None,
    floor: Tensor | float | None = None,
) -> FreeSolution:
    """z with z_A = fixed_A and (H z)_F = rhs_F, refined with float64 residuals.

    Args:
        of: what is known of H, with an inverse.
        free: F, (B, d).
        rhs: b, (B, d); its entries outside F do not matter but for the scale.
        fixed: values outside F, (B, d); None: 0.
        tol: bound on the entries of (H z − b)_F, relative to the size of b and Hz, at which refinement ends.
        blocks: what `free_blocks` made of H and F; None: it is made here.
        floor: if given, each entry has to be small relative to its own max(|Hz|, |b|) + floor; otherwise all of them,
            relative to the largest.
    """
    if blocks is None:
        blocks = free_blocks(of, free)
    interior, dtype = blocks.interior, _inverse(of).dtype
    b = rhs.double()
    # A right-hand side that is 0 outside F keeps what stands there, NaN for one, out of the products.
    inside = b if interior else torch.where(free, b, 0.0)
    target: Tensor | float = 0.0 if fixed is None else fixed.double()
    with_target = None if fixed is None or interior else torch.where(free, 0.0, fixed).to(dtype)
    z = blocks.solve(of, free, inside.to(dtype), with_target).double()
    z = z if interior else torch.where(free, z, target)
    before, products, size, wide = None, 0, torch.ones_like(b[:, 0]), of.wide
    scale: Tensor | None = None
    while True:
        products += 1
        excess = wide.excess(z, inside)
        error = excess if interior else torch.where(free, excess, 0.0)
        entries = error.abs()
        left = entries.amax(-1)
        if before is None and floor is not None:
            scale = torch.maximum((excess + inside).abs_(), b.abs()).add_(floor)
            size = scale.amax(-1)
        elif before is None:
            size = torch.maximum(excess.abs().amax(-1), inside.abs().amax(-1))
        bad = left > tol * size if scale is None else (entries > tol * scale).any(-1)
        if products == _REFINEMENTS or not bool(bad.any()):
            break
        if before is not None and not bool(((left < _CONTRACTION * before) & bad).any()):
            break
        before = left
        # Scaled to its own size, a residual can neither vanish nor overflow in float32.
        unit = torch.where(left > 0, left, 1.0)[:, None]
        correction = blocks.solve(of, free, (error / unit).to(dtype), None)
        z = torch.addcmul(z, unit, correction.double(), value=-1)
        z = z if interior else torch.where(free, z, target)
    # (0 where b is 0; NaN is not small, and nothing is where b is infinite)
    residual = left / size.clamp_min(torch.finfo(size.dtype).tiny)
    solved = (residual <= max(1e3 * tol, _EXACT)) & (size < torch.inf)
    return FreeSolution(z, excess, solved, products, scale, residual)


@dataclass(frozen=True)
class FreeBlocks:
    """The factorized blocks of one batch of free sets, and how they are used.

    Attributes:
        interior: whether every F has all coordinates.
        on_active: whether the blocks are those of K on A, or those of H on F.
        index: the members of each block, padded to the largest, (B, m); None where there are no factors: for
            `interior`, for blocks without members, and for blocks so large that iterations cost less.
        valid: which of these are not padding, (B, m).
        factor: Cholesky factors of the blocks, the identity on padding, (B, m, m).
        iterates: whether the systems are solved by iteration.
        groups: where the sizes of the blocks differ much, the samples of like size, each with blocks of its own.
    """

    interior: bool
    on_active: bool
    iterates: bool = False
    index: Int[Tensor, "batch m"] | None = None
    valid: Bool[Tensor, "batch m"] | None = None
    factor: Float[Tensor, "batch m m"] | None = None
    groups: tuple[tuple[Int[Tensor, " some"], FreeBlocks], ...] = ()

    def solve(self, of: Factor, free: Tensor, b: Tensor, target: Tensor | None) -> Tensor:
        """z with z_A = target_A (None: 0) and (H z)_F ≈ b_F, in the inverse's precision; b is 0 on A, target on F."""
        if self.interior:
            return b @ _inverse(of)
        if self.groups:
            z = torch.empty_like(b)
            for rows, blocks in self.groups:
                z[rows] = blocks.solve(of, free[rows], b[rows], None if target is None else target[rows])
            return z
        if self.iterates:
            return _iterate(of, free, b, target)
        if self.index is None or self.valid is None or self.factor is None:
            return torch.zeros_like(b) if target is None else target
        if self.on_active:
            inverse = _inverse(of)
            plain = (b @ inverse).gather(1, self.index)
            wanted = plain.neg() if target is None else target.gather(1, self.index) - plain
            m = _solve_factored(self.factor, wanted * self.valid)
            return b.scatter_add(1, self.index, m) @ inverse
        if target is not None:
            b = b - of.product(target)
        part = _solve_factored(self.factor, b.gather(1, self.index) * self.valid)
        z = torch.zeros_like(b).scatter_add(1, self.index, part)
        return z if target is None else z + target

    def to_keep(self, width: int, costs: Costs) -> FreeBlocks | None:
        """What of them is worth keeping for the backward pass; None: they are made again there."""
        large = self.index is not None and self.index.shape[-1] ** 2 > costs.kept_block * width
        return None if self.groups or large else self


def _iterate(of: Factor, free: Tensor, b: Tensor, target: Tensor | None) -> Tensor:
    inverse, mask = _inverse(of), free.to(b.dtype)
    if target is not None:
        b = mask * (b - of.product(target))
    found = conjugate_gradient(
        lambda v: mask * of.product(mask * v) + (1 - mask) * v,
        b,
        lambda r: mask * ((mask * r) @ inverse) + (1 - mask) * r,
        _COARSE,
        _PRODUCTS + b.shape[-1] // 4,
    )
    return found.value if target is None else mask * found.value + (1 - mask) * target


def free_blocks(of: Factor, free: Bool[Tensor, "batch d"]) -> FreeBlocks:
    """The factors of the blocks of H on F or of its inverse on the rest, whichever are smaller."""
    d = free.shape[-1]
    active = ~free
    least, most = (int(count) for count in active.sum(-1).aminmax()) if len(free) else (0, 0)
    if most == 0:
        return FreeBlocks(True, True)
    # (the smallest active set leaves the largest free one)
    on_active = most <= d - least
    size = most if on_active else d - least
    groups = _groups(active if on_active else free, size, of.costs)
    if groups:
        parts = tuple((rows, free_blocks(of, free[rows])) for rows in groups)
        return FreeBlocks(False, on_active, groups=parts)
    if size == 0 or size**3 > of.costs.block * d * d:
        return FreeBlocks(False, on_active, iterates=size > 0)
    inverse = _inverse(of)
    matrix = inverse if on_active else (of if inverse.dtype == of.matrix.dtype else of.wide).matrix
    index, valid = members(active if on_active else free, size)
    factor = _factorize(matrix, index, None if least == most else valid)
    return FreeBlocks(False, on_active, False, index, valid, factor)


def _groups(sets: Bool[Tensor, "batch d"], size: int, costs: Costs) -> tuple[Int[Tensor, " some"], ...]:
    """The samples with small sets and those with large ones, where padding all to the largest costs much more."""
    batch, most = len(sets), costs.block * sets.shape[-1] ** 2
    together = batch * min(size**3, most)
    if together < costs.split_from or batch < 2:
        return ()
    sizes, order = sets.sum(-1).sort()
    count = torch.arange(1, batch + 1, device=sets.device)
    # (beyond `most` a sample costs no more, because it is iterated)
    apart = count * sizes.double().pow(3).clamp_max(most) + (batch - count) * min(size**3, most)
    cost, place = apart.min(0)
    few = int(place) + 1
    if few == batch or float(cost) > costs.split_share * together:
        return ()
    return order[:few], order[few:]


def _inverse(of: Factor) -> Tensor:
    inverse = of.inverse
    assert inverse is not None  # the callers have checked
    return inverse


def _factorize(matrix: Tensor, index: Tensor, valid: Tensor | None) -> Float[Tensor, "batch m m"]:
    """Cholesky factors of the blocks of a matrix; NaN where one is not definite."""
    size = index.shape[-1]
    parts = []
    for rows in chunk_slices(len(index), size * size):
        block = padded_blocks(matrix, index[rows], None if valid is None else valid[rows])
        factor, info = torch.linalg.cholesky_ex(block)
        if bool(info.any()):
            factor = torch.where((info == 0)[:, None, None], factor, torch.nan)
        parts.append(factor)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _solve_factored(factor: Tensor, rhs: Tensor) -> Tensor:
    return torch.cholesky_solve(rhs[:, :, None], factor).squeeze(-1)
