"""The three sentences of a comparison say what its numbers are."""

import math

import pytest

from implicit_bregman.experiments.compare.findings import findings
from implicit_bregman.experiments.compare.results import COLUMNS, Row, Statistic


def row(name: str, family: str, depth: int | None = None, **values: tuple[float, ...]) -> Row:
    columns: dict[str, Statistic | None] = {column.key: None for column in COLUMNS}
    columns |= {key: Statistic(per_seed) for key, per_seed in values.items()}
    return Row(name, family, depth, columns, ())


def implicit(**changes: tuple[float, ...]) -> Row:
    usual = {
        "accuracy_at_steps": (0.97, 0.98),
        "gradient_error": (1e-6, 1e-6),
        "step_ms": (5.0, 5.0),
        "activation_bytes": (129e3, 129e3),
    }
    return row("implicit", "implicit", **(usual | changes))


def unrolled(depth: int, accuracy: tuple[float, ...] = (0.95, 0.96)) -> Row:
    return row(
        f"unrolled-{depth}",
        "unrolled",
        depth,
        accuracy_at_steps=accuracy,
        gradient_error=(2 / depth, 2 / depth),
        step_ms=(depth / 4, depth / 4),
        activation_bytes=(5e4 * depth, 5e4 * depth),
    )


def test_what_was_seen() -> None:
    rows = [implicit(), unrolled(1), unrolled(20, (0.96, 0.961)), unrolled(50)]
    assert findings(rows, "implicit") == [
        "After equal steps `implicit` has a test accuracy of 97.50 %, and the best of the others, `unrolled-20`, "
        "96.05 %: the difference of 1.45 points is more than the standard deviation over the seeds, 0.71.",
        "At the same parameters the gradient of `implicit` has a relative error of 1.0e-06, and those of the others go "
        "from 4.0e-02 (`unrolled-50`) to 2.0e+00 (`unrolled-1`).",
        "A step of `implicit` takes 5.00 ms and keeps 129 kB for the backward pass; the deepest unrolled row that "
        "takes no more time is `unrolled-20`, and with no more memory `unrolled-1`.",
    ]


def test_a_rival_of_the_same_family_does_not_count_beside_others() -> None:
    twin = row("implicit-mm", "implicit", accuracy_at_steps=(0.99, 0.99))
    assert "`unrolled-5`" in findings([implicit(), twin, unrolled(5)], "implicit")[0]
    assert "`implicit-mm`" in findings([implicit(), twin], "implicit")[0]


def test_accuracies_that_cannot_be_told_apart() -> None:
    near = findings([implicit(), unrolled(5, (0.971, 0.981))], "implicit")[0]
    assert "0.10 points is less than the standard deviation" in near
    single = findings([implicit(accuracy_at_steps=(0.97,)), unrolled(5, (0.9,))], "implicit")[0]
    assert single.endswith("whether the difference of 7.00 points means anything, one seed cannot tell.")


def test_what_is_missing_is_said() -> None:
    lost = implicit(accuracy_at_steps=(math.nan, 0.9), gradient_error=(math.inf, 1.0), step_ms=(math.nan, 1.0))
    assert findings([lost, unrolled(5)], "implicit") == [
        "`implicit` has no accuracy: its training diverged.",
        "The error of the gradient of `implicit` is not known.",
        "What a step of `implicit` costs is not known.",
    ]


def test_a_single_row() -> None:
    assert findings([implicit()], "implicit") == [
        "After equal steps `implicit` has a test accuracy of 97.50 %, and no other row has one.",
        "At the same parameters the gradient of `implicit` has a relative error of 1.0e-06.",
        "A step of `implicit` takes 5.00 ms and keeps 129 kB for the backward pass.",
    ]


def test_nothing_is_cheap_enough() -> None:
    cost = findings([implicit(step_ms=(0.1, 0.1)), unrolled(20)], "implicit")[2]
    assert cost.endswith("takes no more time is none, and with no more memory none.")


def test_an_unknown_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="reference must name one of the rows"):
        findings([implicit()], "newton")
