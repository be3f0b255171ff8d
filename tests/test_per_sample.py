"""The loop that all iterative solvers share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from implicit_bregman.objective import RowsOfTensors
from implicit_bregman.per_sample import Running, all_rows, iterate


@dataclass(frozen=True)
class Countdown(Running):
    """Numbers that fall by 1 in every step, and a part that has rows of its own."""

    at: Tensor
    part: Part
    name: str
    nothing: Tensor | None = None


@dataclass(frozen=True)
class Part(RowsOfTensors):
    twice: Tensor


@dataclass(frozen=True)
class End(RowsOfTensors):
    start: Tensor
    steps: Tensor


def count_down(numbers: list[int], seen: list[list[int]] | None = None, most: int = 100, crowd: float = 0.0) -> End:
    def step(state: Countdown, count: int) -> Countdown:
        assert torch.equal(state.part.twice, 2 * (state.at + count))  # (no sample has another's part)
        if not crowd:
            assert bool((state.at > 0).all())  # (who has stopped is not touched any more)
        return replace(state, at=state.at - 1)

    def going(state: Countdown, count: int) -> Tensor:
        return (state.at > 0) & (count < most)

    def end(state: Countdown, count: int) -> End:
        return End(state.part.twice // 2, torch.full_like(state.at, count))

    def record(state: Countdown) -> None:
        assert seen is not None
        seen.append(state.rows.tolist())

    start = torch.tensor(numbers, dtype=torch.int64)
    state = Countdown(all_rows(start), start, Part(2 * start), "name")
    return iterate(state, step, going, end, None if seen is None else record, crowd)


def test_each_sample_makes_its_own_number_of_steps() -> None:
    seen: list[list[int]] = []
    ended = count_down([2, 0, 3, 2, 0], seen)
    assert ended.steps.tolist() == [2, 0, 3, 2, 0]
    assert ended.start.tolist() == [2, 0, 3, 2, 0]
    assert seen == [[0, 1, 2, 3, 4], [0, 2, 3], [0, 2, 3], [2]]


@pytest.mark.parametrize("numbers", [[], [0], [4, 4, 4]])
def test_all_may_stop_at_once(numbers: list[int]) -> None:
    assert count_down(numbers).steps.tolist() == numbers


def test_a_bound_on_the_steps_stops_those_that_are_left() -> None:
    assert count_down([5, 1, 2], most=2).steps.tolist() == [2, 1, 2]


def test_what_has_no_rows_is_kept_as_it_is() -> None:
    numbers = torch.tensor([1, 2, 3])
    some = Countdown(all_rows(numbers), numbers, Part(2 * numbers), "name").select(torch.tensor([2, 0]))
    assert some.rows.tolist() == [2, 0]
    assert some.at.tolist() == [3, 1]
    assert some.part.twice.tolist() == [6, 2]
    assert some.name == "name"
    assert some.nothing is None


def test_who_has_stopped_may_wait_for_others() -> None:
    seen: list[list[int]] = []
    ended = count_down([2, 0, 3, 2, 0, 9], seen, crowd=0.5)
    assert ended.steps.tolist() == [2, 0, 3, 2, 0, 9]
    assert ended.start.tolist() == [2, 0, 3, 2, 0, 9]
    assert seen[:3] == [[0, 1, 2, 3, 4, 5]] * 3
    assert seen[3:] == [[2, 5]] * 7
