"""MkDocs hook: turn the LaTeX that `pymdownx.arithmatex` marks into MathML while the site is built.

The pages then show their mathematics without any script and without a network. LaTeX that cannot be
converted stops the build.
"""

from __future__ import annotations

import html
import re

from math_core import LatexToMathML

_MARKED = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)


def on_page_content(content: str, **_: object) -> str:
    """Replace every marked formula of a rendered page by MathML."""
    converter = LatexToMathML()

    def convert(match: re.Match[str]) -> str:
        source = html.unescape(match[2]).strip()  # \( … \) inline, \[ … \] displayed
        mathml: str = converter.convert_with_local_state(source[2:-2], displaystyle=source.startswith("\\["))
        return f'<div class="formula">{mathml}</div>' if match[1] == "div" else mathml

    return _MARKED.sub(convert, content)
