"""`python -m tests.fuzz --minutes 5 --seed 0`: judge random calls of the library against the judge's own solutions."""

from __future__ import annotations

import argparse
import itertools
import sys
import time

import torch

from tests.fuzz.campaign import matches, run, run_case
from tests.fuzz.cases import draw
from tests.fuzz.issue import CASES


def main() -> int:
    """The campaign, or one case; 1 if there is a violation."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=_positive, default=5.0, help="how long to go on")
    parser.add_argument("--cases", type=int, help="how many cases at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--limit", type=float, default=30.0, help="seconds after which a single case is stopped")
    parser.add_argument("--only", help="words that a case's description must contain, such as 'float32 tanh low_rank'")
    parser.add_argument("--small", action="store_true", help="the cheap cases of the test suite")
    parser.add_argument("--issue", action="store_true", help="the faults of the past, by name")
    parser.add_argument("--replay", action="append", help="one case: SEED:NUMBER, or the name of a fault of the past")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.replay:
        return max(_replay(line.split("#")[0].strip(), options.limit) for line in options.replay)
    if options.issue:
        cases = iter(CASES.values())
    else:
        # (also where --only lets no case through)
        end = time.monotonic() + 60 * options.minutes
        numbers = itertools.takewhile(lambda _: time.monotonic() < end, itertools.count(options.first))
        cases = (draw(options.seed, number, options.small) for number in numbers)
    wanted = (case for case in cases if matches(case, options.only))
    wanted = itertools.islice(wanted, options.cases)
    table = run(wanted, 60 * options.minutes, options.limit, show=lambda line: print(line, flush=True))
    print(table)
    if not table.cases:
        print("no case was judged: look at --minutes, --cases and --only", file=sys.stderr)
    return int(bool(table.lines) or not table.cases)


def _positive(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return number


def _replay(line: str, limit: float) -> int:
    case = CASES.get(line) or draw(*_numbers(line), small=line.endswith("s"))
    print(case)
    report = run_case(case, limit)
    for kind, detail in report.found:
        print(f"  VIOLATION {kind}: {detail}")
    for kind, detail in report.remarks:
        print(f"  remark {kind}: {detail}")
    print(f"  {len(report.kinds)} checks, {len(report.found)} violations")
    return int(bool(report.found))


def _numbers(line: str) -> tuple[int, int]:
    try:
        seed, number = line.rstrip("s").split(":")
        return int(seed), int(number)
    except ValueError:
        raise SystemExit(f"--replay takes SEED:NUMBER or one of {' | '.join(CASES)}, got {line!r}") from None


if __name__ == "__main__":
    sys.exit(main())
