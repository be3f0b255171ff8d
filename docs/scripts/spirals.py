"""Two spirals, learned at the critical point and through L unrolled steps: the figure of the README.

Run

    python docs/scripts/spirals.py [FILE]

It trains four models in a few minutes and draws the regions in which each tells one spiral from the other. The models
have the same initial weights and the same training but for one argument, `adjoint`. The upper row evaluates each as it
was trained. The lower row gives the same weights the critical point in place of the L-th step.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from gallery import small
from torch import Tensor, nn

import implicit_bregman as ib

DEPTHS = (5, 20, 50)
WIDTH, STEPS, REACH = 16, 200, 1.15


def spirals(count: int) -> tuple[Tensor, Tensor]:
    """Points (count, 2) of two intertwined spirals, and on which of them each lies."""
    label, share = torch.arange(count) % 2, torch.rand(count).sqrt()
    angle = 3 * torch.pi * share + torch.pi * label
    plane = (0.1 + 0.9 * share)[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return plane + 0.015 * torch.randn(count, 2), label


def train(adjoint: str | ib.adjoints.Adjoint, x: Tensor, label: Tensor) -> nn.Sequential:
    """A layer and a linear read-out, trained on all points at once."""
    torch.manual_seed(1)
    layer = ib.BregmanDEQ(2, WIDTH, "tanh", regularization=0.1, adjoint=adjoint)
    with torch.no_grad():
        layer.energy.input_weight.mul_(4)
        layer.energy.bias.normal_()
    model = nn.Sequential(layer, nn.Linear(WIDTH, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), label).backward()
        optimizer.step()
    return model


def share_right(model: nn.Sequential, x: Tensor, label: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(-1) == label).float().mean())


def main() -> None:
    """Train, print the accuracies, and draw."""
    from matplotlib.figure import Figure

    parser = argparse.ArgumentParser()
    parser.add_argument("file", nargs="?", default="docs/images/spirals.png")
    file = parser.parse_args().file
    torch.manual_seed(0)
    (x, label), (x_test, label_test) = spirals(300), spirals(1000)
    line = torch.linspace(-REACH, REACH, 160)
    grid = torch.cartesian_prod(line, line)
    figure = Figure(figsize=(9.2, 4.9), layout="constrained")
    axes = figure.subplots(2, 1 + len(DEPTHS), sharex=True, sharey=True)
    adjoints = {"implicit": "implicit"} | {f"L = {steps}": ib.adjoints.Unrolled(steps=steps) for steps in DEPTHS}
    for column, (name, adjoint) in zip(axes.T, adjoints.items(), strict=True):
        model = train(adjoint, x, label)
        for axis, judged, when in zip(column, (adjoint, "implicit"), ("as trained", "critical point"), strict=True):
            model[0].adjoint = judged
            right = share_right(model, x_test, label_test)
            print(f"{name}, {when}: test accuracy {100 * right:.1f} %", flush=True)
            with torch.no_grad():
                share = model(grid).softmax(-1)[:, 1].reshape(len(line), -1).T
            axis.contourf(line, line, share, levels=[0, 0.25, 0.5, 0.75, 1], cmap="RdBu", alpha=0.75)
            colours = ["#67001f" if first else "#053061" for first in (label == 0).tolist()]
            axis.scatter(*x.T, c=colours, s=9, linewidths=0.4, edgecolors="white")
            axis.set(xticks=[], yticks=[], aspect="equal", xlabel=f"test accuracy {100 * right:.1f} %")
        column[0].set_title("implicit" if name == "implicit" else f"unrolled, {name}")
    axes[0, 0].set_ylabel("evaluated as trained")
    axes[1, 0].set_ylabel("at the critical point")
    figure.savefig(file, dpi=100)
    small(Path(file), Path(file))


if __name__ == "__main__":
    main()
