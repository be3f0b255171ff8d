"""The page about speed, from the results of a benchmark.

Run

    implicit-bregman benchmark --out FOLDER
    python docs/scripts/benchmarks.py FOLDER

It needs the extra `benchmark` for the first and `experiments` for the second. The second writes the tables between the
two marks of `docs/benchmarks.md`, which it makes if it is not there, and the figures into `docs/images`. Nothing is
measured: the numbers are those of `FOLDER/results.json`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from implicit_bregman.experiments.benchmark.figures import benchmark_figures
from implicit_bregman.experiments.benchmark.report import benchmark_report
from implicit_bregman.experiments.benchmark.results import Benchmark
from implicit_bregman.experiments.output.files import write_all

DOCS = Path(__file__).resolve().parent.parent
START, END = "<!-- benchmark -->\n", "<!-- end of benchmark -->\n"
PAGE = f"""\
# Benchmarks

How long it takes to an accuracy, next to torchdeq, monDEQ, plain loops in PyTorch, ProxQP, OSQP and bregmanet.
`implicit-bregman benchmark` measures it, and `python docs/scripts/benchmarks.py FOLDER` writes what follows.

{START}{END}"""


def page_with(benchmark: Benchmark, page: str) -> tuple[str, dict[str, bytes]]:
    """The page with the benchmark between its marks, and the figures by name.

    Raises:
        ValueError: If a mark is missing.
    """
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"the page lacks the marks {START.strip()} and {END.strip()}, put them back")
    figures = {f"images/benchmark-{name}": made for name, made in benchmark_figures(benchmark).items()}
    section = benchmark_report(benchmark, figures).markdown(level=2)
    images = {name.removeprefix("images/"): png for name, (png, _) in figures.items()}
    return f"{before}{start}\n{section}\n{end}{after}", images


def main(arguments: list[str], docs: Path = DOCS) -> int:
    """Write the page and its figures."""
    if len(arguments) != 1:
        print("usage: python docs/scripts/benchmarks.py FOLDER", file=sys.stderr)
        return 2
    benchmark = Benchmark.from_json((Path(arguments[0]) / "results.json").read_text(encoding="utf-8"))
    target = docs / "benchmarks.md"
    text, images = page_with(benchmark, target.read_text(encoding="utf-8") if target.exists() else PAGE)
    (docs / "images").mkdir(exist_ok=True)
    write_all(docs / "images", images)
    write_all(docs, {target.name: text.encode()})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
