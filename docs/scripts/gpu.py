"""What the main paths ask of a GPU: the two tables of the page about speed.

Run

    python docs/scripts/gpu.py           # counts, on any machine
    python docs/scripts/gpu.py --time    # times as well; this needs a CUDA device (`make gpu-check`)

The tables go between their marks in docs/benchmarks.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from implicit_bregman.experiments.benchmark.paths.counts import counts_of
from implicit_bregman.experiments.benchmark.paths.layers import large_paths, main_paths
from implicit_bregman.experiments.benchmark.paths.report import counts_table, placed, times_table
from implicit_bregman.experiments.benchmark.paths.timing import times_of

PAGE = Path(__file__).resolve().parent.parent / "benchmarks.md"


def main(arguments: list[str], page: Path = PAGE) -> int:
    """Write the tables."""
    if arguments not in ([], ["--time"]):
        print("usage: python docs/scripts/gpu.py [--time]", file=sys.stderr)
        return 2
    if arguments and not torch.cuda.is_available():
        print("there is no CUDA device on this machine, so nothing was timed", file=sys.stderr)
        return 1
    text = placed(page.read_text(encoding="utf-8"), "counts", counts_table({p: counts_of(p) for p in main_paths()}))
    if arguments:
        text = placed(text, "gpu", times_table({p: times_of(p) for p in (*main_paths(), *large_paths())}))
    page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
