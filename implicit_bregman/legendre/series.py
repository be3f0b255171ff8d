"""Series behind the softplus potential (dilogarithms) and Gauss-Jacobi rules for the divergences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from torch import Tensor


def _bernoulli(count: int) -> list[Fraction]:
    """B_0 … B_count by the defining recurrence."""
    numbers = [Fraction(1)]
    for m in range(1, count + 1):
        total = sum((math.comb(m + 1, k) * numbers[k] for k in range(m)), Fraction(0))
        numbers.append(-total / (m + 1))
    return numbers


_TERMS = 16
_B = _bernoulli(2 * _TERMS)
# B_2k/(2k)!, B_2k/(2k+1)! and B_2k/(2k (2k+1)!) for k = 1, 2, …
_COTANGENT = [float(_B[2 * k] / math.factorial(2 * k)) for k in range(1, _TERMS + 1)]
_DEBYE = [float(_B[2 * k] / math.factorial(2 * k + 1)) for k in range(1, _TERMS + 1)]
_DEBYE_LOG = [float(_B[2 * k] / (2 * k * math.factorial(2 * k + 1))) for k in range(1, _TERMS + 1)]
_INVERSE_SQUARES = [1.0 / k**2 for k in range(1, 23)]


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """coefficients[0] + coefficients[1] x + …, by Horner's rule."""
    total = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = torch.addcmul(torch.full_like(x, coefficient), total, x)
    return total


def negative_dilogarithm(y: Tensor) -> Tensor:
    """−Li₂(−eʸ) for y ≤ 0, by its Bernoulli series in log(1 + eʸ) ≤ log 2."""
    z = torch.log1p(torch.exp(y))
    square = z * z
    terms = 4 if y.dtype == torch.float32 else 8
    return z + z * z * (0.25 + z * _polynomial(square, _DEBYE[:terms]))


def softplus_potential_small(z: Tensor) -> Tensor:
    """z²/2 + Li₂(e⁻ᶻ) − π²/6 for 0 ≤ z ≤ 2, by its Bernoulli series."""
    square = z * z
    terms = 5 if z.dtype == torch.float32 else 15
    return torch.xlogy(z, z) - z + square * (0.25 + z * _polynomial(square, _DEBYE_LOG[:terms]))


def softplus_excess_curvature(z: Tensor) -> Tensor:
    """1/(1 − e⁻ᶻ) − 1/z for 0 ≤ z ≤ 2, by its Bernoulli series."""
    terms = 6 if z.dtype == torch.float32 else 16
    return 0.5 + z * _polynomial(z * z, _COTANGENT[:terms])


def dilogarithm_exp(z: Tensor) -> Tensor:
    """Li₂(e⁻ᶻ) for z ≥ 2, by its power series."""
    x = torch.exp(-z)
    terms = 9 if z.dtype == torch.float32 else 22
    return x * _polynomial(x, _INVERSE_SQUARES[:terms])


def _gauss_jacobi(count: int) -> list[tuple[float, float]]:
    """Nodes and weights on [0, 1] for the weight 1 − t, by Golub & Welsch (1969)."""
    # Jacobi polynomials with exponents (1, 0) on [−1, 1].
    diagonal = [-1.0 / ((2 * k + 1) * (2 * k + 3)) for k in range(count)]
    off = [math.sqrt(k * (k + 1)) / (2 * k + 1) for k in range(1, count)]
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64, device="cpu"))
    if off:
        band = torch.tensor(off, dtype=torch.float64, device="cpu")
        matrix += torch.diag(band, 1) + torch.diag(band, -1)
    nodes, vectors = torch.linalg.eigh(matrix)
    # ∫ (1 − t) dt = 1/2 is the total weight.
    weights = 0.5 * vectors[0].square()
    return list(zip((0.5 * (nodes + 1)).tolist(), weights.tolist(), strict=True))


_RULES = {torch.float32: _gauss_jacobi(5), torch.float64: _gauss_jacobi(12)}


def taylor_remainder(second: Callable[[float], Tensor], dtype: torch.dtype) -> Tensor:
    """∫₀¹ (1 − t) second(t) dt: the remainder f(1) − f(0) − f'(0) of a function with f'' = `second`."""
    (node, weight), *rest = _RULES[dtype]
    total = weight * second(node)
    for node, weight in rest:
        total = total + weight * second(node)
    return total
