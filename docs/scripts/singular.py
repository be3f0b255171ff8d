"""Convex but singular problems of other fields: values and times beside those of SciPy and scikit-learn.

Run

    OMP_NUM_THREADS=1 python docs/scripts/singular.py

It needs the extra `experiments`, prints a table, and takes about a minute on one core. Times are the least of five, in
milliseconds of the process; the value's error is relative, against the peer's or, where the peer solves another form of
the problem, bounded by the duality gap. Where OSQP or ProxQP is installed, it is timed too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.optimize import nnls
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from sklearn.linear_model import Lasso
from sklearn.svm import SVC, LinearSVC

import implicit_bregman as ib

try:
    import osqp
    from scipy.sparse import csc_matrix, identity, triu
except ImportError:
    osqp = None
try:
    import proxsuite
except ImportError:
    proxsuite = None

REPETITIONS = 5


@dataclass(frozen=True)
class Task:
    """½zᵀHz − cᵀz on [0, upper]ᵈ for each row c, and how a peer solves it."""

    title: str
    hessian: np.ndarray
    offsets: np.ndarray
    upper: float
    peer: Callable[[], object]


def standardized(features: np.ndarray) -> np.ndarray:
    """Mean 0 and variance 1; constant columns 0."""
    spread = features.std(0)
    return (features - features.mean(0)) / np.where(spread > 0, spread, 1.0)


def least_squares(atoms: int, samples: int) -> Task:
    """Nonnegative least squares: digits from other digits."""
    images = load_digits().data / 16.0
    dictionary, targets = images[:atoms].T, images[atoms : atoms + samples]
    title = f"NNLS, digits, 64 × {atoms}, {samples} samples"
    solve = partial(lambda: [nnls(dictionary, target)[0] for target in targets])
    return Task(title, dictionary.T @ dictionary, targets @ dictionary, np.inf, solve)


def lasso(name: str, load: Callable[..., tuple[np.ndarray, np.ndarray]], penalty: float) -> Task:
    """The lasso with positive and negative parts as unknowns."""
    features, target = load(return_X_y=True)
    x, y = standardized(features), standardized(target[:, None].astype(float))[:, 0]
    gram, pull = x.T @ x / len(y), x.T @ y / len(y)
    hessian = np.block([[gram, -gram], [-gram, gram]])
    offset = np.concatenate([pull, -pull]) - penalty
    fit = partial(Lasso(penalty, fit_intercept=False, tol=1e-12, max_iter=100_000).fit, x, y)
    return Task(f"lasso split in two, {name}", hessian, offset[None], np.inf, fit)


def machine(
    name: str, load: Callable[..., tuple[np.ndarray, np.ndarray]], count: int, width: float | None, bound: float
) -> Task:
    """The dual of a support vector machine without bias. (scikit-learn's with a kernel has one.)"""
    features, labels = load(return_X_y=True)
    x = standardized(features)[:count]
    y = np.where(labels[:count] == labels[0], 1.0, -1.0)
    if width is None:
        kernel = x @ x.T
        model = LinearSVC(C=bound, loss="hinge", fit_intercept=False, tol=1e-9, max_iter=1_000_000)
        kind = "linear"
    else:
        kernel = np.exp(-width * ((x[:, None] - x[None]) ** 2).sum(-1))
        model, kind = SVC(C=bound, gamma=width, tol=1e-9), f"RBF, width {width:g}"
    title = f"SVM, {kind}, C = {bound:g}, {name}, {len(y)} samples"
    return Task(title, y[:, None] * kernel * y, np.ones((1, len(y))), bound, partial(model.fit, x, y))


def tasks() -> list[Task]:
    """The table's rows."""
    cancer, wine, digits, diabetes = load_breast_cancer, load_wine, load_digits, load_diabetes
    return [
        least_squares(100, 20),
        least_squares(300, 20),
        lasso("diabetes", diabetes, 0.1),
        lasso("breast cancer", cancer, 0.01),
        lasso("wine", wine, 0.05),
        machine("breast cancer", cancer, 400, None, 1.0),
        machine("wine", wine, 178, None, 1.0),
        machine("digits", digits, 300, None, 1.0),
        machine("breast cancer", cancer, 400, 1e-3, 1.0),
        machine("breast cancer", cancer, 400, 1e-5, 100.0),
        machine("wine", wine, 178, 1e-2, 10.0),
        machine("digits", digits, 300, 1e-4, 1.0),
    ]


def least_time(run: Callable[[], object]) -> float:
    """Milliseconds."""
    times = []
    for _ in range(REPETITIONS):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return 1e3 * min(times)


def ours(task: Task, dtype: torch.dtype, backward: bool = False) -> ib.Solution:
    """The solution, with the gradients of its sum computed if asked."""
    weight = torch.from_numpy(-task.hessian).to(dtype).requires_grad_(backward)
    offset = torch.from_numpy(task.offsets).to(dtype)
    box = ib.geometry("softplus") if np.isinf(task.upper) else ib.geometry("sigmoid").to_box(0.0, task.upper)
    found = ib.find_critical_point(ib.QuadraticEnergy.from_matrices(weight), box, offset)
    if backward:
        found.value.sum().backward()
    return found


def gap(task: Task, z: np.ndarray) -> float:
    """A bound of f(z) − min f relative to |f|; for a half-line with the box that z itself spans."""
    slope = z @ task.hessian - task.offsets
    upper = task.upper if np.isfinite(task.upper) else 2 * z.max()
    value = np.abs((z * (0.5 * z @ task.hessian - task.offsets)).sum(-1))
    return float((np.maximum(slope * z, slope * (z - upper)).sum(-1) / value).max())


def proxqp(task: Task) -> None:
    """Each sample by ProxQP's dense solver."""
    d = len(task.hessian)
    upper = np.full(d, task.upper if np.isfinite(task.upper) else 1e20)
    for offset in task.offsets:
        problem = proxsuite.proxqp.dense.QP(d, 0, 0, True)
        problem.settings.eps_abs = 1e-9
        problem.init(task.hessian, -offset, None, None, None, None, None, np.zeros(d), upper)
        problem.solve()


def osqp_solutions(task: Task) -> None:
    """Each sample by OSQP, to 1e-9 or its best; one factorization serves all of them."""
    d = len(task.hessian)
    upper = np.full(d, task.upper)
    problem = osqp.OSQP()
    problem.setup(
        P=triu(csc_matrix(task.hessian), format="csc"),
        q=-task.offsets[0],
        A=identity(d, format="csc"),
        l=np.zeros(d),
        u=upper,
        eps_abs=1e-9,
        eps_rel=1e-9,
        max_iter=100_000,
        polishing=True,
        verbose=False,
    )
    for offset in task.offsets:
        problem.update(q=-offset)
        problem.solve()


def peer_time(peer: object, solve: Callable[[], object]) -> str:
    """Milliseconds; a dash where the package is not installed."""
    return "–" if peer is None else f"{least_time(solve):.1f}"


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("| problem | steps | gap, float64 | gap, float32 | forward | and backward ", end="")
    print("| SciPy, scikit-learn | OSQP | ProxQP |")
    print("| --- |" + " --- |" * 8)
    for task in tasks():
        double, single = ours(task, torch.float64), ours(task, torch.float32)
        cells = [
            task.title,
            str(int(double.iterations.max())),
            f"{gap(task, double.value.numpy()):.0e}",
            f"{gap(task, single.value.double().numpy()):.0e}",
            f"{least_time(partial(ours, task, torch.float64)):.1f}",
            f"{least_time(partial(ours, task, torch.float64, True)):.1f}",
            f"{least_time(task.peer):.1f}",
            peer_time(osqp, partial(osqp_solutions, task)),
            peer_time(proxsuite, partial(proxqp, task)),
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
