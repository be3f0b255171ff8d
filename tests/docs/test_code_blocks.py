"""The Python blocks of the README and of the docs run as printed, top to bottom."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [
    page.relative_to(ROOT).as_posix()
    for page in sorted((ROOT / "README.md", *(ROOT / "docs").rglob("*.md")))
    if BLOCK.search(page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run(page, capsys):
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    namespace: dict[str, object] = {"__name__": "__main__"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in blocks:
            line = text[: block.start()].count("\n") + 1
            # The line numbers of a traceback are then those of the page.
            exec(compile("\n" * line + block[1], str(ROOT / page), "exec"), namespace)
