"""`--share 1/N`: the choice of cases for the versions of PyTorch beside the main one."""

import pytest

from tests.sharing import chosen

NAMES = [f"tests/test_a.py::test[{number}]" for number in range(900)]


def test_about_a_share_is_chosen_and_always_the_same() -> None:
    found = chosen(NAMES, 3)
    assert 240 < len(found) < 360
    assert found == chosen(reversed(NAMES), 3)
    assert found != chosen(NAMES, 4)


def test_the_choice_of_one_case_does_not_depend_on_the_others() -> None:
    assert chosen(NAMES, 3) & set(NAMES[:500]) == chosen(NAMES[:500], 3)


@pytest.mark.parametrize("number", range(20))
def test_no_test_is_left_without_a_case(number: int) -> None:
    assert len(chosen(NAMES[number : number + 1], 50)) == 1


TESTS = """
import pytest

@pytest.mark.parametrize("n", range(40))
def test_many(n): pass

@pytest.mark.whole
@pytest.mark.parametrize("n", range(40))
def test_whole(n): pass

def test_one(): pass
"""


@pytest.fixture
def of_its_own(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(TESTS)
    pytester.makeini("[pytest]\nmarkers = whole: all")
    pytester.makeconftest(
        "import pytest\nfrom tests import sharing\n"
        "def pytest_addoption(parser): sharing.add_option(parser)\n"
        "def pytest_collection_modifyitems(config, items): sharing.select(config, items)\n"
    )
    return pytester


def test_the_option(of_its_own: pytest.Pytester) -> None:
    everything = of_its_own.runpytest_inprocess("-p", "no:cacheprovider").parseoutcomes()
    assert everything == {"passed": 81}
    part = of_its_own.runpytest_inprocess("-p", "no:cacheprovider", "--share", "1/4").parseoutcomes()
    assert part["passed"] + part["deselected"] == 81
    assert 41 < part["passed"] < 65
    whole = of_its_own.runpytest_inprocess("-p", "no:cacheprovider", "--share", "1/4", "-k", "whole or one")
    assert whole.parseoutcomes()["passed"] == 41


@pytest.mark.parametrize("given", ["2/3", "1/0", "1/x", "3"])
def test_what_is_no_share_is_refused(given: str, of_its_own: pytest.Pytester) -> None:
    done = of_its_own.runpytest_inprocess("--share", given)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["*--share must be 1/N with a whole number N*"])
