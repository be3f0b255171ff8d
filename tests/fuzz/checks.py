"""What is demanded of an answer, check by check. Every check says what it looked at and what it objects to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linprog

from tests.fuzz import pullback
from tests.fuzz.cases import Case
from tests.fuzz.library import Answer, Status
from tests.fuzz.system import SLACK, Matrices, Sample, wide
from tests.fuzz.truth import Unsolvable
from tests.fuzz.unrolled import check_unrolled

IMPLICIT = ("implicit", "cg", "gmres", "dense")
ADJOINT_TOL = {"float32": 1e-6, "float64": 1e-12}
BASE_TOL = {"float32": 3e-4, "float64": 1e-8}
#: Steps of MM that the judge makes for itself.
MM_STEPS = 3000
#: By how much more than its error bars, which are estimates, a gradient may be off.
SPREAD = 3.0


@dataclass
class Report:
    """What the checks found in one case, or in many.

    Attributes:
        looked: how many cases each kind of check applied to.
        found: (kind, detail) of every violation.
        remarks: the same for what is worth a look, but not demanded.
    """

    looked: Counter = field(default_factory=Counter)
    found: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[tuple[str, str]] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)

    def look(self, kind: str) -> None:
        self.kinds.add(kind)

    def demand(self, kind: str, holds: bool, detail: str, soft: bool = False) -> None:
        """Note that a check was made, and what it found."""
        self.look(kind)
        if not holds:
            (self.remarks if soft else self.found).append((kind, detail))


def judge(case: Case, answer: Answer, report: Report | None = None) -> Report:
    """All checks of one answer that need no second call."""
    report = Report() if report is None else report
    shared = Matrices.of(case, answer)
    with np.errstate(all="ignore"):
        if answer.refused is not None:
            _refusal(case, shared, answer, report)
            return report
        _finite(case, answer, report)
        trusted = []
        for row in range(len(case.x)):
            sample = Sample(shared, answer, row)
            if answer.status[row] == Status.INVALID_INPUT:
                report.demand("status", _bad_input(sample), f"row {row} INVALID_INPUT, but its input is sound")
                trusted.append(None)
                continue
            if not (np.isfinite(sample.z).all() and np.isfinite(sample.y).all()):
                trusted.append(None)
                continue
            trusted.append(_row(sample, answer, report))
        if trusted and case.adjoint in IMPLICIT and all(one is not None for one in trusted):
            pullback.check_leaves(case, answer, shared, trusted, report)
        if case.adjoint == "unrolled":
            check_unrolled(case, answer, shared, report)
    return report


def claims(answer: Answer, row: int) -> bool:
    """Whether the status says that the point is critical."""
    status = Status(int(answer.status[row]))
    return not status.failed and status != Status.TRUNCATED


def _bad_input(sample: Sample) -> bool:
    """Whether an input is not finite, or a start on its bound."""
    case, row = sample.case, sample.row
    if not (np.isfinite(case.x[row]).all() and np.isfinite(sample.problem.offset).all()):
        return True
    if case.initial is None:
        return False
    z = wide(case.initial[row])
    return bool((~np.isfinite(z) | (sample.shape.gap(z) <= 2 * sample.shared.eps * np.abs(z))).any())


def _refusal(case: Case, shared: Matrices, answer: Answer, report: Report) -> None:
    # A start on its bound is refused, but not together with those of others.
    saturated = case.initial is not None and "initial" in answer.refused and len(case.x) == 1
    unbounded = shared.count == "several" and not shared.shape.bounded
    report.demand("refused", saturated or unbounded, answer.refused[:150])


def _finite(case: Case, answer: Answer, report: Report) -> None:
    # The value of a sample that was not accepted is NaN by documentation; the others are to be right all the same.
    kept = answer.status != Status.INVALID_INPUT
    fields = {"value": answer.value[kept], "dual": answer.dual[kept]}
    for name, gradient in answer.gradients.items():
        if name in ("x", "initial"):
            fields[f"d{name}"] = gradient[kept]
        elif not _overflows(case, answer):
            fields[f"d{name}"] = gradient
    for name, array in fields.items():
        report.demand("finite", bool(np.isfinite(array).all()), f"{name} has {array[~np.isfinite(array)][:1]}")
    # (relative to a true gradient of 0, an error is infinite)
    for name, array in {"gradient_error": answer.error, "objective": answer.objective}.items():
        if array is not None:
            report.demand("finite", not np.isnan(array[kept]).any(), f"{name} has NaN")


def _overflows(case: Case, answer: Answer) -> bool:
    """Whether a gradient such as dL/dW = v zᵀ may be beyond the range of its precision: it is infinite then, or NaN."""
    known = answer.gradients["x"].shape == answer.value.shape and (answer.status != Status.DIVERGED)
    if known is False:
        return False
    v, z = (np.abs(array[known]) for array in (answer.gradients["x"], answer.value))
    return bool((v.max(-1) * z.max(-1)).sum() > np.finfo(case.dtype).max / 1e3)


def _row(sample: Sample, answer: Answer, report: Report):
    """The checks of one sample; what is known of its gradient: (v, point, error bar) or None."""
    case, row, status = sample.case, sample.row, Status(int(answer.status[sample.row]))
    tag = f"row {row} {status.name}"
    _domain(sample, report, tag, status)
    if case.adjoint == "unrolled":
        report.demand("status", status == Status.TRUNCATED, f"{tag}, of Unrolled", soft=True)
        return None
    claimed = claims(answer, row)
    if claimed and sample.shared.count != "projection":
        worst = sample.violation(sample.z, sample.y, sample.shared.eps)
        report.demand(
            "converged", bool((worst <= SLACK * sample.tol).all()), f"{tag}: optimality violated by {worst.max():.2e}"
        )
    if sample.shared.count == "several":
        _several(sample, answer, report, tag, claimed)
    if sample.truth is None:
        report.demand("no truth", False, tag, soft=True)
        return None
    if not sample.representable:
        return None
    _status(sample, report, tag, status)
    if claimed or sample.truth.infeasible:
        _value(sample, report, tag)
    if answer.objective is not None and claimed:
        _objective(sample, answer, report, tag)
    return _gradient(sample, answer, report, tag, claimed, status)


def _domain(sample: Sample, report: Report, tag: str, status: Status) -> None:
    z, y, shape, eps = sample.z, sample.dual, sample.shape, sample.shared.eps
    report.demand(
        "in C", bool(((z >= shape.lo) & (z <= shape.hi)).all()), f"{tag}: outside by {-shape.gap(z).min():.1e}"
    )
    if status.failed:
        return
    again = shape.rho(y)
    off = np.abs(again - z)
    ends = np.where(np.isfinite(shape.lo), np.abs(shape.lo), 0), np.where(np.isfinite(shape.hi), np.abs(shape.hi), 0)
    at_end = np.maximum(shape.gap(z), shape.gap(again)) <= 8 * eps * np.maximum(1, np.maximum(*ends))
    near = 32 * eps * (np.abs(z) + shape.slope(y) * np.abs(y) + (max(ends) if shape.bounded else 0))
    worst = np.where(at_end | (off <= near) | sample.cut, 0, off)
    report.demand(
        "dual", not worst.any(), f"{tag}: ρ(dual) = {again[worst.argmax()]:.6g}, value = {z[worst.argmax()]:.6g}"
    )


def _status(sample: Sample, report: Report, tag: str, status: Status) -> None:
    case, shared = sample.case, sample.shared
    if shared.count == "several":
        return
    if sample.truth.infeasible:
        report.demand("status", status == Status.INFEASIBLE, f"{tag}, but the system is infeasible")
        return
    if status == Status.INFEASIBLE and shared.count == "projection" and refuted(sample):
        return
    # First-order methods may need more than a few steps where a case is wild.
    slow = (bool(case.settings) or case.adjoint == "shine") and status in (Status.MAX_ITER, Status.STALLED)
    hard = "status" if case.user else "status (wild)"
    kind = "status (singular)" if shared.count == "singular" else hard
    limited = (shared.ill and shared.count == "one") or sample.condition * shared.eps > 1e-2
    # A field without an objective whose entries span decades may run far before it comes back.
    limited = limited or (case.weight == "general" and not case.user)
    report.demand(kind, not status.failed, tag, soft=slow or limited)


def refuted(sample: Sample) -> bool:
    """Whether SciPy's linear programming finds no z in C with Vᵀz = β: the judge's own search may end far out."""
    vectors, target = (array.astype(np.float64) for array in (sample.shared.vectors, sample.target))
    bounds = (float(sample.shape.lo), float(sample.shape.hi))
    found = linprog(np.zeros(len(vectors)), A_eq=vectors.T, b_eq=target, bounds=bounds)
    return found.status == 2


def _value(sample: Sample, report: Report, tag: str) -> None:
    if sample.case.solver != "auto" and sample.truth.infeasible:
        return
    if sample.shared.count == "singular" and not _isolated(sample):
        image, true = (sample.problem.matrix @ point for point in (sample.z, sample.truth.z))
        scale = 1 + np.abs(sample.problem.matrix) @ (np.abs(sample.z) + np.abs(sample.truth.z))
        off = np.abs(image - true) / scale
        # (f grows like the square of this distance)
        report.demand(
            "value (singular)", bool((off <= 10 * sample.tol**0.5).all()), f"{tag}: Hz off by {off.max():.1e}"
        )
        return
    if sample.bar is None or sample.shared.ill:
        return
    off = np.abs(sample.z - sample.truth.z)
    bar = sample.bar + np.finfo(sample.case.dtype).tiny
    worst = (off / bar).argmax()
    detail = f"{tag}: z[{worst}] = {sample.z[worst]:.8g}, true {sample.truth.z[worst]:.8g}, bar {sample.bar[worst]:.1e}"
    # Where the bar is wide the first-order analysis behind it says nothing.
    narrow = sample.bar < 0.1 * (np.abs(sample.truth.z) + np.minimum(1, sample.shape.gap(sample.truth.z)))
    report.demand("value", bool(((off <= bar) | ~narrow).all()), detail)


def _isolated(sample: Sample) -> bool:
    """Whether the minimiser of a singular convex problem is unique, clearly."""
    free = sample.free
    if not free.any():
        return True
    block = sample.problem.matrix[np.ix_(free, free)].astype(np.float64)
    values = np.linalg.eigvalsh(block)
    return bool(values[0] > 1e-5 * values[-1]) and sample.strict


def _objective(sample: Sample, answer: Answer, report: Report, tag: str) -> None:
    if sample.shared.vectors is not None and not sample.gamma:
        return
    true, scale = objective_at(sample, sample.z, sample.y)
    if scale > float(np.finfo(sample.case.dtype).max) / 1e3:
        return
    off = abs(true - answer.objective[sample.row])
    # (z is known to the tolerance)
    blur = sample.tol * float(np.abs(sample.problem.offset).sum()) + 1e3 * np.finfo(sample.case.dtype).tiny
    report.demand(
        "objective",
        bool(off <= 1e3 * sample.shared.eps * scale + blur),
        f"{tag}: {answer.objective[sample.row]:.8g}, true {true:.8g}",
    )


def objective_at(sample: Sample, z: np.ndarray, y: np.ndarray):
    """F and the size of its terms."""
    image = sample.problem.matrix @ z
    terms = [z * image / 2, -sample.problem.offset * z]
    if sample.gamma:
        terms.append(sample.gamma * sample.shape.potential(y))
        # φ is known to the rounding of y and z, and of the constants in its formula.
        scale = sample.gamma * (np.abs(y) * (np.abs(z) + sample.shape.slope(y) * np.abs(y)) + z * z + 1)
    else:
        scale = 0 * z
    scale = scale + np.abs(z) * (np.abs(sample.problem.matrix) @ np.abs(z))
    # (an end of C is known to its rounding)
    scale = scale + np.abs(sample.problem.field(z, y)) * (1 + np.abs(z)) / 100
    return sum(term.sum() for term in terms), (sum(np.abs(term) for term in terms) + scale).sum()


def _several(sample: Sample, answer: Answer, report: Report, tag: str, claimed: bool) -> None:
    """A limit of MM is not above its start, and no saddle."""
    bounded = sample.shape.bounded
    report.demand("status (several)", claimed, tag, soft=True)
    if not (sample.shared.symmetric and claimed):
        return
    if sample.start is not None and (bounded or sample.gamma):
        begin, begin_scale = objective_at(sample, sample.shape.rho(sample.start), sample.start)
        end, end_scale = objective_at(sample, sample.z, sample.y)
        noise = 1e3 * sample.shared.eps * (begin_scale + end_scale) + 10 * sample.tol * end_scale
        report.demand("descent", bool(end <= begin + noise), f"{tag}: F rose from {begin:.8g} to {end:.8g}")
    inside = sample.shape.gap(sample.z) > 1e-3 * (1 + np.abs(sample.z))
    if inside.any():
        curvature = sample.gamma / sample.shape.slope(sample.y) if sample.gamma else 0 * sample.z
        block = (sample.problem.matrix + np.diag(curvature))[np.ix_(inside, inside)].astype(np.float64)
        values = np.linalg.eigvalsh(block)
        holds = values[0] >= -1e-2 * np.abs(values).max()
        report.demand("minimum", bool(holds), f"{tag}: curvature {values[0]:.2e} of {values[-1]:.2e}", soft=True)
    limit = _limit_of_mm(sample)
    if limit is not None:
        # (rounding may decide between two minima: how often they agree is for the table to say)
        off = float((np.abs(limit - sample.z) / (1 + np.abs(limit))).max())
        report.demand("MM's limit", off <= 0.02, f"{tag}: MM ends {off:.2g} away", soft=True)


def _limit_of_mm(sample: Sample) -> np.ndarray | None:
    """Where MM's own steps lead from the start; None where that is not known after some thousand."""
    shape, gamma, case = sample.shape, float(sample.gamma), sample.case
    if sample.start is None or not shape.legendre or shape.sigma <= 0 or case.d > 16 or case.columns:
        return None
    matrix, offset = (array.astype(np.float64) for array in (sample.problem.matrix, sample.problem.offset))
    step = min(1.0, float(shape.sigma) / float(np.linalg.eigvalsh(matrix)[-1].clip(1e-300)))
    y = sample.start.astype(np.float64)
    z = shape.rho(y)
    for _ in range(MM_STEPS):
        y = (y - step * (matrix @ z - offset)) / (1 + step * gamma)
        old, z = z, shape.rho(y)
        if np.abs(z - old).max() <= 1e-9 * (1 + np.abs(z).max()):
            break
    field = matrix @ z - offset + gamma * y
    way = np.where(field < 0, shape.hi - z, z - shape.lo)
    near = np.minimum(np.abs(field) / (1 + np.abs(offset)), way / (1 + np.abs(z))) <= 1e-4
    return z if np.isfinite(z).all() and near.all() else None


# --- gradients --------------------------------------------------------------------------------------------------------


def _gradient(sample: Sample, answer: Answer, report: Report, tag: str, claimed: bool, status: Status):
    case = sample.case
    if not sample.strict or status == Status.DEGENERATE or (sample.truth.infeasible and case.solver != "auto"):
        return None
    if sample.shared.count == "singular" and not _isolated(sample):
        return None
    try:
        v = sample.adjoint(sample.truth.y)
        allowed = _allowed(sample, v)
    except Unsolvable:
        return None
    expected = pullback.to_input(sample, v, answer)
    got = wide(answer.gradients["x"][sample.row])
    size, off = (np.linalg.norm(array.astype(np.float64)) for array in (expected, got - expected))
    if not np.isfinite(allowed) or size < 1e6 * np.finfo(case.dtype).tiny or not np.isfinite(off):
        return None
    blown = pullback.cancellation(sample, v, answer) / size
    allowed = allowed * blown
    if case.adjoint not in IMPLICIT:
        _biased(sample, answer, report, tag, v, claimed)
        return None
    adjoint = Status(int(answer.adjoint_status[sample.row]))
    if (claimed or sample.truth.infeasible) and allowed < 0.1:
        # (an iteration that was asked for by name may fail where rounding decides, but has to say so)
        weak = not case.user and case.adjoint in ("cg", "gmres")
        solved = adjoint == Status.CONVERGED
        report.demand("adjoint status", solved, f"{tag}: {adjoint.name}", soft=weak)
        # (at a point that need not be exact, `gradient_error` has to tell)
        if "tol" not in case.settings and (solved or not weak):
            base = BASE_TOL[case.dtype] * blown
            most = base + SPREAD * (allowed - base)
            report.demand("gradient", bool(off <= most * size), f"{tag}: relative error {off / size:.2e} ({most:.1e})")
    if answer.error is not None and blown < 30 and not sample.shared.ill:
        found = float(np.linalg.norm(got.astype(np.float64)))
        _gradient_error(sample, answer, report, tag, off, size, found, claimed and adjoint == Status.CONVERGED)
    known = (claimed or sample.truth.infeasible) and adjoint == Status.CONVERGED
    return (v, allowed) if known else None


def _allowed(sample: Sample, v: np.ndarray) -> float:
    """The relative error of v that the tolerances leave room for."""
    case, eps = sample.case, sample.shared.eps
    size = float(np.linalg.norm(v.astype(np.float64)))
    if size == 0:
        return np.inf
    at_answer = 0.0
    if sample.gamma or sample.shared.count == "projection":
        at_answer = 4 * float(np.linalg.norm((sample.adjoint(sample.y) - v).astype(np.float64))) / size
        # What the value may be off by is allowed for, not what it is.
        reach = np.maximum(np.abs(sample.z - sample.truth.z) / np.maximum(sample.bar, 1e-300), 1).max()
        at_answer = at_answer / float(reach)
    iterative = case.adjoint in ("cg", "gmres") or case.d > 32
    linear = 5 * ADJOINT_TOL[case.dtype] if iterative else 0.0
    allowed = BASE_TOL[case.dtype] + at_answer + (linear + 60 * eps) * sample.condition
    if not sample.gamma and sample.shared.count != "projection":
        allowed += _leaving(sample) / size
    return allowed


def _leaving(sample: Sample) -> float:
    """What coordinates on their way to a bound still contribute: v_j is about g_j·gap/multiplier."""
    active = ~sample.free
    if not active.any():
        return 0.0
    field = np.abs(sample.problem.field(sample.truth.z, sample.truth.y))
    gap = np.minimum(np.abs(sample.z - sample.truth.z), sample.bar)
    own = np.where(active, np.abs(sample.g) * gap * 8 / np.maximum(field, 1e-300), 0)
    spread = np.abs(sample.problem.matrix) @ own
    if sample.free.any():
        block = sample.problem.matrix[np.ix_(sample.free, sample.free)]
        spread = np.linalg.norm(np.linalg.pinv(block.astype(np.float64)), 2) * np.linalg.norm(spread.astype(np.float64))
    else:
        spread = 0.0
    return float(np.linalg.norm(own.astype(np.float64)) + spread)


def _is_negligible(sample: Sample, size: float) -> bool:
    """Whether a gradient of that size is nothing beside one that is not saturated."""
    if sample.shared.count == "projection":
        return False
    largest = float(np.abs(sample.problem.matrix).max())
    return bool(size * largest < sample.shared.eps * float(np.linalg.norm(sample.g.astype(np.float64))))


def _gradient_error(sample, answer, report, tag, off: float, size: float, found: float, converged: bool) -> None:
    """Relative to the true gradient, as documented, or to the found one where that is larger."""
    told, largest = float(answer.error[sample.row]), max(size, found)
    floor = 100 * sample.shared.eps * sample.condition + sample.shared.eps
    truths = (off / largest, off / size, found / size * _relative_to_truth(sample))
    least, most = truths[0], max(truths)
    detail = f"{tag}: says {told:.1e}, is {least:.1e} … {most:.1e}"
    if least >= 0.1 and least > floor:
        negligible = _is_negligible(sample, largest)
        report.demand("gradient_error too low", told >= least / 30, detail, soft=negligible)
    if least > floor:
        report.demand("gradient_error within 30", least / 30 <= told <= 30 * most, detail, soft=True)
    if converged:
        beyond = most > 1e6 if np.isinf(told) else most > told / 1e4
        report.demand("gradient_error too high", told < 100 or beyond, detail)


def _relative_to_truth(sample: Sample) -> float:
    """‖z − z*‖/‖z*‖, which is what dL/dW = v zᵀ is off by as well."""
    off, size = (float(np.linalg.norm(a.astype(np.float64))) for a in (sample.z - sample.truth.z, sample.truth.z))
    return off / max(size, float(np.finfo(float).tiny))


def _biased(sample: Sample, answer: Answer, report: Report, tag: str, v: np.ndarray, claimed: bool) -> None:
    """Phantom, one-step, SHINE: for a convex problem 0 ≤ ⟨g, v⟩ ≤ what the implicit gradient gives."""
    case = sample.case
    if case.layer or case.weight == "low_rank" or not (claimed and sample.shared.definite):
        return
    got, full = float(sample.g @ wide(answer.gradients["x"][sample.row])), float(sample.g @ v)
    norm = float(np.linalg.norm(sample.g) * np.linalg.norm(v))
    noise = (1e-3 + _allowed(sample, v)) * norm
    report.demand(
        f"biased ({case.adjoint})", -noise <= got <= full + noise, f"{tag}: ⟨g, v⟩ = {got:.3e}, implicit {full:.3e}"
    )
