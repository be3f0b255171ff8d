"""The judge's own MM loop, and its derivative by the chain rule, against `Unrolled`."""

from __future__ import annotations

import numpy as np

from tests.fuzz.system import Matrices, Sample, wide


def check_unrolled(case, answer, shared: Matrices, report) -> None:
    """z_L and dL/dx after L steps; not where the step is searched for (σ = 0) or the start is not known."""
    if shared.shape.sigma == 0 or case.start == "warm":
        return
    if shared.symmetric:
        _check_step(case, answer, shared, report)
    for row in range(len(case.x)):
        sample = Sample(shared, answer, row)
        tau = wide(answer.step[row])
        if not np.isfinite(tau):
            continue
        duals, noise = _iterates(sample, tau)
        y = duals[-1]
        size = np.abs(y) + np.abs(sample.y) + noise
        holds = np.abs(sample.shape.rho(y) - sample.z) <= 1e3 * shared.eps * (
            np.abs(sample.z) + sample.shape.slope(y) * size + 1e-3
        )
        report.demand("unrolled value", bool(holds.all()), f"row {row}")
        if noise.max() * shared.eps < 1e-3 and holds.all():
            _check_gradient(sample, tau, duals, answer, report)


def _check_step(case, answer, shared: Matrices, report) -> None:
    largest = np.linalg.eigvalsh(shared.matrix.astype(np.float64))[-1]
    tau = min(1.0, shared.shape.sigma / largest) if largest > 0 else 1.0
    step = answer.step[np.isfinite(answer.step)]
    report.demand("step", bool((np.abs(step - tau) <= 1e-3 * tau).all()), f"τ = {step[:1]}, should be {tau:.6g}")


def _clamp(sample: Sample, y: np.ndarray) -> np.ndarray:
    if sample.shape.legendre:
        return y
    reach = np.abs(sample.shape.inverse(sample.shape.hi))
    return np.clip(y, -reach, reach)


def _iterates(sample: Sample, tau) -> tuple[list[np.ndarray], np.ndarray]:
    y, noise, problem = sample.start, np.zeros_like(sample.start), sample.problem
    duals = [y]
    for _ in range(sample.case.steps):
        z = sample.shape.rho(y)
        grown = np.abs(y) + tau * (
            np.abs(problem.matrix) @ (np.abs(z) + sample.shape.slope(y) * noise) + np.abs(problem.offset)
        )
        y = _clamp(sample, (y - tau * (problem.matrix @ z - problem.offset)) / (1 + tau * sample.gamma))
        noise = (noise + grown) / (1 + tau * sample.gamma)
        duals.append(y)
    return duals, noise


def _check_gradient(sample: Sample, tau, duals, answer, report) -> None:
    case, problem, shape = sample.case, sample.problem, sample.shape
    total = np.zeros_like(sample.g)
    size = np.zeros_like(sample.g)
    dual = shape.slope(duals[-1]) * sample.g
    for k in range(case.steps, 0, -1):
        if not shape.legendre:
            inside = np.abs(duals[k]) < np.abs(shape.inverse(shape.hi)) * (1 - 1e-12)
            dual = np.where(inside, dual, 0)
        moved = dual / (1 + tau * sample.gamma)
        total, size = total + tau * moved, size + tau * np.abs(moved)
        dual = moved - shape.slope(duals[k - 1]) * (tau * (problem.matrix.T @ moved))
    if case.layer or sample.shared.vectors is not None:
        return
    got = wide(answer.gradients["x"][sample.row])
    off, full = (float(np.linalg.norm(a.astype(np.float64))) for a in (got - total, size))
    tol = 3e-3 if case.dtype == "float32" else 1e-7
    if full > 1e6 * np.finfo(case.dtype).tiny:
        report.demand("unrolled gradient", off <= tol * full, f"row {sample.row}: off by {off / full:.1e}")
