"""The pictures of the page on real data: an equilibrium as it is reached, and the curves of trainings.

Run, with folders that `implicit-bregman train` wrote,

    python docs/scripts/real_data.py equilibrium FOLDER --data-dir DIR
    python docs/scripts/real_data.py curves LABEL=FOLDER,FOLDER … --name NAME

The first draws channels of a trained convolutional layer at one test image after some iterations of MM and of
operator splitting, and the distance to the limit. The second draws the test accuracy against epochs and against
processor time; folders of one label are runs of several seeds. Both write to docs/images.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import fields
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.experiments.learning.model import Classifier
from implicit_bregman.experiments.output.plots import BLUE, GREEN, ORANGE, RED, SKY, figure_of, mean_band, png
from implicit_bregman.experiments.train.build import make_model
from implicit_bregman.experiments.train.checkpoint import BEST_MODEL, read_file
from implicit_bregman.experiments.train.run import load_data
from implicit_bregman.experiments.train.settings import TrainSettings

IMAGES = Path(__file__).parents[1] / "images"
SHOWN = (1, 2, 4, 8, 16)
CHANNELS = 2
MOST = 40


def trained(folder: Path, data_dir: Path) -> tuple[Classifier, Tensor]:
    """The model of a run, and the test images."""
    asked = json.loads((folder / "run.json").read_text())["settings"]
    names = {item.name for item in fields(TrainSettings)}
    settings = TrainSettings(**{key: value for key, value in asked.items() if key in names} | {"data_dir": data_dir})
    data = load_data(settings)
    model = make_model(settings, data)
    model.load_state_dict(read_file(folder / BEST_MODEL)["model"])
    assert isinstance(model, Classifier)
    return model, data.test_x


def iterates(model: Classifier, x: Tensor, solver: ib.solvers.Solver) -> list[Tensor]:
    """z after 0, 1, 2, … iterations."""
    layer = model.layer
    found = []
    for count in range(1, MOST + 1):
        short = type(solver)(max_iter=count, tol=1e-12, exact=False, on_failure="ignore")
        found.append(
            ib.find_critical_point(layer.energy, layer.geometry, x, regularization=layer.regularization, solver=short)
        )
    start = layer.geometry.activation(torch.zeros_like(found[0].value))
    return [start, *(solution.value for solution in found)]


@torch.no_grad()
def equilibrium(folder: Path, data_dir: Path) -> None:
    """Draw an equilibrium as it is reached."""
    model, images = trained(folder, data_dir)
    model = model.double()
    x = model.shaped(images[:1].double())
    limit = model.layer.solve(x).value
    strongest = limit[0].flatten(1).norm(dim=1).argsort(descending=True)[:CHANNELS].tolist()
    paths = {"MM": iterates(model, x, ib.solvers.MM()), "splitting": iterates(model, x, ib.solvers.Splitting())}
    rows = [(channel, name) for channel in strongest for name in paths]
    figure = Figure(figsize=(7, 1.05 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(SHOWN) + 2, squeeze=False)
    for (channel, name), own in zip(rows, axes, strict=True):
        states = [x[0], *(paths[name][k][0, channel] for k in SHOWN), limit[0, channel]]
        titles = ["image", *(f"k = {k}" for k in SHOWN), "limit"]
        for axis, state, title in zip(own, states, titles, strict=True):
            is_image = title == "image"
            ends = {} if is_image else {"vmin": 0.0, "vmax": float(limit[0, channel].max())}
            axis.imshow(state.squeeze(), cmap="gray" if is_image else "viridis", **ends)
            axis.set(xticks=[], yticks=[])
            if (channel, name) == rows[0]:
                axis.set_title(title, fontsize=8)
        own[0].set_ylabel(name, fontsize=8)
    (IMAGES / "real-data-equilibrium.png").write_bytes(png(figure))
    with figure_of(1, 2.4) as (figure, axes):
        for (name, states), color in zip(paths.items(), (ORANGE, BLUE), strict=True):
            errors = [float((state - limit).norm() / limit.norm()) for state in states]
            axes[0].semilogy(range(len(errors)), errors, color=color, label=name)
        axes[0].set(xlabel="iterations", ylabel="distance to the limit, relative")
        axes[0].legend()
        (IMAGES / "real-data-distance.png").write_bytes(png(figure))


def read_curve(folder: Path) -> tuple[list[float], list[float]]:
    """Minutes of training and test error in percent, after each epoch."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    minutes, spent = [], 0.0
    for row in rows:
        spent += float(row["seconds"]) / 60
        minutes.append(spent)
    return minutes, [100 * float(row["test_accuracy"]) for row in rows]


def curves(labelled: list[str], name: str) -> None:
    """Draw test accuracy against epochs and minutes."""
    with figure_of(2, 2.4, columns=2) as (figure, axes):
        for text, color in zip(labelled, (BLUE, ORANGE, GREEN, RED, SKY), strict=False):
            label, _, folders = text.partition("=")
            runs = [read_curve(Path(folder)) for folder in folders.split(",")]
            shortest = min(len(minutes) for minutes, _ in runs)
            mean_band(
                axes[0],
                list(range(1, shortest + 1)),
                [accuracy[:shortest] for _, accuracy in runs],
                color=color,
                marker="o",
                markersize=2.5,
                label=label,
            )
            for minutes, accuracy in runs:
                axes[1].plot(minutes, accuracy, color=color, marker="o", markersize=2.5)
        axes[0].set(xlabel="epoch", ylabel="test accuracy [%]")
        axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[1].set(xlabel="minutes of training, one core")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        (IMAGES / f"real-data-{name}.png").write_bytes(png(figure))


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("equilibrium")
    one.add_argument("folder", type=Path)
    one.add_argument("--data-dir", type=Path, required=True)
    two = commands.add_parser("curves")
    two.add_argument("labelled", nargs="+", metavar="LABEL=FOLDER,FOLDER")
    two.add_argument("--name", required=True)
    given = parser.parse_args()
    if given.command == "equilibrium":
        equilibrium(given.folder, given.data_dir)
    else:
        curves(given.labelled, given.name)


if __name__ == "__main__":
    main()
