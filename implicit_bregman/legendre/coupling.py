"""Coordinates that are coupled: those of a block have a given sum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Coupling:
    """Blocks of consecutive coordinates whose sums do not change.

    With the slopes s = 1/φ'' of the coordinates, the derivative of the mirror map is D = diag(s) − s sᵀ/Σs in each
    block: positive semidefinite, and 0 on constants. D = B Bᵀ with B = diag(√s)(I − ŝ ŝᵀ), ŝ = √s/‖√s‖.

    Attributes:
        total: the sum of each block.
        size: n, the number of coordinates in a block; None: all of the last dimension.
    """

    total: float = 1.0
    size: int | None = None

    def split(self, rows: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch blocks n"]:
        """The blocks."""
        n = rows.shape[-1] if self.size is None else self.size
        return rows.reshape(*rows.shape[:-1], rows.shape[-1] // n, n)

    def centred(self, v: Float[Tensor, "*batch d"], weight: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """v without its mean in each block, that by `weight` ≥ 0; without the plain one where all weights are 0."""
        blocks, weights = self.split(v), self.split(weight)
        # (scaled, for weights that are tiny)
        largest = weights.amax(-1, keepdim=True)
        weights = torch.where(largest > 0, weights / torch.where(largest > 0, largest, 1.0), 1.0)
        mean = (weights * blocks).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True)
        centred = blocks - mean
        # (of `flatten` and `unflatten` there are no batched gradients)
        return centred.reshape(*centred.shape[:-2], v.shape[-1])

    def derivative(self, slope: Float[Tensor, "*batch d"], v: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """D v."""
        return slope * self.centred(v, slope)

    def off(self, unit: Float[Tensor, "*batch d"], w: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """(I − ŝ ŝᵀ) w, with `unit` = ŝ, orthogonal to ŝ to the last digit of every entry.

        Next to a vertex of C one coordinate has nearly all of ŝ, and its entry would be the rounding error of the
        others': it is what they leave for it.
        """
        units, blocks = self.split(unit), self.split(w)
        blocks = blocks - units * (units * blocks).sum(-1, keepdim=True)
        most, place = units.max(-1, keepdim=True)
        others = (units * blocks).scatter(-1, place, 0.0).sum(-1, keepdim=True)
        # (a block of zeros has no ŝ)
        return blocks.scatter(-1, place, -others / torch.where(most > 0, most, 1.0)).flatten(-2)

    def unit(self, root: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """ŝ, given √s; 0 in a block of zeros."""
        blocks = self.split(root)
        blocks = blocks / blocks.amax(-1, keepdim=True).clamp_min(torch.finfo(root.dtype).tiny)
        length = torch.linalg.vector_norm(blocks, dim=-1, keepdim=True)
        return (blocks / length.clamp_min(torch.finfo(root.dtype).tiny)).flatten(-2)

    def largest(self, scale: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """The largest number of each block, in all its places."""
        blocks = self.split(scale)
        return blocks.amax(-1, keepdim=True).expand_as(blocks).flatten(-2)

    def largest_curvature(self, matrix: Float[Tensor, "d d"]) -> Float[Tensor, ""]:
        """L₁ ≥ 0 with vᵀHv ≤ L₁ Σ‖v_k‖₁² for every v whose blocks v_k sum to 0, and a symmetric H.

        For one block and H ⪰ 0 it is the least such number, ¼ max(H_ii + H_jj − 2H_ij): a convex function is largest
        at the corners (e_i − e_j)/2 of the set. L₁ is then at most half of the largest eigenvalue.
        """
        parts = self.split(self.split(matrix.mT).movedim(0, -1))  # (blocks, n, blocks, n)
        most, least = parts.amax((1, 3)), parts.amin((1, 3))
        # (a constant that is added to the entries of two blocks changes nothing)
        pairs = 0.5 * (most - least)
        own = torch.diagonal(parts, dim1=0, dim2=2).movedim(-1, 0)  # (blocks, n, n)
        diagonal = torch.diagonal(own, dim1=1, dim2=2)
        # vᵀHv = −½ Σ v_i v_j G_ij, of which the pairs of one sign count where G is negative.
        gaps = diagonal[:, :, None] + diagonal[:, None, :] - 2 * own
        pairs.diagonal().copy_(0.25 * (gaps.amax((1, 2)) - gaps.amin((1, 2))))
        return torch.linalg.matrix_norm(pairs, 2) if len(pairs) > 1 else pairs[0, 0]
