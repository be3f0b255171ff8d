"""Faults that were found in the past, one literal case each: `python -m tests.fuzz --issue`, `--replay NAME`."""

from __future__ import annotations

import math

import numpy as np

from tests.fuzz.cases import Case, rounded

CASES: dict[str, Case] = {}


def _add(name, geometry, matrix, x, gamma=0.0, dtype="float64", g=None, **rest) -> None:
    matrix, x = np.atleast_2d(np.asarray(matrix, dtype=float)), np.atleast_2d(np.asarray(x, dtype=float))
    d, batch = len(matrix), len(x)
    cotangent = np.ones((batch, d)) if g is None else np.broadcast_to(np.asarray(g, dtype=float), (batch, d))
    initial = rest.pop("initial", None)
    if initial is not None:
        rest |= {"initial": np.atleast_2d(np.asarray(initial, dtype=float)), "start": "given"}
    weight = rest.pop("weight", "convex")
    rank = matrix.shape[1] if weight == "low_rank" else None
    case = Case(name, geometry, weight, gamma, dtype, x, matrix, cotangent, rank=rank, d=d, user=True, **rest)
    CASES[name] = rounded(case)


def _layer(name, weight, d, x, gamma=0.0, dtype="float32", g=None, geometry="tanh", **rest) -> None:
    cotangent = np.ones((len(x), d)) if g is None else g
    case = Case(name, geometry, weight, gamma, dtype, x, None, cotangent, layer=True, user=True, d=d, **rest)
    CASES[name] = rounded(case)


def _symmetric(d: int, condition: float, seed: int) -> np.ndarray:
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]
    h = (q * np.logspace(0, -math.log10(condition), d)) @ q.T
    return -(h + h.T) / 2


def _normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


_first_order = ("mm", "anderson", "broyden")
_ones = [[1.0], [1.0], [1.0]]

# --- converged, and wrong ---------------------------------------------------------------------------------------------
_add("tiny start, float64", "exp", _ones, 1.0, weight="low_rank", initial=np.exp([-40.0, -45.0, -50.0]), g=[1, 2, 3])
_add("tiny start, float32", "exp", _ones, 1.0, 0.0, "float32", [1, 2, 3], weight="low_rank",
     initial=np.exp([-18.0, -20.0, -25.0]))  # fmt: skip
_add("transport", "exp", [[1, 0, 1], [1, 0, 0], [0, 1, 1], [0, 1, 0]], [0.5] * 3, weight="low_rank",
     initial=np.exp(-np.array([0.0, 0.5, 0.42, 0.9]) / 0.01), g=[1, 0, 0, 0])  # fmt: skip
for solver in _first_order:
    _add(f"large offset, float32, {solver}", "tanh", -1.0, 1.1e6, 0.0, "float32", solver=solver)
    _add(f"large offset, float64, {solver}", "tanh", -1.0, 1.1e11, solver=solver)
    _add(f"small weight, {solver}", "tanh", -1e-8, 0.0, 1e-8, "float32", solver=solver)
    _add(f"no solution in C, {solver}", "tanh", [[1, 0], [0, 0]], [0.5, 1.0], weight="low_rank", solver=solver)
    _add(f"overflow accepted, {solver}", "exp", [[-1, 0.5], [0.5, -1]], [[100, 1]], 0.0, "float32", solver=solver)
    _add(f"large softplus, {solver}", "softplus", -1.0, 1e8, 0.0, "float32", solver=solver, settings={"exact": False})
    _add(f"saturated start, {solver}", "sigmoid", -1.0, 0.3, 0.1, initial=0.9933, solver=solver)
_add("small beside large", "tanh", [[-1, 0.1], [0.1, -1]], [1e6, 0.5], 0.1, "float32")
_layer("general layer, x of 1e7", "general", 3, 1e7 * _normal(1, 5, 4))
_add("cancellation in the shift", "tanh", [[-1, -1000, 0], [1000, -1, 0], [0, 0, -1e-3]], [0, 0, 0], 1e-3, "float32",
     [0, 0, 1], weight="general")  # fmt: skip
for adjoint in ("phantom", "one_step"):
    _add(f"{adjoint} after Newton", "exp", -1.0, 100.0, adjoint=adjoint)
    _add(f"{adjoint} far out", "exp", -0.7, 1e5, adjoint=adjoint)
_add("dual of arcsinh, float32", "arcsinh", -1.0, 50.0, 0.0, "float32")
_add("dual of arcsinh, float64", "arcsinh", -1.0, 400.0)
_add("dual in a narrow box", "tanh", -1.0, 0.3002, 0.0, "float32", box=(0.29998779296875, 0.3009033203125))

# --- failing, where the answer is finite and near ---------------------------------------------------------------------
_add("overflow in Unrolled", "exp", [[-1, 0.5], [0.5, -1]], [[100, 1]], 0.0, "float32", adjoint="unrolled",
     steps=2)  # fmt: skip
_add("start far above", "exp", [[-1, 0.3], [0.3, -1]], [1, 1], 0.1, initial=[1e4, 1.0])
_add("poisoned batch", "exp", [[-1, 0.3], [0.3, -1]], [[1, 1], [1, 1]], 0.1, initial=[[1e4, 1.0], [1.0, 1.0]])
_add("stale scale, e^20", "exp", -1.0, 1.0, 100.0, initial=math.exp(20))
_add("stale scale, e^40", "exp", -1.0, 1.0, 100.0, initial=math.exp(40))
_add("no descent", "exp", [[-0.096, -0.109, 0.003], [-0.109, -0.582, 0.276], [0.003, 0.276, -0.294]], [3.4, 4.1, -0.6],
     0.01)  # fmt: skip
for geometry in ("arcsinh", "arctan", "bent", "exp"):
    for gamma in (1e-8, 1e-6, 1e-5):
        _add(f"small γ, {geometry}, {gamma:g}", geometry, _symmetric(32, 100, 0), 3 * _normal(2, 8, 32), gamma)
for d in (4, 16, 64):
    _add(f"exp, user-like, d = {d}", "exp", _symmetric(d, 4, d), 2 * _normal(d, 32, d), 0.1)
_layer("confident classifier", "general", 65, _normal(3, 4, 65), 0.05, noise=0.1,
       g=_normal(4, 4, 65) * np.array([1e-20, 1, 1, 1])[:, None])  # fmt: skip
_add("matching pennies", "sigmoid", [[0, 10], [-2, 0]], [-1, 1], 0.05, weight="general", one=True)
_add("general W of norm 3", "tanh", 3 * _normal(5, 24, 24) / math.sqrt(24), _normal(6, 32, 24), 1.0, weight="general")
_add("far start, bent", "bent", [[1], [1]], 1.5, weight="low_rank", initial=[1e6, 5e5])
_add("large target, arcsinh", "arcsinh", [[1], [1]], 800.0, weight="low_rank")
_add("empty batch", "tanh", -np.eye(2), np.zeros((0, 2)), adjoint="cg")
_add("cotangent of 1e20", "tanh", -np.eye(2), [0.3, 0.4], 0.0, "float32", 1e20)
_add("value of 1e-16", "tanh", [[-1, 0.1], [0.1, -1]], [1e-16, 2e-16], solver="mm", settings={"exact": False})
_add("unconverged near a bound", "tanh", [[-1, 0.5], [0.5, -1]], [1.2, 0.3], solver="mm",
     settings={"tol": 1e-4, "exact": False})  # fmt: skip
_add("loose tolerance, small γ", "sigmoid", _symmetric(4, 30, 7), 2 * _normal(7, 8, 4), 1e-3, solver="mm",
     settings={"tol": 1e-4, "exact": False})  # fmt: skip
_add("value of 1e19", "identity", -1.0, 3e19, 0.0, "float32")
_add("tiny γ, isru", "isru", -1e-8, 1e9, 1e-30, "float32")
_add("tiny γ, arcsinh", "arcsinh", -1e-8, 1e9, 1e-30, "float32")
_add("cold exp, c = 200", "exp", -1.0, 200.0, 1.0, "float32")
_add("one start on its bound", "sigmoid", [[1.0], [0.5]], [[0.75], [0.75]], 0.0, "float32", weight="low_rank",
     initial=[[0.5, 0.5], [0.5, 1.0]])  # fmt: skip

# --- convex but singular ----------------------------------------------------------------------------------------------
_a = np.abs(_normal(8, 24, 12))
_add("nnls, 12 data and 24 atoms", "softplus", -_a @ _a.T, (np.abs(_normal(9, 4, 12)) @ _a.T), weight="singular")
_b = _normal(10, 10, 5)
_h, _t = _b.T @ _b, _normal(11, 4, 10) @ _b
_add(
    "lasso in two halves", "softplus", -np.block([[_h, -_h], [-_h, _h]]), np.hstack([_t, -_t]) - 0.5, weight="singular"
)
_p = _normal(12, 40, 3) * np.sign(_normal(13, 40, 1))
_add("svm dual, linear kernel", "sigmoid", -_p @ _p.T, np.ones((1, 40)), weight="singular")
_add("condition 1e7 in float32", "sigmoid", _symmetric(80, 1e7, 14), _normal(15, 4, 80), 0.0, "float32")
