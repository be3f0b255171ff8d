"""What a benchmark is asked to do."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass

from implicit_bregman.experiments.benchmark.cells import Cell, chosen
from implicit_bregman.experiments.machine.devices import available_cores

CAP, QUICK_CAP = 48.0, 15.0
REPEATS, QUICK_REPEATS = 15, 7
ACCURACIES = (1e-3, 1e-6)


@dataclass(frozen=True)
class BenchmarkSettings:
    """Everything that a benchmark depends on. The defaults are those of `implicit-bregman benchmark`.

    Attributes:
        cells: Names of the cells, `*` and `?` as in file names; None: all, with `quick` a few.
        quick: Fewer cells, settings and repeats: under five minutes.
        cap: Seconds per cell, for sweeps and timing together; default 48, with `quick` 15.
        threads: CPU threads of every contender; None: one per core.
        repeats: Timed repeats; default 15, with `quick` 7.
        accuracies: Relative errors of z and of dL/dθ to be reached.
        scaling: Whether to measure time and memory against d, B, condition and L.
        others: Whether to measure the feed-forward layers and the share of samples on MM's limit.
        seed: Of the problems.
    """

    cells: tuple[str, ...] | None = None
    quick: bool = False
    cap: float | None = None
    threads: int | None = None
    repeats: int | None = None
    accuracies: tuple[float, ...] = ACCURACIES
    scaling: bool = True
    others: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.cap is not None and not 0 < self.cap < math.inf:
            raise ValueError(f"cap must be a positive number of seconds, got {self.cap}")
        for name in ("threads", "repeats"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not self.accuracies:
            raise ValueError("accuracy is empty, give at least one relative error such as 1e-3")
        for level in self.accuracies:
            if not 0 < level < 1:
                raise ValueError(f"accuracy {level} is not a relative error, use a number between 0 and 1")
        if len(set(self.accuracies)) < len(self.accuracies):
            raise ValueError(f"accuracy names a level twice: {', '.join(map(str, self.accuracies))}")
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0, got {self.seed}")
        self.chosen_cells()

    def chosen_cells(self) -> tuple[Cell, ...]:
        """The cells."""
        return chosen(self.cells, self.quick)

    @property
    def seconds_per_cell(self) -> float:
        """The cap, or its default."""
        return self.cap if self.cap is not None else QUICK_CAP if self.quick else CAP

    @property
    def used_threads(self) -> int:
        """The number of threads, or its default."""
        return available_cores() if self.threads is None else self.threads

    @property
    def used_repeats(self) -> int:
        """The number of repeats, or its default."""
        return self.repeats if self.repeats is not None else QUICK_REPEATS if self.quick else REPEATS

    @property
    def command(self) -> str:
        """The command line that runs it, defaults left out, `--out` too."""
        words = ["implicit-bregman benchmark"]
        if self.quick:
            words.append("--quick")
        if self.cells is not None:
            words.append(f"--cells {shlex.quote(','.join(self.cells))}")
        if self.cap is not None:
            words.append(f"--cap {self.cap:g}")
        if self.threads is not None:
            words.append(f"--threads {self.threads}")
        if self.repeats is not None:
            words.append(f"--repeats {self.repeats}")
        if self.accuracies != ACCURACIES:
            words.append(f"--accuracy {','.join(f'{level:g}' for level in self.accuracies)}")
        words += [flag for flag, on in (("--no-scaling", self.scaling), ("--no-others", self.others)) if not on]
        if self.seed:
            words.append(f"--seed {self.seed}")
        return " ".join(words)


def parse_accuracies(text: str) -> tuple[float, ...]:
    """The levels of `--accuracy`.

    Raises:
        ValueError: For what is not a number.
    """
    found = []
    for word in text.split(","):
        try:
            found.append(float(word))
        except ValueError:
            raise ValueError(
                f"accuracy has {word.strip()!r}, which is not a number; use for example 1e-3,1e-6"
            ) from None
    return tuple(found)
