"""MkDocs hook: fill the numbers of `docs/errata-numbers.json` into the errata page.

The page says `{{ section.name:.3g }}`, a format specification as in `format()`. A name that the file does not
have stops the build.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

NUMBERS_FILE = Path(__file__).resolve().parent.parent / "errata-numbers.json"
PLACEHOLDER = re.compile(r"\{\{ (\w+)\.(\w+):([^ ]+) \}\}")


def _written(value: float, specification: str) -> str:
    mantissa, _, exponent = format(value, specification).replace("-", "\N{MINUS SIGN}").partition("e")
    if not exponent:
        return mantissa
    power = exponent.replace("\N{MINUS SIGN}", "-")
    return f"${mantissa.replace(chr(0x2212), '-')} \\cdot 10^{{{int(power)}}}$"


def fill(markdown: str, numbers: dict[str, dict[str, float]]) -> str:
    """Return the page with every placeholder replaced by its number.

    Raises:
        KeyError: a placeholder names a number that is not there.
    """
    return PLACEHOLDER.sub(lambda match: _written(numbers[match[1]][match[2]], match[3]), markdown)


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Fill the errata page; leave every other page as it is."""
    if page.file.src_uri != "errata.md":
        return markdown
    return fill(markdown, json.loads(NUMBERS_FILE.read_text(encoding="utf-8")))
