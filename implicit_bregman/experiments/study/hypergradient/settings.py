"""What the study of gradient errors is asked to do."""

from __future__ import annotations

from dataclasses import dataclass

from implicit_bregman.settings import check_count


@dataclass(frozen=True)
class Case:
    """A family of convex problems, one per seed.

    Attributes:
        name: For people.
        geometry: Name of the geometry.
        condition: Condition number of W.
        active: Share of the coordinates at a bound.
        regularization: γ.
        steps: Largest number of MM steps.
    """

    name: str
    geometry: str
    condition: float
    active: float
    regularization: float
    steps: int


CASES = (
    Case("γ = 0.1, condition 10", "tanh", 10.0, 0.0, 0.1, 300),
    Case("γ = 0.1, condition 100", "tanh", 100.0, 0.0, 0.1, 400),
    Case("γ = 0, interior, condition 10", "tanh", 10.0, 0.0, 0.0, 800),
    Case("γ = 0, interior, condition 100", "tanh", 100.0, 0.0, 0.0, 5000),
    Case("γ = 0, 25 % at bounds, tanh", "tanh", 10.0, 0.25, 0.0, 800),
    Case("γ = 0, 25 % at bounds, arctan", "arctan", 10.0, 0.25, 0.0, 3000),
)


@dataclass(frozen=True)
class HypergradientSettings:
    """What to measure.

    Attributes:
        seed: First seed.
        seeds: Number of seeds, each with its own problem, start and loss.
        dim: d, more than 64: up to that width the library factorizes, and Chebyshev steps are not met.
        batch: Samples of a problem.
        longest: Largest number of MM steps, whatever the case wants; None: no bound.
        cases: The families of problems.

    Raises:
        ValueError: For numbers that are out of range, or no case.
    """

    seed: int = 0
    seeds: int = 5
    dim: int = 96
    batch: int = 8
    longest: int | None = None
    cases: tuple[Case, ...] = CASES

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("seeds", 1), ("dim", 65), ("batch", 1), ("longest", 50)):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), least)
        if not self.cases:
            raise ValueError("cases is empty: name at least one, for example CASES[:1]")

    @classmethod
    def quick(cls, seed: int = 0) -> HypergradientSettings:
        """Two seeds and at most 300 MM steps."""
        return cls(seed=seed, seeds=2, longest=300)
