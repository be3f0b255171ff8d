"""What a comparison returns: numbers with their spread, one row per method."""

from __future__ import annotations

import math
from dataclasses import dataclass

from implicit_bregman.experiments.learning.training import CurvePoint
from implicit_bregman.experiments.output.statistics import Statistic


@dataclass(frozen=True)
class Column:
    """One column of the results.

    Attributes:
        key: Name in results.json and results.csv.
        title: Heading of the tables, with the unit shown there.
        unit: Unit of the stored numbers; "" for a pure number.
        factor: What the stored numbers are multiplied by for the tables.
        digits: Format of the mean in the tables.
        spread: Format of the spread in the tables; "" where the tables show none.
        outcome: Whether it says what was learned; otherwise it says what that cost.
    """

    key: str
    title: str
    unit: str
    factor: float
    digits: str
    spread: str
    outcome: bool


COLUMNS = (
    Column("accuracy_at_steps", "test acc. [%] equal steps", "share", 100.0, ".2f", ".2f", True),
    Column("loss_at_steps", "train loss [nats] equal steps", "nats", 1.0, ".3f", ".3f", True),
    Column("accuracy_at_time", "test acc. [%] equal time", "share", 100.0, ".2f", ".2f", True),
    Column("loss_at_time", "train loss [nats] equal time", "nats", 1.0, ".3f", ".3f", True),
    Column("steps_at_time", "steps in equal time", "steps", 1.0, ".0f", "", True),
    Column("gradient_error", "relative gradient error", "", 1.0, ".1e", "", False),
    Column("gradient_cosine", "gradient cosine", "", 1.0, ".4f", "", False),
    Column("iterations", "solver iter.", "iterations", 1.0, ".1f", "", False),
    Column("converged", "conv. [%]", "share", 100.0, ".1f", "", False),
    Column("step_ms", "time per step [ms]", "ms", 1.0, ".2f", ".2f", False),
    Column("activation_bytes", "memory [kB]", "bytes", 1e-3, ".1f", "", False),
    Column("peak_bytes", "peak GPU [MB]", "bytes", 1e-6, ".1f", "", False),
)


@dataclass(frozen=True)
class Row:
    """The results of one method.

    Attributes:
        name: Name of the row, as `--rows` takes it.
        family: Kind of method.
        depth: L, the number of MM steps; None where a solver decides.
        columns: One statistic per key of `COLUMNS`; None where the quantity does not exist for this row.
        curves: The training curve of each seed.
    """

    name: str
    family: str
    depth: int | None
    columns: dict[str, Statistic | None]
    curves: tuple[tuple[CurvePoint, ...], ...]

    def mean(self, key: str) -> float | None:
        """Mean of a column, None where there is none or where it is not finite."""
        statistic = self.columns[key]
        return None if statistic is None or not math.isfinite(statistic.mean) else statistic.mean

    def spread(self, key: str) -> float | None:
        """Spread of a column, None where there is none."""
        statistic = self.columns[key]
        return None if statistic is None else statistic.spread


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        settings: What was asked for, by the name of the option.
        environment: Versions, device and number of threads.
        facts: Numbers that hold for all rows: sizes, steps, seconds.
        reference: Name of the row whose time is the budget and at whose parameters gradients are compared.
        rows: One per method.
    """

    settings: dict[str, object]
    environment: dict[str, object]
    facts: dict[str, object]
    reference: str
    rows: tuple[Row, ...]

    def shown_columns(self) -> tuple[Column, ...]:
        """The columns that at least one row has."""
        return tuple(c for c in COLUMNS if any(row.columns[c.key] is not None for row in self.rows))
