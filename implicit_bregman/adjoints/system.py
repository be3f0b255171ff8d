"""Solving the adjoint system, with a status per sample."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.energy.contract import BoundEnergy
from implicit_bregman.legendre.coupling import Coupling
from implicit_bregman.linalg.cg import conjugate_gradient, normalized
from implicit_bregman.linalg.gcr import gcr
from implicit_bregman.linalg.gmres import gmres
from implicit_bregman.linalg.nullspace import null_part
from implicit_bregman.linearization import Linearization
from implicit_bregman.operators import ROUNDING_ERRORS, LinearOperator
from implicit_bregman.operators.splitter import Ends, Splitter
from implicit_bregman.status import Status
from implicit_bregman.tangent import TangentSystem

METHODS = ("auto", "cg", "gmres", "dense")

#: Relative residual asked of the adjoint system, by precision.
DEFAULT_TOL = {torch.float32: 1e-6, torch.float64: 1e-12}
#: A factorization whose solution leaves a larger relative residual is that of a numerically singular system. A
#: symmetric W may be so only up to its own rounding, of which the factorization sees one half.
_SINGULAR = {torch.float32: 1e-5, torch.float64: 1e-8}
#: So many rounding errors are those of a sum.
_SUM = 4
#: A system in which rounding changes v by more than this, relative to v, is singular.
_DETERMINED = 1e-3
#: The smallest relative residual that is asked of a direct solve.
_LEAST = 1e-13
#: Rounds of refinement with a float64 residual.
_REFINEMENTS = 4
#: So many times the smallest normal number, D₊ counts as 0.
_LEAST_SLOPE = 1e8
#: Rounds of CG in a singular system, and the relative residual that is asked of each.
_ROUNDS, _FEW_DIGITS = 10, 1e-2
#: Rounds of Chebyshev steps.
_SWEEPS = 3

#: Sizes of the rows of dL/dz between which they are taken as they are.
_SMALLEST, _LARGEST = 1e-9, 1e9

AdjointSolution = tuple[Tensor, Tensor, Tensor, Tensor]


def solve_adjoint_system(
    system: Linearization, gradient: Float[Tensor, "batch d"], method: str, tol: float | None, max_iter: int
) -> tuple[Float[Tensor, "batch d"], Int[Tensor, " batch"], Float[Tensor, " batch"], Int[Tensor, " batch"]]:
    """v = dL/dc from g = dL/dz; rows of g that are not finite give v = NaN and the status INVALID_INPUT.

    Returns:
        v (B, d), status (B,), relative residual (B,), iterations (B,).
    """
    if len(gradient) == 0:
        none = torch.zeros(0, dtype=torch.int64, device=gradient.device)
        return torch.zeros_like(gradient), none, gradient.new_zeros(0), none
    size = torch.linalg.vector_norm(gradient, torch.inf, dim=-1)
    least, most = (float(end) for end in size.aminmax())
    if least >= _SMALLEST and most <= _LARGEST:
        return _solve(system, gradient, method, tol, max_iter)
    # Each row at the size 1: no square of it underflows, or overflows.
    g, unit, usable = normalized(gradient)
    v, status, residual, iterations = _solve(system, g, method, tol, max_iter)
    status = torch.where(usable, status, int(Status.INVALID_INPUT))
    return torch.where(usable[:, None], unit * v, torch.nan), status, residual, iterations


def _solve(system: Linearization, g: Tensor, method: str, tol: float | None, max_iter: int) -> AdjointSolution:
    """The same for rows of a moderate size."""
    target = DEFAULT_TOL[g.dtype] if tol is None else tol
    if system.coupling is not None:
        return _tangential(system, system.coupling, g, target, max_iter)
    if method == "auto" and system.splitting is not None and not system.hessian.factorizes:
        split = _split_any(system, system.splitting, g, target)
        if split is not None:
            v, _, residual, iterations = split
            return v.to(g.dtype), torch.zeros_like(iterations), residual, iterations
    direct = system.hessian.factorizes and (method == "dense" or (method == "auto" and _is_cheap(system)))
    v, solved, residual, iterations = (
        _direct(system, g, target) if direct else _iterate(system, g, method, target, max_iter)
    )
    finite = torch.isfinite(v.sum(-1))
    if bool((solved & finite).all()):
        # (CONVERGED is 0)
        return v.to(g.dtype), torch.zeros_like(iterations), residual, iterations
    # More iterations cannot help where there was a factorization, or where they ended before their limit.
    unsolved = torch.where((iterations >= max_iter) & (not direct), int(Status.MAX_ITER), int(Status.SINGULAR))
    status = torch.where(solved, int(Status.CONVERGED), unsolved)
    status, residual = torch.where(finite, status, int(Status.SINGULAR)), torch.where(finite, residual, torch.inf)
    return torch.where(finite[:, None], v, 0.0).to(g.dtype), status, residual, iterations


def _tangential(system: Linearization, coupling: Coupling, g: Tensor, tol: float, max_iter: int) -> AdjointSolution:
    """Where the coordinates are coupled, along C."""
    found = TangentSystem(system, coupling).solve(g, 0.7 * tol, max_iter)
    solved = found.converged & (found.residual <= 10 * tol)
    finite = torch.isfinite(found.value.sum(-1))
    unsolved = torch.where(found.iterations >= max_iter, int(Status.MAX_ITER), int(Status.SINGULAR))
    status = torch.where(solved & finite, int(Status.CONVERGED), unsolved)
    v = torch.where(finite[:, None], found.value, 0.0).to(g.dtype)
    return v, status, torch.where(finite, found.residual, torch.inf).to(g.dtype), found.iterations


def check_method(method: str, energy: BoundEnergy) -> None:
    """Refuse a method that does not go with the energy.

    Raises:
        ValueError: naming the methods that do.
    """
    if method == "dense" and energy.factored is None:
        raise ValueError('adjoint method "dense" needs a quadratic energy: use method="cg" or "auto"')
    if method == "cg" and not energy.symmetric:
        raise ValueError('adjoint method "cg" needs a symmetric weight: use method="gmres" or "auto"')


def _is_cheap(system: Linearization) -> bool:
    return system.slope.shape[-1] <= system.hessian.costs.adjoint_width or _on_free_sets(system)


def _on_free_sets(system: Linearization) -> bool:
    """Whether every sample's system is the free block of H and the identity (all samples are exact)."""
    if system.on_free_sets:
        return True
    slope, shift = system.slope, system.shift
    return bool((((slope == 1) & (shift == 0)) | ((slope == 0) & (shift == 1))).all())


def _direct(system: Linearization, g: Tensor, tol: float) -> AdjointSolution:
    """Direct solves: through the inverse that is known where all samples are exact, else by factorizations."""
    none = torch.zeros(len(g), dtype=torch.int64, device=g.device)
    hessian, slope = system.hessian, system.slope
    limit = _SINGULAR[hessian.dtype]
    if _on_free_sets(system):
        free = slope > 0
        split = None if system.splitting is None else _split(system, system.splitting, free, g, tol)
        if split is not None:
            return split
        found = hessian.refine_on(free, g, tol=max(1e-3 * tol, _LEAST), blocks=system.blocks)
        if found is not None:
            solved = found.solved & (found.residual <= limit)
            good = _judged(system, found.value, g, solved, found.residual)
            return found.value, good, found.residual.to(g.dtype), none
        if hessian.symmetric and hessian.convex:
            return (*_minimum_norm(hessian, free, g), none)
        v, solved = hessian.solve_on(free, g.double(), adjoint=True)
        v = torch.where(solved[:, None], v, torch.nan)
    elif hessian.symmetric:
        root = slope.double().sqrt()
        v = root * hessian.systems(system.shift, root, root).solve_symmetric(root * g.double())
        solved = torch.isfinite(v.sum(-1))
    else:
        u, solved = hessian.systems(system.shift, None, slope, adjoint=True).solve(g)
        v = torch.where(solved[:, None], slope * u, torch.nan)
        solved = torch.isfinite(v.sum(-1))
    residual = _residual(system, v, g)
    return v, _judged(system, v, g, solved & (residual <= limit), residual), residual, none


def _split_any(system: Linearization, ends: Ends, g: Tensor, tol: float) -> AdjointSolution | None:
    """The same for an operator that is no matrix, on free sets or with one damping; None for other systems."""
    if system.damping is None:
        return _split(system, ends, system.slope > 0, g, tol) if _on_free_sets(system) else None
    splitter, slope = Splitter(system.hessian, ends, adjoint=True), system.slope
    root = slope.sqrt()
    found = splitter.solve_scaled(slope, system.damping, g, root / root.amax().clamp_min(1.0), tol)
    solved = found.left <= tol
    if not bool(solved.all()):
        return None
    steps = torch.full_like(found.left, found.iterations, dtype=torch.int64)
    return system.slope * found.value, solved, found.left.to(g.dtype), steps


def _split(system: Linearization, ends: Ends, free: Tensor, g: Tensor, tol: float) -> AdjointSolution | None:
    """By operator splitting, as the forward solve was made; None where it does not get there."""
    found = Splitter(system.hessian, ends, adjoint=True).solve_on(free, g, tol)
    solved = found.left <= tol
    if not bool(solved.all()):
        return None
    steps = torch.full_like(found.left, found.iterations, dtype=torch.int64)
    return found.value, solved, found.left.to(g.dtype), steps


def _judged(
    system: Linearization, v: Tensor, g: Tensor, solved: Bool[Tensor, " batch"], residual: Float[Tensor, " batch"]
) -> Bool[Tensor, " batch"]:
    """`solved`, and samples whose residual is rounding in an ill-conditioned system that still determines v."""
    if bool(solved.all()):
        return solved
    if system.hessian.factorizes:
        residual, rounding = _scaled(system, v.double(), g.double())
    else:
        slope, shift = system.slope, system.shift
        # (of a bound for every entry a tenth is left in the norm)
        terms = 0.1 * torch.linalg.vector_norm(slope * system.hessian.rounding(v), dim=-1)
        rounding = terms + torch.finfo(v.dtype).eps * torch.linalg.vector_norm(shift * v, dim=-1)
        rounding = rounding / torch.linalg.vector_norm(slope * g, dim=-1)
    return solved | ((residual <= rounding) & (rounding <= _DETERMINED))


def _scaled(system: Linearization, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The relative residual with every equation in its own units, and what rounding may make of it, each (B,).

    Where H is definite the units are those of a diagonal of ones: they say how well v is determined.
    """
    hessian, slope, shift = system.hessian, system.slope.double(), system.shift.double()
    size = hessian.diagonal() if hessian.symmetric and hessian.convex else hessian.column_sizes()
    assert size is not None  # what factorizes has them
    # The equation was multiplied by D₊, of which its symmetric form keeps the root.
    unit = (slope * (slope * size.double().abs() + shift)).sqrt()
    # (a row of zeros that asks for something is not to be overlooked)
    unit = torch.where(unit > 0, unit, torch.where(slope > 0, 1.0, torch.inf))
    right = torch.linalg.vector_norm(slope * g / unit, dim=-1)
    left = (shift * v + slope * hessian.product(v, adjoint=True) - slope * g) / unit
    terms = _SUM * torch.finfo(torch.float64).eps * (shift * v).abs()
    terms = terms + _SUM / ROUNDING_ERRORS * slope * hessian.transposed().rounding(v)
    rounding = torch.linalg.vector_norm(terms / unit, dim=-1)
    return torch.linalg.vector_norm(left, dim=-1) / right, rounding / right


def _minimum_norm(hessian: LinearOperator, free: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """v, whether it was found, and its residual; where H_FF is singular, the shortest v with (Hv)_F nearest to g_F."""
    v = hessian.solve_shortest_on(free, g, torch.finfo(hessian.dtype).eps)
    left = torch.where(free, g - hessian.product(v), 0.0)
    # What no v can remove is orthogonal to the range.
    inside = torch.where(free, g.double(), 0.0)
    residual = _relative(torch.where(free, hessian.product(left), 0.0), hessian.product(inside)).to(g.dtype)
    return v, torch.isfinite(v.sum(-1)) & (residual <= _SINGULAR[hessian.dtype]), residual


def _residual(system: Linearization, v: Tensor, g: Tensor) -> Float[Tensor, " batch"]:
    """‖(shift/D₊ + Hᵀ) v − g‖ over the coordinates with D₊ > 0, relative to ‖g‖."""
    slope, shift = system.slope.to(v.dtype), system.shift.to(v.dtype)
    inside = slope > 0
    # D₊ times the equation: no division by a slope that may be tiny.
    left = shift * v + slope * system.hessian.product(v, adjoint=True)
    return _relative(torch.where(inside, left - slope * g, 0.0), slope * g).to(g.dtype)


def _relative(error: Tensor, to: Tensor) -> Float[Tensor, " batch"]:
    """‖error‖ / ‖to‖, or ‖error‖ where that is 0."""
    size = torch.linalg.vector_norm(to, dim=-1)
    return torch.linalg.vector_norm(error, dim=-1) / torch.where(size > 0, size, 1.0)


def _iterate(system: Linearization, g: Tensor, method: str, tol: float, max_iter: int) -> AdjointSolution:
    """By iteration; CG and GMRES are refined with float64 residuals where H `factorizes`."""
    symmetric = system.hessian.symmetric and method != "gmres"
    swept = _sweep(system, g, tol, max_iter) if method == "auto" else None
    if swept is not None:
        return swept
    if not (symmetric or system.hessian.factorizes):
        return _by_products(system, g, tol, max_iter)
    wide = torch.float64 if system.hessian.factorizes else g.dtype
    equation = _Equation.of(system, symmetric, wide)
    right, residual, v = g, g.to(wide), torch.zeros_like(g, dtype=wide)
    norm = equation.size(residual)
    size, unit = norm, torch.ones_like(norm)
    iterations = torch.zeros(len(g), dtype=torch.int64, device=g.device)
    positive = torch.ones(len(g), dtype=torch.bool, device=g.device)
    # One round where nothing can be gained: float64, or products that are no better in it.
    for _ in range(_REFINEMENTS if wide != g.dtype else 1):
        # What is still missing, and no more than one solve can give.
        missing = (0.7 * tol * norm / torch.where(size > 0, size, 1.0)).clamp(_reach(g.dtype), 0.5).to(g.dtype)
        if symmetric:
            part = system.solve_symmetric(right, missing, max_iter)
            step = part.value
        else:
            part = gmres(system.apply, right, system.preconditioner(), missing, max_iter)
            step = system.slope * part.value
        v = torch.addcmul(v, unit[:, None], step.to(wide))
        iterations, positive = iterations + part.iterations, positive & part.positive
        residual = equation.residual(v, g)
        size = equation.size(residual)
        done = size <= tol * norm
        if bool(done.all()):
            break
        unit = torch.where(done | (size == 0), 1.0, size)
        right = torch.where(done[:, None], 0.0, residual / unit[:, None]).to(g.dtype)
    relative = size / torch.where(norm > 0, norm, 1.0)
    solved = done | (part.converged & (relative <= 10 * tol))
    if symmetric and not bool(solved.all()):
        v, solved, relative = _shortest(system, g, (v, solved, relative), max_iter)
        positive = positive | solved
    if not bool(positive.all()):
        v, solved, relative = _replace_indefinite(system, g, (v, solved, relative), positive, tol, max_iter)
    return v, _judged(system, v, g, solved, relative), relative.to(g.dtype), iterations


def _by_products(system: Linearization, g: Tensor, tol: float, max_iter: int) -> AdjointSolution:
    """Where H is neither symmetric nor a matrix: the solver's own residual is all that there is to be judged by."""
    missing = min(max(0.7 * tol, _reach(g.dtype)), 0.5)
    part = gcr(system.apply, g, system.preconditioner(), missing, max_iter)
    v, solved = system.slope * part.value, part.converged | (part.residual <= tol)
    return v, _judged(system, v, g, solved, part.residual), part.residual, part.iterations


def _sweep(system: Linearization, g: Tensor, tol: float, max_iter: int) -> AdjointSolution | None:
    """By Chebyshev steps, repeated for what is left over; None where they do not pay or do not get there."""
    if len(g) == 0:
        return None
    weight = system.slope.sqrt()
    norm = torch.linalg.vector_norm(weight * g, dim=-1)
    u, left, products, reduction = None, g, 0, 0.3 * tol
    for _ in range(_SWEEPS):
        found = system.sweep(left, max(reduction, _reach(g.dtype)), max_iter - products)
        if found is None:
            return None
        u, products = found[0] if u is None else u + found[0], products + found[1]
        left = g - system.apply(u)
        size = torch.linalg.vector_norm(weight * left, dim=-1)
        worst = float((size - tol * norm).max())
        if worst <= 0:
            relative = size / torch.where(norm > 0, norm, 1.0)
            solved = torch.ones_like(norm, dtype=torch.bool)
            return system.slope * u, solved, relative, torch.full_like(norm, products, dtype=torch.int64)
        reduction = 0.1
    return None


@dataclass(frozen=True)
class _Equation:
    """v's equation (shift/D₊ + Hᵀ) v = g on the coordinates with D₊ > 0, and the norm that its residual is judged by.

    Attributes:
        system: the linearization.
        ratio: shift/D₊, 0 where D₊ is 0, (B, d).
        weight: √D₊, which makes the residual that of the symmetric form; else 1 where D₊ > 0 and 0 elsewhere.
    """

    system: Linearization
    ratio: Tensor
    weight: Tensor

    @classmethod
    def of(cls, system: Linearization, symmetric: bool, dtype: torch.dtype) -> _Equation:
        slope, shift = system.slope.to(dtype), system.shift.to(dtype)
        # Below, the ratio might overflow; what is left of v there is nothing.
        least = _LEAST_SLOPE * torch.finfo(dtype).tiny
        if symmetric and system.slope_range[0] > least:
            return cls(system, shift / slope, slope.sqrt())
        inside = slope > least
        slope = torch.where(inside, slope, 0.0)
        ratio = torch.where(inside, shift / torch.where(inside, slope, 1.0), 0.0)
        return cls(system, ratio, slope.sqrt() if symmetric else inside.to(dtype))

    def residual(self, v: Tensor, g: Tensor) -> Tensor:
        """g − (shift/D₊ + Hᵀ) v."""
        return (g - self.system.hessian.product(v, adjoint=True)).addcmul_(self.ratio, v, value=-1)

    def size(self, residual: Tensor) -> Float[Tensor, " batch"]:
        return torch.linalg.vector_norm(self.weight * residual, dim=-1)


def _reach(dtype: torch.dtype) -> float:
    """The relative residual that one iterative solve can be asked for in this precision."""
    return 4 * float(torch.finfo(dtype).eps)


def _shortest(
    system: Linearization, g: Tensor, found: tuple[Tensor, Tensor, Tensor], max_iter: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`found`; where H is semidefinite and its free block proves to be singular, the shortest v as `_minimum_norm`.

    With the part of g in the range of H_FF in its place, CG from 0 finds it.
    """
    v, solved, relative = found
    slope, shift, ends = system.slope, system.shift, system.hessian.bounds()
    on_free_set = (((slope == 1) & (shift == 0)) | ((slope == 0) & (shift == 1))).all(-1)
    rows = (~solved & on_free_set).nonzero().squeeze(-1)
    if ends is None or ends[1] <= 0 or len(rows) == 0:
        return found
    mask, hessian, eps = slope[rows], system.hessian.select(rows), torch.finfo(g.dtype).eps

    def product(u: Tensor) -> Tensor:
        return mask * hessian.product(mask * u)

    inside = mask * g[rows]
    rest, null = null_part(product, inside, ends[1], eps, max_iter)
    inside = inside - rest
    shortest, missing, left = torch.zeros_like(inside), inside, torch.ones_like(inside[:, 0])
    for _ in range(_ROUNDS):
        # (rounding leaves some of the null space in the right-hand side, which must not become most of it)
        step = conjugate_gradient(product, missing, torch.Tensor.clone, _FEW_DIGITS, max_iter).value
        rest = inside - product(shortest + step)
        better = _relative(rest, inside) < 0.5 * left
        if not bool(better.any()):
            break
        shortest = torch.where(better[:, None], shortest + step, shortest)
        missing = torch.where(better[:, None], rest, missing)
        left = _relative(missing, inside)
    good = null & (left <= _SINGULAR[g.dtype])
    v, relative = v.clone(), relative.clone()
    v[rows[good]], relative[rows[good]] = shortest[good].to(v.dtype), left[good].to(relative.dtype)
    return v, solved.index_fill(0, rows[good], True), relative


def _replace_indefinite(
    system: Linearization,
    g: Tensor,
    found: tuple[Tensor, Tensor, Tensor],
    positive: Bool[Tensor, " batch"],
    tol: float,
    max_iter: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve again, by a method that needs no positive curvature, the samples at which CG met a negative one."""
    rows = (~positive).nonzero().squeeze(-1)
    part = Linearization(system.hessian.select(rows), system.slope[rows], system.shift[rows])
    if system.hessian.factorizes and g.shape[-1] <= system.hessian.costs.indefinite_width:
        again = _direct(part, g[rows], tol)
    else:
        again = _iterate(part, g[rows], "gmres", tol, max_iter)
    v, solved, relative = (
        old.index_copy(0, rows, new.to(old.dtype)) for old, new in zip(found, again[:3], strict=True)
    )
    return v, solved, relative
