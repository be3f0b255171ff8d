"""The model that every experiment trains: one implicit layer and a linear read-out."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from implicit_bregman.legendre import LegendreFunction
from implicit_bregman.nn import BregmanDEQ


class Classifier(nn.Module):
    """A `BregmanDEQ` layer followed by `nn.Linear`; the loss is the cross entropy of its scores.

    Args:
        features: n, the width of an input.
        width: d, the width of the representation.
        classes: Number of scores.
        geometry: φ, by name or instance.
        weight: Kind of W, as in `QuadraticEnergy`.
        regularization: γ ≥ 0.
        seed: Seed of the initial parameters; the global random state is left as it was.

    Raises:
        ValueError: For names, widths or a γ that the layer refuses.
    """

    def __init__(
        self,
        features: int,
        width: int,
        classes: int,
        *,
        geometry: str | LegendreFunction = "tanh",
        weight: str = "convex",
        regularization: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layer = BregmanDEQ(features, width, geometry=geometry, weight=weight, regularization=regularization)
            self.head = nn.Linear(width, classes)

    def forward(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        """Scores, one row per sample."""
        scores: Tensor = self.head(self.layer(x))
        return scores
