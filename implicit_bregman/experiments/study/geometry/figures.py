"""Plots of the geometry study."""

from __future__ import annotations

import statistics
from typing import Any

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
    plain_numbers,
    png,
)
from implicit_bregman.experiments.output.statistics import mean_and_spread
from implicit_bregman.experiments.reference.active import has_bound
from implicit_bregman.experiments.study.geometry.boxes import BOX_GEOMETRIES, BOX_REGIMES
from implicit_bregman.experiments.study.geometry.run import Measured
from implicit_bregman.experiments.study.geometry.settings import GeometrySettings
from implicit_bregman.experiments.study.geometry.training import REGIMES
from implicit_bregman.legendre import geometry as find_geometry

REGIME_STYLES = ((BLUE, "o"), (RED, "s"), (GREEN, "^"), (ORANGE, "D"), (PURPLE, "v"))
BOX_STYLES: tuple[tuple[str, Any, str], ...] = (
    (BLUE, "-", "o"),
    (SKY, (0, (5, 1)), "v"),
    (RED, "--", "s"),
    (ORANGE, "-.", "D"),
    (GREEN, ":", "^"),
)
# What is exactly 0 is drawn here.
FLOOR = 1e-17


def geometry_figures(settings: GeometrySettings, measured: Measured) -> dict[str, tuple[bytes, str]]:
    """File name → PNG file and caption."""
    return {
        "geometry-accuracy.png": (
            _accuracy(settings, measured),
            "Test accuracy: every seed a dot, the mean a line. Colours: geometries with the same domain",
        ),
        "geometry-cost.png": (
            _cost(settings, measured),
            "MM steps to the limit at the trained parameters (hollow: more than half of the samples need more), "
            "time of a training step, and share of the coordinates on a bound",
        ),
        "geometry-box.png": (
            _one_box(measured),
            "Six geometries on one box against tanh, float64: largest difference of z at equal parameters, and "
            "relative difference of the parameters while training, a line per geometry, median over the seeds (at "
            "γσ=0.1 sigmoid and scaled_tanh are tanh); 0 is drawn at 1e-17",
        ),
    }


def _ordered(names: tuple[str, ...]) -> list[str]:
    """By domain: boxes, half-lines, the line."""

    def place(name: str) -> tuple[float, float, str]:
        lo, hi = find_geometry(name).domain
        return hi - lo, -lo, name

    return sorted(names, key=place)


def _colour(name: str) -> str:
    domains: dict[Any, str] = {
        find_geometry(known).domain: colour
        for known, colour in (
            ("sigmoid", ORANGE),
            ("tanh", BLUE),
            ("arctan", PURPLE),
            ("scaled_tanh", SKY),
            ("exp", GREEN),
            ("identity", BLACK),
        )
    }
    return domains[find_geometry(name).domain]


def _accuracy(settings: GeometrySettings, measured: Measured) -> bytes:
    names = _ordered(settings.geometries)
    with figure_of(len(REGIMES), 2.5, columns=2, rows=1) as (figure, axes):
        for column, (axis, regime) in enumerate(zip(axes, REGIMES, strict=True)):
            for place, name in enumerate(names):
                runs = measured.runs[regime, name]
                values = [100 * run["accuracy"] for run in runs if run["accuracy"] is not None]
                if not values:
                    axis.text(0.5, place, "given up", transform=axis.get_yaxis_transform(), ha="center", va="center")
                    continue
                axis.plot(values, [place] * len(values), "o", color=_colour(name), markersize=2.5, alpha=0.6)
                mean, _ = mean_and_spread(values)
                axis.plot([mean, mean], [place - 0.35, place + 0.35], color=_colour(name), linewidth=1.5)
            axis.set_title(regime.name.replace(", W", ",\nW"), fontsize=7)
            axis.set(ylim=(len(names) - 0.5, -0.5), yticks=range(len(names)))
            axis.set_yticklabels(names if column == 0 else [])
        low = min(axis.get_xlim()[0] for axis in axes)
        high = max(axis.get_xlim()[1] for axis in axes)
        for axis in axes:
            axis.set_xlim(low, high)
        axes[len(axes) // 2].set_xlabel("test accuracy [%]")
        return png(figure)


def _cost(settings: GeometrySettings, measured: Measured) -> bytes:
    names = _ordered(settings.geometries)
    with figure_of(3, 2.9, columns=2, rows=1) as (figure, axes):
        for index, (regime, (colour, marker)) in enumerate(zip(REGIMES, REGIME_STYLES, strict=True)):
            for place, name in enumerate(names):
                at = place + 0.14 * (index - (len(REGIMES) - 1) / 2)
                runs = [run for run in measured.runs[regime, name] if run["mm_steps"] is not None]
                if not runs:
                    continue
                short = statistics.fmean(run["mm_short"] for run in runs) > 0.5
                style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 3, "linestyle": ""}
                steps = statistics.median(run["mm_steps"] for run in runs)
                axes[0].plot(steps, at, fillstyle="none" if short else "full", **style)
                axes[1].plot(statistics.fmean(run["step_ms"] for run in runs), at, **style)
                if has_bound(find_geometry(name)):
                    axes[2].plot(100 * statistics.fmean(run["active"] for run in runs), at, **style)
        for axis in axes[:2]:
            axis.set_xscale("log")
            plain_numbers(axis.xaxis)
        axes[0].set(xlabel=f"MM steps, at most {settings.max_steps}")
        axes[1].set(xlabel="ms per training step")
        axes[2].set(xlabel="coordinates on a bound [%]")
        for column, axis in enumerate(axes):
            axis.set(ylim=(len(names) - 0.5, -0.5), yticks=range(len(names)))
            axis.set_yticklabels(names if column == 0 else [])
        handles = [
            Line2D([], [], color=colour, marker=marker, linestyle="", markersize=3, label=regime.name)
            for regime, (colour, marker) in zip(REGIMES, REGIME_STYLES, strict=True)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        return png(figure)


def _one_box(measured: Measured) -> bytes:
    others = BOX_GEOMETRIES[1:]
    with figure_of(2, 2.7, columns=2) as (figure, axes):
        for index, (regime, (colour, line, marker)) in enumerate(zip(BOX_REGIMES, BOX_STYLES, strict=True)):
            found = measured.boxes[regime]
            for place, name in enumerate(others):
                gaps = [max(item["limit"][name], FLOOR) for item in found]
                at = place + 0.16 * (index - (len(BOX_REGIMES) - 1) / 2)
                axes[0].plot([at] * len(gaps), gaps, marker, color=colour, markersize=3, alpha=0.7)
            steps = found[0]["steps"]
            for name in others:
                across = zip(*(item["parameters"][name] for item in found), strict=True)
                middle = [max(statistics.median(values), FLOOR) for values in across]
                axes[1].plot(steps, middle, color=colour, linestyle=line, linewidth=0.9)
        axes[0].set(yscale="log", ylabel="largest |z − z tanh|", xticks=range(len(others)))
        axes[0].set_xticklabels(others)
        axes[1].set(xscale="log", yscale="log", xlabel="training step", ylabel="‖θ − θ tanh‖ / ‖θ tanh‖")
        handles = [
            Line2D([], [], color=colour, linestyle=line, marker=marker, markersize=3, label=regime.name)
            for regime, (colour, line, marker) in zip(BOX_REGIMES, BOX_STYLES, strict=True)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        return png(figure)
