"""l ≤ Vᵀz ≤ u: what is asked of z besides C."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.tensors import check_dense


@dataclass(frozen=True, eq=False)
class Constraints:
    """l ≤ Vᵀz ≤ u, of r affine functions of a state; r is meant to be small.

    Gradients flow to all three tensors. Two of them are equal if they are the same object.

    Args:
        V: (d, r); its columns are the constraints, of states whose entries follow each other row by row.
        lower: l, (r,) for all samples, or one for each, (*batch, r); −inf: there is none.
        upper: u, in the same way. Where l = u the constraint is an equation. Two different tensors then get half of the
            gradient each; with `Constraints.equal(V, beta)`, β gets all of it.

    Raises:
        TypeError: for what is no floating-point tensor.
        ValueError: for shapes, dtypes or devices that do not fit, a V that is not finite, and where not l ≤ u.
    """

    V: Float[Tensor, "d r"]
    lower: Float[Tensor, "*batch r"]
    upper: Float[Tensor, "*batch r"]

    def __post_init__(self) -> None:
        for name, tensor in (("V", self.V), ("lower", self.lower), ("upper", self.upper)):
            check_dense(name, tensor)
            if not tensor.is_floating_point():
                raise TypeError(
                    f"{name} must be a floating-point tensor, got {tensor.dtype}: call .float() or .double()"
                )
            if tensor.dtype != self.V.dtype or tensor.device != self.V.device:
                raise ValueError(
                    f"{name} is {tensor.dtype} on {tensor.device}, but V is {self.V.dtype} on {self.V.device}: convert "
                    "one of them"
                )
        if self.V.dim() != 2 or self.V.shape[1] == 0:
            raise ValueError(f"V must have shape (d, r) with r of at least 1, got {tuple(self.V.shape)}")
        if not bool(torch.isfinite(self.V.detach()).all()):
            raise ValueError("V has NaN or infinite entries: clean it")
        for name, tensor in (("lower", self.lower), ("upper", self.upper)):
            if tensor.dim() == 0 or tensor.shape[-1] != self.V.shape[1]:
                raise ValueError(
                    f"{name} must have shape ({self.V.shape[1]},) or (*batch, {self.V.shape[1]}) to go with V of shape "
                    f"{tuple(self.V.shape)}, got {tuple(tensor.shape)}"
                )
        low, high = self.lower.detach(), self.upper.detach()
        if not bool(((low <= high) & (low < torch.inf) & (high > -torch.inf)).all()):
            raise ValueError("lower must be at most upper, below inf, and upper above -inf, in every entry")

    @classmethod
    def equal(cls, V: Float[Tensor, "d r"], beta: Float[Tensor, "*batch r"]) -> Constraints:
        """Vᵀz = β.

        Args:
            V: see the class.
            beta: β, (r,) or (*batch, r), finite.
        """
        return cls(V, beta, beta)
