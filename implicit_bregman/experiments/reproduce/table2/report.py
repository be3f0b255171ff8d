"""Table 2 in rows, sentences and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from implicit_bregman.experiments.grid.report import GridReport
from implicit_bregman.experiments.grid.run import Grid
from implicit_bregman.experiments.output.statistics import mean_and_spread
from implicit_bregman.experiments.reproduce.figures import LABELS
from implicit_bregman.experiments.reproduce.table2.figures import table2_figures
from implicit_bregman.experiments.reproduce.table2.run import Outcome, measure_table2
from implicit_bregman.experiments.reproduce.table2.settings import (
    Table2Settings,
)
from implicit_bregman.experiments.reproduce.table2.training import (
    CNN_CHANNELS,
    CNN_WIDTH,
)
from implicit_bregman.nn.feedforward import KINDS


class _Rates(Protocol):
    """Settings with learning rates."""

    @property
    def rates(self) -> tuple[float, ...]: ...
    @property
    def adam_rates(self) -> tuple[float, ...]: ...


def table_rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One dict per row: mean, spread, learning rate and the paper's figure of every architecture."""
    rows: dict[str, dict[str, Any]] = {}
    for outcome in outcomes:
        row = rows.setdefault(outcome.row, {"row": outcome.row})
        row[f"{outcome.kind}_mean"], row[f"{outcome.kind}_spread"] = mean_and_spread(outcome.values)
        row[f"{outcome.kind}_rate"] = outcome.rate
        row[f"{outcome.kind}_paper"] = outcome.paper
    return list(rows.values())


def findings(outcomes: Sequence[Outcome], settings: _Rates) -> tuple[str, ...]:
    """The order of the architectures in every row, the paper's beside it, and how often a rate is an extreme one."""
    told = []
    leads = []
    for name in dict.fromkeys(outcome.row for outcome in outcomes):
        three = [outcome for outcome in outcomes if outcome.row == name]
        order = sorted(three, key=lambda outcome: -outcome.mean)
        text = f"{name}: {_order([(LABELS[o.kind], o.mean) for o in order])}"
        if all(outcome.paper is not None for outcome in three):
            papers = sorted(three, key=lambda outcome: -(outcome.paper or 0.0))
            text += f"; the paper: {_order([(LABELS[o.kind], o.paper or 0.0) for o in papers])}"
        told.append(f"{text}.")
        leads.append(order[0].kind == "bregman")
    told.append(f"Bregman has the highest mean in {sum(leads)} of {len(leads)} rows; the paper says in all of its own.")
    ends = {min(settings.rates), max(settings.rates), min(settings.adam_rates), max(settings.adam_rates)}
    at_end = sum(outcome.rate in ends for outcome in outcomes)
    told.append(f"In {at_end} of {len(outcomes)} cases the chosen learning rate is the smallest or largest offered.")
    return tuple(told)


def _order(pairs: Sequence[tuple[str, float]]) -> str:
    return " > ".join(f"{label} {value:.2f}" for label, value in pairs)


CHOICES = (
    "The activation: here tanh, with arctan and the sigmoid as a check on one row.",
    "The optimizer beyond mini-batch gradient descent: here without momentum, with Adam as a check on one row.",
    "Learning rate, batch size, epochs: here the rate falls evenly to 0, because at a constant one the last steps "
    "decide by chance; where it starts is chosen for every row and architecture by the accuracy on a sixth of the "
    "training samples, which no network is trained on.",
    "How pixels are brought inside (0, 1): here level v of 256 becomes (v + 1/2)/256.",
    f"The convolutional network: here 3x3 convolutions with {CNN_CHANNELS[0]} and {CNN_CHANNELS[1]} channels, each "
    f"with ReLU and max-pooling, a linear layer to {CNN_WIDTH} features, the activation, one layer of the kind "
    "compared, and the linear read-out.",
)


def reproduce_table2(
    settings: Table2Settings, grid: Grid, data_dir: str | None = None, device: str = "cpu"
) -> GridReport:
    """Choose the learning rates, train all networks and compare with the paper.

    Args:
        settings: Rows, seeds, training.
        grid: Computes and keeps the cells.
        data_dir: Folder with the files of the data sets.
        device: PyTorch device.

    Raises:
        ValueError: For bad data files.
        FileNotFoundError: For missing data files.
    """
    measured = measure_table2(settings, grid, data_dir, device)
    outcomes = measured.outcomes
    shown: list[tuple[str, tuple[str, ...]]] = [("row", ("row",))]
    for kind in KINDS:
        shown.append((f"{kind} [%]", (f"{kind}_mean:.2f", f"{kind}_spread:.2f")))
        shown.append(("paper", (f"{kind}_paper:.2f",)))
    data: dict[str, Any] = {
        "values": {f"{outcome.row}/{outcome.kind}": outcome.values for outcome in outcomes},
        "rates": {f"{outcome.row}/{outcome.kind}": outcome.rate for outcome in outcomes},
        "tests_by_rate": {f"{row}/{kind}/{rate:g}": value for (row, kind, rate), value in measured.tests.items()},
    }
    return GridReport(
        "table2",
        "Table 2: mean test accuracy on images",
        (
            *measured.described,
            "Networks: hidden layers as wide as the image has pixels, then a linear read-out; cross entropy.",
            f"Training: {settings.optimizer}, learning rate falling to 0, {settings.geometry}, "
            f"{settings.epochs} epochs, batches of {settings.batch_size}, unless the row's name says otherwise.",
            f"Learning rates to choose from: {', '.join(f'{rate:g}' for rate in settings.rates)}; for Adam "
            f"{', '.join(f'{rate:g}' for rate in settings.adam_rates)}. The first seed chooses.",
            f"Seeds: {settings.seed} … {settings.seed + settings.seeds - 1}; mean ± standard deviation.",
        ),
        CHOICES,
        findings(outcomes, settings),
        tuple(table_rows(outcomes)),
        tuple(shown),
        data,
        table2_figures(outcomes),
    )
