"""A solve as one operator of PyTorch's, for what records a model: `torch.compile(fullgraph=True)`, `torch.export`.

How many steps a solver makes depends on the data, which no recording can follow. An operator is recorded as it is: what
shape its results have, and what its derivative is, is all that has to be known of it.
"""

from __future__ import annotations

import json
import math
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.adjoints import Adjoint, Implicit, adjoint_named
from implicit_bregman.adjoints.system import solve_adjoint_system
from implicit_bregman.backward import report_backward
from implicit_bregman.critical_point import find_critical_point
from implicit_bregman.energy import QuadraticEnergy
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.linearization import Linearization
from implicit_bregman.operators import Dense
from implicit_bregman.settings import Settings
from implicit_bregman.solvers import Solver
from implicit_bregman.status import Status
from implicit_bregman.transformed import Recording

if TYPE_CHECKING:
    from implicit_bregman.nn.critical_point import CriticalPoint

NOT_TO_BE_RECORDED = ""
Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""The value, the point at which it is differentiated, D₊ and the shift there, and which samples have a derivative."""


def encoded(geometry: MirrorMap, solver: str | Solver, adjoint: str | Adjoint, regularization: float) -> str:
    """The settings of a layer as a string, which is what an operator can be given; "" where that is not possible."""
    how = adjoint_named(adjoint)
    parts = (geometry, how.solver_for(solver), how)
    if not how.is_one_solve:
        return NOT_TO_BE_RECORDED
    try:
        return json.dumps([*(_fields_of(part) for part in parts), regularization])
    except TypeError:
        return NOT_TO_BE_RECORDED


def is_traceable(layer: CriticalPoint) -> bool:
    """Whether a layer can be recorded as an operator: one matrix for all samples, and the implicit gradient."""
    return layer.settings != NOT_TO_BE_RECORDED and layer.energy.has_matrix


def solve_traced(layer: CriticalPoint, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch d"]:
    """h(x; θ), recorded as an operator."""
    energy = cast("QuadraticEnergy", layer.energy)  # (which alone has a matrix)
    with torch.autocast(x.device.type, enabled=False):
        matrix, known = energy.matrix_to_trace()
        rows = x.reshape(-1, x.shape[-1]).to(matrix.dtype)
        clean = torch.isfinite(rows).all(-1, keepdim=True)
        offset = energy(torch.where(clean, rows, 0.0))
        value = torch.ops.implicit_bregman.critical_point(matrix, offset, *known, layer.settings)[0]
        value = torch.where(clean, value, torch.nan)
        return value.reshape(*x.shape[:-1], matrix.shape[-1]).to(x.dtype)


# (written out: PyTorch 2.6 reads annotations without the names of this module)
_KNOWN = "int symmetric, float least, bool convex, str settings"


@torch.library.custom_op(
    "implicit_bregman::critical_point",
    mutates_args=(),
    schema=f"(Tensor matrix, Tensor offset, {_KNOWN}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _critical_point(
    matrix: Tensor, offset: Tensor, symmetric: int, least: float, convex: bool, settings: str
) -> Results:
    phi, solver, how, gamma = _decoded(settings)
    energy = QuadraticEnergy.from_operator(_operator(matrix, symmetric, least, convex), convex=convex)
    recording = Recording(how, [])
    with torch.no_grad():
        found = find_critical_point(energy, phi, offset, regularization=gamma, solver=solver, adjoint=recording)
    point, _, slope, shift, usable = recording.records[0]
    usable = usable & (found.status != int(Status.INVALID_INPUT))
    return tuple(tensor.clone() for tensor in (found.value, point, slope, shift, usable))  # type: ignore[return-value]


@_critical_point.register_fake
def _(matrix: Tensor, offset: Tensor, symmetric: int, least: float, convex: bool, settings: str) -> Results:
    like = torch.empty_like(offset)
    usable = offset.new_empty(offset.shape[0], dtype=torch.bool)
    return like, torch.empty_like(offset), torch.empty_like(offset), torch.empty_like(offset), usable


@torch.library.custom_op(
    "implicit_bregman::adjoint",
    mutates_args=(),
    schema=f"(Tensor gradient, Tensor slope, Tensor shift, Tensor usable, Tensor matrix, {_KNOWN}) -> Tensor",
)
def _adjoint(
    gradient: Tensor,
    slope: Tensor,
    shift: Tensor,
    usable: Tensor,
    matrix: Tensor,
    symmetric: int,
    least: float,
    convex: bool,
    settings: str,
) -> Tensor:
    phi, _, how, _ = _decoded(settings)
    system = Linearization(_operator(matrix, symmetric, least, convex), slope, shift, coupling=phi.coupling)
    g = torch.where(usable[:, None], gradient, 0.0)
    v, status, _, _ = solve_adjoint_system(system, g, how.method, how.tol, how.max_iter)
    report_backward("implicit adjoint", torch.where(usable, status, int(Status.DIVERGED)), how.on_failure)
    return v.clone()


@_adjoint.register_fake
def _(gradient: Tensor, slope: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(slope)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Results) -> None:
    matrix, _, *ctx.known = inputs
    ctx.save_for_backward(matrix, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    matrix, point, slope, shift, usable = ctx.saved_tensors
    v = torch.ops.implicit_bregman.adjoint(gradient, slope, shift, usable, matrix, *ctx.known)
    return -(v.mT @ point), v, None, None, None, None


_critical_point.register_autograd(_backward, setup_context=_setup)


def _operator(matrix: Tensor, symmetric: int, least: float, convex: bool) -> Dense:
    known = None if symmetric < 0 else bool(symmetric)
    return Dense(matrix, known, None if math.isnan(least) else least, convex=convex)


def _fields_of(settings: Settings | MirrorMap) -> list[Any]:
    values = {field.name: getattr(settings, field.name) for field in fields(settings) if field.init}
    return [type(settings).__name__, values]


@cache
def _decoded(settings: str) -> tuple[MirrorMap, Solver, Implicit, float]:
    geometry, solver, adjoint, regularization = json.loads(settings)
    return _made(MirrorMap, *geometry), _made(Solver, *solver), _made(Implicit, *adjoint), regularization


def _made(kind: type, name: str, values: dict[str, Any]) -> Any:
    """The settings of that name, among all that have been defined.

    Raises:
        ValueError: if there are none.
    """
    left = [kind]
    while left:
        candidate = left.pop()
        if candidate.__name__ == name:
            return candidate(**values)
        left += candidate.__subclasses__()
    raise ValueError(f"there is no {kind.__name__} called {name}: import the module that defines it")
