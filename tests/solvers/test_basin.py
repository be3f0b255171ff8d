"""The proof that MM can only end at a given critical point: never wrong, and found in the end."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.objective import Objective
from implicit_bregman.solvers.basin import can_certify, certified_radius
from implicit_bregman.solvers.exact.solve import solve_exactly

#: Indefinite W and c with several limits in two dimensions.
CASES = {
    "vertices": ([[0.5, 0.2], [0.2, 0.3]], [0.1, -0.05]),
    "edges": ([[0.4, 0.3], [0.3, -0.8]], [0.05, 0.1]),
    "diagonal": ([[-0.25, 0.6], [0.6, -0.25]], [0.02, -0.01]),
}
POINTS = 24
STEPS = 4096


def objective_on(
    weight: list[list[float]], offset: list[float], phi: ib.LegendreFunction, gamma: float, batch: int
) -> Objective:
    """−½ uᵀWu − cᵀu, scaled, with u from −1 to 1 over the domain of φ."""
    W, c = (torch.tensor(entries, dtype=torch.float64) for entries in (weight, offset))
    lo, hi = phi.domain
    middle, half = 0.5 * (lo + hi), 0.5 * (hi - lo)
    c = half * c - W @ torch.full((2,), middle).double() if middle else c
    bound = ib.QuadraticEnergy.from_matrices(W).bind(c.expand(batch, -1))
    return Objective(bound, phi, gamma)


def grid(phi: ib.LegendreFunction) -> Tensor:
    """Duals of a regular grid in int C, (POINTS², 2); no point of it on the diagonals."""
    lo, hi = phi.domain
    first = torch.linspace(lo, hi, POINTS + 2, dtype=torch.float64)[1:-1]
    second = torch.linspace(lo, hi, POINTS + 3, dtype=torch.float64)[1:-1]
    return phi.inverse_activation(torch.cartesian_prod(first, second))


@pytest.mark.parametrize("gamma", [0.0, 0.03])
@pytest.mark.parametrize("geometry", ["tanh", "sigmoid", "sin"])
@pytest.mark.parametrize("case", CASES)
def test_whatever_is_certified_along_the_way_is_the_limit(case: str, geometry: str, gamma: float) -> None:
    phi = ib.geometry(geometry)
    dual = grid(phi)
    objective = objective_on(*CASES[case], phi, gamma, len(dual))
    assert can_certify(objective)
    assert not objective.unique
    tau = objective.initial_step(dual)
    promised = torch.full_like(dual, torch.nan)
    for k in range(STEPS + 1):
        if k & (k - 1) == 0:  # 0, 1, 2, 4, 8 …
            point = objective.evaluate(dual, tau)
            found = solve_exactly(objective, point, 1e-11)
            sure = certified_radius(objective, point, found) > 0
            assert bool(found.accepted[sure].all())
            first = sure & torch.isnan(promised).any(-1)
            promised[first] = found.unrounded[first]
        dual = objective.iterate(dual, tau)
    end = phi.activation(dual)
    certified = torch.isfinite(promised).all(-1)
    assert float(certified.double().mean()) >= 0.9
    assert len(end[certified].round(decimals=2).unique(dim=0)) >= 2, "several limits, or nothing was told apart"
    assert float((promised - end)[certified].abs().max()) <= 1e-3


def test_the_certificate_stops_at_the_edge_of_the_basin() -> None:
    """tanh, f = −¼z² − 0.1z: a maximum at z = −0.2 divides the basins of −1 and 1."""
    phi = ib.geometry("tanh")
    z = torch.linspace(-0.999, 0.999, 801, dtype=torch.float64)[:, None]
    objective = objective_on([[0.5]], [0.1], phi, 0.0, len(z))
    dual = phi.inverse_activation(z)
    tau = objective.initial_step(dual)
    point = objective.evaluate(dual, tau)
    for side in (-1.0, 1.0):
        at = objective.evaluate(torch.full_like(dual, side * 9.0), tau)
        radius = certified_radius(objective, point, solve_exactly(objective, at, 1e-9))
        sure = radius > 0
        basin = (z > -0.2 if side > 0 else z < -0.2).squeeze(-1)
        assert bool(sure.any())
        assert not bool((sure & ~basin).any())
        assert float(radius.max()) < abs(side + 0.2), "the ball holds one critical point"


def test_a_rejected_point_certifies_nothing() -> None:
    phi = ib.geometry("tanh")
    dual = grid(phi)
    objective = objective_on(*CASES["edges"], phi, 0.0, len(dual))
    point = objective.evaluate(dual, objective.initial_step(dual))
    found = solve_exactly(objective, point, 1e-9)
    assert not bool(found.accepted.all())
    assert bool((certified_radius(objective, point, found)[~found.accepted] == 0).all())


def test_no_certificate_without_objective_or_majorant() -> None:
    def made(weight: list[list[float]], geometry: str) -> Objective:
        phi = ib.geometry(geometry)
        bound = ib.QuadraticEnergy.from_matrices(torch.tensor(weight)).bind(torch.zeros(1, 2))
        return Objective(bound, phi, 0.0)

    assert can_certify(made([[0.5, 0.0], [0.0, -1.0]], "tanh"))
    assert not can_certify(made([[-1.0, 0.5], [0.0, -1.0]], "tanh")), "a field without objective"
    assert not can_certify(made([[-1.0, 0.0], [0.0, -1.0]], "exp")), "σ = 0: the step is found by backtracking"
