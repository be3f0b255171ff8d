"""The report of the study of gradient errors."""

from __future__ import annotations

from implicit_bregman.experiments.grid.report import GridReport
from implicit_bregman.experiments.grid.run import Grid
from implicit_bregman.experiments.study.hypergradient.figures import figures
from implicit_bregman.experiments.study.hypergradient.findings import findings
from implicit_bregman.experiments.study.hypergradient.run import measure_hypergradient
from implicit_bregman.experiments.study.hypergradient.settings import HypergradientSettings
from implicit_bregman.experiments.study.hypergradient.summary import rows


def study_hypergradient(settings: HypergradientSettings, grid: Grid) -> GridReport:
    """Measure all cases with all seeds: table, findings and figures.

    Args:
        settings: Seeds and sizes.
        grid: Computes and keeps the cells.

    Raises:
        RuntimeError: If the oracle refused every seed of a case.
    """
    found = measure_hypergradient(settings, grid)
    refused, usable = [], {}
    for case, results in found.items():
        refused += [f"{case.name}: {result['refused']}" for result in results if result["refused"] is not None]
        usable[case.name] = [result for result in results if result["refused"] is None]
        if not usable[case.name]:
            raise RuntimeError(f"no reference for any seed of {case.name!r}: {refused[-1]}; use another --seed")
    return GridReport(
        "hypergradient",
        "Error of the gradient against inner iterations",
        _setting(settings),
        (),
        (*findings(usable), f"The oracle refused {len(refused)} of {sum(map(len, found.values()))} problems."),
        tuple(row for name, results in usable.items() for row in rows(name, results)),
        (
            ("problem", ("case",)),
            ("gradient", ("method",)),
            ("k to 1e-2", ("k_0.01",)),
            ("work", ("work_0.01:.0f",)),
            ("k to 1e-6", ("k_1e-06",)),
            ("work to 1e-6", ("work_1e-06:.0f",)),
            ("error at the last k", ("last_error:.1e",)),
            ("last k", ("last_k:g",)),
            ("cosine there", ("last_cosine:.4f",)),
        ),
        {"refused": refused, "cases": usable},
        figures(usable),
    )


def _setting(settings: HypergradientSettings) -> tuple[str, ...]:
    return (
        f"Convex quadratic problems, d = {settings.dim}, {settings.batch} samples, {settings.seeds} seeds from "
        f"{settings.seed} on, float64, loss ½‖z − t‖². The error is ‖g − g*‖/‖g*‖, g the gradient in W and c, g* that "
        "of an independent oracle.",
        "unrolled: through k MM steps; truncated-K: through the last K of them. implicit-mm, -anderson, -newton: exact "
        "adjoint system at the k-th iterate of that solver, without an exact solve; newton for γ = 0 is the projected "
        "one. shine: Broyden's inverse estimate after k iterations.",
        "one-step, phantom-λ (k steps damped by λ), cg, gmres, dense: at the exact solution, found by the library's "
        "own choice of solver; k counts steps or products of the backward pass. shine-refined: k − 2 CG steps from "
        "SHINE's estimate.",
        "chebyshev is what method='auto' does for γ > 0; it takes as many products as its tolerance asks for, and "
        "cannot be stopped at a given k: the curve is over its tolerances. GMRES starts anew after 50 products.",
        "Work is the total of forward and backward, in products of W with the batch: operations of all matrix products "
        "and factorizations, counted as they run. For methods whose work is linear in k it is counted at two k.",
        "k and work to an error: medians over the seeds, interpolated between the measured k; missing if a seed does "
        "not get there. The last error is a geometric mean, the cosine the least of the seeds.",
    )
