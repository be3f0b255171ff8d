"""The torchdeq package on our dual map, and what it does without it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchdeq.solver.anderson import anderson_solver
from torchdeq.solver.broyden import broyden_solver

from implicit_bregman.experiments.reference.problems import Problem, make_problem
from implicit_bregman.solvers import TorchDEQ
from tests.solvers.helpers import TORCHDEQ, own_residual, relative_error, solve, some

every_method = pytest.mark.parametrize("method", TORCHDEQ)


def test_the_method_is_the_first_argument() -> None:
    assert TorchDEQ("broyden", max_iter=7).method == "broyden"
    assert TorchDEQ("broyden", max_iter=7).max_iter == 7
    assert TorchDEQ().method == "anderson"


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("anderson", {"m": 3, "lam": 1e-8, "tau": 0.9}),
        ("broyden", {"LBFGS_thres": 10, "ls": False}),
        ("fixed_point_iter", {"tau": 0.7}),
    ],
)
def test_options_reach_torchdeq(method: str, options: dict[str, object]) -> None:
    problem = make_problem(dim=6, batch=3, condition=3.0, regularization=0.5, seed=1)
    settings = {"tol": 1e-6, "exact": False, "max_iter": 200, "trace": True}
    plain = solve(problem, TorchDEQ(method, **settings))
    changed = solve(problem, TorchDEQ(method, options=options, **settings))
    assert bool(changed.converged.all())
    if method != "broyden":  # its limited memory makes no difference on so small a problem
        assert plain.trace.residual.shape != changed.trace.residual.shape or not torch.equal(
            plain.trace.residual.nan_to_num(), changed.trace.residual.nan_to_num()
        )


@pytest.mark.parametrize("option", ["stop_mod", "memory", "tol", "max_iter", "stop_mode", "return_final"])
@every_method
def test_an_unknown_option_is_refused_and_the_known_ones_are_named(method: str, option: str) -> None:
    known = {"anderson": "m, lam, tau", "broyden": "LBFGS_thres, ls", "fixed_point_iter": "tau"}[method]
    message = rf"torchdeq's {method} has no option '{option}'; its options are {known}$"
    with pytest.raises(TypeError, match=message):
        TorchDEQ(method, options={option: 1})


def test_options_cannot_be_changed_behind_its_back() -> None:
    options = {"m": 4}
    solver = TorchDEQ(options=options)
    options["m"] = 99
    assert solver.options["m"] == 4


@every_method
def test_without_torchdeq_the_error_says_how_to_get_it(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchdeq"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchdeq", None)
    with pytest.raises(ImportError, match=r"TorchDEQ solver needs the torchdeq package: pip install"):
        TorchDEQ(method)


@every_method
def test_each_sample_keeps_its_first_good_iterate(method: str) -> None:
    problem = make_problem(dim=8, batch=5, condition=3.0, regularization=0.5, seed=1)
    found = solve(problem, TorchDEQ(method, tol=1e-4, exact=False, trace=True))
    assert bool(found.converged.all())
    for i, k in enumerate(found.iterations.tolist()):
        assert bool((found.trace.residual[:k, i] > 1e-4).all())
        assert float(found.trace.residual[k, i]) <= 1e-4
        assert torch.equal(found.trace.dual[k, i], found.dual[i])


@every_method
def test_batch_mates_change_no_answer(method: str) -> None:
    problem = make_problem(dim=8, batch=5, condition=3.0, regularization=0.5, seed=1)
    together = solve(problem, TorchDEQ(method, tol=1e-6, exact=False))
    alone = [solve(some(problem, [i]), TorchDEQ(method, tol=1e-6, exact=False)).value for i in range(5)]
    assert float((together.value - torch.cat(alone)).abs().max()) <= 1e-4


def test_a_singular_system_inside_torchdeq_ends_the_run_quietly() -> None:
    """lam = 0 and a sample at its solution: torchdeq's Gram matrix is singular."""
    problem = make_problem(dim=4, batch=3, condition=2.0, seed=1)
    offset = problem.offset.clone()
    offset[0] = 0
    solver = TorchDEQ(options={"lam": 0.0}, exact=False, max_iter=50, on_failure="ignore")
    found = solve(replace(problem, offset=offset), solver)
    assert bool(torch.isfinite(found.value).all())
    assert bool(found.converged[0])
    assert float(found.value[0].abs().max()) == 0


# Without the dual map -------------------------------------------------------------------------------------------------


def sigmoid_problem() -> Problem:
    return make_problem("convex", "sigmoid", 16, 8, 30.0, 0.25, seed=0)


def z_iteration(problem: Problem, inside: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """z ↦ ρ(ρ⁻¹(z) + Wz + c): the Bregman layer as one would hand it to a fixed-point solver."""

    def layer(z: Tensor) -> Tensor:
        seen = inside(z)
        moved = torch.logit(seen) + seen @ problem.weight.mT + problem.offset
        return torch.sigmoid(moved)

    return layer


@pytest.mark.parametrize("theirs", [anderson_solver, broyden_solver], ids=["anderson", "broyden"])
def test_torchdeq_on_z_returns_nan_where_the_dual_map_converges(theirs: Callable[..., tuple[Tensor, ...]]) -> None:
    problem = sigmoid_problem()
    start = torch.full_like(problem.offset, 0.5)
    broken = theirs(z_iteration(problem, lambda z: z), start, max_iter=100, tol=1e-11)[0]
    assert bool(torch.isnan(broken).any()), "an accelerated iterate that left (0, 1) has no dual"

    ours = solve(problem, TorchDEQ(theirs.__name__.removesuffix("_solver")))
    assert bool(ours.converged.all())
    assert float(relative_error(ours.value, problem.solution).max()) <= 1e-9


@pytest.mark.parametrize("theirs", [anderson_solver, broyden_solver], ids=["anderson", "broyden"])
@pytest.mark.parametrize("eps", [1e-2, 1e-4])
def test_torchdeq_on_clamped_z_is_wrong_where_a_bound_is_active(
    theirs: Callable[..., tuple[Tensor, ...]], eps: float
) -> None:
    problem = sigmoid_problem()
    start = torch.full_like(problem.offset, 0.5)
    found = theirs(z_iteration(problem, lambda z: z.clamp(eps, 1 - eps)), start, max_iter=300, tol=1e-11)[0]
    assert bool(torch.isfinite(found).all())
    error = relative_error(found, problem.solution)
    assert bool((error > 0.1 * eps).any())

    ours = solve(problem, TorchDEQ(theirs.__name__.removesuffix("_solver")))
    assert bool((own_residual(problem, ours.dual) <= 1e-11).all())
    assert float(relative_error(ours.value, problem.solution).max()) <= 1e-9
