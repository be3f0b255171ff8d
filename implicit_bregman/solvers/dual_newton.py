"""γ > 0: Newton's method on the optimality condition in dual coordinates, E(y) = γy + ∇f(ρ(y)) = 0.

The direction Δy solves (γ + H D) Δy = −E with D = ρ'(y); v = DΔy is its direction in z, with (γD⁻¹ + H) v = −E. The
step is made in w = y + κz (see `graph`) with κ = H_jj/γ: it is linear in y for coordinates that a bound holds and in z
for the others, so that the number of steps does not grow as γ → 0.
Beyond the clamp of a φ that is not Legendre ρ' is 0, y runs on, and γ times the excess is the multiplier: one
equation covers interior and active coordinates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.energy.bound import BoundQuadratic
from implicit_bregman.energy.contract import BoundEnergy
from implicit_bregman.linalg.chunks import chunks
from implicit_bregman.linalg.dense import solve_general
from implicit_bregman.linearization import Linearization
from implicit_bregman.objective import Objective, RowsOfTensors
from implicit_bregman.solvers.chebyshev import chebyshev_steps
from implicit_bregman.solvers.finished import Finished
from implicit_bregman.solvers.graph import move_along

#: A step is shortened to a quarter so often at most: then it is below the rounding of where it starts.
_SHORTENINGS = 26
#: Shortenings that make one ask what was wrong with the whole step.
_MUCH = 3
#: How far below the tolerance the error is driven: the last step is nearly always much better than asked.
_BELOW = 0.1
#: γ/λ_max from which on a step that is not needed for E is not needed for z.
_WELL = 0.05
#: A sample whose error is below this part of the tolerance before the last steps is left as it is.
_CLOSE = 0.9
#: Newton steps after the Chebyshev steps, from errors up to so many times the goal, by so many products, to such a part
#: of it.
_REFINEMENTS, _FAR, _MOST_PRODUCTS, _PART = 2, 1e4, 30, 0.7
#: Relative residual of the linear systems: loose far from the solution (Eisenstat and Walker), and at the end,
_LOOSE, _TIGHT = 0.1, 1e-4
#: and where a looser one has led nowhere.
_EXACT = 1e-10
#: Multiplications up to which factorizing is as fast as a few products,
_FEW = 2**18
#: the width from which on it is out of the question,
_WIDE = 1024
#: and the products after which it would have been faster: so many, and one for every so many coordinates.
_PATIENT, _PER_PRODUCT = 20, 4
#: The least D that is divided by.
_LEAST_SLOPE = 1e-290
#: κD below which Δw follows from the equation of its own coordinate.
_FLAT = 0.1
#: Part of the decrease that the slope promises which a step has to bring.
_ARMIJO = 1e-4
#: The error up to which a step along whose slope little is left, and that halves it, needs no other test.
_CLEAR = 0.1
#: Steps without a smaller error after which a sample as near as this, or at its rounding error, is left.
_IDLE, _NEAR = 10, 1e-6


@dataclass(frozen=True)
class _Iterate(RowsOfTensors):
    """An iterate of Newton's method.

    Attributes:
        dual, value: y and ρ(y), (B, d).
        gradient: ∇f there, (B, d).
        error: E(y), (B, d).
        scale: what the entries of ∇f are measured against, (B, d).
        size: the largest entry of |E| / scale, (B,).
        steps: Newton steps, (B,).
        tries: evaluations of ∇f, (B,).
    """

    dual: Tensor
    value: Tensor
    gradient: Tensor
    error: Tensor
    scale: Tensor
    size: Tensor
    steps: Tensor
    tries: Tensor


@dataclass(frozen=True)
class _Course(RowsOfTensors):
    """How the steps of a sample have gone.

    Attributes:
        before: the error of the iterate before, (B,).
        best: the least error so far, (B,).
        idle: steps since it fell to a half, (B,).
        exact: whether the next direction has to be exact: the last one led nowhere, and E has not become smaller than
            ever since, (B,).
        chord: where the last step had to be shortened much, the slopes of ρ over the whole of it, (B, d): they tell
            which coordinates it would have pushed against a bound; else NaN.
        stuck: whether no step leads any further, (B,).
    """

    before: Tensor
    best: Tensor
    idle: Tensor
    exact: Tensor
    chord: Tensor
    stuck: Tensor

    @staticmethod
    def at_start(at: _Iterate) -> _Course:
        """No step has been made."""
        size, none = at.size, torch.full_like(at.dual, torch.nan)
        no = torch.zeros_like(size, dtype=torch.bool)
        return _Course(torch.full_like(size, torch.nan), size, torch.zeros_like(size), no, none, no)

    def after(
        self, old: Tensor, new: _Iterate, moved: Tensor, chord: Tensor, convex: bool, energy: BoundEnergy
    ) -> _Course:
        """After a step from the error `old` to an iterate, or one that has found no way to go."""
        idle = torch.where(new.size < 0.5 * self.best, 0, self.idle + 1)
        stuck = ~moved & self.exact
        if not convex:
            # Steps that only find their way by the error may be on it to a point where the error is least.
            stuck = stuck | ~moved | (idle >= _IDLE)
        elif bool((idle >= _IDLE).any()):
            stuck = stuck | ((idle >= _IDLE) & (new.size <= _rounding(energy, new).clamp_min(_NEAR)))
        return _Course(
            before=torch.where(moved, old, self.before),
            best=torch.minimum(self.best, new.size),
            idle=idle,
            exact=~moved | (self.exact & (new.size >= self.best)),
            chord=chord,
            stuck=stuck,
        )


def _rounding(energy: BoundEnergy, at: _Iterate) -> Tensor:
    """What rounding may make of the error, (B,)."""
    return (energy.hessian(at.value).rounding(at.value) / at.scale).amax(-1)


class _Budget:
    """The products with H that are left to the conjugate gradients of all steps."""

    def __init__(self, products: int) -> None:
        self.left = products


def newton(
    objective: Objective,
    dual: Float[Tensor, "batch d"],
    tol: float,
    max_steps: int,
    record: Callable[[Tensor, Tensor], None] | None = None,
) -> Finished:
    """Newton's method from y = `dual`, each sample until its own stop.

    A quadratic f is finished in float64, whatever its precision.

    Args:
        objective: F with γ > 0 and a quadratic f, or any f if F is convex.
        dual: the start y.
        tol: bound on the error E, each entry relative to its own terms.
        max_steps: bound on the number of steps, and on that of the products with H inside them.
        record: called with the duals and their rows before every step, and at the end.
    """
    energy, quadratic = objective.energy, objective.energy.matrix_form
    # A trace ends where the tolerance is met.
    enough = _CLOSE * tol if _is_well_conditioned(objective) else 0.0
    swept, limit = None, max(_BELOW * tol, enough)
    if record is None and objective.unique and quadratic is not None and quadratic.symmetric:
        swept = _swept(objective, quadratic, _unclamped(objective, energy, dual), limit, max_steps)
        if swept is not None and bool((swept.size <= limit).all()):
            return _finished(objective, swept, tol)
    if energy.affine:
        energy, dual = energy.double(), dual.double()
    at = _start(objective, energy, dual)
    if swept is not None:
        at = _better(at, swept)
    at, stuck = _iterate(objective, energy, at, _BELOW * tol if record is None else tol, max_steps, record, enough)
    return _finished(objective, at, tol, stuck)


def _is_well_conditioned(objective: Objective) -> bool:
    """Whether an error E is no great error of z: γ is no small part of λ_max."""
    energy = objective.energy.matrix_form
    return energy is not None and objective.regularization * energy.gradient_step >= _WELL


def _unclamped(objective: Objective, energy: BoundEnergy, dual: Tensor) -> Tensor:
    """The same points, with the duals of active coordinates where the equation wants them, beyond the clamp."""
    gamma, geometry = objective.regularization, objective.geometry
    if geometry.is_legendre:
        return dual
    active = geometry.slope(dual) == 0
    if not bool(active.any()):
        return dual
    wanted = energy.gradient(geometry.activation(dual)).detach() / -gamma
    active &= geometry.project_dual(wanted) == geometry.project_dual(dual)
    return torch.where(active, wanted, dual)


def _start(objective: Objective, energy: BoundEnergy, dual: Tensor) -> _Iterate:
    """The first iterate: `dual`, or 0 where z is so large that what follows would overflow."""
    none = torch.zeros(len(dual), dtype=torch.int64, device=dual.device)
    at = _evaluate(objective, energy, _unclamped(objective, energy, dual), none, none + 1)
    usable = torch.isfinite(at.size) & (at.value.abs().amax(-1) < torch.finfo(dual.dtype).max ** 0.5)
    if bool(usable.all()):
        return at
    return at.where(usable, _evaluate(objective, energy, torch.zeros_like(dual), none, none + 2))


def _swept(objective: Objective, energy: BoundQuadratic, dual: Tensor, tol: float, max_steps: int) -> _Iterate | None:
    """The iterates after a few Chebyshev steps, in float64, where there is a use for them.

    In the samples' precision y itself is rounded: the last digits are those of a Newton step from float64 errors, whose
    linear system Chebyshev's steps solve again.
    """
    found = chebyshev_steps(objective, energy, dual, tol)
    if found is None:
        return None
    y, count, evaluations = found
    steps = torch.full_like(dual[:, 0], count, dtype=torch.int64)
    wide, gamma = energy.double(), objective.regularization
    at = _evaluate(objective, wide, y.double(), steps, steps + (evaluations + 1 - count))
    for _ in range(min(_REFINEMENTS, max_steps - count)):
        worst = float(at.size.max())
        if not tol < worst <= _FAR * tol:
            break
        slope = objective.geometry.slope(at.dual).to(dual.dtype)
        system = Linearization(energy.hessian(at.value), slope, torch.full_like(slope, gamma), damping=gamma)
        move = system.sweep(at.error.neg().to(dual.dtype), _PART * tol / worst, min(_MOST_PRODUCTS, max_steps))
        if move is None:
            break
        at = _evaluate(objective, wide, at.dual + move[0].double(), at.steps + 1, at.tries + 1)
    return at


def _better(at: _Iterate, swept: _Iterate) -> _Iterate:
    """The iterates after the Chebyshev steps where these have gained something, else the start."""
    gained = torch.isfinite(swept.size) & (swept.size < 0.1 * at.size)
    tries = at.tries + swept.tries
    return replace(swept, tries=tries).where(gained, replace(at, tries=tries))


def _evaluate(objective: Objective, energy: BoundEnergy, dual: Tensor, steps: Tensor, tries: Tensor) -> _Iterate:
    """The iterate y = `dual`."""
    value = objective.geometry.activation(dual)
    gradient = energy.gradient(value).detach()
    error = torch.add(gradient, dual, alpha=objective.regularization)
    scale = objective.scale(energy.terms(gradient))
    return _Iterate(dual, value, gradient, error, scale, (error.abs() / scale).amax(-1), steps, tries)


def _iterate(
    objective: Objective,
    energy: BoundEnergy,
    at: _Iterate,
    target: float,
    max_steps: int,
    record: Callable[[Tensor, Tensor], None] | None = None,
    enough: float = 0.0,
) -> tuple[_Iterate, Bool[Tensor, " batch"]]:
    """Newton steps until |E| ≤ target · scale (or `enough` · scale at the start), or as far as rounding lets them.

    Returns:
        The last iterates, and which samples could not go on.
    """
    final, rows = at, torch.arange(len(at.size), device=at.size.device)
    stuck = torch.zeros_like(at.size, dtype=torch.bool)
    rounding = 8 * torch.finfo(at.dual.dtype).eps
    course, budget = _Course.at_start(at), _Budget(max_steps)
    while True:
        if record is not None:
            record(at.dual, rows)
        limit, enough = max(target, rounding, enough), 0.0
        running = (at.size > limit) & ~course.stuck & (at.steps < max_steps)
        if budget.left <= 0 and not _can_factorize(objective):
            running = torch.zeros_like(running)
        if not bool(running.all()):
            final, stuck = final.replace_rows(rows, at), stuck.index_copy(0, rows, course.stuck)
            kept = running.nonzero().squeeze(-1)
            rows, at, energy, course = rows[kept], at.select(kept), energy.select(kept), course.select(kept)
        if len(rows) == 0:
            return final, stuck
        slope = objective.geometry.slope(at.dual)
        slope = torch.where(torch.isnan(course.chord), slope, course.chord)
        weight, move = _move(objective, energy, at, slope, course, target, budget)
        new, moved, chord = _search(objective, energy, at, slope, weight, move)
        course, at = course.after(at.size, new, moved, chord, objective.convex, energy), new


def _move(
    objective: Objective,
    energy: BoundEnergy,
    at: _Iterate,
    slope: Tensor,
    course: _Course,
    target: float,
    budget: _Budget,
) -> tuple[Tensor, Tensor]:
    """κ and Δw, with `slope` for D."""
    gamma = objective.regularization
    # One matrix is the same everywhere, and its products are made in either precision.
    hessian = (energy if energy.shared is None else objective.energy).hessian(at.value)
    system = Linearization(hessian, slope, torch.full_like(slope, gamma))
    curvature = _own_curvature(system, at.error)
    v = _direction(objective, system, at, curvature, course, target, budget)
    weight = (curvature / gamma).clamp_max(torch.finfo(v.dtype).max ** 0.5)
    product = hessian.product(v)
    # Where D is small v says little of Δy; the equation of the coordinate itself does: γΔy = −E − Hv.
    steep = weight * slope > _FLAT
    plain = v / torch.where(steep, slope, 1.0)
    return weight, torch.where(steep, plain, -(at.error + product) / gamma).addcmul_(weight, v)


def _own_curvature(system: Linearization, error: Tensor) -> Tensor:
    """H_jj, where H is a matrix; else what stands for all of them, the curvature along DE. Not negative."""
    hessian, entries = system.hessian, system.hessian.diagonal()
    if entries is not None:
        return entries.to(error.dtype).clamp_min(0.0).reshape(-1, entries.shape[-1])
    along = system.slope * error
    along = along / along.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(error.dtype).tiny)
    curvature = torch.linalg.vecdot(along, hessian.product(along)) / torch.linalg.vecdot(along, along)
    return curvature.nan_to_num(0.0).clamp_min(0.0)[:, None]


def _direction(
    objective: Objective,
    system: Linearization,
    at: _Iterate,
    curvature: Tensor,
    course: _Course,
    target: float,
    budget: _Budget,
) -> Tensor:
    """v, by conjugate gradients, or by one factorization per sample where that is faster or the others fail."""
    (batch, width), matrix = at.error.shape, system.hessian.shared
    factorizes = _can_factorize(objective)
    everything = torch.arange(batch, device=at.error.device)
    if matrix is not None and not (objective.unique and matrix.symmetric):
        return _factorized(system, at.error, everything, objective.unique)
    if matrix is not None and batch * width**3 <= _FEW:
        return _factorized(system, at.error, everything, objective.unique)
    # As exact as the progress of the last step promises this one to be, and no more than the goal asks for.
    goal = (0.3 * target / at.size).clamp(1e-7, _LOOSE)
    forcing = (at.size / course.before).square().nan_to_num(_LOOSE).clamp(_TIGHT, _LOOSE)
    forcing = torch.where(course.exact, _EXACT, torch.maximum(forcing, goal))
    most = min(budget.left, _PATIENT + width // _PER_PRODUCT) if factorizes else budget.left
    found = system.newton_step(at.error, curvature, forcing, most)
    budget.left -= int(found.iterations.max())
    if not objective.unique:
        # Negative curvature: not near a minimum, and so not certain to be near MM's limit.
        return torch.where(found.positive[:, None], found.value, torch.nan)
    missing = (~found.converged).nonzero().squeeze(-1)
    if len(missing) == 0 or not factorizes:
        return found.value
    return found.value.index_copy(0, missing, _factorized(system, at.error, missing, objective.unique))


def _can_factorize(objective: Objective) -> bool:
    shared = objective.energy.shared
    return shared is not None and len(shared.matrix) <= _WIDE


def _factorized(system: Linearization, error: Tensor, rows: Tensor, convex: bool) -> Tensor:
    """v for some of the samples, in float64."""
    parts = [_factorized_part(system, error, rows[part], convex) for part in chunks(error[rows])]
    return torch.cat(parts).to(error.dtype)


def _factorized_part(system: Linearization, error: Tensor, rows: Tensor, convex: bool) -> Tensor:
    """v with (γD⁻¹ + H) v = −E, after scaling the diagonal to 1."""
    shared = system.hessian.shared
    assert shared is not None  # a quadratic energy
    wide = shared.wide.matrix
    ratio = system.shift[rows].double() / system.slope[rows].double().clamp_min(_LEAST_SLOPE)
    root = (ratio + wide.diagonal().clamp_min(0.0)).rsqrt()
    matrix = root[:, :, None] * wide * root[:, None, :]
    matrix.diagonal(dim1=1, dim2=2).add_(ratio * root * root)
    right = -(root * error[rows].double())[:, :, None]
    if not shared.symmetric:
        return root * solve_general(matrix, right)[0].squeeze(-1)
    factor, info = torch.linalg.cholesky_ex(matrix)
    if bool((info != 0).any()):
        if not convex:
            return root * solve_general(matrix, right)[0].squeeze(-1)
        # W was rounded, and the diagonal is 1.
        matrix.diagonal(dim1=1, dim2=2).add_(shared.size * torch.finfo(shared.matrix.dtype).eps)
        factor = torch.linalg.cholesky_ex(matrix)[0]
    return root * torch.cholesky_solve(right, factor).squeeze(-1)


def _search(
    objective: Objective, energy: BoundEnergy, at: _Iterate, slope: Tensor, weight: Tensor, move: Tensor
) -> tuple[_Iterate, Bool[Tensor, " batch"], Tensor]:
    """The step along Δw that is accepted, shortened as often as needed; which samples moved at all; `_Course.chord`."""
    accepted, good = at, torch.zeros_like(at.size, dtype=torch.bool)
    rows = torch.arange(len(at.size), device=at.size.device)
    start, weight, chord, whole = at, weight.expand_as(move), torch.full_like(move, torch.nan), at
    for trial in range(1 + _SHORTENINGS):
        dual = move_along(objective.geometry, start.dual, start.value, slope, weight, move)
        new = _evaluate(objective, energy, dual, start.steps + 1, start.tries + 1 + trial)
        better = _is_accepted(objective, start, new)
        if trial == 0:
            if bool(better.all()):
                return new, better, chord
            whole = new
        if trial == _MUCH:
            chord = chord.index_copy(0, rows, _chord(at.select(rows), whole.select(rows)))
        accepted = accepted.replace_rows(rows, new.where(better, replace(start, tries=new.tries)))
        good = good.index_copy(0, rows, better)
        left = (~better).nonzero().squeeze(-1)
        if len(left) == 0:
            break
        rows, start, energy = rows[left], start.select(left), energy.select(left)
        slope, weight, move = slope[left], weight[left], 0.25 * move[left]
    return accepted, good, chord


def _chord(start: _Iterate, end: _Iterate) -> Tensor:
    """The mean of ρ' from one iterate to another; NaN where y is the same."""
    return (end.value - start.value) / (end.dual - start.dual)


def _is_accepted(objective: Objective, old: _Iterate, new: _Iterate) -> Bool[Tensor, " batch"]:
    """Whether F has fallen, or a small E is half of what it was. Where F is not convex, E alone decides.

    Along Δz the slope of F is ⟨E, Δz⟩: by convexity F has fallen where that is still negative at the end. Else the
    decrease is −⟨E⁺, Δz⟩ + D_F(z, z⁺), where nothing cancels, and is asked to be a small part of what the slope at
    the start promised.
    """
    finite = torch.isfinite(new.size) & torch.isfinite(new.dual.sum(-1))
    if not objective.unique or not objective.energy.symmetric:
        return finite & (torch.linalg.vector_norm(new.error, dim=-1) < torch.linalg.vector_norm(old.error, dim=-1))
    shift = new.value - old.value
    before, after = torch.linalg.vecdot(old.error, shift), torch.linalg.vecdot(new.error, shift)
    halved = new.size <= 0.5 * old.size.clamp_max(_NEAR)
    descends = (before < 0) | ((before == 0) & (new.size < old.size))
    nearly = (after <= -0.1 * before) & (new.size <= 0.5 * old.size) & (old.size <= _CLEAR)
    accepted = finite & ((descends & (after <= 0)) | halved | nearly)
    if bool(accepted.all()):
        return accepted
    # (the trapezoidal rule, exact for a quadratic f)
    rise = 0.5 * torch.linalg.vecdot(new.gradient - old.gradient, shift)
    divergence = objective.geometry.dual_divergence(old.dual, new.dual)
    decrease = rise + objective.regularization * divergence - after
    return accepted | (finite & (before < 0) & (decrease >= -_ARMIJO * before))


def _finished(objective: Objective, at: _Iterate, tol: float, stuck: Tensor | None = None) -> Finished:
    geometry, gamma, dtype = objective.geometry, objective.regularization, objective.energy.dtype
    dual = geometry.project_dual(at.dual)
    lo, hi = geometry.bounds(dual.dtype)
    if geometry.is_legendre:
        error, free = at.error, torch.ones_like(dual, dtype=torch.bool)
    else:
        error, free = torch.add(at.gradient, dual, alpha=gamma), dual == at.dual
    residual = objective.residual(at.value, error, at.scale, (lo, hi))
    # The residual alone is held down by the distance to a bound: ask it of the equation as well.
    accepted = (residual <= tol) & (at.size <= tol)
    degenerate = torch.zeros_like(accepted)
    if not geometry.is_legendre:
        multiplier = gamma * (at.dual - dual).abs()
        degenerate = (~free & (multiplier <= 10 * tol * at.scale)).any(-1) & accepted
    # A dual in float64 may be beyond the range of float32, where ρ need not be saturated: the value is not lost.
    limit = torch.finfo(dtype).max
    lowered = dual.clamp(-limit, limit).to(dtype)
    value = at.value.clamp(-limit, limit).to(dtype).clamp(*geometry.bounds(dtype))
    return Finished(
        value=value,
        dual=lowered,
        exact=at.value,
        exact_dual=dual,
        free=free,
        gradient=at.gradient,
        scale=at.scale,
        residual=residual.to(dtype),
        accepted=accepted,
        degenerate=degenerate,
        steps=at.steps,
        tries=at.tries,
        stuck=stuck,
    )
