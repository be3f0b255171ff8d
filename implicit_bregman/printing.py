"""How a solution is printed: in one line, and as a table by rich."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from torch import Tensor

from implicit_bregman.status import Status

if TYPE_CHECKING:
    from rich.table import Table

    from implicit_bregman.solution import Solution


def counted(status: Tensor) -> dict[Status, int]:
    """How many samples ended how, in the order of `Status`."""
    counts = Counter(status.flatten().tolist())
    return {Status(code): counts[code] for code in sorted(counts)}


def in_a_line(solution: Solution) -> str:
    """What `repr` says."""
    ends = ", ".join(f"{status.name} {count}" for status, count in counted(solution.status).items())
    most = int(solution.iterations.max()) if solution.iterations.numel() else 0
    return (
        f"{type(solution).__name__}(value={tuple(solution.value.shape)} {solution.value.dtype}, status=[{ends}], "
        f"largest residual={_largest(solution.residual):.2e}, most iterations={most})"
    )


def as_table(solution: Solution) -> Table:
    """What rich prints: the same, with the backward pass once there has been one."""
    from rich.table import Table

    value, iterations = solution.value, solution.iterations
    table = Table(title=type(solution).__name__, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    table.add_row("value", f"{_shape(value)}, {str(value.dtype).removeprefix('torch.')} on {value.device}")
    for status, count in counted(solution.status).items():
        table.add_row(status.name, f"{count} of {solution.status.numel()}", style="red" if status.failed else "")
    table.add_row("largest residual", f"{_largest(solution.residual):.1e}")
    if iterations.numel():
        table.add_row("iterations", f"{iterations.double().mean():.1f} on average, {int(iterations.max())} at most")
    table.add_row("found exactly", f"{int(solution.exact.sum())}")
    if solution.gradient_error is not None:
        table.add_row("largest gradient error", f"{_largest(solution.gradient_error):.1e}, estimated")
    return table


def _shape(tensor: Tensor) -> str:
    return " × ".join(map(str, tensor.shape)) or "one number"


def _largest(each: Tensor) -> float:
    return float(each.max()) if each.numel() else 0.0
