"""The table "Measured" on the page about choosing: evaluations of the gradient of f, per solver and problem.

Run

    python docs/scripts/solvers.py

It needs the extra `experiments`, writes the table into the page, prints it, and takes well under a minute on one core.
Counts may differ by a few between machines and versions of PyTorch.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import implicit_bregman as ib
from implicit_bregman.experiments.reference.problems import Problem, collection
from implicit_bregman.solvers import MM, Anderson, Broyden, Newton, Solver, TorchDEQ

PAGE = Path(__file__).resolve().parent.parent / "choosing.md"
MAX_ITER = 1000


def chosen_problems() -> list[tuple[str, Problem]]:
    """Five of the collection: one per kind of difficulty."""
    wanted = [
        ("convex, tanh, some bounds active", "convex", "tanh", 40, 0.0),
        ("convex, arctan, a quarter active", "convex", "arctan", 16, 0.0),
        ("convex, sigmoid, γ = 0.05", "convex", "sigmoid", 32, 0.05),
        ("indefinite, tanh, γ = 0.03", "indefinite", "tanh", 16, 0.03),
        ("not symmetric, sigmoid, γ = 0.2", "general", "sigmoid", 32, 0.2),
    ]
    problems = []
    for title, kind, geometry, width, regularization in wanted:
        fitting = [
            problem
            for problem in collection()
            if (problem.kind, problem.geometry.name, problem.weight.shape[0]) == (kind, geometry, width)
            and problem.regularization == regularization
        ]
        problems.append((title, max(fitting, key=lambda problem: problem.condition)))
    return problems


def cell(problem: Problem, solver: Solver) -> str:
    """Mean number of evaluations, or the largest residual if a sample did not converge."""
    energy = ib.QuadraticEnergy.from_matrices(problem.weight)
    s = ib.find_critical_point(
        energy, problem.geometry, problem.offset, regularization=problem.regularization, solver=solver
    )
    if bool(s.converged.all()):
        return f"{float(s.evaluations.double().mean()):.0f}"
    return f"(residual {float(s.residual.max()):.0e})"


def table() -> str:
    """The table in Markdown."""
    lines = [
        '| problem | width | condition | exact | `MM` | `Anderson` | `Broyden` | `Newton` | `TorchDEQ("anderson")` |',
        "| --- |" + " --- |" * 8,
    ]
    for title, problem in chosen_problems():
        for exact in (False, True):
            solvers = (
                MM(max_iter=MAX_ITER, exact=exact),
                Anderson(max_iter=MAX_ITER, exact=exact),
                Broyden(max_iter=MAX_ITER, exact=exact),
                Newton(max_iter=MAX_ITER, exact=exact),
                TorchDEQ("anderson", max_iter=MAX_ITER, exact=exact),
            )
            facts = [title, str(problem.weight.shape[0]), f"{problem.condition:g}", "on" if exact else "off"]
            lines.append(f"| {' | '.join(facts + [cell(problem, solver) for solver in solvers])} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table and put it into the page, between its two marks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ib.ConvergenceWarning)
        counts = table()
    print(counts)
    before, start, rest = PAGE.read_text(encoding="utf-8").partition("<!-- counts -->\n")
    _, end, after = rest.partition("<!-- end of counts -->\n")
    PAGE.write_text(f"{before}{start}\n{counts}\n\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
