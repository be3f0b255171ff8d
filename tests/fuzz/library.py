"""Putting a case to the library, and taking its answer home as NumPy arrays. The only module that imports it."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch

import implicit_bregman as ib
from tests.fuzz.cases import Case

Status = ib.Status


@dataclass(frozen=True)
class Answer:
    """What came back: arrays as they are, float64 copies of what the judge computes with.

    Attributes:
        weight, offset, vectors, target: W and c, or V and β, as the library was given (or made) them.
        gradients: of Σ cotangent·value, by the name of the leaf.
        parameters: their values, by the same names.
        error: `gradient_error`, None where there is none.
        softening: of a low-rank weight.
        seconds: processor time of the forward and the backward pass.
        refused: the message, where the call was refused with a ValueError.
    """

    weight: np.ndarray | None = None
    offset: np.ndarray | None = None
    vectors: np.ndarray | None = None
    target: np.ndarray | None = None
    value: np.ndarray | None = None
    dual: np.ndarray | None = None
    status: np.ndarray | None = None
    objective: np.ndarray | None = None
    step: np.ndarray | None = None
    iterations: np.ndarray | None = None
    gradients: dict | None = None
    parameters: dict | None = None
    adjoint_status: np.ndarray | None = None
    error: np.ndarray | None = None
    softening: float = 0.0
    seconds: float = 0.0
    refused: str | None = None


class Own(ib.Energy):
    """½zᵀHz − xᵀz, as a user may write it."""

    def __init__(self, matrix: torch.nn.Parameter, convex: bool) -> None:
        super().__init__(convex=convex)
        self.matrix = matrix

    def value(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return -0.5 * torch.linalg.vecdot(z @ self.matrix, z) - torch.linalg.vecdot(x, z)


def _tensor(array: np.ndarray, case: Case, grad: bool = False) -> torch.Tensor:
    return torch.tensor(array, dtype=getattr(torch, case.dtype)).requires_grad_(grad)


def _energy(case: Case):
    """The energy, and its leaves by name."""
    dtype = getattr(torch, case.dtype)
    if case.layer:
        with torch.random.fork_rng():
            torch.manual_seed(case.torch_seed)
            # (the sine, which is not Legendre, is refused by low-rank layers, but not by `Unrolled`)
            name = "tanh" if case.weight == "low_rank" and case.geometry == "sin" else case.geometry
            layer = ib.BregmanDEQ(case.x.shape[1], case.d, name, weight=case.weight, rank=case.rank, dtype=dtype)
            energy = layer.energy
            with torch.no_grad():
                for parameter in energy.parameters():
                    parameter.add_(case.noise * torch.randn_like(parameter))
        return energy, dict(energy.named_parameters())
    matrix = torch.nn.Parameter(_tensor(case.matrix, case))
    if case.own:
        return Own(matrix, case.weight == "convex"), {"W": matrix}
    if case.weight != "low_rank":
        return ib.QuadraticEnergy.from_matrices(matrix), {"W": matrix}
    rank = case.matrix.shape[1]
    energy = ib.QuadraticEnergy(case.d, rank, "low_rank", rank=rank, bias=False, dtype=dtype)
    with torch.no_grad():
        energy.weight_map.vectors.copy_(matrix)
        energy.input_weight.copy_(torch.eye(rank, dtype=dtype))
    return energy, {"V": energy.weight_map.vectors}


def _round(energy: torch.nn.Module, half: torch.dtype, keep: bool) -> None:
    """Round the parameters to half precision, in which they stay or not."""
    for parameter in energy.parameters():
        rounded = parameter.data.to(half)
        parameter.data = rounded.to(parameter.dtype) if keep else rounded


def _geometry(case: Case):
    shape = ib.geometry(case.geometry)
    return shape if case.box is None else shape.to_box(*case.box)


def _solver(case: Case):
    if case.adjoint == "shine":
        return "auto"
    kinds = {
        "auto": ib.solvers.Newton,
        "newton": ib.solvers.Newton,
        "mm": ib.solvers.MM,
        "anderson": ib.solvers.Anderson,
        "broyden": ib.solvers.Broyden,
    }
    return kinds[case.solver](**case.settings) if case.settings else case.solver


def _adjoint(case: Case):
    if case.adjoint in ("cg", "gmres", "dense"):
        return ib.adjoints.Implicit(case.adjoint)
    if case.adjoint == "unrolled":
        return ib.adjoints.Unrolled(steps=case.steps)
    return case.adjoint


def _array(tensor) -> np.ndarray | None:
    return None if tensor is None else tensor.detach().double().numpy()


def ask(case: Case, x: np.ndarray | None = None, rows: slice = slice(None), half: bool = False) -> Answer:
    """The library's answer to a case, or to some of its rows, or to the same with another x (as wide).

    With `half`, x and the start are given in the case's half precision, in which value and gradients come back.
    """
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        energy, leaves = _energy(case)
        given = case
        if case.half:
            _round(energy, getattr(torch, case.half), keep=not half)
            given = replace(case, dtype=case.half) if half else case
        x = (case.x if x is None else x)[rows]
        inputs = _tensor(x, given, grad=True)
        initial = None if case.initial is None else _tensor(case.initial[rows], given, grad=True)
        call = {"regularization": case.gamma, "solver": _solver(case), "adjoint": _adjoint(case)}
        where = _geometry(case)
        try:
            if case.start == "warm":
                with torch.no_grad():
                    nearby = _tensor(x * 1.05 + 0.01, given)
                    initial = ib.find_critical_point(energy, where, nearby, None, case.gamma, _solver(case))
            begin = time.process_time()
            s = ib.find_critical_point(energy, where, inputs, initial, **call)
        except ValueError as refusal:
            return Answer(**_problem(energy, inputs), refused=str(refusal))
        s.value.backward(_tensor(case.cotangent[rows], given))
        seconds = time.process_time() - begin
        leaves = {**leaves, "x": inputs}
        if isinstance(initial, torch.Tensor):
            leaves["initial"] = initial
        return Answer(
            **_problem(energy, inputs),
            value=_array(s.value),
            dual=_array(s.dual),
            status=s.status.numpy(),
            objective=_array(s.objective),
            step=_array(s.step),
            iterations=s.iterations.numpy(),
            gradients={name: _array(leaf.grad) for name, leaf in leaves.items()},
            parameters={name: _array(leaf) for name, leaf in leaves.items()},
            adjoint_status=None if s.adjoint.status is None else s.adjoint.status.numpy(),
            error=_array(s.gradient_error),
            seconds=seconds,
        )


def _problem(energy, x: torch.Tensor) -> dict:
    with torch.no_grad():
        x = x.to(next(energy.parameters()).dtype)
        if isinstance(energy, Own):
            known, soft = {"weight": energy.matrix, "offset": x}, 0.0
        elif energy.low_rank:
            vectors = energy.weight_map.vectors
            known = {"vectors": vectors, "target": energy.target(x)}
            soft = energy.weight_map.softening
        else:
            known, soft = {"weight": energy.weight, "offset": energy.linear(x)}, 0.0
    return {**{name: _array(tensor) for name, tensor in known.items()}, "softening": soft}
