"""Networks as fields, shared by the tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import implicit_bregman as ib

D = torch.float64


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
