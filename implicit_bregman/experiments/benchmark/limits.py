"""How many samples end on MM's own limit where there are several critical points."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import implicit_bregman as ib
from implicit_bregman.experiments.benchmark.results import LimitRow
from implicit_bregman.experiments.reference.oracle import reference_solution
from implicit_bregman.experiments.reference.problems import make_problem

TOLERANCE = 1e-6  # largest difference of a coordinate at the same limit


@dataclass(frozen=True)
class Pool:
    """Indefinite problems that share W, in float64.

    Attributes:
        geometry: Name of φ.
        regularization: γ.
        dim: d.
        condition: Condition number of W.
        active: Share of the directions of negative curvature.
        stiffness: λ_max(−W) in units of σ.
    """

    geometry: str
    regularization: float = 0.0
    dim: int = 16
    condition: float = 10.0
    active: float = 0.25
    stiffness: float = 1.0

    @property
    def text(self) -> str:
        """The same in words."""
        return (
            f"{self.geometry}, γ = {self.regularization:g}, d = {self.dim}, condition {self.condition:g}, "
            f"{self.active:.0%} of the directions of negative curvature"
        )


POOLS = (
    Pool("tanh", 0.05),
    Pool("sigmoid", dim=20, active=0.3),
    Pool("arctan", 0.05),
    Pool("tanh", dim=20, active=0.2),
    Pool("arcsinh", 0.05),
    Pool("tanh", condition=5.0, active=0.5),
    Pool("sin", dim=32, active=0.3),
    Pool("isru", dim=12, condition=5.0, active=0.2),
    Pool("scaled_tanh", dim=32, active=0.3, stiffness=2.0),
)


def share_on_limit(pool: Pool, samples: int, seed: int = 11) -> LimitRow:
    """Solve a pool with the defaults and count, over the samples whose limit the oracle knows.

    Args:
        pool: The problems.
        samples: How many.
        seed: Of the problems.
    """
    problem = make_problem(
        "indefinite",
        pool.geometry,
        pool.dim,
        samples,
        pool.condition,
        pool.active,
        pool.regularization,
        pool.stiffness,
        seed,
    )
    start = torch.zeros_like(problem.offset)
    truth = reference_solution(problem.weight, problem.offset, problem.geometry, problem.regularization, start)
    with torch.no_grad():
        found = ib.find_critical_point(
            ib.QuadraticEnergy.from_matrices(problem.weight),
            problem.geometry,
            problem.offset,
            regularization=problem.regularization,
        )
    same = (found.value - truth.value).abs().amax(-1) <= TOLERANCE
    counted = int(truth.reached.sum())
    return LimitRow(pool.text, counted, int((same & truth.reached).sum()), samples - counted)
