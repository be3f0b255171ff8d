"""The table of the README is what its script prints."""

import importlib.util
import re
from pathlib import Path

import pytest

from tests.test_examples import differences

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_table_at_the_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchdeq", reason="torchdeq is not installed: pip install torchdeq")
    spec = importlib.util.spec_from_file_location("boundary", ROOT / "docs" / "scripts" / "boundary.py")
    assert spec is not None
    assert spec.loader is not None
    boundary = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(boundary)
    boundary.main()
    share, _, *printed = capsys.readouterr().out.splitlines()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"^\| gradient by \|.*\n(?:\|.*\n)+", readme, re.MULTILINE)
    assert shown is not None
    assert not differences("\n".join(printed), shown[0])
    assert share.split(" lie ")[0] in readme
