"""Checks that ask the library again: the same call twice, a sample alone, a sample with a bad batch-mate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tests.fuzz.cases import Case
from tests.fuzz.checks import IMPLICIT, Report, claims
from tests.fuzz.geometries import geometry
from tests.fuzz.library import Answer, Status, ask
from tests.fuzz.system import Matrices, Sample, wide


def check_again(case: Case, answer: Answer, report: Report) -> None:
    """Some of the checks, chosen by the case itself so that a replay makes the same."""
    if (case.columns and len(case.x) > 1) or case.name.rstrip("s").endswith(("3", "6")):
        _alone(case, answer, report)
    if case.name.rstrip("s").endswith("7"):
        _twice(case, answer, report)
    if len(case.x) > 1 and case.name.rstrip("s").endswith(("1", "5")):
        _bad_mate(case, answer, report)
    if case.half:
        _half(case, answer, report)
    if case.solver in ("anderson", "broyden") and case.adjoint in IMPLICIT and not case.settings:
        _steps(case, answer, report)


#: Digits of the significand, least exponent of a normal number, and largest number.
_HALVES = {"float16": (11, -14, 65504.0), "bfloat16": (8, -126, 3.3895314e38)}


def _half(case: Case, answer: Answer, report: Report) -> None:
    """In half precision the same comes back, rounded once to a number inside C."""
    other = ask(case, half=True)
    if other.refused is not None:
        report.demand("half", False, f"refused: {other.refused[:100]}")
        return
    digits, least, largest = _HALVES[case.half]
    shape = geometry(case.geometry, case.box)
    for row in range(len(case.x)):
        z, y = answer.value[row], other.value[row]
        tag = f"row {row} {case.half}"
        if answer.status[row] == Status.INVALID_INPUT:
            continue
        beyond = np.abs(z) > largest
        finite = np.isfinite(y)
        report.demand("half", bool((finite | beyond).all()), f"{tag}: {y[~finite][:1]} for {z[~finite][:1]}")
        overflows = other.status[row] == Status.OVERFLOW
        same = overflows if (~finite).any() and claims(answer, row) else other.status[row] == answer.status[row]
        report.demand("half", bool(same), f"{tag}: status {other.status[row]}, in float32 {answer.status[row]}")
        inside = (y >= shape.lo) & (y <= shape.hi)
        report.demand("half", bool(inside[finite].all()), f"{tag}: {y[finite & ~inside][:1]} is outside C")
        # One rounding; two where C ends between two numbers.
        exponent = np.maximum(np.frexp(np.abs(z))[1], least + 1)
        spacing = np.ldexp(1.0, exponent - digits)
        off = np.abs(y - z)
        near = off <= np.where(shape.gap(z) <= spacing, 1.0, 0.5) * spacing
        worst = (off / spacing)[finite & ~near]
        report.demand("half", not len(worst), f"{tag}: {worst.max(initial=0):.2f} spacings off")
        if claims(answer, row) and not overflows and case.adjoint in IMPLICIT:
            a, b = answer.gradients["x"][row], other.gradients["x"][row]
            size = float(np.abs(a).max())
            holds = np.abs(a - b) <= 2.0 ** (1 - digits) * size + 2.0**least
            report.demand("half", bool((holds | (size > largest / 4)).all()), f"{tag}: dx {b}, in float32 {a}")


def _steps(case: Case, answer: Answer, report: Report) -> None:
    """An accelerated method needs no more steps than MM: twice as many are a remark, 10 times a violation."""
    if Matrices.of(case, answer).count != "one":
        return
    plain = ask(replace(case, solver="mm")).iterations
    detail = f"{answer.iterations.max(initial=0)} steps, MM {plain.max(initial=0)}"
    report.demand("steps", bool((answer.iterations <= 10 * plain + 100).all()), detail)
    report.demand("steps", bool((answer.iterations <= 2 * plain + 20).all()), detail, soft=True)


def _twice(case: Case, answer: Answer, report: Report) -> None:
    again = ask(case)
    same = np.array_equal(answer.value, again.value, equal_nan=True) and np.array_equal(answer.status, again.status)
    report.demand("repeatability", same, "a second call gives other bits")
    grads = all(np.array_equal(answer.gradients[k], again.gradients[k], equal_nan=True) for k in answer.gradients)
    report.demand("repeatability", grads, "a second call gives other gradients")


def _alone(case: Case, answer: Answer, report: Report) -> None:
    if len(case.x) == 1:
        return
    row = len(case.x) - 1
    alone = ask(case, rows=slice(row, row + 1))
    _compare(case, answer, alone, row, 0, report, "alone")


def _bad_mate(case: Case, answer: Answer, report: Report) -> None:
    bad = case.x.copy()
    bad[0] = np.nan if case.name.rstrip("s").endswith("1") else 1e30
    mixed = ask(case, x=bad)
    for row in range(1, min(len(case.x), 4)):
        _compare(case, answer, mixed, row, row, report, "with a bad mate")
    if np.isnan(bad[0]).any() and case.adjoint != "shine":
        for name, gradient in mixed.gradients.items():
            if name not in ("x", "initial") and not np.isfinite(answer.gradients[name]).all():
                continue  # beyond the range of the precision
            rest = gradient[1:] if name in ("x", "initial") else gradient
            report.demand(
                "isolation", bool(np.isfinite(rest).all()), f"a NaN mate makes d{name} {rest[~np.isfinite(rest)][:1]}"
            )


def _compare(case: Case, one: Answer, other: Answer, row: int, there: int, report: Report, how: str) -> None:
    """Each within its error bar of the truth, or (several critical points) both claimed and close."""
    if other.refused is not None:
        report.demand("isolation", False, f"{how}: refused, {other.refused[:100]}")
        return
    sample = Sample(Matrices.of(case, one), one, row)
    if sample.truth is None or not sample.representable or sample.bar is None or sample.shared.ill:
        return
    if not claims(one, row) or sample.shared.count == "singular":
        return
    soft = sample.shared.count == "several"
    report.demand("isolation", bool(claims(other, there)), f"row {row} {how}: status {int(other.status[there])}")
    off = np.abs(wide(one.value[row]) - wide(other.value[there]))
    report.demand(
        "isolation", bool((off <= 2 * sample.bar).all()), f"row {row} {how}: value differs by {off.max():.1e}", soft
    )
    pairs = ((one, row), (other, there))
    solved = all(answer.adjoint_status is not None and not answer.adjoint_status[k] for answer, k in pairs)
    if case.adjoint in IMPLICIT and sample.strict and solved:
        a, b = (wide(array) for array in (one.gradients["x"][row], other.gradients["x"][there]))
        size = float(np.linalg.norm(a.astype(np.float64)))
        tol = (3e-3 if case.dtype == "float32" else 1e-6) + 200 * sample.shared.eps * sample.condition
        change = float(np.linalg.norm((a - b).astype(np.float64)))
        detail = f"row {row} {how}: dx differs by {change:.1e} of {size:.1e}"
        report.demand("isolation", change <= tol * size or tol > 0.1, detail, soft)
