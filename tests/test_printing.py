"""How a solution is printed."""

import io

import pytest
import torch
from rich.console import Console

import implicit_bregman as ib


def printed(thing: object) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(thing)
    return console.file.getvalue()


def solved(samples: int = 20, **settings: object) -> ib.Solution:
    return ib.BregmanDEQ(3, 4, **settings).solve(5 * torch.randn(samples, 3))


def test_rich_prints_a_small_table() -> None:
    solution = solved()
    solution.value.sum().backward()
    text = printed(solution)
    assert len(text.splitlines()) <= 10
    for words in ("20 × 4, float32 on cpu", "CONVERGED", "20 of 20", "1 at most", "estimated"):
        assert words in text
    assert f"{solution.residual.max():.1e}" in text
    assert f"{solution.gradient_error.max():.1e}" in text


def test_failures_are_counted_and_the_backward_pass_is_left_out_before_it() -> None:
    x = torch.randn(3, 3)
    x[1] = torch.nan
    layer = ib.BregmanDEQ(3, 4, solver=ib.solvers.Newton(on_failure="ignore"))
    text = printed(layer.solve(x))
    assert "1 of 3" in text.split("INVALID_INPUT")[1].splitlines()[0]
    assert "2 of 3" in text.split("CONVERGED")[1].splitlines()[0]
    assert "gradient error" not in text


def test_a_constrained_solution_tells_its_violation() -> None:
    energy = ib.QuadraticEnergy.from_matrices(-torch.eye(4))
    constraints = ib.Constraints(torch.ones(4, 1), lower=torch.zeros(1), upper=torch.ones(1) / 10)
    solution = ib.find_constrained_point(energy, "tanh", torch.randn(3, 4), constraints)
    assert f"{solution.violation.max():.1e} tolerances" in printed(solution)
    assert "ConstrainedSolution" in printed(solution)


@pytest.mark.parametrize("samples", [0, 1])
def test_small_batches(samples: int) -> None:
    text = printed(solved(samples))
    assert f"{samples} × 4" in text


def test_the_plain_form_is_one_line_also_inside_a_list() -> None:
    solution = solved()
    assert "\n" not in repr(solution)
    assert len(repr(solution)) < 160
    assert repr(solution).startswith("Solution(value=(20, 4) torch.float32, status=[CONVERGED 20], largest residual=")
    assert "tensor" not in printed([solution])
