"""Running cases one after the other, each under a limit of processor time, and what is found as one table."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from tests.fuzz.again import check_again
from tests.fuzz.cases import Case
from tests.fuzz.checks import Report, judge
from tests.fuzz.library import Answer, ask

#: Seconds that a default call may take at d ≤ 64, B ≤ 64,
SLOW = 2.0
#: and one by a first-order method that was asked for.
SLOW_FIRST_ORDER = 10.0


class OutOfTime(BaseException):
    """A case took longer than its limit. (No Exception: nobody is to catch it on the way.)"""


def _stop(*_):
    raise OutOfTime


@contextmanager
def processor_time(limit: float) -> Iterator[None]:
    """Raise OutOfTime after so many seconds of this process's time."""
    before = signal.signal(signal.SIGPROF, _stop)
    signal.setitimer(signal.ITIMER_PROF, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def run_case(case: Case, limit: float = 30.0) -> Report:
    """Ask the library, judge its answer; what is raised on the way is a violation as well."""
    report = Report()
    report.look("exception")
    report.look(_time_kind(case))
    try:
        with np.errstate(all="ignore"), processor_time(limit):
            answer = ask(case)
    except OutOfTime:
        _too_slow(case, report, limit, f"stopped after {limit:g} s")
        return report
    except Exception as error:
        report.demand("exception", False, f"{type(error).__name__}: {str(error)[:200]}")
        return report
    try:
        with np.errstate(all="ignore"), processor_time(4 * limit):
            _judge(case, answer, report)
    except OutOfTime:
        report.demand("judge out of time", False, "", soft=True)
    except Exception as error:
        report.demand("exception", False, f"second call: {type(error).__name__}: {str(error)[:200]}")
    return report


def _judge(case: Case, answer: Answer, report: Report) -> None:
    slow = SLOW_FIRST_ORDER if case.first_order else SLOW
    if answer.seconds > slow:
        # Once more: the machine may have been busy.
        answer = min(answer, ask(case), key=lambda one: one.seconds)
        if answer.seconds > slow:
            _too_slow(case, report, answer.seconds, f"{answer.seconds:.1f} s")
    judge(case, answer, report)
    if answer.refused is None:
        check_again(case, answer, report)


def _time_kind(case: Case) -> str:
    return "time" if case.user and not case.settings else "time (wild)"


def _too_slow(case: Case, report: Report, seconds: float, detail: str) -> None:
    kind = _time_kind(case)
    # (of a first-order method that is asked for by name nobody is promised a time; SHINE's is the library's choice)
    named = case.first_order and (case.adjoint != "shine" or seconds < SLOW_FIRST_ORDER)
    report.demand(kind, False, detail, soft=kind != "time" or named)


@dataclass
class Table:
    """The counts of many reports."""

    cases: int = 0
    samples: int = 0
    looked: Counter = field(default_factory=Counter)
    violated: Counter = field(default_factory=Counter)
    remarked: Counter = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)

    def add(self, case: Case, report: Report) -> list[str]:
        """Count one case; its replay lines, one per kind of violation."""
        self.cases += 1
        self.samples += len(case.x)
        self.looked.update(report.kinds)
        first = {}
        for kind, detail in report.found:
            first.setdefault(kind, detail)
        self.violated.update(first.keys())
        self.remarked.update({kind for kind, _ in report.remarks})
        new = [f"--replay {case.name}  # {kind}: {detail} | {case}" for kind, detail in first.items()]
        self.lines += new
        return new

    def __str__(self) -> str:
        head = f"{'check':28} {'cases':>8} {'violations':>11} {'remarks':>8}"
        rows = [
            f"{kind:28} {self.looked[kind]:8} {self.violated[kind]:11} {self.remarked[kind]:8}"
            for kind in sorted(self.looked)
        ]
        total = f"{self.cases} cases, {self.samples} samples, {len(self.lines)} violations"
        return "\n".join([head, "-" * len(head), *rows, total])


def run(cases: Iterable[Case], seconds: float = np.inf, limit: float = 30.0, show=None) -> Table:
    """Judge cases until they or the time are used up. `show` is told of every violation as it is found."""
    table, end = Table(), time.monotonic() + seconds
    for case in cases:
        if time.monotonic() >= end:
            break
        for line in table.add(case, run_case(case, limit=min(limit, max(1.0, end - time.monotonic() + 5)))):
            if show:
                show(line)
    return table


def matches(case: Case, only: str | None) -> bool:
    """Whether every word of the filter occurs in the case's description."""
    return not only or all(word in f"{case.name} {case}" for word in only.split())
