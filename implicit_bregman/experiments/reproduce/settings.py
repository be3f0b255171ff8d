"""What the reproductions of the figures are asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from implicit_bregman.experiments.reproduce.ensemble import Member
from implicit_bregman.experiments.reproduce.spirals import Spirals
from implicit_bregman.nn.feedforward import KINDS
from implicit_bregman.settings import check_count, check_positive

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True)
class SpiralSettings:
    """Settings of Figures 4 to 6; the defaults are the paper's where it states them.

    Attributes:
        seed: First seed; `seeds` seeds are used: seed, seed + 1, … One sets initial parameters and order of batches.
        seeds: Number of seeds ("10 realizations").
        epochs: Epochs of Figures 4 and 5.
        rate: Learning rate of all but Figure 6 (left).
        batch_size: Samples per step.
        depth: Layers of all but Figure 6 (right).
        rates: Learning rates of Figure 6 (left).
        rate_epochs: Epochs of Figure 6 (left), in `stages` equal stages.
        deep: Layers of Figure 6 (right).
        deep_epochs: Epochs of Figure 6 (right), in `stages` equal stages; the paper does not state them.
        stages: An interrupted Figure 6 goes on at the last stage that was finished.
        spirals: The data, the same for every seed.

    Raises:
        ValueError: For a setting out of range.
    """

    seed: int = 0
    seeds: int = 10
    epochs: int = 1000
    rate: float = 0.1
    batch_size: int = 10
    depth: int = 3
    rates: tuple[float, ...] = RATES
    rate_epochs: int = 10_000
    deep: int = 50
    deep_epochs: int = 200
    stages: int = 20
    spirals: Spirals = field(default_factory=Spirals)

    def __post_init__(self) -> None:
        check_count("seed", self.seed, 0)
        for name in ("seeds", "epochs", "batch_size", "depth", "rate_epochs", "deep", "deep_epochs", "stages"):
            check_count(name, getattr(self, name))
        for rate in (self.rate, *self.rates):
            check_positive("rate", rate)
        for name in ("rate_epochs", "deep_epochs"):
            if getattr(self, name) % self.stages:
                option = "--epochs" if name == "rate_epochs" else "--deep-epochs"
                raise ValueError(
                    f"{name} = {getattr(self, name)} cannot be divided into {self.stages} stages; "
                    f"use a multiple of {self.stages} ({option} of fig6)"
                )

    @classmethod
    def quick(cls, seed: int = 0) -> SpiralSettings:
        """A subset for a look: 400 points, 3 seeds, and few epochs and rates."""
        return replace(
            cls(seed=seed),
            seeds=3,
            epochs=100,
            rates=(0.01, 0.1, 1.0),
            rate_epochs=100,
            deep_epochs=20,
            stages=2,
            spirals=Spirals(samples=400),
        )

    def members(self, kind: str, rate: float | None = None, init: str = "random") -> tuple[Member, ...]:
        """The networks of one kind, one per seed."""
        chosen = self.rate if rate is None else rate
        return tuple(Member(kind, seed, chosen, init) for seed in range(self.seed, self.seed + self.seeds))

    def all_kinds(self, rate: float | None = None, init: str = "random") -> tuple[Member, ...]:
        """The networks of all kinds."""
        return tuple(member for kind in KINDS for member in self.members(kind, rate, init))
