"""The shared collection of quadratic test problems, built so that the answer is known beforehand.

Every problem is `min f(z) + γ φ(z)` over the closed domain `C` of a Legendre function, one per sample, with
`f(z) = -½ zᵀWz - cᵀz`. Convex and monotone ones are built backwards: the solution and its active set are
drawn first, then the offset `c` that makes them optimal, with multipliers bounded away from zero.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.energy.weights import present_name
from implicit_bregman.legendre import MirrorMap, separable_geometries
from implicit_bregman.legendre import geometry as find_geometry

KINDS = ("convex", "indefinite", "general")
#: The geometries of the benchmark and of the study of the geometry: those with the published measurements.
COMPARED = tuple(name for name in separable_geometries() if name not in ("burg", "double_burg"))

_MULTIPLIERS = (0.2, 1.0)  # range of |(Wz + c)_j| on the active set, in units of `_multiplier_unit`
_SKEW = 0.5  # spectral norm of the skew part of a "general" W, relative to the largest eigenvalue of -sym(W)


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A batch of quadratic problems that share one weight.

    The energy that belongs to it is `QuadraticEnergy.from_matrices(problem.weight)` with `problem.offset` as
    input.

    Attributes:
        name: Unique within the collection.
        geometry: The Legendre function φ; its closed domain is the feasible set C.
        weight: W, `(d, d)`; symmetric unless `kind` is "general".
        offset: c, `(B, d)`.
        regularization: γ ≥ 0.
        kind: "convex" (W ≺ 0), "indefinite" (symmetric, both signs) or "general" (not symmetric, with the
            symmetric part of -W positive definite).
        condition: Ratio of the largest to the smallest |eigenvalue| of the symmetric part of W.
        active_share: Share of the coordinates that are at a bound of C. For "indefinite" it is a lower bound:
            with γ = 0 no strict minimum has fewer active coordinates than W has positive eigenvalues. For monDEQ's
            it is what is expected.
        solution: The designed solution, `(B, d)`, the only one there is; None for "indefinite" and for monDEQ's.
        active: Which of its coordinates are at a bound, `(B, d)`; None where `solution` is.
    """

    name: str
    geometry: MirrorMap
    weight: Float[Tensor, "features features"]
    offset: Float[Tensor, "batch features"]
    regularization: float
    kind: str
    condition: float
    active_share: float
    solution: Float[Tensor, "batch features"] | None = None
    active: Bool[Tensor, "batch features"] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the tensors."""
        return self.weight.dtype

    @property
    def step(self) -> float:
        """The automatic MM step τ = min(1, σ / λ_max(-W)), 0 where σ is; "general" has none (ValueError)."""
        if self.kind == "general":
            raise ValueError(f"problem {self.name!r} is free: no objective, hence no majorization step")
        largest = float(torch.linalg.eigvalsh(-self.weight.double()).max())
        return 1.0 if largest <= self.geometry.strong_convexity else self.geometry.strong_convexity / largest

    def to(self, dtype: torch.dtype) -> Problem:
        """The same problem with its tensors rounded to `dtype`, the solution never out of C.

        Rounding W and c changes the problem: take the reference of the rounded one to judge a solver in
        `dtype`.
        """
        solution = self.solution
        if solution is not None:
            solution = solution.to(dtype).clamp(*self.geometry.bounds(dtype))
        return dataclasses.replace(self, weight=self.weight.to(dtype), offset=self.offset.to(dtype), solution=solution)


def make_problem(
    kind: str = "convex",
    geometry: str | MirrorMap = "tanh",
    dim: int = 32,
    batch: int = 8,
    condition: float = 100.0,
    active: float = 0.0,
    regularization: float = 0.0,
    stiffness: float = 1.0,
    seed: int = 0,
    name: str | None = None,
) -> Problem:
    """Draw one problem in float64.

    Args:
        kind: "convex", "indefinite" or "general" (formerly "free").
        geometry: Legendre function or its name.
        dim: Features d ≥ 2.
        batch: Samples B ≥ 0.
        condition: Condition number ≥ 1 of (the symmetric part of) W; eigenvalues are log-spaced.
        active: Share in [0, 1) of the coordinates at a bound. For "indefinite" the share of the directions in
            which -W is negative, necessarily > 0.
        regularization: γ ≥ 0. With γ > 0 only a φ that is not essentially smooth (sin) has active
            coordinates.
        stiffness: λ_max(-W) in units of σ (of 1 where σ = 0). The automatic step is τ = 1 / max(1,
            stiffness).
        seed: Everything random comes from it.
        name: Defaults to a description of the arguments.

    Returns:
        The problem, with its solution unless it is indefinite.

    Raises:
        ValueError: An argument is out of range, or the combination makes no sense: active coordinates where C
            has no bound or where γφ keeps them inside, or an objective that is unbounded below.
    """
    phi, kind = find_geometry(geometry), present_name(kind)
    _check(kind, dim, batch, condition, active, regularization, stiffness)
    bounded_sides = sum(math.isfinite(end) for end in phi.domain)
    at_bound = kind != "indefinite" and active > 0
    if at_bound and bounded_sides == 0:
        raise ValueError(f"active={active} with geometry {phi.name!r}: its domain has no bound, use active=0")
    if at_bound and regularization > 0 and phi.is_legendre:
        raise ValueError(
            f"active={active} with regularization={regularization} and geometry {phi.name!r}: γφ keeps the"
            " solution inside, use active=0 or regularization=0"
        )

    random = torch.Generator().manual_seed(seed)
    top = stiffness * (phi.strong_convexity or 1.0)
    eigenvalues = -top * torch.logspace(0.0, -math.log10(condition), dim, dtype=torch.float64)
    count = max(1, round(active * dim)) if active > 0 else 0
    if kind == "indefinite":
        # The smallest ones: τ stays as asked, and the coordinates that the negative curvature drives to a
        # bound drag few others along.
        flipped = torch.arange(dim - count, dim)
        eigenvalues[flipped] = -eigenvalues[flipped]
        _check_bounded_below(phi, float(eigenvalues.max()), regularization)
    weight = _symmetric(eigenvalues, random)
    if kind == "general":
        weight = weight + _skew(dim, _SKEW * top, random)

    label = name or "-".join(
        (
            f"{kind}-{phi.name}-d{dim}-condition{condition:g}",
            f"active{active:g}-regularization{regularization:g}-stiffness{stiffness:g}",
        )
    )
    unit = _multiplier_unit(phi, top)
    if kind == "indefinite":
        # Stationary at a point well inside C, a saddle unless γ is large; MM leaves it for a minimum.
        saddle, _, _ = _draw_solution(phi, batch, dim, 0, random)
        offset = regularization * phi.inverse_activation(saddle) - saddle @ weight.T
        share = count / dim if regularization == 0 else 0.0
        return Problem(label, phi, weight, offset, regularization, kind, condition, share)

    solution, mask, outward = _draw_solution(phi, batch, dim, count, random)
    low, high = _MULTIPLIERS
    size = low + (high - low) * torch.rand(batch, dim, generator=random, dtype=torch.float64)
    force = torch.where(mask, outward * unit * size, torch.zeros_like(solution))
    if regularization > 0:
        force = force + regularization * phi.inverse_activation(solution)
    # Stationarity at the solution: Wz + c - γφ'(z) is 0 inside and points out of C at a bound.
    offset = force - solution @ weight.T
    share = count / dim
    return Problem(label, phi, weight, offset, regularization, kind, condition, share, solution, mask)


def make_monotone_problem(
    geometry: str | MirrorMap = "softplus",
    dim: int = 87,
    batch: int = 128,
    margin: float = 1.0,
    symmetric: bool = False,
    seed: int = 0,
    name: str | None = None,
) -> Problem:
    """Draw a layer of monDEQ in float64: W = −(mI + AᵀA + Bᵀ − B), c Gaussian, γ = 0, no designed solution.

    A and B have Gaussian entries of variance 1/d, so that λ_max(AᵀA) is about 4 and ‖B − Bᵀ‖ about 2.8; of the
    network that Winston and Kolter published for MNIST they are 4.4 and 2.1. On z ≥ 0 about half of the coordinates
    are at the bound, some of them with a multiplier near 0.

    Args:
        geometry: Legendre function or its name.
        dim: Features d ≥ 2.
        batch: Samples B ≥ 0.
        margin: m > 0.
        symmetric: Whether B is 0.
        seed: Everything random comes from it.
        name: Defaults to a description of the arguments.

    Raises:
        ValueError: An argument is out of range.
    """
    if not 0 < margin < math.inf:
        raise ValueError(f"margin={margin} is out of range, use a finite number > 0")
    phi, kind = find_geometry(geometry), "convex" if symmetric else "general"
    _check(kind, dim, batch, condition=1.0, active=0.5, regularization=0.0, stiffness=1.0)
    random = torch.Generator().manual_seed(seed)
    factor, skew = torch.randn(2, dim, dim, generator=random, dtype=torch.float64) * dim**-0.5
    weight = -(margin * torch.eye(dim, dtype=torch.float64) + factor.T @ factor)
    eigenvalues = torch.linalg.eigvalsh(-weight)
    if not symmetric:
        weight = weight + skew - skew.T
    offset = torch.randn(batch, dim, generator=random, dtype=torch.float64)
    label = name or f"{kind}-{phi.name}-d{dim}-margin{margin:g}"
    return Problem(label, phi, weight, offset, 0.0, kind, float(eigenvalues[-1] / eigenvalues[0]), 0.5)


def collection() -> tuple[Problem, ...]:
    """The problems every solver and adjoint is tested on, in float64 and with unique names.

    Convex, indefinite and free; condition 1 to 1e4; interior and with 5 to 40 % of the coordinates active; γ
    = 0 and γ > 0; τ = 1 and τ < 1; every geometry where it makes sense.
    """
    box = find_geometry("tanh").to_box(-2.0, 3.0)
    finite = (*map(find_geometry, ("isru", "sigmoid", "arctan", "tanh", "sin", "scaled_tanh")), box)
    half = tuple(map(find_geometry, ("softplus", "exp", "bent")))
    whole = tuple(map(find_geometry, ("arcsinh", "identity")))
    found: list[Problem] = []

    def add(
        kind: str,
        phi: str | MirrorMap,
        dim: int,
        batch: int,
        condition: float,
        active: float = 0.0,
        regularization: float = 0.0,
        stiffness: float = 1.0,
    ) -> None:
        seed = len(found)
        found.append(make_problem(kind, phi, dim, batch, condition, active, regularization, stiffness, seed))

    for phi in (*finite, *half, *whole):
        add("convex", phi, 8, 4, 10.0)
        add("convex", phi, 12, 4, 30.0, regularization=0.3)
    for phi in (*finite, *half):
        add("convex", phi, 16, 6, 100.0, active=0.25)
    for name, active in (("tanh", 0.05), ("sigmoid", 0.4), ("sin", 0.4), ("softplus", 0.2)):
        add("convex", name, 40, 8, 100.0, active=active)
    for condition in (1.0, 1e3, 1e4):
        add("convex", "tanh", 32, 8, condition, active=0.2)
        add("convex", "sigmoid", 32, 8, condition, regularization=0.05)
    add("convex", "identity", 32, 8, 1e4)
    add("convex", "sin", 12, 4, 30.0, active=0.2, regularization=0.3)
    add("convex", "tanh", 48, 8, 100.0, active=0.3, stiffness=4.0)
    add("convex", "arctan", 16, 4, 30.0, active=0.2, stiffness=3.0)
    add("convex", "softplus", 16, 4, 100.0, regularization=0.1, stiffness=5.0)

    for phi in finite:
        if phi.name == "arctan":  # plain MM leaves a saddle at a bound at the rate 1/k only: smaller, easier
            add("indefinite", phi, 12, 8, 10.0, active=0.1)
        else:
            add("indefinite", phi, 20, 8, 30.0, active=0.1)
    for name in ("tanh", "sigmoid", "arctan", "arcsinh"):
        add("indefinite", name, 16, 8, 10.0, active=0.25, regularization=0.03)
    for name in ("softplus", "bent", "identity"):  # γ large enough for the objective to be convex
        add("indefinite", name, 16, 4, 10.0, active=0.25, regularization=1.2)
    add("indefinite", "tanh", 40, 16, 100.0, active=0.1)
    add("indefinite", "tanh", 32, 16, 30.0, active=0.1, stiffness=3.0)
    add("indefinite", "tanh", 32, 16, 10.0, active=0.2, regularization=0.1, stiffness=3.0)

    for name in ("tanh", "sigmoid", "arctan", "softplus"):
        add("general", name, 12, 4, 10.0, active=0.25)
    for name in ("tanh", "identity"):
        add("general", name, 12, 4, 10.0)
    for name in ("sigmoid", "arcsinh"):
        add("general", name, 32, 4, 10.0, regularization=0.2, stiffness=2.0)

    for name in ("burg", "double_burg"):
        add("convex", name, 8, 4, 10.0)
        add("convex", name, 12, 4, 30.0, regularization=0.3)
        add("convex", name, 16, 6, 100.0, active=0.25)
        add("general", name, 12, 4, 10.0, active=0.25)
    return tuple(found)


def _check(
    kind: str,
    dim: int,
    batch: int,
    condition: float,
    active: float,
    regularization: float,
    stiffness: float,
) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown, use one of {', '.join(KINDS)}")
    if dim < 2:
        raise ValueError(f"dim={dim} is too small, use at least 2")
    if batch < 0:
        raise ValueError(f"batch={batch} is negative, use 0 or more samples")
    if not 1 <= condition < math.inf:
        raise ValueError(f"condition={condition} is not a condition number, use a finite number ≥ 1")
    if not 0 <= active < 1:
        raise ValueError(f"active={active} is not a share, use a number in [0, 1)")
    if not 0 <= regularization < math.inf:
        raise ValueError(f"regularization={regularization} is out of range, use a finite number ≥ 0")
    if not 0 < stiffness < math.inf:
        raise ValueError(f"stiffness={stiffness} is out of range, use a finite number > 0")
    if kind == "indefinite" and active == 0:
        raise ValueError("active=0 with kind='indefinite': give the share > 0 of directions of negative curvature")


def _check_bounded_below(phi: MirrorMap, largest: float, regularization: float) -> None:
    """Refuse an indefinite weight where γφ does not outgrow it at an infinite end of C."""
    if all(map(math.isfinite, phi.domain)):
        return
    growth = regularization * phi.curvature_at_infinity if regularization > 0 else 0.0
    if growth <= largest:
        raise ValueError(
            f"regularization={regularization} with an indefinite weight on {phi.name!r}'s unbounded domain:"
            " the objective may be unbounded below, use a bounded geometry or a larger regularization"
        )


def _multiplier_unit(phi: MirrorMap, top: float) -> float:
    """Natural size of ∇f: the largest eigenvalue of -W times half the width of C (1 if that is infinite)."""
    low, high = phi.domain
    return top * (0.5 * (high - low) if math.isfinite(high - low) else 1.0)


def _symmetric(eigenvalues: Float[Tensor, " features"], random: torch.Generator) -> Tensor:
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    dim = len(eigenvalues)
    basis, _ = torch.linalg.qr(torch.randn(dim, dim, generator=random, dtype=torch.float64))
    matrix = (basis * eigenvalues) @ basis.T
    return 0.5 * (matrix + matrix.T)


def _skew(dim: int, norm: float, random: torch.Generator) -> Tensor:
    """A random skew-symmetric matrix of the given spectral norm."""
    matrix = torch.randn(dim, dim, generator=random, dtype=torch.float64)
    matrix = matrix - matrix.T
    return matrix * (norm / torch.linalg.matrix_norm(matrix, 2))


def _draw_solution(
    phi: MirrorMap, batch: int, dim: int, count: int, random: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Points of C with `count` coordinates at a bound and the others well inside.

    Returns:
        The points, the mask of the coordinates at a bound, and for each coordinate the sign of the direction
        out of C at the bound chosen for it; all `(batch, dim)`.
    """
    low, high = phi.bounds(torch.float64)
    has_low, has_high = (math.isfinite(end) for end in phi.domain)
    uniform = torch.rand(batch, dim, generator=random, dtype=torch.float64)
    if has_low and has_high:
        inside = low + (high - low) * (0.1 + 0.8 * uniform)
    elif has_low:
        inside = low + 0.3 + 1.2 * uniform
    elif has_high:
        inside = high - 0.3 - 1.2 * uniform
    else:
        inside = 2 * uniform - 1
    upper = torch.rand(batch, dim, generator=random, dtype=torch.float64) < 0.5
    upper = (upper & has_high) if has_low else torch.ones_like(upper)
    order = torch.rand(batch, dim, generator=random, dtype=torch.float64).argsort(dim=-1)
    mask = order < count
    outward = torch.full_like(inside, -1.0).masked_fill(upper, 1.0)
    bound = torch.full_like(inside, low).masked_fill(upper, high)
    return torch.where(mask, bound, inside), mask, outward
