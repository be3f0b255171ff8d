"""An independent float64 reference for solutions and gradients of the quadratic problems.

`min f(z) + γ φ(z)` over C, the closed domain of φ, with `f(z) = -½ zᵀWz - cᵀz`; for a W that is not symmetric
the variational inequality with `-(Wz + c)` in place of ∇f. Nothing here uses the library's solvers, adjoints
or energies: only φ itself, dense LAPACK solves and SciPy. Tensors of any device and precision are taken, the
answers are float64 on the CPU. Everything is dense and per sample, so keep d in the low hundreds.

The residual is `‖Π_C(z + Wz + c - γφ'(z)) - z‖∞`, divided by 1 + the largest term that enters it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.experiments.reference.basin import in_basin
from implicit_bregman.experiments.reference.optimality import Conditions, on_host
from implicit_bregman.legendre import MirrorMap

EXACT = 2e-12  # largest relative residual of a solution found by Newton or on its active set
REACHED = 1e-10  # largest relative residual of an MM run that counts as arrived


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """Solutions of a batch of problems.

    Attributes:
        value: z, `(B, d)`, float64.
        active: Which coordinates are at a bound of C, `(B, d)`.
        residual: Relative residual, `(B,)`.
        reached: Where the limit is known; elsewhere `value` is the last MM iterate and must not be used,
            `(B,)`.
        method: "bvls", "newton", "projection" (the unique solution) or "mm" (MM's own limit).
    """

    value: Float[Tensor, "batch features"]
    active: Bool[Tensor, "batch features"]
    residual: Float[Tensor, " batch"]
    reached: Bool[Tensor, " batch"]
    method: str

    @property
    def excluded(self) -> float:
        """Share of the samples whose limit is not known."""
        return 1.0 - float(self.reached.double().mean()) if len(self.reached) else 0.0


def reference_solution(
    weight: Float[Tensor, "features features"],
    offset: Float[Tensor, "batch features"],
    geometry: MirrorMap,
    regularization: float = 0.0,
    initial_dual: Float[Tensor, "batch features"] | None = None,
    near: Reference | None = None,
    max_steps: int = 2**16,
) -> Reference:
    """Solve every sample in float64.

    A single solution (sym(W) ≺ γσI) is found by SciPy's BVLS on the Cholesky factor of -W (γ = 0, W
    symmetric), by projected steps and a solve on the active set (γ = 0, W not symmetric), or by damped Newton
    steps (γ > 0); its optimality conditions are asserted. Where there may be several, the answer is MM's own
    limit from `initial_dual` with τ = min(1, σ/λ_max(-W)): MM runs until `basin.in_basin` proves which
    critical point it is heading for, or to `max_steps`.

    Args:
        weight: W.
        offset: c.
        geometry: φ.
        regularization: γ ≥ 0.
        initial_dual: Start of MM in dual coordinates; default φ's `middle`. Without effect on a single solution.
        near: Solution of a problem close to this one: follow it instead of starting afresh, keeping its
            active set.
        max_steps: Longest MM (or projection) run.

    Returns:
        The solutions in float64. All are reached, except by MM, where `reached` tells.

    Raises:
        ValueError: W is neither symmetric nor monotone, an argument is out of range, or shapes do not fit.
        RuntimeError: The optimality conditions of a single solution do not hold, or `near` is not near.
    """
    if max_steps < 1:
        raise ValueError(f"max_steps={max_steps} is too small, use at least 1")
    problem = Conditions.checked(weight, offset, geometry, regularization)
    symmetric, largest = problem.symmetric, problem.largest
    single = largest < regularization * geometry.strong_convexity or largest < 0
    if not single and not symmetric:
        raise ValueError(
            f"weight is neither symmetric nor monotone (its symmetric part has the eigenvalue {largest:.3g}):"
            " no reference exists, use a symmetric one or make -W positive definite"
        )
    if near is not None:
        return _follow(problem, near)
    if single and regularization > 0:
        return _asserted(*problem.newton(_middle(problem)), "newton")
    if single and symmetric:
        return _bvls(problem)
    if single:
        return _projection(problem, max_steps)
    start = _middle(problem) if initial_dual is None else on_host(initial_dual)
    return _mm_limit(problem, start, max_steps)


def reference_gradient(
    weight: Float[Tensor, "features features"],
    offset: Float[Tensor, "batch features"],
    value: Float[Tensor, "batch features"],
    active: Bool[Tensor, "batch features"],
    geometry: MirrorMap,
    regularization: float,
    cotangent: Float[Tensor, "batch features"],
) -> Float[Tensor, "batch features"]:
    """Derivative of a loss with respect to c, from the optimality conditions on the active set.

    v is 0 on the active set A; on the rest F it solves `-W_FFᵀ v_F = g_F` (γ = 0) or
    `(γ diag φ''(z_F) - W_FFᵀ) v_F = g_F` (γ > 0), one dense float64 solve per sample.

    Args:
        weight: W.
        offset: c.
        value: The solution z.
        active: Which of its coordinates are at a bound.
        geometry: φ.
        regularization: γ.
        cotangent: g = dL/dz.

    Returns:
        v = dL/dc in float64. dL/dW is `weight_gradient(v, z)`.

    Raises:
        RuntimeError: A system is singular.
    """
    problem = Conditions.checked(weight, offset, geometry, regularization)
    z, active, g = on_host(value), active.cpu(), on_host(cotangent)
    free = ~active
    if regularization > 0:
        # At a solution γφ'(z) = Wz + c inside C, which keeps the dual's digits where z is rounded to a bound.
        slope = geometry.slope(problem.force(z) / regularization).masked_fill(active, 0.0)
    else:
        slope = free.double()
    # v = slope · u turns φ'' into 1/slope, which does not overflow.
    system = torch.diag_embed(regularization + active.double()) - problem.weight.T * slope.unsqueeze(-2)
    system = torch.where(active.unsqueeze(-1), torch.diag_embed(active.double()), system)
    solution, info = torch.linalg.solve_ex(system, (g * free).unsqueeze(-1))
    if bool(info.any()):
        raise RuntimeError(f"the adjoint system is singular in {int((info != 0).sum())} of {len(g)} samples")
    return slope * solution.squeeze(-1)


def weight_gradient(
    adjoint: Float[Tensor, "batch features"], value: Float[Tensor, "batch features"]
) -> Float[Tensor, "features features"]:
    """dL/dW = Σ v zᵀ over the batch, every entry of W taken as a parameter of its own."""
    return on_host(adjoint).T @ on_host(value)


def finite_difference_gradient(
    loss: Callable[[Float[Tensor, "batch features"]], Float[Tensor, " batch"]],
    weight: Float[Tensor, "features features"],
    offset: Float[Tensor, "batch features"],
    geometry: MirrorMap,
    regularization: float = 0.0,
    initial_dual: Float[Tensor, "batch features"] | None = None,
    entries: Sequence[tuple[int, int]] = (),
    step: float = 1e-5,
    max_steps: int = 2**16,
) -> tuple[Float[Tensor, "batch features"], Float[Tensor, " entries"]]:
    """Central differences of the summed loss through `reference_solution`.

    A single solution is computed afresh for every perturbation; MM's limit is followed from the unperturbed
    one.

    Args:
        loss: From z to one loss per sample, independent of the other samples.
        weight: W.
        offset: c.
        geometry: φ.
        regularization: γ.
        initial_dual: Start of MM, see `reference_solution`.
        entries: Index pairs (i, j) of W. In a symmetric W, W_ji moves along with W_ij.
        step: Absolute size of the perturbation.
        max_steps: See `reference_solution`.

    Returns:
        dL/dc, `(B, d)`, and the derivatives along `entries`, both float64.

    Raises:
        RuntimeError: As `reference_solution`; also where the limit of a sample is not known.
    """
    problem = Conditions.checked(weight, offset, geometry, regularization)
    weight, offset = problem.weight, problem.offset
    batch, dim = offset.shape
    base = reference_solution(weight, offset, geometry, regularization, initial_dual, max_steps=max_steps)
    if not bool(base.reached.all()):
        raise RuntimeError(f"the limit is unknown in {base.excluded:.0%} of the samples, leave them out")
    near = base if base.method == "mm" else None

    def losses(matrix: Tensor, vectors: Tensor, start: Reference | None) -> Tensor:
        found = reference_solution(matrix, vectors, geometry, regularization, near=start, max_steps=max_steps)
        return torch.stack([loss(part) for part in found.value.split(batch)])

    shifts = step * torch.eye(dim, dtype=torch.float64)
    shifts = torch.cat((shifts, -shifts))
    shifted = (offset + shifts.unsqueeze(1)).reshape(-1, dim)
    moved = losses(weight, shifted, None if near is None else _repeated(near, 2 * dim))
    by_offset = (moved[:dim] - moved[dim:]).T / (2 * step)

    by_weight = torch.zeros(len(entries), dtype=torch.float64)
    for k, (row, column) in enumerate(entries):
        shift = torch.zeros_like(weight)
        shift[row, column] = step
        if problem.symmetric:
            shift[column, row] = step
        change = losses(weight + shift, offset, near) - losses(weight - shift, offset, near)
        by_weight[k] = change.sum() / (2 * step)
    return by_offset, by_weight


def share_on_reference_limit(
    values: Float[Tensor, "batch features"], reference: Reference, tolerance: float = 1e-6
) -> tuple[float, float]:
    """Share of the samples that end on the reference's limit.

    Args:
        values: Solutions to judge.
        reference: The limits.
        tolerance: Largest difference of any coordinate, in units of z.

    Returns:
        The share of the reached samples that coincide (NaN if none was reached), and the share of all samples
        that was excluded because the reference does not know their limit.
    """
    same = (on_host(values) - reference.value).abs().amax(-1) <= tolerance
    counted = same[reference.reached]
    return (float(counted.double().mean()) if len(counted) else math.nan), reference.excluded


def _middle(problem: Conditions) -> Tensor:
    """Duals in the middle."""
    return torch.full_like(problem.offset, problem.geometry.middle)


def _asserted(value: Tensor, active: Tensor, residual: Tensor, method: str) -> Reference:
    """A single solution, its optimality conditions checked."""
    worst = float(residual.max()) if len(residual) else 0.0
    if not worst <= EXACT:
        raise RuntimeError(
            f"{method}: relative residual {worst:.2g} exceeds {EXACT:g}; the problem may be too"
            " ill-conditioned or a multiplier too close to 0"
        )
    return Reference(value, active, residual, torch.ones_like(residual, dtype=torch.bool), method)


def _bvls(problem: Conditions) -> Reference:
    """SciPy's BVLS on ½‖Az - b‖² over C, AᵀA = -W and Aᵀb = c, then one solve on the active set it found."""
    from scipy.optimize import lsq_linear

    root = torch.linalg.cholesky(-problem.weight)
    target = torch.linalg.solve_triangular(root, problem.offset.T, upper=False).T
    matrix, bounds = root.T.numpy(), problem.geometry.domain
    sides, values = [], []
    for b in target.numpy():
        found = lsq_linear(matrix, b, bounds, method="bvls", tol=1e-14, max_iter=50 * len(b))
        sides.append(torch.from_numpy(found.active_mask))
        values.append(torch.from_numpy(found.x))
    if not values:
        return _asserted(problem.offset, problem.offset > 0, problem.offset.sum(-1), "bvls")
    raw = torch.stack(values)
    worst = float(problem.residual(raw, raw).max())
    if not worst <= REACHED:
        raise RuntimeError(f"bvls: relative residual {worst:.2g} before the exact solve exceeds {REACHED:g}")
    side = torch.stack(sides)
    value, residual = problem.solve_active(side < 0, side > 0)
    return _asserted(value, side != 0, residual, "bvls")


def _checkpoints(max_steps: int) -> set[int]:
    """Step numbers at which a run is examined: powers of two, and the last."""
    return {2**k for k in range(4, max_steps.bit_length())} | {max_steps}


def _outside(problem: Conditions, z: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """Coordinates that a projected gradient step from z would put at the lower and at the upper bound."""
    low, high = problem.geometry.bounds(torch.float64)
    moved = z + step * problem.force(z)
    return moved <= low, moved >= high


def _projection(problem: Conditions, max_steps: int) -> Reference:
    """The variational inequality's only solution (γ = 0, sym(W) ≺ 0).

    The map -(Wz + c) is β-cocoercive with β the smallest eigenvalue of sym((-W)⁻¹), so that projected steps
    of length β converge, whatever φ is. They identify the active set; one solve on it gives the solution.
    """
    inverse = torch.linalg.inv(-problem.weight)
    step = float(torch.linalg.eigvalsh(0.5 * (inverse + inverse.T)).min())
    low, high = problem.geometry.bounds(torch.float64)
    z = problem.geometry.activation(_middle(problem))
    examined = _checkpoints(max_steps)
    for k in range(1, max_steps + 1):
        z = (z + step * problem.force(z)).clamp(low, high)
        if k in examined:
            lower, upper = _outside(problem, z, step)
            value, residual = problem.solve_active(lower, upper)
            if bool((residual <= EXACT).all()):
                break
    return _asserted(value, lower | upper, residual, "projection")


def _mm_limit(problem: Conditions, start: Tensor, max_steps: int) -> Reference:
    """MM from `start`, each sample until its limit is proved; W is symmetric."""
    phi, gamma = problem.geometry, problem.regularization
    stiffest = float(torch.linalg.eigvalsh(-problem.weight).max())
    tau = 1.0 if stiffest <= phi.strong_convexity else phi.strong_convexity / stiffest
    if tau == 0:
        raise ValueError(f"geometry {phi.name!r} has σ = 0: MM has no automatic step, use another geometry")
    probe = 1 / float(torch.linalg.matrix_norm(problem.weight, 2))

    value = torch.full_like(start, math.nan)
    active = torch.zeros_like(start, dtype=torch.bool)
    residual = torch.full_like(start[:, 0], math.inf)
    running = torch.arange(len(start))
    part, dual = problem, phi.project_dual(start)
    examined = _checkpoints(max_steps)
    for k in range(1, max_steps + 1):
        dual = phi.project_dual((dual + tau * part.force(phi.activation(dual))) / (1 + tau * gamma))
        if k not in examined:
            continue
        z = phi.activation(dual)
        if gamma > 0:
            found, sides, error = part.newton(dual)
        else:
            lower, upper = _outside(part, z, probe)
            sides = lower | upper
            found, error = part.solve_active(lower, upper)
        exact = (error <= EXACT) & dual.isfinite().all(-1)
        proved = torch.zeros_like(exact)
        proved[exact] = in_basin(part.weight, part.offset[exact], phi, gamma, found[exact], sides[exact], dual[exact])
        if k == max_steps:  # what is left is MM's own last iterate, good enough or not
            found = torch.where(proved.unsqueeze(-1), found, z)
            sides = torch.where(proved.unsqueeze(-1), sides, torch.zeros_like(sides))
            error = torch.where(proved, error, torch.nan_to_num(part.residual(z, dual), nan=math.inf))
            proved = torch.ones_like(proved)
        done = running[proved]
        value[done], active[done], residual[done] = found[proved], sides[proved], error[proved]
        running, dual, part = running[~proved], dual[~proved], part.rows(~proved)
        if len(running) == 0:
            break
    return Reference(value, active, residual, residual <= REACHED, "mm")


def _follow(problem: Conditions, near: Reference) -> Reference:
    """The solution that continues `near`, on its active set (γ = 0) or by Newton steps from it (γ > 0)."""
    if problem.regularization > 0:
        dual = problem.geometry.project_dual(problem.force(near.value) / problem.regularization)
        value, active, residual = problem.newton(dual)
    else:
        low, high = problem.geometry.bounds(torch.float64)
        active = near.active
        value, residual = problem.solve_active(active & (near.value == low), active & (near.value == high))
    if not bool((residual[near.reached] <= EXACT).all()):
        raise RuntimeError("near is not near enough: its active set does not fit, so perturb less")
    residual = torch.where(near.reached, residual, torch.full_like(residual, math.inf))
    return Reference(value, active, residual, near.reached, near.method)


def _repeated(reference: Reference, times: int) -> Reference:
    """The same solutions for a batch that is repeated."""
    return Reference(
        reference.value.repeat(times, 1),
        reference.active.repeat(times, 1),
        reference.residual.repeat(times),
        reference.reached.repeat(times),
        reference.method,
    )
