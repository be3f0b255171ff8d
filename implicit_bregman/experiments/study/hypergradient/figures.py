"""Figures of the study of gradient errors: one panel per problem, theory in grey."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from implicit_bregman.experiments.output.plots import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    figure_of,
    png,
)
from implicit_bregman.experiments.study.hypergradient.curves import DAMPINGS, TRUNCATED
from implicit_bregman.experiments.study.hypergradient.summary import FLOOR, Result, curves, geometric, slowest
from implicit_bregman.experiments.study.hypergradient.theory import krylov_bound

Found = Mapping[str, Sequence[Result]]
# Colour, line, marker; the label is the method's name.
_STYLES: dict[str, tuple[str, Any, str]] = {
    "unrolled": (BLUE, "-", "o"),
    "truncated-1": (PURPLE, ":", ""),
    "truncated-5": (PURPLE, "--", ""),
    "truncated-20": (PURPLE, "-", ""),
    "implicit-mm": (ORANGE, "-", "^"),
    "implicit-anderson": (GREEN, "-", "v"),
    "implicit-newton": (RED, "-", "s"),
    "shine": (SKY, "-", "P"),
    "one-step": (BLACK, ":", "*"),
    "phantom-0.5": (GREEN, "--", ""),
    "phantom-1": (GREEN, ":", ""),
    "cg": (BLACK, "-", "x"),
    "gmres": (ORANGE, "--", "^"),
    "chebyshev": (BLUE, "--", "D"),
    "dense": (PURPLE, "-", "X"),
    "shine-refined": (SKY, "--", "P"),
}
_FORWARD = ("unrolled", "truncated-1", "truncated-5", "truncated-20", "implicit-mm", "implicit-anderson")
_WORK = ("unrolled", "truncated-20", "implicit-mm", "implicit-anderson", "implicit-newton", "shine", "one-step")
_GREY = "#555555"
_DASHES: dict[str, Any] = {"first": (0, (4, 2)), "second": (0, (1, 1.5)), "third": (0, (5, 1, 1, 1))}
_BOTTOM = 3e-17


def figures(found: Found) -> dict[str, tuple[bytes, str]]:
    """File name → PNG file and caption."""
    return {
        "hypergradient-forward.png": _figure(
            found,
            (*_FORWARD, "implicit-newton", "shine"),
            "k",
            "k, forward iterations",
            _forward_theory,
            "Error of the gradient against the iterations of the forward pass: geometric mean over the seeds, and one "
            "geometric standard deviation around it. Grey, computed from the solution: qᵏ and k qᵏ (constant 1), the "
            "plateaus of the truncated gradients, and for arctan the asymptotes C/k of implicit and unrolled",
        ),
        "hypergradient-backward.png": _figure(
            found,
            ("one-step", "phantom-0.5", "phantom-1", "cg", "gmres", "chebyshev", "dense", "shine-refined"),
            "k",
            "k, backward steps or products",
            _backward_theory,
            "Error of the gradient against the steps of the backward pass at the exact solution. Grey: "
            "(1 − λ + λq)ᵏ for the phantom gradients and 2((√κ − 1)/(√κ + 1))ᵏ with κ of CG's and of GMRES's system",
        ),
        "hypergradient-work.png": _figure(
            found,
            (*_WORK, "phantom-1", "cg", "chebyshev", "dense", "shine-refined"),
            "work",
            "total work [products with W]",
            _no_theory,
            "Error of the gradient against the work of forward and backward pass together",
        ),
    }


def _figure(
    found: Found,
    methods: Sequence[str],
    place: str,
    label: str,
    theory: Callable[[Axes, Sequence[Result]], None],
    caption: str,
) -> tuple[bytes, str]:
    columns = min(3, len(found))
    high = -(-len(found) // columns)
    with figure_of(high * columns, 2.0 * high + 0.9, columns=2, rows=high) as (figure, axes):
        for axis in axes[len(found) :]:
            axis.set_axis_off()
        for number, (axis, (case, results)) in enumerate(zip(axes, found.items(), strict=False)):
            for method in methods:
                _line(axis, method, curves(results, method), place)
            theory(axis, results)
            axis.set(xscale="log", yscale="log", ylim=(_BOTTOM, 4))
            axis.set_title(case, fontsize=7.5)
            axis.set_yticks([1e0, 1e-4, 1e-8, 1e-12, 1e-16])
            if number >= len(found) - columns:
                axis.set_xlabel(label, fontsize=7)
            if number % columns == 0:
                axis.set_ylabel("relative error of the gradient", fontsize=7)
        handles: dict[str, Any] = {}
        for axis in axes:
            for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
                handles.setdefault(name, handle)
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=5, fontsize=6.5)
        return png(figure), caption


def _line(axis: Axes, method: str, found: Sequence[Mapping[str, Sequence[float]]], place: str) -> None:
    """Geometric mean of the errors over the seeds, against the mean of the places, and a band."""
    if not found:
        return
    color, line, marker = _STYLES[method]
    places = [statistics.fmean(values) for values in zip(*(curve[place] for curve in found), strict=True)]
    errors = list(zip(*(curve["error"] for curve in found), strict=True))
    means = [geometric(values) for values in errors]
    # A line without markers is wide enough to be seen below the grey one that it agrees with.
    width = 0.9 if marker else 1.8
    style = {"color": color, "linestyle": line, "marker": marker, "markersize": 2.5, "linewidth": width}
    axis.plot(places, [max(mean, FLOOR) for mean in means], label=method, **style)
    spreads = [_spread(values) for values in errors]
    lower = [mean / spread for mean, spread in zip(means, spreads, strict=True)]
    upper = [mean * spread for mean, spread in zip(means, spreads, strict=True)]
    axis.fill_between(places, lower, upper, color=color, alpha=0.15, linewidth=0)
    if len(places) == 1 and place == "k":
        axis.axhline(means[0], color=color, linestyle=line, linewidth=0.7)


def _spread(values: Sequence[float]) -> float:
    """Geometric standard deviation."""
    return math.exp(statistics.stdev(math.log(max(value, FLOOR)) for value in values)) if len(values) > 1 else 1.0


def _forward_theory(axis: Axes, results: Sequence[Result]) -> None:
    places = curves(results, "unrolled")[0]["k"]
    sublinear = [result["theory"]["sublinear"] for result in results if result["theory"]["sublinear"]]
    if sublinear:
        for name, style in (("implicit", "first"), ("unrolled", "second")):
            constant = geometric([theory[name] for theory in sublinear])
            late = [k for k in places if k >= 30]
            _grey(axis, late, [constant / k for k in late], style, f"C/k, {name}")
    else:
        q = geometric([slowest(result) for result in results])
        _grey(axis, places, [q**k for k in places], "first", "qᵏ")
        _grey(axis, places, [k * q**k for k in places], "second", "k qᵏ")
    for last in TRUNCATED:
        plateau = geometric([result["theory"]["plateaus"][f"truncated-{last}"] for result in results])
        late = [k for k in places if k >= last]
        _grey(axis, late, [plateau] * len(late), "third", "plateaus, computed")


def _backward_theory(axis: Axes, results: Sequence[Result]) -> None:
    q = geometric([result["theory"]["q"] for result in results])
    places = curves(results, "phantom-1")[0]["k"]
    for damping in DAMPINGS:
        _grey(axis, places, [(1 - damping + damping * q) ** k for k in places], "first", "(1 − λ + λq)ᵏ")
    places = curves(results, "cg")[0]["k"]
    for method, style in (("cg", "second"), ("gmres", "third")):
        condition = geometric([result["theory"]["conditions"][method] for result in results])
        errors = [krylov_bound(condition, int(k)) for k in places]
        _grey(axis, places, errors, style, f"2((√κ−1)/(√κ+1))ᵏ, {method}")


def _no_theory(axis: Axes, results: Sequence[Result]) -> None:
    """Rates are about iterations."""


def _grey(axis: Axes, places: Sequence[float], values: Sequence[float], style: str, label: str) -> list[Line2D]:
    return axis.plot(places, values, color=_GREY, linestyle=_DASHES[style], linewidth=0.7, zorder=4, label=label)
