"""The cells of the benchmark: a base problem and one factor changed at a time, and layers of other structure."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar, Protocol

from implicit_bregman.experiments.benchmark.layer_cells import CONVOLUTIONS, DTYPES, FIELDS
from implicit_bregman.experiments.reference.problems import COMPARED, Problem, make_monotone_problem, make_problem
from implicit_bregman.legendre import geometry as find_geometry

UNBOUNDED = ("arcsinh", "identity")  # no bound to be active at
QUICK = (
    *("base", "d32", "B1", "active40", "gamma0.1", "gamma1", "float64", "sigmoid", "mondeq-m0.1-skew-B128"),
    *("conv-16x14-convex-gamma0", "field-mlp"),
)
FACTS = (*("family", "kind", "geometry", "dim", "batch", "condition", "active", "regularization", "dtype", "margin"),)
_FEATURES = 87  # of the layer that monDEQ's authors published for MNIST
_REACH = 4.0  # λ_max(AᵀA) of such a layer


class Cell(Protocol):
    """One problem of the benchmark."""

    @property
    def name(self) -> str:
        """Name, as `--cells` takes it."""

    @property
    def family(self) -> str:
        """How it is prepared, and who its rivals are: "quadratic", "convolution" or "field"."""

    @property
    def text(self) -> str:
        """What it is, in one line."""

    @property
    def facts(self) -> dict[str, object]:
        """The same for tables and verdicts: `FACTS`; None for what it does not have."""


@dataclass(frozen=True)
class QuadraticCell:
    """A quadratic energy with one dense matrix W.

    Attributes:
        name: Name, as `--cells` takes it.
        kind: "convex", "indefinite" or "general" (monotone and not symmetric).
        geometry: Name of φ.
        dim: d.
        batch: B.
        condition: Condition number of W; what is expected of (the symmetric part of) monDEQ's.
        active: Share of the coordinates at a bound; of monDEQ's about.
        regularization: γ.
        dtype: "float32" or "float64".
        margin: m of a layer like monDEQ's, W = −(mI + AᵀA + Bᵀ − B); None for the other cells.
    """

    name: str
    kind: str = "convex"
    geometry: str = "tanh"
    dim: int = 128
    batch: int = 64
    condition: float = 100.0
    active: float = 0.05
    regularization: float = 0.0
    dtype: str = "float32"
    margin: float | None = None
    family: ClassVar[str] = "quadratic"

    def problem(self, seed: int = 0) -> Problem:
        """The problem, rounded to the cell's precision."""
        if self.margin is not None:
            symmetric = self.kind == "convex"
            made = make_monotone_problem(
                self.geometry, self.dim, self.batch, self.margin, symmetric, seed=seed, name=self.name
            )
            return made.to(DTYPES[self.dtype])
        made = make_problem(
            self.kind,
            self.geometry,
            self.dim,
            self.batch,
            self.condition,
            self.active,
            self.regularization,
            seed=seed,
            name=self.name,
        )
        return made.to(DTYPES[self.dtype])

    @property
    def text(self) -> str:
        """What it is, in one line."""
        shape = (
            f"condition {self.condition:g}, " if self.margin is None else f"like monDEQ, m = {self.margin:g}, about "
        )
        return (
            f"{self.kind}, {self.geometry}, d = {self.dim}, B = {self.batch}, {shape}{self.active:.0%} active, "
            f"γ = {self.regularization:g}, {self.dtype}"
        )

    @property
    def facts(self) -> dict[str, object]:
        """The same for tables and verdicts."""
        return {"family": self.family} | asdict(self)


def catalogue() -> tuple[Cell, ...]:
    """All cells.

    The base point, one factor at a time, every geometry with γ = 0 and with γ = 0.1; layers like monDEQ's;
    convolutional layers; networks as fields.
    """
    base = QuadraticCell("base")
    cells = [
        base,
        *(replace(base, name=f"d{dim}", dim=dim) for dim in (32, 512, 2048)),
        *(replace(base, name=f"B{batch}", batch=batch) for batch in (1, 512)),
        *(replace(base, name=f"cond{condition}", condition=float(condition)) for condition in (10, 1000)),
        *(replace(base, name=f"active{share}", active=share / 100) for share in (0, 40)),
        *(replace(base, name=f"gamma{gamma:g}", active=0.0, regularization=gamma) for gamma in (0.1, 1.0)),
        replace(base, name="float64", dtype="float64"),
        replace(base, name="indefinite", kind="indefinite"),
    ]
    others = [name for name in COMPARED if name != base.geometry]
    for name in others:
        cells.append(replace(base, name=name, geometry=name, active=0.0 if name in UNBOUNDED else base.active))
    for name in others:
        # sin is not Legendre: γφ does not keep the solution off the bounds.
        active = base.active if not find_geometry(name).is_legendre else 0.0
        cells.append(replace(base, name=f"{name}-gamma0.1", geometry=name, active=active, regularization=0.1))
    return (*cells, *_mondeq_cells(), *CONVOLUTIONS, *FIELDS)


def _mondeq_cells() -> list[QuadraticCell]:
    """Layers like monDEQ's: z ≥ 0, γ = 0, about half of the units active, symmetric and not."""
    return [
        QuadraticCell(
            f"mondeq-m{margin:g}{suffix}-B{batch}",
            kind,
            "softplus",
            _FEATURES,
            batch,
            condition=1 + _REACH / margin,
            active=0.5,
            margin=margin,
        )
        for kind, suffix in (("convex", ""), ("general", "-skew"))
        for margin in (1.0, 0.1)
        for batch in (128, 1024)
    ]


def chosen(names: Sequence[str] | None, quick: bool) -> tuple[Cell, ...]:
    """The cells of these names, in their order; None: all, or with `quick` a few of each kind.

    A name with `*` or `?` stands for all that it matches.

    Raises:
        ValueError: For an unknown or repeated name, or none at all.
    """
    known = {cell.name: cell for cell in catalogue()}
    if names is None:
        return tuple(known[name] for name in QUICK) if quick else tuple(known.values())
    if not names:
        raise ValueError(f"cells is empty, name at least one of {', '.join(known)}")
    names = [match for name in names for match in fnmatch.filter(known, name) or [name]]
    for number, name in enumerate(names):
        if name not in known:
            raise ValueError(f"cells has {name!r}, which is unknown; use {', '.join(known)}")
        if name in names[:number]:
            raise ValueError(f"cells names {name!r} twice, name it once")
    return tuple(known[name] for name in names)
