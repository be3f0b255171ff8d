"""240 cheap cases of the campaign, and the faults of the past. `make fuzz` runs it for as long as you like."""

import pytest

from tests.fuzz.campaign import run, run_case
from tests.fuzz.cases import draw
from tests.fuzz.issue import CASES

SEED = 20260101
CASES_PER_CHUNK = 20
#: Chunks that every run has; so many there are with those marked slow.
CHUNKS, ALL_CHUNKS = 12, 25


@pytest.mark.parametrize(
    "chunk", [*range(CHUNKS), *(pytest.param(n, marks=pytest.mark.slow) for n in range(CHUNKS, ALL_CHUNKS))]
)
def test_the_judge_objects_to_nothing(chunk: int) -> None:
    first = chunk * CASES_PER_CHUNK
    cases = (draw(SEED, number, small=True) for number in range(first, first + CASES_PER_CHUNK))

    table = run(cases, limit=10.0)

    assert table.cases == CASES_PER_CHUNK
    assert not table.lines, "\n" + "\n".join(table.lines)


@pytest.mark.parametrize("name", list(CASES))
def test_a_fault_of_the_past_stays_mended(name: str) -> None:
    report = run_case(CASES[name], limit=10.0)

    assert not report.found, "\n" + "\n".join(f"{kind}: {detail}" for kind, detail in report.found)
