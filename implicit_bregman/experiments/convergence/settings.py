"""What a convergence run is asked to do."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from implicit_bregman.energy.weights import present_name
from implicit_bregman.experiments.learning.methods import torchdeq_installed
from implicit_bregman.experiments.reference.problems import Problem, collection

SOLVERS = ("mm", "anderson", "broyden", "newton", "torchdeq")
DEFAULT_PROBLEM = "convex-tanh-d16-condition100-active0.25-regularization0-stiffness1"


@dataclass(frozen=True)
class ConvergenceSettings:
    """What to run.

    Attributes:
        problem: Name of a problem of the collection.
        solvers: Names of solvers, from "mm", "anderson", "broyden", "newton" and "torchdeq".
        tol: Tolerance of the relative residual.
        max_iter: Largest number of iterations.
    """

    problem: str = DEFAULT_PROBLEM
    solvers: tuple[str, ...] = field(default_factory=lambda: default_solvers())
    tol: float = 1e-11
    max_iter: int = 1000

    def __post_init__(self) -> None:
        if not 0 < self.tol < math.inf:
            raise ValueError(f"tol must be positive and finite, got {self.tol}")
        if self.max_iter < 1:
            raise ValueError(f"max_iter must be at least 1, got {self.max_iter}")
        if not self.solvers:
            raise ValueError(f"no solvers: name at least one of {', '.join(SOLVERS)}")
        for name in self.solvers:
            if name not in SOLVERS:
                raise ValueError(f"unknown solver {name!r}; the known ones are {', '.join(SOLVERS)}")
        if "torchdeq" in self.solvers and not torchdeq_installed():
            raise ValueError("solver 'torchdeq' needs the package torchdeq: pip install torchdeq")


def default_solvers() -> tuple[str, ...]:
    """All solvers; torchdeq's only where torchdeq is installed."""
    return tuple(name for name in SOLVERS if name != "torchdeq" or torchdeq_installed())


def find_problem(name: str) -> Problem:
    """The problem of that name; "general-…" were "free-…" before.

    Raises:
        ValueError: If there is none; the message says how to list them.
    """
    kind, _, rest = name.partition("-")
    present = f"{present_name(kind)}-{rest}"
    for problem in collection():
        if problem.name == present:
            return problem
    raise ValueError(f"unknown problem {name!r}; `implicit-bregman convergence --list` shows the known ones")
