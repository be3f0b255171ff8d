"""What the study of the infimum is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from implicit_bregman.experiments.study.infimum.problem import FAMILIES
from implicit_bregman.settings import check_choice, check_count

DEPTHS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Effort:
    """How hard the infima are searched for.

    A search may miss the infimum without noticing: its last restarts win nothing. So independent ones are compared.

    Attributes:
        searches: Independent searches, at least two.
        starts: Starts of each search at each depth and in the limit, the best of `tries` random ones.
        tries: How many of these.
        evaluations: Of the loss in one descent; from random starts half, in restarts of the best twice as many.

    Raises:
        ValueError: For a number out of range.
    """

    searches: int = 2
    starts: int = 40
    tries: int = 400
    evaluations: int = 100

    def __post_init__(self) -> None:
        for name in ("starts", "tries", "evaluations"):
            check_count(name, getattr(self, name))
        check_count("searches", self.searches, 2)


@dataclass(frozen=True)
class InfimumSettings:
    """Settings of the study of the infimum.

    Attributes:
        seed: First seed; it draws data and starts.
        seeds: Number of seeds: seed, seed + 1, …
        depths: Numbers of steps L, at least two, ascending.
        families: Sets of layers, of `FAMILIES`.
        samples: N.
        effort: How hard the infima are searched for.

    Raises:
        ValueError: For a setting out of range.
    """

    seed: int = 0
    seeds: int = 3
    depths: tuple[int, ...] = DEPTHS
    families: tuple[str, ...] = tuple(FAMILIES)
    samples: int = 20
    effort: Effort = field(default_factory=Effort)

    def __post_init__(self) -> None:
        check_count("seed", self.seed, 0)
        for name in ("seeds", "samples"):
            check_count(name, getattr(self, name))
        for depth in self.depths:
            check_count("depths", depth)
        if len(self.depths) < 2 or list(self.depths) != sorted(set(self.depths)):
            raise ValueError(f"depths must be at least two numbers in ascending order, got {self.depths}")
        if not self.families:
            raise ValueError(f"families must name at least one of {', '.join(FAMILIES)}")
        for name in self.families:
            check_choice("families", name, tuple(FAMILIES))

    @classmethod
    def quick(cls, seed: int = 0) -> InfimumSettings:
        """A subset for a look: 2 seeds, 4 families, L up to 32, a fifth of the starts."""
        return replace(
            cls(seed=seed),
            seeds=2,
            depths=(1, 2, 4, 8, 16, 32),
            families=("convex", "convex-reg", "semidefinite", "low-rank"),
            effort=Effort(starts=8, tries=80, evaluations=60),
        )
