"""Whether a given W is symmetric is judged at every call: it may be trained, loaded, masked or written to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import implicit_bregman as ib

#: W after one step of SGD of size 1 on z₁, from −I, with x = (.5, .2).
TRAINED = [[-1.5, -0.2], [0.0, -1.0]]


def point(dtype: torch.dtype) -> Tensor:
    return torch.tensor([[0.5, 0.2]], dtype=dtype)


def derivative(energy: ib.QuadraticEnergy, x: Tensor, **settings: object) -> Tensor:
    """dz₁/dc."""
    x = x.clone().requires_grad_()
    found = ib.find_critical_point(energy, "tanh", x, **settings)  # type: ignore[arg-type]
    assert bool(found.converged.all())
    (gradient,) = torch.autograd.grad(found.value[0, 0], x)
    return gradient[0]


def inverse_row(matrix: Tensor) -> Tensor:
    """The first row of (−W)⁻¹, which is dz₁/dc inside C: z = (−W)⁻¹c."""
    return torch.linalg.inv(-matrix.detach())[0]


def close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=0, atol=1e-5 if found.dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("adjoint", ["implicit", ib.adjoints.Implicit("gmres"), ib.adjoints.Implicit("dense")], ids=str)
@pytest.mark.parametrize("solver", ["auto", "mm", "newton"])
def test_a_step_of_an_optimizer_makes_it_an_equilibrium_problem(
    solver: str, adjoint: str | ib.adjoints.Adjoint, dtype: torch.dtype
) -> None:
    W = nn.Parameter(-torch.eye(2, dtype=dtype))
    energy, x = ib.QuadraticEnergy.from_matrices(W), point(dtype)
    optimizer = torch.optim.SGD([W], lr=1.0)
    assert energy.symmetric
    ib.find_critical_point(energy, "tanh", x, solver=solver).value[0, 0].backward()
    optimizer.step()
    assert close(W.detach(), torch.tensor(TRAINED, dtype=dtype))
    assert not energy.symmetric
    assert close(derivative(energy, x, solver=solver, adjoint=adjoint), torch.tensor([2 / 3, -2 / 15], dtype=dtype))
    found = ib.find_critical_point(energy, "tanh", x, solver=solver)
    assert found.objective is None
    with pytest.raises(ValueError, match='"cg" needs a symmetric weight'):
        ib.find_critical_point(energy, "tanh", x, adjoint=ib.adjoints.Implicit("cg"))


def test_a_free_block_is_solved_with_the_transpose(dtype: torch.dtype) -> None:
    """The third coordinate is at its bound: only the first two have a derivative."""
    matrix = torch.tensor([[-1.5, -0.2, 0.1], [0.0, -1.0, 0.3], [0.2, 0.0, -1.0]], dtype=dtype)
    energy = ib.QuadraticEnergy.from_matrices(-torch.eye(3, dtype=dtype))
    with torch.no_grad():
        energy.weight_map.matrix.copy_(matrix)
    found = derivative(energy, torch.tensor([[0.3, 0.1, 5.0]], dtype=dtype))
    assert close(found[:2], inverse_row(matrix[:2, :2]))
    assert float(found[2]) == 0


@pytest.mark.parametrize("how", ["load_state_dict", "copy_", "data", "mask", "replaced"])
def test_whatever_changes_it(how: str, dtype: torch.dtype) -> None:
    wanted = torch.tensor(TRAINED, dtype=dtype)
    energy = ib.QuadraticEnergy.from_matrices(nn.Parameter(torch.tensor([[-1.5, -0.2], [-0.2, -1.0]], dtype=dtype)))
    assert energy.symmetric
    given = energy.weight_map
    if how == "load_state_dict":
        energy.load_state_dict({"weight_map.matrix": wanted})
    elif how == "copy_":
        with torch.no_grad():
            given.matrix.copy_(wanted)
    elif how == "data":
        given.matrix.data = wanted
    elif how == "mask":
        prune.custom_from_mask(given, "matrix", torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    else:
        given.matrix = nn.Parameter(wanted)
    assert close(derivative(energy, point(dtype)), inverse_row(wanted))
    assert not energy.symmetric


def test_back_to_a_symmetric_one(dtype: torch.dtype) -> None:
    energy = ib.QuadraticEnergy.from_matrices(torch.tensor(TRAINED, dtype=dtype))
    x = point(dtype)
    assert ib.find_critical_point(energy, "tanh", x).objective is None
    energy.weight_map.matrix.copy_(-torch.eye(2, dtype=dtype))
    found = ib.find_critical_point(energy, "tanh", x)
    assert found.objective is not None
    assert close(found.objective, -0.5 * x.square().sum(-1))
    assert close(energy.value(x, x), found.objective)


def test_the_certificate_sees_it() -> None:
    energy = ib.QuadraticEnergy.from_matrices(-torch.eye(2))
    assert ib.certify(energy, "tanh").has_objective
    energy.weight_map.matrix.copy_(torch.tensor(TRAINED))
    assert not ib.certify(energy, "tanh").has_objective


def test_the_documented_remedy_stays_symmetric() -> None:
    P = nn.Parameter(torch.tensor(TRAINED, dtype=torch.float64))
    optimizer = torch.optim.SGD([P], lr=0.5)
    for _ in range(3):
        energy = ib.QuadraticEnergy.from_matrices(0.5 * (P + P.T))
        assert energy.symmetric
        optimizer.zero_grad()
        ib.find_critical_point(energy, "tanh", point(torch.float64)).value[0, 0].backward()
        optimizer.step()
    assert not torch.equal(P, P.T)
