"""The null space of a positive semidefinite map of which only products are known."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.linalg.cg import conjugate_gradient

#: A vector counts as one of the null space if its image is no longer than so many rounding errors of the largest.
_NOISE = 16
#: Solves, each of which takes the rest of the range out of what the one before has left.
_SOLVES = 4


def null_part(
    product: Callable[[Tensor], Tensor], rows: Float[Tensor, "batch d"], size: float, eps: float, max_iter: int
) -> tuple[Float[Tensor, "batch d"], Bool[Tensor, " batch"]]:
    """The part of each row that a symmetric semidefinite A maps to 0, to rounding, and where there is one.

    The shortest x with Ax = Aw, which conjugate gradients find from 0, is the part of w in the range of A; w − x is the
    rest. It counts where its own image is no more than rounding.

    Args:
        product: v ↦ A v.
        rows: w.
        size: about the norm of A.
        eps: the rounding error of the precision that A was given in.
        max_iter: bound on the products of each solve.
    """
    length = torch.linalg.vector_norm(rows, dim=-1)
    noise = _NOISE * max(eps, torch.finfo(rows.dtype).eps)
    rest = rows
    for attempt in range(1 + _SOLVES):
        image = product(rest)
        left, allowed = (torch.linalg.vector_norm(v, dim=-1) for v in (image, rest))
        allowed = noise * size * allowed
        null = (left <= allowed) & (allowed > noise**2 * size * length)
        gone = allowed <= noise**2 * size * length
        if attempt == _SOLVES or bool((null | gone).all()):
            break
        tol = torch.where(left > 0, 0.5 * allowed / torch.where(left > 0, left, 1.0), 1.0)
        rest = rest - conjugate_gradient(product, image, torch.Tensor.clone, tol, max_iter).value
    return torch.where(null[:, None], rest, 0.0), null
