"""What a comparison has shown, in three sentences that are computed from its rows."""

from __future__ import annotations

from collections.abc import Sequence

from implicit_bregman.experiments.compare.results import Row


def findings(rows: Sequence[Row], reference: str) -> list[str]:
    """Three sentences: about the accuracy, about the gradient, and about time and memory.

    Args:
        rows: The rows of the comparison.
        reference: Name of the row that the others are compared with.

    Returns:
        One sentence each. A quantity that was not measured, or is not finite, is said to be missing.

    Raises:
        ValueError: If no row has the name `reference`.
    """
    judge = next((row for row in rows if row.name == reference), None)
    if judge is None:
        raise ValueError(f"reference must name one of the rows {[row.name for row in rows]}, got {reference!r}")
    rivals = [row for row in rows if row.family != judge.family]
    rivals = rivals or [row for row in rows if row is not judge]
    return [_accuracy(judge, rivals), _gradient(judge, rivals), _cost(judge, rivals)]


def _accuracy(judge: Row, rivals: Sequence[Row]) -> str:
    own = judge.mean("accuracy_at_steps")
    if own is None:
        return f"`{judge.name}` has no accuracy: its training diverged."
    begin = f"After equal steps `{judge.name}` has a test accuracy of {100 * own:.2f} %"
    found = _extreme(rivals, "accuracy_at_steps", largest=True)
    if found is None:
        return f"{begin}, and no other row has one."
    rival, accuracy = found
    return f"{begin}, and the best of the others, `{rival.name}`, {100 * accuracy:.2f} %: {_judged(judge, rival)}."


def _judged(judge: Row, rival: Row) -> str:
    """Whether two accuracies can be told apart."""
    first, second = judge.mean("accuracy_at_steps"), rival.mean("accuracy_at_steps")
    assert first is not None
    assert second is not None
    gap = 100 * abs(first - second)
    spreads = [spread for spread in (judge.spread("accuracy_at_steps"), rival.spread("accuracy_at_steps")) if spread]
    if not spreads:
        return f"whether the difference of {gap:.2f} points means anything, one seed cannot tell"
    spread = 100 * max(spreads)
    verdict = "less" if gap < spread else "more"
    return f"the difference of {gap:.2f} points is {verdict} than the standard deviation over the seeds, {spread:.2f}"


def _gradient(judge: Row, rivals: Sequence[Row]) -> str:
    own = judge.mean("gradient_error")
    if own is None:
        return f"The error of the gradient of `{judge.name}` is not known."
    begin = f"At the same parameters the gradient of `{judge.name}` has a relative error of {own:.1e}"
    least = _extreme(rivals, "gradient_error", largest=False)
    most = _extreme(rivals, "gradient_error", largest=True)
    if least is None or most is None:
        return f"{begin}."
    if least[0] is most[0]:
        return f"{begin}, and that of `{least[0].name}` one of {least[1]:.1e}."
    others = f"from {least[1]:.1e} (`{least[0].name}`) to {most[1]:.1e} (`{most[0].name}`)"
    return f"{begin}, and those of the others go {others}."


def _cost(judge: Row, rivals: Sequence[Row]) -> str:
    time, memory = judge.mean("step_ms"), judge.mean("activation_bytes")
    if time is None or memory is None:
        return f"What a step of `{judge.name}` costs is not known."
    begin = f"A step of `{judge.name}` takes {time:.2f} ms and keeps {memory / 1000:.0f} kB for the backward pass"
    unrolled = [row for row in rivals if row.depth is not None and row.family == "unrolled"]
    if not unrolled:
        return f"{begin}."
    in_time, in_memory = _affordable(unrolled, "step_ms", time), _affordable(unrolled, "activation_bytes", memory)
    return (
        f"{begin}; the deepest unrolled row that takes no more time is {in_time}, and with no more memory {in_memory}."
    )


def _affordable(unrolled: Sequence[Row], key: str, budget: float) -> str:
    """The deepest of the rows that cost at most `budget`, in words."""
    within = [row for row in unrolled if (cost := row.mean(key)) is not None and cost <= budget]
    return f"`{max(within, key=lambda row: row.depth or 0).name}`" if within else "none"


def _extreme(rows: Sequence[Row], key: str, *, largest: bool) -> tuple[Row, float] | None:
    """The row with the largest or smallest mean, and that mean; None where no row has one."""
    known = [(row, mean) for row in rows if (mean := row.mean(key)) is not None]
    return (max if largest else min)(known, key=lambda entry: entry[1], default=None)
