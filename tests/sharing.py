"""`--share 1/N`: every test, but of one with many cases only every N-th, chosen by its name.

So a version of PyTorch beside the main one is tested on every promise in a part of the time. The choice depends on the
names alone: it is the same on every machine and in every process. What is marked `whole` keeps all of its cases.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable

import pytest


def add_option(parser: pytest.Parser) -> None:
    """The option `--share`."""
    parser.addoption("--share", default="1/1", metavar="1/N", help="of a test with many cases run every N-th only")


def share_of(config: pytest.Config) -> int:
    """N.

    Raises:
        UsageError: if the option is not 1/N.
    """
    given = config.getoption("--share")
    one, _, count = given.partition("/")
    if one != "1" or not count.isdecimal() or int(count) < 1:
        raise pytest.UsageError(f"--share must be 1/N with a whole number N, got {given}")
    return int(count)


def chosen(names: Iterable[str], share: int) -> set[str]:
    """About one in `share` of the cases of a test, and at least one."""
    numbers = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") for name in names}
    least = min(numbers, key=numbers.__getitem__)
    return {name for name, number in numbers.items() if number % share == 0} | {least}


def select(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the share of `items`, in place."""
    share = share_of(config)
    if share == 1:
        return
    tests: dict[str, list[str]] = defaultdict(list)
    for item in items:
        tests[_test(item)].append(item.nodeid)
    kept = {name for names in tests.values() for name in chosen(names, share)}
    left = [item for item in items if item.nodeid in kept or item.get_closest_marker("whole")]
    remaining = set(left)
    config.hook.pytest_deselected(items=[item for item in items if item not in remaining])
    items[:] = left


def _test(item: pytest.Item) -> str:
    return item.nodeid.partition("[")[0]
