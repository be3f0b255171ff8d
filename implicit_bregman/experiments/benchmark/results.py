"""What a benchmark returns: plain numbers, as `results.json` holds them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from implicit_bregman.experiments.benchmark.peers.contenders import BOTH, OURS, UNROLLED

FORMAT_VERSION = 3
TORCHDEQ = "torchdeq"


@dataclass(frozen=True)
class Entry:
    """One contender at one accuracy in one cell.

    Attributes:
        contender: Its name.
        task: "forward+backward" or "forward".
        accuracy: The level.
        reached: Whether the level was reached; if not, there are no times.
        settings: With which settings, or what came closest.
        value_error: Relative error of z.
        gradient_error: Relative error of dL/dθ, the largest of all parameters; None if not computed.
        seconds: Of every repeat.
        operator_calls: Calls of PyTorch's operators in one run; None where they were not counted.
        synchronisations: How many of them make the host wait on a GPU.
    """

    contender: str
    task: str
    accuracy: float
    reached: bool
    settings: str
    value_error: float | None
    gradient_error: float | None
    seconds: tuple[float, ...] = ()
    operator_calls: int | None = None
    synchronisations: int | None = None

    @property
    def median(self) -> float:
        """Median of the seconds; NaN without any."""
        return statistics.median(self.seconds) if self.seconds else math.nan

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of the seconds, the ends of the range for fewer than three."""
        if len(self.seconds) < 3:
            return min(self.seconds, default=math.nan), max(self.seconds, default=math.nan)
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third


@dataclass(frozen=True)
class CellResult:
    """Everything about one cell.

    Attributes:
        name: Its name.
        text: Its description.
        facts: Those of `Cell`.
        reference: Where the truth is from.
        excluded: Share of the samples whose limit the reference does not know; they were left out.
        value_error: Relative error of z of this library's defaults.
        gradient_error: Relative error of dL/dθ of this library's defaults.
        held_bytes: What its forward pass holds for the backward pass beyond θ; None if it raises.
        allowed_bytes: How much it may be, 4 (6 B d + B n + 2 d²), twice that in float64; None for other families.
        seconds: What the cell took, sweeps included.
        entries: The contenders.
    """

    name: str
    text: str
    facts: dict[str, Any]
    reference: str
    excluded: float
    value_error: float
    gradient_error: float
    held_bytes: int | None
    allowed_bytes: int | None
    seconds: float
    entries: tuple[Entry, ...]

    def entry(self, contender: str, accuracy: float, task: str = BOTH) -> Entry | None:
        """The entry of that contender, None if it is not there or did not reach the accuracy."""
        fitting = [e for e in self.entries if (e.contender, e.accuracy, e.task) == (contender, accuracy, task)]
        return next((entry for entry in fitting if entry.reached), None)

    def best(self, prefix: str, accuracy: float, task: str = BOTH) -> Entry | None:
        """The fastest entry that reached the accuracy, of the contenders whose name begins so."""
        able = [
            entry
            for entry in self.entries
            if entry.contender.startswith(prefix)
            and (entry.accuracy, entry.task, entry.reached) == (accuracy, task, True)
        ]
        return min(able, key=lambda entry: entry.median, default=None)

    def ratio(self, prefix: str, accuracy: float, task: str = BOTH, name: str = OURS) -> float | None:
        """How many times as long as `name` (default: our defaults) the best of these peers takes; None if one lacks."""
        ours, peer = self.entry(name, accuracy, task), self.best(prefix, accuracy, task)
        return None if ours is None or peer is None else peer.median / ours.median


@dataclass(frozen=True)
class FeedForwardRow:
    """One activation of the feed-forward layers, against bregmanet.

    Attributes:
        geometry: This library's name of it.
        activation: bregmanet's.
        text: Widths and batch.
        ours: Seconds of every repeat of this library.
        theirs: Seconds of every repeat of bregmanet.
        difference: Relative difference of the outputs; None if not compared.
        reason: Why it is not compared; None if it is.
    """

    geometry: str
    activation: str
    text: str
    ours: tuple[float, ...] = ()
    theirs: tuple[float, ...] = ()
    difference: float | None = None
    reason: str | None = None

    @property
    def ratio(self) -> float:
        """bregmanet's median over this library's."""
        return statistics.median(self.theirs) / statistics.median(self.ours) if self.ours else math.nan


@dataclass(frozen=True)
class LimitRow:
    """How often MM's own limit was found among several critical points.

    Attributes:
        text: The pool of problems.
        counted: Samples whose limit the reference knows.
        found: Of these, how many ended there.
        excluded: Samples whose limit it does not know.
    """

    text: str
    counted: int
    found: int
    excluded: int


@dataclass(frozen=True)
class ScalingPoint:
    """One measurement of a scaling plot.

    Attributes:
        axis: "d", "B", "condition" or "L".
        at: The place on that axis.
        contender: Its name.
        seconds: Of every repeat of forward and backward.
        held_bytes: What the forward pass holds for the backward pass beyond W.
    """

    axis: str
    at: float
    contender: str
    seconds: tuple[float, ...]
    held_bytes: int


@dataclass(frozen=True)
class Benchmark:
    """A finished benchmark.

    Attributes:
        command: The command line that made it.
        settings: What was asked for.
        environment: Machine and versions.
        missing: Peers that are not installed, and what to install.
        cells: One per cell.
        feedforward: One per activation.
        limits: One per pool.
        scaling: The points of the scaling plots.
        skipped: Cells without a truth, and why.
    """

    command: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    missing: dict[str, str]
    cells: tuple[CellResult, ...]
    feedforward: tuple[FeedForwardRow, ...] = field(default=())
    limits: tuple[LimitRow, ...] = field(default=())
    scaling: tuple[ScalingPoint, ...] = field(default=())
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def accuracies(self) -> tuple[float, ...]:
        """The levels, coarsest first."""
        return tuple(sorted(self.settings["accuracies"], reverse=True))

    @classmethod
    def from_json(cls, text: str) -> Benchmark:
        """The benchmark of a `results.json`.

        Raises:
            ValueError: For another format.
        """
        document = json.loads(text)
        if document.pop("format", None) != FORMAT_VERSION:
            raise ValueError(f"not a benchmark's results of format {FORMAT_VERSION}: run `implicit-bregman benchmark`")
        cells = []
        for cell in document.pop("cells"):
            entries = tuple(Entry(**(entry | {"seconds": tuple(entry["seconds"])})) for entry in cell["entries"])
            errors = {key: _number(cell[key]) for key in ("value_error", "gradient_error")}
            cells.append(CellResult(**(cell | errors | {"entries": entries})))
        feedforward = [
            FeedForwardRow(**(row | {"ours": tuple(row["ours"]), "theirs": tuple(row["theirs"])}))
            for row in document.pop("feedforward")
        ]
        limits = [LimitRow(**row) for row in document.pop("limits")]
        scaling = [ScalingPoint(**(row | {"seconds": tuple(row["seconds"])})) for row in document.pop("scaling")]
        return cls(
            cells=tuple(cells),
            feedforward=tuple(feedforward),
            limits=tuple(limits),
            scaling=tuple(scaling),
            **document,
        )


def contender_order(cells: Sequence[CellResult]) -> list[str]:
    """All names, this library first, unrolled last."""
    names = list(dict.fromkeys(entry.contender for cell in cells for entry in cell.entries))
    return sorted(names, key=lambda name: (not name.startswith(OURS), name == UNROLLED, name))


def _number(value: float | None) -> float:
    return math.inf if value is None else value
