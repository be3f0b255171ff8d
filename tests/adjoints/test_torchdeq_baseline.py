"""What the usual recipe gives on our test problems: z-iterates in torchdeq, clamped to stay inside C."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.adjoints.helpers import Case, Learned, learned_case, relative_errors

torchdeq = pytest.importorskip("torchdeq")

CASES = [Case("sigmoid", active=0.34), Case("tanh", active=0.34)]
SOLVERS = ["anderson", "broyden", "fixed_point_iter"]


def torchdeq_gradients(learned: Learned, solver: str, margin: float) -> dict[str, Tensor]:
    """z = ρ(ρ⁻¹(clamp(z)) + Wz + c) as a fixed-point problem, with torchdeq's implicit gradient."""
    phi = learned.geometry
    lo, hi = phi.domain
    weight, offset = learned.energy.weight, learned.energy.linear(learned.x)

    def layer(z: Tensor) -> Tensor:
        inside = z.clamp(lo + margin, hi - margin) if margin else z
        return phi.activation(phi.inverse_activation(inside) + z @ weight.mT + offset)

    deq = torchdeq.get_deq(
        f_solver=solver, b_solver="fixed_point_iter", f_max_iter=100, b_max_iter=400, f_tol=1e-12, b_tol=1e-12, ift=True
    ).train()
    values, _ = deq(layer, learned.initial.detach())
    return learned.differentiate(values[-1])


def worst(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """The largest relative error of x, W, U and b, NaN if anything is."""
    errors = list(relative_errors(found, exact).values())
    return math.nan if any(math.isnan(error) for error in errors) else max(errors)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("solver", ["anderson", "broyden"])
def test_accelerated_z_iterates_leave_the_domain(case: Case, solver: str) -> None:
    """ρ⁻¹ of an iterate outside C is NaN, and so is everything after it, or the solver itself gives up."""
    learned, exact = learned_case(case)
    try:
        error = worst(torchdeq_gradients(learned, solver, margin=0.0), exact)
    except (RuntimeError, ValueError):
        return
    assert math.isnan(error) or error > 1e-2


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("margin", [1e-2, 1e-3, 1e-6])
def test_clamped_z_iterates_give_a_wrong_gradient_where_ours_is_exact(case: Case, solver: str, margin: float) -> None:
    learned, exact = learned_case(case)
    error = worst(torchdeq_gradients(learned, solver, margin), exact)
    assert math.isnan(error) or error > 1e-2
    assert worst(learned.gradients(), exact) <= 1e-12
