"""Parametrizations of the weight W of a quadratic energy."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ConvexWeight(nn.Module):
    """W = −(P Pᵀ + margin·I), negative definite by construction.

    Args:
        features: d.
        margin: the least eigenvalue that −W can have.
    """

    symmetric = True
    convex = True

    def __init__(self, features: int, margin: float, **factory: object) -> None:
        super().__init__()
        if not margin > 0:
            raise ValueError(f"margin must be positive, got {margin}: it bounds -W away from 0")
        self.margin = margin
        self.factor = nn.Parameter(torch.empty(features, features, **factory))  # type: ignore[arg-type]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """−W ≈ 0.5·I: well conditioned, within reach of every geometry's step τ = 1."""
        with torch.no_grad():
            self.factor.normal_(std=0.1 * self.factor.shape[0] ** -0.5)
            self.factor.diagonal().add_(max(0.5 - self.margin, 0.0) ** 0.5)

    def forward(self) -> Float[Tensor, "d d"]:
        """W, (d, d)."""
        gram = self.factor @ self.factor.mT
        return -(gram + self.margin * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device))


class SymmetricWeight(nn.Module):
    """W = (P + Pᵀ)/2: symmetric, possibly indefinite."""

    symmetric = True
    convex = False

    def __init__(self, features: int, **factory: object) -> None:
        super().__init__()
        self.entries = nn.Parameter(torch.empty(features, features, **factory))  # type: ignore[arg-type]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """−0.5·I and noise small enough that W starts negative definite."""
        _negative_with_noise(self.entries)

    def forward(self) -> Float[Tensor, "d d"]:
        """W, (d, d)."""
        return 0.5 * (self.entries + self.entries.mT)


class FreeWeight(nn.Module):
    """W = P, any matrix: equilibria exist, an objective does not."""

    symmetric = False
    convex = False

    def __init__(self, features: int, **factory: object) -> None:
        super().__init__()
        self.entries = nn.Parameter(torch.empty(features, features, **factory))  # type: ignore[arg-type]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """−0.5·I and noise small enough that W starts monotone."""
        _negative_with_noise(self.entries)

    def forward(self) -> Float[Tensor, "d d"]:
        """W, (d, d)."""
        return self.entries


class GivenWeight(nn.Module):
    """A matrix that somebody else owns; gradients flow to it."""

    convex = False

    def __init__(self, matrix: Float[Tensor, "d d"]) -> None:
        super().__init__()
        self.symmetric = bool(torch.equal(matrix, matrix.mT) or torch.allclose(matrix, matrix.mT, **_rounding(matrix)))
        hold(self, "matrix", matrix)

    def forward(self) -> Float[Tensor, "d d"]:
        """W, (d, d)."""
        return self.matrix


def hold(module: nn.Module, name: str, tensor: Tensor | None) -> None:
    """Register a tensor given by the user: a parameter as a parameter, anything else as a buffer."""
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
    else:
        module.register_buffer(name, tensor)


def _rounding(matrix: Tensor) -> dict[str, float]:
    """Tolerances that let through a matrix that is symmetric up to rounding."""
    eps = torch.finfo(matrix.dtype).eps
    return {"rtol": 4 * eps, "atol": 4 * eps * float(matrix.detach().abs().max()) if matrix.numel() else 0.0}


def _negative_with_noise(entries: nn.Parameter) -> None:
    with torch.no_grad():
        entries.normal_(std=0.1 * entries.shape[0] ** -0.5)
        entries.diagonal().sub_(0.5)
