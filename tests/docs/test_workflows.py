"""What runs elsewhere is what runs here: the workflows are valid, and call targets that the Makefile has."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github").glob("**/*.yml"))
# (an unpacked source distribution has none)
pytestmark = pytest.mark.skipif(not WORKFLOWS, reason="this is no clone of the repository")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_it_is_valid_and_calls_targets_that_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert isinstance(yaml.safe_load(text), dict)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    called = re.findall(r"run: make (\S+)(?: |$)", text, re.MULTILINE)
    expanded = {"test-${{": {"test-oldest", "test-newest"}}
    assert set().union(*(expanded.get(name, {name}) for name in called)) <= targets


def test_the_versions_in_the_prose_are_those_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    oldest, middle, newest = (
        re.search(rf"^{name} \?= torch==(\S+)", makefile, re.MULTILINE)[1]
        for name in ("TORCH_OLDEST", "TORCH", "TORCH_NEWEST")
    )
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"tested with {oldest}, {middle} and {newest}" in readme
    least = oldest.rpartition(".")[0]
    assert f'"torch>={least}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    columns = f"| | PyTorch {least} | {middle.rpartition('.')[0]} | {newest.rpartition('.')[0]} |"
    assert columns in (ROOT / "docs" / "derivatives.md").read_text(encoding="utf-8")
