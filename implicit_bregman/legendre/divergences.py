"""Bregman divergences without cancellation.

φ(u) + φ*(q) − uq loses every digit once u is close to v, and turns negative. Here the remainder integral
D = ∫₀¹ (1 − t) φ*''(p + t(q − p)) (q − p)² dt is evaluated by a Gauss-Jacobi rule while its argument is short compared
with the distance to the poles of φ*'', and a closed form with no large terms to cancel is used beyond.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from implicit_bregman.legendre._elementary import asinh, hypot1, softplus
from implicit_bregman.legendre.series import (
    dilogarithm_exp,
    negative_dilogarithm,
    softplus_excess_curvature,
    softplus_potential_small,
    taylor_remainder,
)

# Longest step of the rule for exponential functions, whose nearest pole is at distance π.
_STEP = 2.0
# Longest step relative to the distance of the pole for algebraic functions.
_RELATIVE_STEP = 0.5


def entropy(u: Tensor, v: Tensor, d: Tensor) -> Tensor:
    """u log(u/v) − u + v for u, v ≥ 0, given d = u − v."""
    x = d / v
    small = x.abs() <= _RELATIVE_STEP
    near = v * taylor_remainder(lambda t: x * x / (1.0 + t * x), v.dtype)
    # 1 + x = u/v, whose relative error is smaller from u and v below 1 and from x above. The quotient overflows when
    # v is subnormal or 0.
    falling = torch.xlogy(u, u / v) - d
    rising = v * ((1.0 + x) * torch.log1p(x) - x)
    steep = u * (torch.log(u) - torch.log(v)) - d
    far = torch.where(x < 0.0, falling, torch.where(torch.isinf(x), steep, rising))
    return torch.where(small, near, far).where(d != 0.0, 0.0)


def sigmoid_dual(p: Tensor, q: Tensor, d: Tensor) -> Tensor:
    """D of φ* = log(1 + eʸ), given d = q − p."""
    # e^(−|p|) is taken out: rounding p + td would cost |p| units in the last place.
    scale, step = torch.exp(-p.abs()), torch.where(p > 0, -d, d)

    def second(t: float) -> Tensor:
        decay = torch.exp(t * step)
        return decay / (1.0 + scale * decay).square()

    near = d * d * (scale * taylor_remainder(second, p.dtype))
    # φ* is even up to a linear function: flip both so that p ≤ 0.
    low, other = -p.abs(), torch.where(p > 0, -q, q)
    far = softplus(other) - softplus(low) - torch.sigmoid(low) * (other - low)
    return torch.where(d.abs() <= _STEP, near, far)


def softplus_dual(p: Tensor, q: Tensor, d: Tensor) -> Tensor:
    """D of φ* = −Li₂(−eʸ), given d = q − p."""
    above = p > 0
    scale, step = torch.exp(-p.abs()), torch.where(above, -d, d)

    def second(t: float) -> Tensor:
        decay = torch.exp(t * step)
        return torch.where(above, 1.0, decay) / (1.0 + scale * decay)

    near = d * (d * torch.where(above, 1.0, scale) * taylor_remainder(second, p.dtype))
    tail_p, tail_q = negative_dilogarithm(-p.abs()), negative_dilogarithm(-q.abs())
    excess = softplus(-p)
    both_above = d * (0.5 * d - excess) - (tail_q - tail_p)
    falling = p * (0.5 * p - q) - d * excess + (tail_q + tail_p - math.pi**2 / 6)
    end = torch.where(q > 0, 0.5 * q * q + math.pi**2 / 6 - tail_q, tail_q)
    rising = end - tail_p - softplus(p) * d
    far = torch.where(above, torch.where(q > 0, both_above, falling), rising)
    return torch.where(d.abs() <= _STEP, near, far)


def softplus_primal(u: Tensor, v: Tensor, d: Tensor) -> Tensor:
    """D of φ = z²/2 + Li₂(e⁻ᶻ) on [0, ∞), given d = u − v."""
    # Up to 2, φ is z log z − z plus a function with curvature between 1/2 and 1.
    low_u, low_v, low_d = u.clamp(max=2.0), v.clamp(max=2.0), d.clamp(-2.0, 2.0)
    smooth = taylor_remainder(lambda t: softplus_excess_curvature(low_v + t * low_d), u.dtype)
    low = entropy(low_u, low_v, low_d) + low_d * low_d * smooth
    # Elsewhere it is z²/2 plus G = Li₂(e⁻ᶻ), with G' = log(1 − e⁻ᶻ), G'' = 1/(eᶻ − 1).
    near = taylor_remainder(lambda t: d / torch.expm1(v + t * d) * d, u.dtype)
    slope = torch.where(v < 0.5, torch.log(-torch.expm1(-v)), torch.log1p(-torch.exp(-v)))
    far = _dilogarithm(u) - _dilogarithm(v) - slope * d
    short = d.abs() <= 0.5 * torch.minimum(u, v).clamp(max=1.0)
    high = 0.5 * d * d + torch.where(short, near, far)
    return torch.where(torch.maximum(u, v) <= 2.0, low, high)


def _dilogarithm(z: Tensor) -> Tensor:
    """Li₂(e⁻ᶻ) for z ≥ 0."""
    low = z.clamp(max=2.0)
    near = softplus_potential_small(low) - 0.5 * low * low + math.pi**2 / 6
    return torch.where(z <= 2.0, near, dilogarithm_exp(z.clamp(min=2.0)))


def exp_dual(p: Tensor, q: Tensor, d: Tensor) -> Tensor:
    """D of φ* = eʸ, given d = q − p."""
    near = torch.exp(p) * taylor_remainder(lambda t: d * d * torch.exp(t * d), p.dtype)
    rising = torch.exp(q) * (1.0 - torch.exp(-d) * (1.0 + d))
    falling = torch.exp(p) * (torch.expm1(d) - d)
    far = torch.where(d > 0, rising, falling)
    return torch.where(d.abs() <= _STEP, near, far).where(d != 0.0, 0.0)


def arctan_dual(p: Tensor, q: Tensor, d: Tensor) -> Tensor:
    """D of φ* = y arctan y − ½ log(1 + y²), given d = q − p."""
    near = taylor_remainder(lambda t: (d / hypot1(p + t * d)).square(), p.dtype)
    root_p, root_q = hypot1(p), hypot1(q)
    # arctan q − arctan p from its sine and cosine, which cannot overflow.
    angle = torch.atan2(d / root_p / root_q, 1.0 / root_p / root_q + (p / root_p) * (q / root_q))
    far = torch.log(root_p / root_q) + q * angle
    return torch.where(_is_short(p, q, d), near, far)


def _is_short(p: Tensor, q: Tensor, d: Tensor) -> Tensor:
    """Whether [p, q] is short compared with the distance to the poles ±i of (1 + y²)^(−k)."""
    closest = torch.where((p > 0) == (q > 0), torch.minimum(p.abs(), q.abs()), 0.0)
    return d.abs() <= _RELATIVE_STEP * hypot1(closest)


def arctan_primal(gap_u: Tensor, gap_v: Tensor, u: Tensor, v: Tensor, d: Tensor) -> Tensor:
    """D of φ = −log cos z, given d = u − v and the distances of u and v to the bounds nearest to them."""
    same_side = (u > 0) == (v > 0)
    shorter = torch.minimum(gap_u, gap_v)
    short = same_side & (d.abs() <= 0.75 * shorter)
    near = taylor_remainder(lambda t: (d / torch.sin(gap_v + t * (gap_u - gap_v))).square(), d.dtype)
    # Across 0 the complements have a kink; cos is harmless there.
    centred = (d.abs() <= 0.5) & ~same_side
    middle = taylor_remainder(lambda t: (d / torch.cos(v + t * d)).square(), d.dtype)
    slope = torch.tan(gap_v).reciprocal().copysign(v)
    far = torch.log(torch.sin(gap_v) / torch.sin(gap_u)) - slope * d
    far = torch.where(gap_v == 0.0, math.inf, far)
    return torch.where(short, near, torch.where(centred, middle, far)).where(d != 0.0, 0.0)


def arcsinh_dual(p: Tensor, q: Tensor, d: Tensor) -> Tensor:
    """D of φ* = y arsinh y − √(1 + y²), given d = q − p."""
    near = taylor_remainder(lambda t: d * (d / hypot1(p + t * d)), p.dtype)
    root_p, root_q = hypot1(p), hypot1(q)
    size = torch.log((q.abs() + root_q) / (p.abs() + root_p))
    growth = torch.where((p > 0) == (q > 0), torch.where(q > 0, size, -size), asinh(q) - asinh(p))
    far = q * growth - root_q + root_p
    return torch.where(_is_short(p, q, d), near, far)


def arcsinh_primal(u: Tensor, v: Tensor, d: Tensor) -> Tensor:
    """D of φ = cosh z, given d = u − v."""
    near = taylor_remainder(lambda t: d * d * torch.cosh(v + t * d), u.dtype)
    far = torch.cosh(u) - torch.cosh(v) - torch.sinh(v) * d
    return torch.where(d.abs() <= _STEP, near, far)


def isru_dual(p: Tensor, q: Tensor, d: Tensor) -> Tensor:
    """D of φ* = √(1 + y²), given d = q − p."""
    root_p, root_q = hypot1(p), hypot1(q)
    rho = p / root_p
    step = d / root_p
    together = step * (step / (root_q + 1.0 / root_p + rho * q))
    apart = root_q - 1.0 / root_p - rho * q
    return torch.where(p * q < -0.5, apart, together)


def sin_from_angle(cosine: Tensor, sine: Tensor, d: Tensor) -> Tensor:
    """D(sin p, sin q) = cos p (1 − cos d) + sin p (d − sin d) with d = p − q."""
    square = d * d
    # d − sin d by its series up to 1, where the difference would cancel.
    terms = torch.zeros_like(d)
    for k in range(9, 0, -1):
        terms = (1.0 - terms) * square / ((2 * k) * (2 * k + 1))
    remainder = torch.where(d.abs() <= 1.0, d * terms, d - torch.sin(d))
    return 2.0 * cosine * torch.sin(0.5 * d).square() + sine * remainder


def burg(u: Tensor, v: Tensor, d: Tensor) -> Tensor:
    """u/v − 1 − log(u/v) for u and v of the same sign, given d = u − v."""
    return burg_gap(u, v, d / v).where(d != 0.0, 0.0)


def burg_gap(u: Tensor, v: Tensor, x: Tensor) -> Tensor:
    """The same, given x = (u − v)/v."""
    ratio = u / v
    # A quotient that underflows has lost its logarithm.
    falls = ratio < torch.finfo(ratio.dtype).tiny
    far = x - (torch.log(u.abs()) - torch.log(v.abs()))
    return torch.where(falls, far, bent_gap(ratio, x))


def double_burg_dual(p: Tensor, q: Tensor, below: Callable[[Tensor], Tensor], d: Tensor) -> Tensor:
    """D of −log z − log(1 − z), given the distance of ρ(y) to 0, to 1 that of ρ(−y), and d = q − p."""
    u, v, u_above, v_above = below(p), below(q), below(-p), below(-q)
    # φ'(u) − φ'(v) = (u − v)(1/(uv) + 1/((1 − u)(1 − v))), where no term is negative.
    step = -d * (u * u_above) / (u * v + u_above * v_above)
    return burg_gap(u, v, step * v_above) + burg_gap(u_above, v_above, -step * v)


def bent_gap(ratio: Tensor, x: Tensor) -> Tensor:
    """x − log(1 + x) for x > −1, given 1 + x without rounding."""
    near = taylor_remainder(lambda t: (x / (1.0 + t * x)).square(), x.dtype)
    far = torch.where(torch.isinf(x), x, x - torch.log(ratio))
    return torch.where(x.abs() <= _RELATIVE_STEP, near, far)
