"""What the usual recipe gives on our problems: z-iterates in torchdeq, clamped by ε so that they stay inside C.

Measured with torchdeq 0.1.0 at d = 32, condition 100, a quarter of the coordinates active, 200 iterations, float64 and
float32 alike. Unclamped, Anderson and Broyden return NaN (sigmoid, tanh, isru). Clamped, the error of dL/dW is 9 % to
35 % with Anderson and 3 % to 20 % with plain iteration. On an easy problem, where these do converge, an error of the
size of ε remains. The same problems are solved here to the last digits.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.experiments.reference.oracle import reference_gradient, reference_solution, weight_gradient
from implicit_bregman.experiments.reference.problems import Problem, make_problem

torchdeq = pytest.importorskip("torchdeq")


def hard(geometry: str, dtype: torch.dtype) -> Problem:
    return make_problem("convex", geometry, dim=32, batch=8, condition=100.0, active=0.25).to(dtype)


def cotangent(z: Tensor) -> Tensor:
    return z - torch.linspace(-1.0, 2.0, z.shape[-1], dtype=z.dtype)


def torchdeq_value(problem: Problem, weight: Tensor, solver: str, margin: float) -> Tensor:
    """z = ρ(ρ⁻¹(clamp(z)) + Wz + c) as a fixed-point problem with torchdeq's implicit gradient."""
    phi = problem.geometry
    lo, hi = phi.domain

    def layer(z: Tensor) -> Tensor:
        inside = z.clamp(lo + margin, hi - margin) if margin else z
        return phi.activation(phi.inverse_activation(inside) + z @ weight.mT + problem.offset)

    settings = {"f_max_iter": 200, "b_max_iter": 200, "f_tol": 1e-10, "b_tol": 1e-10, "ift": True}
    deq = torchdeq.get_deq(f_solver=solver, b_solver="anderson", **settings).train()
    values, _ = deq(layer, phi.activation(torch.zeros_like(problem.offset)))
    return values[-1]


def errors(problem: Problem, solver: str, margin: float) -> tuple[float, float]:
    """Relative error of dL/dW by torchdeq and by this library with its default settings."""
    known = reference_solution(problem.weight, problem.offset, problem.geometry)
    g = cotangent(known.value)
    v = reference_gradient(problem.weight, problem.offset, known.value, known.active, problem.geometry, 0.0, g)
    exact = weight_gradient(v, known.value)
    weight = problem.weight.clone().requires_grad_()
    energy = ib.QuadraticEnergy.from_matrices(weight)
    ours = ib.find_critical_point(energy, problem.geometry, problem.offset).value
    found = []
    for value in (torchdeq_value(problem, weight, solver, margin), ours):
        (gradient,) = torch.autograd.grad(value, weight, cotangent(value.detach()))
        found.append(float((gradient.double() - exact).norm() / exact.norm()))
    return found[0], found[1]


EXACT = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.mark.parametrize("geometry", ["sigmoid", "tanh", "isru"])
@pytest.mark.parametrize("solver", ["anderson", "broyden"])
def test_without_the_clamp_it_is_nan(geometry: str, solver: str, dtype: torch.dtype) -> None:
    """An accelerated z leaves C, where ρ⁻¹ is NaN."""
    theirs, ours = errors(hard(geometry, dtype), solver, margin=0.0)
    assert not theirs < torch.inf
    assert ours <= EXACT[dtype]


@pytest.mark.parametrize("geometry", ["sigmoid", "tanh", "isru", "arctan"])
@pytest.mark.parametrize("solver", ["anderson", "fixed_point_iter"])
@pytest.mark.parametrize("margin", [1e-2, 1e-5])
def test_with_the_clamp_it_is_wrong_by_percents(geometry: str, solver: str, margin: float, dtype: torch.dtype) -> None:
    theirs, ours = errors(hard(geometry, dtype), solver, margin)
    assert theirs > 0.02
    assert ours <= EXACT[dtype]


@pytest.mark.parametrize("geometry", ["sigmoid", "tanh"])
@pytest.mark.parametrize("margin", [1e-2, 1e-3, 1e-5])
def test_where_it_converges_the_clamp_itself_remains(geometry: str, margin: float) -> None:
    problem = make_problem("convex", geometry, dim=6, batch=8, condition=3.0, active=0.25)
    theirs, ours = errors(problem, "fixed_point_iter", margin)
    assert 0.1 * margin < theirs < 10 * margin
    assert ours <= EXACT[torch.float64]
