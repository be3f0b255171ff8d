"""The trainings of Figure 4, and which lines separate the classes in each layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from implicit_bregman.experiments.grid.run import Grid
from implicit_bregman.experiments.reproduce.fig4.lines import Line, best_line
from implicit_bregman.experiments.reproduce.settings import SpiralSettings
from implicit_bregman.experiments.reproduce.spirals import Trained, Training, train_members


@dataclass(frozen=True)
class Layers:
    """The data and the outputs of the layers of one network.

    Attributes:
        trained: All networks.
        chosen: Number of the one that is shown, that with the lowest loss.
        labels: Of the points.
        names: Of the data and of each layer's output.
        shown: The points, under each name.
        lines: The best line for each.
        last: The best line for the last layer of every network.
    """

    trained: Trained
    chosen: int
    labels: Tensor
    names: list[str]
    shown: list[Tensor]
    lines: list[Line]
    last: list[Line]


def measure_fig4(settings: SpiralSettings, grid: Grid, device: str = "cpu") -> Layers:
    """Train Bregman networks and find the best lines; the arguments are those of `reproduce_fig4`."""
    members = settings.members("bregman")
    training = Training(
        members, settings.depth, settings.epochs, 0, settings.batch_size, settings.spirals, every=settings.epochs
    )
    trained = train_members(training, 1, grid, device)
    points, labels = settings.spirals.points()
    layers = trained.ensemble.layer_outputs(points)
    last = [best_line(outputs, labels) for outputs in layers[-1]]
    chosen = min(range(len(members)), key=lambda index: trained.losses[index][-1])
    shown = [points, *(outputs[chosen] for outputs in layers)]
    lines = [best_line(outputs, labels) for outputs in shown]
    names = ["data", *(f"output of layer {number}" for number in range(1, len(shown)))]
    return Layers(trained, chosen, labels, names, shown, lines, last)
