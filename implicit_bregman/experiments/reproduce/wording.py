"""What the reports of Figures 4 to 6 say in common."""

from __future__ import annotations

from implicit_bregman.experiments.reproduce.settings import SpiralSettings

CHOICES = (
    "The spirals: their number of points, turns and noise, and how they are scaled into arctan's domain.",
    "How weights are initialized randomly: here PyTorch's default for linear layers, the same numbers for all kinds.",
    "The read-out in the deterministic case: here random, because with a read-out of 0 no layer gets a gradient.",
    "What the training loss is: here the mean cross entropy over the whole training set after each epoch.",
    "What a realization is: here initial parameters and order of the batches; the data stay the same.",
)


def spiral_setting(settings: SpiralSettings, depth: int, epochs: int, rate: float | str) -> tuple[str, ...]:
    """What was done, for the report."""
    spirals = settings.spirals
    return (
        f"Data: {spirals.samples} points on two spirals of {spirals.turns:g} turn(s), noise {spirals.noise:g} of the "
        f"largest radius, scaled so that the largest coordinate is {spirals.reach:g} (arctan's domain ends at 1.571).",
        f"Networks: {depth} layers of 2 neurons with arctan, and a linear read-out of 2 scores; cross entropy.",
        f"Training: plain gradient descent, batches of {settings.batch_size}, learning rate {rate}, {epochs} epochs.",
        f"Seeds: {settings.seed} … {settings.seed + settings.seeds - 1}; all networks train as one batched computation "
        "in float32.",
    )
