"""Drawing cases: (seed, number) → one call of the library with everything that goes into it, as NumPy arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from tests.fuzz.geometries import NAMES, geometry

WEIGHTS = ("convex", "singular", "symmetric", "general", "low_rank")
FIRST_ORDER = ("mm", "anderson", "broyden")
#: Steps that first-order methods are given on wild cases, where they may need arbitrarily many.
FEW_STEPS = 2000
#: Where the dual of a saturated start lies: below, ρ(y) still differs from the end in float32.
_SATURATED = {
    "isru": 1e3,
    "sigmoid": 14.0,
    "softplus": 60.0,
    "arctan": 1e4,
    "tanh": 7.0,
    "sin": 1.5,
    "arcsinh": 40.0,
    "identity": 1e6,
    "exp": 25.0,
    "bent": 1e5,
    "scaled_tanh": 9.0,
}


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        name: what replays it, "seed:number" or a name of `issue.py`.
        user: whether it is like what users do: Gaussian data, layers as constructed, condition 2 … 1e4.
        layer: whether a `BregmanDEQ` is constructed (from the torch seed `torch_seed`) and perturbed by `noise`; else
            the matrices are given.
        matrix: W, (d, d), or V, (d, r), where the weight is "low_rank"; None for a layer.
        x: input, (B, n): c or β where matrices are given.
        initial: z⁰, (B, d), for the starts "given" and "saturated".
        cotangent: dL/dz, (B, d).
        settings: of the solver.
        steps: of `Unrolled`.
        one: whether there is known to be one critical point, where the judge cannot tell.
        own: whether f is given as an energy of the user's own, by its value alone.
        half: the half precision in which x and the start are given a second time; "" for none.
    """

    name: str
    geometry: str
    weight: str
    gamma: float
    dtype: str
    x: np.ndarray
    matrix: np.ndarray | None
    cotangent: np.ndarray
    box: tuple[float, float] | None = None
    solver: str = "auto"
    adjoint: str = "implicit"
    start: str = "cold"
    initial: np.ndarray | None = None
    user: bool = False
    layer: bool = False
    torch_seed: int = 0
    noise: float = 0.0
    rank: int | None = None
    columns: bool = False
    settings: dict = field(default_factory=dict)
    one: bool = False
    steps: int = 4
    d: int = 0
    own: bool = False
    half: str = ""

    @property
    def first_order(self) -> bool:
        """Whether it is solved step by step: SHINE runs Broyden without an exact solve."""
        return self.solver in FIRST_ORDER or self.adjoint == "shine"

    def __str__(self) -> str:
        kind = f"{'layer' if self.layer else 'own' if self.own else 'matrices'} {self.weight}"
        where = self.geometry if self.box is None else f"{self.geometry}{list(self.box)}"
        return (
            f"{kind} {where} d={self.d} B={len(self.x)} γ={self.gamma:.3g} {self.dtype} {self.solver} {self.adjoint} "
            f"{self.start}{' columns' if self.columns else ''} {'user' if self.user else 'wild'} {self.half}".rstrip()
        )


def draw(seed: int, number: int, small: bool = False) -> Case:
    """Case `number` of the campaign `seed`; `small` for cheap ones only."""
    rng = np.random.default_rng([seed, number])
    user = rng.random() < 0.6
    case = _user(rng, small) if user else _wild(rng, small)
    if user:
        case = _variant(np.random.default_rng([seed, number, 1]), case)
    return replace(case, name=f"{seed}:{number}{'s' if small else ''}", user=user)


def _sizes(rng, small: bool) -> tuple[int, int]:
    d, batch = int(rng.integers(1, 17)), int(rng.integers(1, 9))
    if small:
        return int(rng.integers(1, 9)), int(rng.integers(1, 4))
    if rng.random() < 0.08:
        d = 64
    if rng.random() < 0.08:
        batch = 64
    return d, batch


def _solver_and_adjoint(rng, weight: str, gamma: float, legendre: bool) -> tuple[str, str]:
    adjoint = str(
        rng.choice(
            ["implicit", "cg", "gmres", "dense", "phantom", "one_step", "shine", "unrolled"],
            p=[0.5, 0.07, 0.07, 0.07, 0.08, 0.07, 0.07, 0.07],
        )
    )
    solver = str(rng.choice(["auto", "newton", "mm", "anderson", "broyden"], p=[0.55, 0.05, 0.15, 0.13, 0.12]))
    if weight == "general" and adjoint == "cg":
        adjoint = "gmres"
    if weight == "low_rank" and adjoint in ("cg", "gmres", "dense", "shine"):
        adjoint = "implicit"
    if weight == "low_rank" and gamma == 0 and not legendre:
        adjoint = "unrolled"
    if adjoint == "shine":
        solver = "auto"
    if adjoint == "unrolled":
        solver = "mm" if solver == "mm" else "auto"
    return solver, adjoint


def _user(rng, small: bool) -> Case:
    d, batch = _sizes(rng, small)
    n = int(rng.integers(1, 2 * d + 1))
    layer = rng.random() < 0.6
    weight = str(
        rng.choice(
            WEIGHTS,
            p=[0.5, 0.06 * (not layer), 0.14, 0.14, 0.22 - 0.06 * (not layer)]
            if not layer
            else [0.5, 0.0, 0.14, 0.14, 0.22],
        )
    )
    name = str(rng.choice(NAMES))
    gamma = float(rng.choice([0.0, 10 ** rng.uniform(-3, 1)]))
    if weight in ("symmetric", "general") and rng.random() < 0.5:
        gamma = 10 ** rng.uniform(-1, 0.5)
    shape = geometry(name)
    if gamma == 0 and weight != "low_rank" and not math.isfinite(shape.lo) and rng.random() < 0.8:
        gamma = 10 ** rng.uniform(-2, 1)
    dtype = str(rng.choice(["float32", "float64"]))
    x = rng.normal(size=(batch, n)) * rng.choice([1.0, 1.0, 3.0])
    rank = int(rng.integers(1, d + 1)) if weight == "low_rank" else None
    matrix = None
    if not layer:
        matrix, x = _matrices(rng, weight, d, batch, rank, shape, condition=10 ** rng.uniform(0.3, 4), spread=3.0)
    solver, adjoint = _solver_and_adjoint(rng, weight, gamma, shape.legendre)
    case = Case(
        "",
        name,
        weight,
        gamma,
        dtype,
        x,
        matrix,
        rng.normal(size=(batch, d)),
        solver=solver,
        adjoint=adjoint,
        layer=layer,
        torch_seed=int(rng.integers(2**31)),
        noise=float(rng.choice([0.0, 0.0, 0.1, 0.5])) / math.sqrt(d),
        rank=rank,
        d=d,
    )
    if solver in FIRST_ORDER and adjoint not in ("unrolled", "shine") and rng.random() < 0.15:
        # Gradients at points that are not quite there, and say so.
        case = replace(case, settings={"tol": 1e-4, "exact": False, "max_iter": FEW_STEPS})
    if rng.random() < 0.12:
        # Columns of x of very different sizes.
        case = replace(case, x=case.x * 10 ** rng.uniform(-8, 8, size=case.x.shape[1]), columns=True)
    return rounded(_with_start(rng, case))


def _variant(rng, case: Case) -> Case:
    """Some cases with an energy of the user's own, some in half precision."""
    plain = not case.layer and case.weight in ("convex", "symmetric") and not case.columns
    if plain and case.adjoint in ("implicit", "cg", "gmres", "phantom", "one_step") and rng.random() < 0.3:
        return replace(case, own=True)
    if case.dtype == "float32" and not case.columns and case.start in ("cold", "given") and rng.random() < 0.15:
        half = str(rng.choice(["float16", "bfloat16"]))
        names = ("x", "initial", "cotangent")
        arrays = {name: getattr(case, name) for name in names}
        return replace(case, half=half, **{n: None if a is None else to_half(a, half) for n, a in arrays.items()})
    return case


def to_half(array: np.ndarray, half: str) -> np.ndarray:
    """Rounded to the nearest number of a half precision."""
    if half == "float16":
        return array.astype(np.float16).astype(np.float64)
    bits = array.astype(np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def _wild(rng, small: bool) -> Case:
    d, batch = _sizes(rng, small)
    weight = str(rng.choice(WEIGHTS, p=[0.4, 0.1, 0.18, 0.17, 0.15]))
    name = str(rng.choice(NAMES))
    shape = geometry(name)
    box = None
    if shape.bounded and rng.random() < 0.25:
        width, centre = 10 ** rng.uniform(-3, 2), rng.normal()
        # Ends that float32 holds exactly: nobody then asks what C is.
        box = tuple(float(np.float32(end)) for end in (centre - width, centre + width))
        shape = geometry(name, box)
    gamma = float(rng.choice([0.0, 10 ** rng.uniform(-8, 3), 10 ** rng.uniform(-2, 1)], p=[0.4, 0.4, 0.2]))
    dtype = str(rng.choice(["float32", "float64"]))
    rank = int(rng.integers(1, d + 1)) if weight == "low_rank" else None
    spread = 10 ** rng.uniform(-1, 2)
    matrix, x = _matrices(rng, weight, d, batch, rank, shape, condition=10 ** rng.uniform(0, 6), spread=spread)
    columns = bool(rng.random() < 0.3)
    if columns:
        x = x * 10 ** rng.uniform(-8, 8, size=x.shape[1])
    if weight != "low_rank":
        if rng.random() < 0.4:
            x = x * 10 ** rng.uniform(-20, 20)
        if rng.random() < 0.4:
            matrix = matrix * 10 ** rng.uniform(-10, 6)
        if rng.random() < 0.2:
            scale = 10 ** rng.uniform(-3, 3, size=d)
            matrix = matrix * scale * scale[:, None]
    solver, adjoint = _solver_and_adjoint(rng, weight, gamma, shape.legendre)
    settings = {"max_iter": FEW_STEPS} if solver in FIRST_ORDER and adjoint != "unrolled" else {}
    cotangent = rng.normal(size=(batch, d)) * 10 ** rng.choice([0.0, rng.uniform(-15, 15)], p=[0.8, 0.2])
    case = Case(
        "",
        name,
        weight,
        gamma,
        dtype,
        x,
        matrix,
        cotangent,
        box=box,
        solver=solver,
        adjoint=adjoint,
        rank=rank,
        columns=columns,
        settings=settings,
        d=d,
    )
    return rounded(_with_start(rng, case))


def _matrices(rng, weight, d, batch, rank, shape, condition, spread):
    """W or V, and c or β, of the given condition; some coordinates of the solution are inside C, others at its ends."""
    q = np.linalg.qr(rng.normal(size=(d, d)))[0]
    values = condition ** -rng.random(d)
    if d > 1:
        values[:2] = 1.0, 1.0 / condition
    if weight == "low_rank":
        v = np.linalg.qr(rng.normal(size=(d, rank)))[0] * condition ** (-0.5 * rng.random(rank))
        inside = shape.rho(np.asarray(rng.normal(size=(batch, d)) * min(spread, 3.0))).astype(np.float64)
        beta = inside @ v
        return v, beta if rng.random() < 0.85 else beta + rng.normal(size=beta.shape) * 3
    if weight == "singular":
        values[rng.permutation(d)[: max(1, d // 3)]] = 0.0
    h = (q * values) @ q.T
    if weight == "symmetric":
        h = h - (q * values[::-1]) @ q.T * rng.choice([0.3, 1.0, 2.0])
    if weight == "general":
        skew = rng.normal(size=(d, d))
        h = h + (skew - skew.T) * rng.choice([0.1, 1.0]) / math.sqrt(d)
        if rng.random() < 0.3:
            h = rng.normal(size=(d, d)) / math.sqrt(d) * rng.choice([0.5, 3.0])
    h = h if weight == "general" else (h + h.T) / 2
    c = rng.normal(size=(batch, d)) * spread
    if weight == "singular" and not shape.bounded:
        c = c @ h
    return -h, c


def _with_start(rng, case: Case) -> Case:
    start = str(rng.choice(["cold", "given", "saturated", "warm"], p=[0.6, 0.16, 0.14, 0.1]))
    if case.weight == "low_rank" and not case.gamma and not geometry(case.geometry, case.box).legendre:
        # (solvers refuse these, and with them a start from their solution)
        start = "cold" if start == "warm" else start
    if start in ("cold", "warm"):
        return replace(case, start=start)
    shape = geometry(case.geometry, case.box)
    y = rng.normal(size=(len(case.x), case.d)) * rng.choice([0.3, 2.0])
    if start == "saturated":
        reach = _SATURATED[case.geometry] * rng.uniform(0.2, 1.0)
        y = np.where(rng.random(y.shape) < 0.5, np.sign(y) * reach, y)
    y = np.clip(y, -_SATURATED[case.geometry], _SATURATED[case.geometry])
    return replace(case, start=start, initial=shape.rho(y.astype(np.longdouble)).astype(np.float64))


def rounded(case: Case) -> Case:
    """Every array as the precision of the case holds it."""
    kind = np.dtype(case.dtype).type

    def cast(array):
        return None if array is None else array.astype(kind).astype(np.float64)

    return replace(
        case,
        x=cast(case.x),
        matrix=cast(case.matrix),
        initial=cast(case.initial),
        cotangent=cast(case.cotangent),
        gamma=float(case.gamma),
    )
