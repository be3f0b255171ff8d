"""From v = dL/dc (for a projection u = dL/dβ) to the gradients of the leaves, by the chain rule in NumPy."""

from __future__ import annotations

import numpy as np

from tests.fuzz.system import Matrices, Sample, wide


def to_input(sample: Sample, v: np.ndarray, answer) -> np.ndarray:
    """dL/dx of one row."""
    if sample.shared.vectors is not None and sample.shared.count != "projection":
        v = sample.shared.vectors.T @ v
    u = _input_weight(sample, answer)
    return v if u is None else v @ u


def cancellation(sample: Sample, v: np.ndarray, answer) -> float:
    """The size that dL/dx would have without cancellation in the chain rule."""
    if sample.shared.vectors is not None and sample.shared.count != "projection":
        v = np.abs(sample.shared.vectors).T @ np.abs(v)
    u = _input_weight(sample, answer)
    full = v if u is None else np.linalg.norm(v.astype(np.float64)) * np.linalg.norm(u.astype(np.float64), axis=0)
    return float(np.linalg.norm(full.astype(np.float64)))


def _input_weight(sample: Sample, answer) -> np.ndarray | None:
    return wide(answer.parameters["input_weight"]) if sample.case.layer else None


def check_leaves(case, answer, shared: Matrices, trusted: list, report) -> None:
    """dL/dθ, where the gradient of every row is known."""
    samples = [Sample(shared, answer, row) for row in range(len(case.x))]
    if case.start == "warm" and shared.count == "projection":
        return
    pieces = [_row_gradients(sample, v) for sample, (v, _) in zip(samples, trusted, strict=True)]
    allowed = max(bar for _, bar in trusted)
    # z itself is known within its error bar only.
    shifts = [_uncertain(sample, v) for sample, (v, _) in zip(samples, trusted, strict=True)]
    moved = {k: sum(shift[k] for shift in shifts) for k in pieces[0][0]}
    expected, size = ({k: sum(p[i][k] for p in pieces) for k in pieces[0][0]} for i in (0, 1))
    for name, true in _leaves(case, answer, shared, expected).items():
        scale = np.abs(_leaves(case, answer, shared, size)[name]).astype(np.float64)
        got = wide(answer.gradients[name])
        if name == "W" and shared.symmetric:
            # The part that is no direction in the space of symmetric matrices is the library's choice.
            got, true = (got + got.T) / 2, (true + true.T) / 2
        off, full = float(np.linalg.norm((got - true).astype(np.float64))), float(np.linalg.norm(scale))
        most = 10 * allowed * full + np.linalg.norm(
            np.abs(_leaves(case, answer, shared, moved)[name]).astype(np.float64)
        )
        info = np.finfo(case.dtype)
        holds = off <= most or not 1e6 * info.tiny <= full <= info.max / 1e3 or allowed > 0.01
        report.demand("gradient of θ", bool(holds), f"d{name} off by {off:.2e} of {full:.2e} (allowed {most:.1e})")
    if "initial" in answer.gradients:
        _check_initial(samples, trusted, answer, report)


def _row_gradients(sample: Sample, v: np.ndarray, z: np.ndarray | None = None) -> tuple[dict, dict]:
    """The contributions of one row, and their sizes; at the true point, or at z."""
    z = sample.truth.z if z is None else z
    if sample.shared.count == "projection":
        return _projection_gradients(sample, v, z)
    if sample.shared.vectors is not None:
        beta, vectors = sample.target, sample.shared.vectors
        g = np.outer(v, z)
        exact = {"V": -(g + g.T) @ vectors + np.outer(v, beta), "beta": vectors.T @ v}
        a = np.abs(g)
        size = {"V": (a + a.T) @ np.abs(vectors) + np.outer(abs(v), abs(beta)), "beta": np.abs(vectors).T @ abs(v)}
    else:
        exact = {"W": np.outer(v, z), "c": v}
        size = {name: np.abs(array) for name, array in exact.items()}
    return _with_inputs(sample, exact), _with_inputs(sample, size, np.abs)


def _uncertain(sample: Sample, v: np.ndarray) -> dict:
    """By how much the contributions of one row may be off because z (and λ) may be."""
    if sample.shared.count != "projection":
        return _row_gradients(sample, v, sample.bar)[1]
    vectors, slope = sample.shared.vectors, sample.shape.slope(sample.truth.y)
    back = np.abs(np.linalg.pinv(vectors.astype(np.float64)))
    lam = back @ (sample.bar / np.maximum(slope, 1e-300))
    return _projection_gradients(sample, v, sample.bar, lam)[1]


def _projection_gradients(
    sample: Sample, u: np.ndarray, z: np.ndarray, lam: np.ndarray | None = None
) -> tuple[dict, dict]:
    vectors, lam = sample.shared.vectors, sample.truth.lam if lam is None else lam
    w = _on_dual(sample, u)
    softened = -2 * sample.softening / vectors.shape[1] * (u @ lam) * vectors if sample.truth.infeasible else 0
    exact = {"V": np.outer(w, lam) - np.outer(z, u) + softened, "beta": u}
    slope = sample.shape.slope(sample.truth.y)
    bound = slope * (np.abs(sample.g) + np.abs(vectors) @ np.abs(u))
    size = {"V": np.outer(bound, abs(lam)) + np.outer(abs(z), abs(u)) + np.abs(softened), "beta": np.abs(u)}
    return _with_inputs(sample, exact), _with_inputs(sample, size, np.abs)


def _on_dual(sample: Sample, u: np.ndarray) -> np.ndarray:
    """dL/dy⁰ of a projection."""
    return sample.shape.slope(sample.truth.y) * (sample.g - sample.shared.vectors @ u)


def _with_inputs(sample: Sample, pieces: dict, size=lambda array: array) -> dict:
    if sample.case.layer:
        x = size(wide(sample.case.x[sample.row]))
        pieces["U"] = np.outer(pieces["beta"] if "beta" in pieces else pieces["c"], x)
    return pieces


def _leaves(case, answer, shared: Matrices, sums: dict) -> dict:
    """The gradients of the leaves from the sums over the rows."""
    if not case.layer:
        return {"W": sums["W"]} if "W" in sums else {"V": sums["V"]}
    leaves = {"input_weight": sums["U"], "bias": sums["beta"] if "beta" in sums else sums["c"]}
    if "V" in sums:
        return {**leaves, "weight_map.vectors": sums["V"]}
    g = sums["W"]
    if case.weight == "convex":
        return {**leaves, "weight_map.factor": -(g + g.T) @ wide(answer.parameters["weight_map.factor"])}
    return {**leaves, "weight_map.entries": (g + g.T) / 2 if case.weight == "symmetric" else g}


def _check_initial(samples, trusted, answer, report) -> None:
    """dL/dz⁰: 0, but for projections."""
    for sample, (u, allowed) in zip(samples, trusted, strict=True):
        got = wide(answer.gradients["initial"][sample.row])
        if sample.shared.count != "projection":
            report.demand("gradient of z⁰", not got.any(), f"row {sample.row}: not 0")
            continue
        before = sample.shape.slope(sample.start)
        true = _on_dual(sample, u) / before
        slope = sample.shape.slope(sample.truth.y)
        full = slope * (np.abs(sample.g) + np.abs(sample.shared.vectors) @ np.abs(u)) / before
        off = np.abs(got - true)
        holds = off <= 10 * allowed * np.linalg.norm(full.astype(np.float64))
        report.demand(
            "gradient of z⁰", bool(holds.all()), f"row {sample.row}: off by {off.max():.2e} of {full.max():.2e}"
        )
