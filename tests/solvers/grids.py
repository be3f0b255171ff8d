"""Bounds on grids with a sparse H: obstacle, torsion and journal-bearing problems (Moré and Toraldo, 1991)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

D = torch.float64


def stiffness(along_x: Tensor, along_y: Tensor) -> Tensor:
    """The sparse matrix of Σ k (z_i − z_j)² over the edges of the grid; its edge comes first and last, where z = 0."""
    n = along_x.shape[1]
    number = torch.arange(n * n).reshape(n, n)
    diagonal = along_x[1:] + along_x[:-1] + along_y[:, 1:] + along_y[:, :-1]
    entries = [(number, number, diagonal)]
    for first, second, k in (
        (number[1:], number[:-1], along_x[1:-1]),
        (number[:, 1:], number[:, :-1], along_y[:, 1:-1]),
    ):
        entries += [(first, second, -k), (second, first, -k)]
    rows, columns, values = (torch.cat([part.flatten() for part in parts]) for parts in zip(*entries, strict=True))
    return torch.sparse_coo_tensor(torch.stack([rows, columns]), values, (n * n, n * n), check_invariants=True)


def grid_problem(name: str, n: int = 60) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """H, c, lo and hi of ½ zᵀHz − cᵀz, lo ≤ z ≤ hi on n × n points, z = 0 around them."""
    h, even = 1 / (n + 1), (torch.ones(n + 1, n, dtype=D), torch.ones(n, n + 1, dtype=D))
    x, y = torch.meshgrid(*[h * torch.arange(1, n + 1, dtype=D)] * 2, indexing="ij")
    free, zero = torch.full_like(x, torch.inf), torch.zeros_like(x)
    if name == "obstacle":  # a membrane over a bump
        return stiffness(*even), zero, 0.4 - 2 * ((x - 0.5) ** 2 + (y - 0.5) ** 2), free
    if name == "torsion":  # an elastic-plastic bar: |z| ≤ the distance to the boundary
        distance = torch.stack([x, 1 - x, y, 1 - y]).amin(0)
        return stiffness(*even), torch.full_like(x, 20 * h * h), -distance, distance
    # The pressure of the oil between a shaft and its bearing: H with the third power of the gap in the middle of edges.
    theta = 2 * math.pi * h
    places = (torch.arange(n + 1, dtype=D) + 0.5, torch.arange(n, dtype=D) + 1.0)
    across, along = ((1 + 0.5 * torch.cos(theta * place)) ** 3 for place in places)
    matrix = stiffness(across[:, None].expand(n + 1, n), along[:, None].expand(n, n + 1))
    return matrix, theta**2 * 0.5 * torch.sin(2 * math.pi * x), zero, free
