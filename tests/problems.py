"""Draws, matrices, energies and networks that several test modules use."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import implicit_bregman as ib

D = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64, that depend on the seed alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def dual_of(phi: ib.LegendreFunction, draw: Tensor) -> Tensor:
    """A dual for every real number: itself, or, where φ' has one sign only (burg), its exponential with that sign."""
    return draw if phi.has_every_dual else phi.middle * draw.exp()


# Matrices ---------------------------------------------------------------------------------------------------------


def definite(d: int, seed: int = 0, least: float = 0.2) -> Tensor:
    root = normal(d, d, seed=seed)
    return root @ root.mT / d + least * torch.eye(d).double()


def matrix_with(eigenvalues: Tensor, generator: torch.Generator) -> Tensor:
    """Symmetric, in float64."""
    basis, _ = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), generator=generator).double())
    matrix = (basis * eigenvalues.double()) @ basis.mT
    return 0.5 * (matrix + matrix.mT)


def hessian_and_offset(
    kind: str, d: int, batch: int, least: float, shift: float, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """H and c of ½zᵀHz − cᵀz, in float64.

    Args:
        kind: "symmetric", "monotone" (with a skew part) or "indefinite".
        d: Width.
        batch: Samples.
        least: Least eigenvalue of the convex H.
        shift: By how much the indefinite H lies below it.
        seed: Of the draw.
    """
    random = torch.Generator().manual_seed(seed)
    factor, skew = torch.randn(2, d, d, generator=random, dtype=D)
    hessian = factor @ factor.mT / d + least * torch.eye(d)
    if kind == "monotone":
        hessian = hessian + 0.5 * (skew - skew.mT)
    if kind == "indefinite":
        hessian = hessian - shift * torch.eye(d)
    return hessian, 2 * torch.randn(batch, d, generator=random, dtype=D)


# Energies ---------------------------------------------------------------------------------------------------------


def low_rank(vectors: Tensor | list[list[float]], dtype: torch.dtype | None = None) -> ib.QuadraticEnergy:
    """½‖Vᵀz − x‖², frozen; V is (d, r), in its own precision or, as a list, in float64."""
    v = vectors if isinstance(vectors, Tensor) else torch.tensor(vectors, dtype=D)
    v = v if dtype is None else v.to(dtype)
    d, r = v.shape
    energy = ib.QuadraticEnergy(d, r, "low_rank", rank=r, bias=False, dtype=v.dtype)
    with torch.no_grad():
        energy.weight_map.vectors.copy_(v)
        energy.input_weight.copy_(torch.eye(r))
    return energy.requires_grad_(False)


class OwnQuadratic(ib.Energy):
    """½zᵀHz − xᵀz, as a user writes it."""

    def __init__(self, hessian: Tensor, convex: bool = True) -> None:
        super().__init__(convex=convex)
        self.hessian = nn.Parameter(hessian)

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        return 0.5 * torch.linalg.vecdot(z @ self.hessian, z) - torch.linalg.vecdot(x, z)


class Scaled(ib.Energy):
    """½ Σ aᵢzᵢ² − ⟨x, z⟩, minimised by z = x/a: dz/dx = 1/a, dz/da = −x/a²."""

    def __init__(self, dtype: torch.dtype, scale: float = 2.0, features: int = 1) -> None:
        super().__init__(features=features, convex=True)
        self.dtype = dtype
        self.a = nn.Parameter(torch.full((features,), scale, dtype=dtype))

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        return (0.5 * self.a * z.square() - x * z).sum(-1)


# Networks as fields -----------------------------------------------------------------------------------------------


class Network(ib.Field):
    """F = −N with N(z, x) = B tanh(Az + Ux) + b; for γ = 0, F = z − N."""

    def __init__(
        self, d: int = 6, n: int = 4, *, size: float = 0.8, plus_z: bool = False, monotone: bool = False
    ) -> None:
        super().__init__(d, monotone=monotone)
        draw = torch.Generator().manual_seed(3)
        a, b, u = (torch.randn(d, k, generator=draw, dtype=D) for k in (d, d, n))
        self.a = nn.Parameter(size * a / torch.linalg.matrix_norm(a, 2))
        self.b = nn.Parameter(1.2 * b / torch.linalg.matrix_norm(b, 2))
        self.u = nn.Parameter(u)
        self.plus_z = plus_z

    def network(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z @ self.a.mT + x @ self.u.mT) @ self.b.mT + 0.3

    def field(self, z: Tensor, x: Tensor) -> Tensor:
        return z * self.plus_z - self.network(z, x)


class Attention(ib.Field):
    """A transformer block on states (tokens, channels), F = −N, with x = {"tokens": …, "scale": …}."""

    def __init__(self, tokens: int = 3, channels: int = 4) -> None:
        super().__init__((tokens, channels))
        self.attention = nn.MultiheadAttention(channels, 2, batch_first=True, dtype=D)
        self.norm = nn.LayerNorm(channels, dtype=D)

    def field(self, z: Tensor, x: dict[str, Tensor]) -> Tensor:
        mixed = self.attention(z, z, z, need_weights=False)[0] + x["tokens"]
        return -0.5 * x["scale"][:, None, None] * self.norm(z + mixed)


def tokens(batch: int = 4) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(5)
    return {
        "tokens": torch.randn(batch, 3, 4, generator=draw, dtype=D),
        "scale": 0.5 + torch.rand(batch, generator=draw, dtype=D),
    }


def inputs(batch: int = 5, n: int = 4) -> Tensor:
    return torch.randn(batch, n, generator=torch.Generator().manual_seed(4), dtype=D)
