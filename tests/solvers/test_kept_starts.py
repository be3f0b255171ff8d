"""A start is used as given, or refused: tiny ones, those next to a bound, those on one, and those given in the dual."""

from __future__ import annotations

import math
import re
import warnings

import mpmath
import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.legendre import separable_geometries
from implicit_bregman.starts import from_dual, from_point
from tests.legendre.conftest import CASES, Case
from tests.problems import dual_of, low_rank

DOUBLE = torch.float64
SOLVERS = ("auto", "newton", "mm", "anderson", "broyden")
TINY = {torch.float64: (-40.0, -45.0, -50.0), torch.float32: (-18.0, -20.0, -25.0)}


def softmax(duals: tuple[float, ...]) -> list[float]:
    with mpmath.workdps(40):
        sizes = [mpmath.exp(mpmath.mpf(y)) for y in duals]
        return [float(size / sum(sizes)) for size in sizes]


def on_the_simplex(start: Tensor, **settings: object) -> ib.Solution:
    """The projection onto Σz = 1, with φ the entropy: z⁰/Σz⁰."""
    energy = low_rank([[1.0]] * start.shape[-1], start.dtype)
    name = settings.pop("given", "initial")
    one = start.new_ones(len(start), 1)
    return ib.find_critical_point(energy, "exp", one, **{str(name): start}, **settings)  # type: ignore[arg-type]


# Tiny starts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["initial", "initial_dual"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_tiny_start_is_kept(solver: str, given: str, dtype: torch.dtype) -> None:
    duals = torch.tensor([TINY[dtype]], dtype=dtype)
    found = on_the_simplex(duals if given == "initial_dual" else duals.exp(), solver=solver, given=given)
    assert found.status.tolist() == [ib.Status.CONVERGED]
    tolerance = 1e-10 if dtype == DOUBLE else 1e-4
    expected = torch.tensor([softmax(TINY[dtype])], dtype=dtype)
    torch.testing.assert_close(found.value, expected, rtol=tolerance, atol=tolerance * 1e-4)


def test_unrolled_steps_leave_from_a_tiny_start_as_well(dtype: torch.dtype) -> None:
    start = torch.tensor([TINY[dtype]], dtype=dtype).exp()
    found = on_the_simplex(start, adjoint=ib.adjoints.Unrolled(steps=60))
    tolerance = 1e-10 if dtype == DOUBLE else 1e-4
    torch.testing.assert_close(found.value[0].tolist(), softmax(TINY[dtype]), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("adjoint", ["implicit", ib.adjoints.Unrolled(steps=80)], ids=["implicit", "unrolled"])
def test_the_gradient_of_a_tiny_start(adjoint: object, dtype: torch.dtype) -> None:
    """dz_i/dy_j = z_i (δ_ij − z_j) and dz_i/dz⁰_j = (δ_ij − z_i)/Σz⁰, by hand."""
    weights = torch.tensor([[1.0, -2.0, 0.5]], dtype=dtype)
    z = torch.tensor([softmax(TINY[dtype])], dtype=DOUBLE)
    by_start = weights.double() - (weights.double() * z).sum()
    dual = torch.tensor([TINY[dtype]], dtype=dtype, requires_grad=True)
    (on_the_simplex(dual, adjoint=adjoint, given="initial_dual").value * weights).sum().backward()
    tolerance = 1e-9 if dtype == DOUBLE else 1e-3
    torch.testing.assert_close(dual.grad.double(), z * by_start, rtol=tolerance, atol=0)
    start = dual.detach().exp().requires_grad_()
    (on_the_simplex(start, adjoint=adjoint).value * weights).sum().backward()
    expected = by_start / sum(math.exp(y) for y in TINY[dtype])
    torch.testing.assert_close(start.grad.double(), expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize(("dtype", "tiny"), [(torch.float32, 1e-42), (DOUBLE, 1e-310)], ids=["float32", "float64"])
def test_subnormal_starts(dtype: torch.dtype, tiny: float) -> None:
    start = torch.tensor([[tiny, 3 * tiny]], dtype=dtype, requires_grad=True)
    found = on_the_simplex(start)
    torch.testing.assert_close(found.value.detach(), torch.tensor([[0.25, 0.75]], dtype=dtype), rtol=1e-2, atol=0)
    found.value[0, 0].backward()
    assert bool(torch.isfinite(start.grad).all())


@pytest.mark.parametrize("case", [c for c in CASES if c.geometry.is_legendre], ids=lambda c: repr(c.geometry))
def test_every_start_inside_is_kept(case: Case, dtype: torch.dtype) -> None:
    """y⁰ is ρ⁻¹(z⁰) to the last digit of the precision, from tiny to next to the bounds, against 60 digits."""
    phi, (lo, hi) = case.geometry, case.geometry.domain
    offsets = [1e-30, 1e-12, 1e-5, 0.1, 0.3]
    width = hi - lo
    if math.isinf(width):
        points = [*offsets, 2.0, 40.0] if lo == 0 else [0.0, *offsets, 2.0, 40.0, -1e-20, -3.0]
    else:
        points = [lo + width * o for o in offsets] + [hi - width * o for o in offsets]
    z = torch.tensor(points, dtype=dtype)
    z = z[phi.is_interior(z.double())][None]
    dual, usable = from_point(phi, z, z.dtype)
    assert usable is not None
    assert bool(usable.all())
    with mpmath.workdps(60):
        for point, y in zip(z[0].tolist(), dual[0].tolist(), strict=True):
            exact = case.oracle.inverse(mpmath.mpf(point))
            assert abs(y - exact) <= 4 * torch.finfo(dtype).eps * abs(exact) + 1e-15 * (dtype == DOUBLE), point


# On a bound -----------------------------------------------------------------------------------------------------------


def on_a_bound() -> list[tuple[str | ib.LegendreFunction, float, float]]:
    box = ib.geometry("tanh").to_box(-0.3, 0.7)
    return [
        ("tanh", 1.0, 0.1),
        ("tanh", -1.0, 0.1),
        ("sigmoid", 0.0, 0.4),
        ("softplus", 0.0, 0.4),
        ("sin", 1.0, 0.4),
        # float32 rounds π/2 and −0.3 out of the domain.
        ("arctan", 1.5707964, 0.1),
        (box, -0.3, 0.1),
    ]


@pytest.mark.parametrize(("geometry", "bound", "inside"), on_a_bound())
def test_a_start_on_a_bound_is_its_samples_fault(
    geometry: str | ib.LegendreFunction, bound: float, inside: float
) -> None:
    energy = ib.QuadraticEnergy.from_matrices(-torch.eye(2))
    x = torch.tensor([[0.2, 0.3]] * 3)
    start = torch.full((3, 2), inside)
    start[1, 0] = bound
    message = "INVALID_INPUT: .*on a bound of the domain, to which its precision may have rounded it.*initial_dual="
    with pytest.warns(ib.ConvergenceWarning, match=message):
        found = ib.find_critical_point(energy, geometry, x, start)
    assert found.status.tolist() == [0, ib.Status.INVALID_INPUT, 0]
    alone = ib.find_critical_point(energy, geometry, x[[0, 2]], start[[0, 2]])
    torch.testing.assert_close(found.value[[0, 2]], alone.value, rtol=0, atol=0)
    assert bool(found.value[1].isnan().all())


@pytest.mark.parametrize(("geometry", "entry"), [("tanh", -1.5), ("exp", -1e-30), ("arctan", 1.6), ("sigmoid", 1.001)])
def test_a_start_outside_is_an_error(geometry: str, entry: float) -> None:
    energy = ib.QuadraticEnergy.from_matrices(-torch.eye(2))
    start = torch.full((3, 2), 0.4)
    start[1, 0] = entry
    message = (
        rf"initial must lie in the interior of the domain .* of {geometry}, got entries such as {entry:g}.*initial_dual"
    )
    with pytest.raises(ValueError, match=message):
        ib.find_critical_point(energy, geometry, torch.zeros(3, 2), start)


def test_a_start_for_which_there_is_no_finite_dual() -> None:
    """arsinh of the largest number is 710.48: beyond, no dual says where the start is."""
    energy = ib.QuadraticEnergy.from_matrices(-torch.eye(1, dtype=DOUBLE))
    start = torch.tensor([[700.0], [1000.0]], dtype=DOUBLE)
    with pytest.warns(ib.ConvergenceWarning, match="INVALID_INPUT"):
        found = ib.find_critical_point(energy, "arcsinh", torch.ones(2, 1, dtype=DOUBLE), start)
    assert found.status.tolist() == [0, ib.Status.INVALID_INPUT]


def test_so_near_a_bound_that_the_dual_overflows_the_largest_one_stands_for_the_start() -> None:
    phi = ib.geometry("bent")
    z = torch.tensor([[1e-310, 1e-300]], dtype=DOUBLE)
    dual, usable = from_point(phi, z, z.dtype)
    assert usable is not None
    assert bool(usable.all())
    assert dual[0, 0].item() == -torch.finfo(DOUBLE).max
    assert float((phi.activation(dual) - z).abs().max()) < torch.finfo(DOUBLE).tiny
    assert dual[0, 1].item() == pytest.approx(-0.25e300)


# In the dual ----------------------------------------------------------------------------------------------------------


def test_a_start_in_the_dual_says_what_the_precision_rounds_to_a_bound() -> None:
    """sigmoid(17) is 1 in float32. The truth is that of float64, which can hold it."""
    vectors = [[1.0], [1.0], [0.5]]
    y = torch.tensor([[0.0, 17.0, -1.0]])
    target = torch.tensor([[1.2]])
    exact = ib.find_critical_point(low_rank(vectors), "sigmoid", target.double(), torch.sigmoid(y.double()))
    found = ib.find_critical_point(low_rank(vectors, torch.float32), "sigmoid", target, initial_dual=y)
    assert bool(exact.converged.all())
    assert bool(found.converged.all())
    torch.testing.assert_close(found.value.double(), exact.value, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.dual.double(), exact.dual, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in separable_geometries() if ib.geometry(n).is_legendre])
def test_the_gradient_flows_to_the_dual(name: str) -> None:
    """Against central differences, and against that of z⁰ times ρ'."""
    phi = ib.geometry(name)
    generator = torch.Generator().manual_seed(5)
    vectors = torch.randn(5, 2, generator=generator, dtype=DOUBLE)
    y = dual_of(phi, 0.7 * torch.randn(2, 5, generator=generator, dtype=DOUBLE)).requires_grad_()
    energy, target = low_rank(vectors.tolist()), phi.activation(0.5 * y.detach().flip(0)) @ vectors
    weights = torch.randn(2, 5, generator=generator, dtype=DOUBLE)

    def loss(dual: Tensor) -> Tensor:
        return (ib.find_critical_point(energy, phi, target, initial_dual=dual).value * weights).sum()

    (gradient,) = torch.autograd.grad(loss(y), y)
    direction = torch.randn(2, 5, generator=generator, dtype=DOUBLE)
    change = (loss(y.detach() + 1e-5 * direction) - loss(y.detach() - 1e-5 * direction)) / 2e-5
    assert float((gradient * direction).sum()) == pytest.approx(float(change), rel=1e-7, abs=1e-8)
    z = phi.activation(y.detach()).requires_grad_()
    value = ib.find_critical_point(energy, phi, target, z).value
    (by_point,) = torch.autograd.grad((value * weights).sum(), z)
    torch.testing.assert_close(by_point * phi.slope(y.detach()), gradient, rtol=1e-9, atol=1e-10)


def test_where_the_start_does_not_matter_its_gradient_is_zero() -> None:
    energy = ib.QuadraticEnergy.from_matrices(-torch.eye(2, dtype=DOUBLE))
    dual = torch.tensor([[40.0, -3.0]], dtype=DOUBLE, requires_grad=True)
    found = ib.find_critical_point(energy, "tanh", torch.tensor([[0.2, 0.4]], dtype=DOUBLE), initial_dual=dual)
    found.value.sum().backward()
    assert dual.grad.tolist() == [[0.0, 0.0]]


def test_a_dual_decides_the_basin_as_its_point_does() -> None:
    energy = ib.QuadraticEnergy.from_matrices(torch.tensor([[0.5]], dtype=DOUBLE))
    zero = torch.zeros(2, 1, dtype=DOUBLE)
    for solver in SOLVERS:
        dual = torch.tensor([[-0.2], [0.2]], dtype=DOUBLE)
        found = ib.find_critical_point(energy, "tanh", zero, initial_dual=dual, solver=solver)
        assert found.value.flatten().tolist() == pytest.approx([-1.0, 1.0])


def test_the_dual_of_a_function_that_is_not_legendre_is_projected() -> None:
    phi = ib.geometry("sin")
    dual, _ = from_dual(phi, torch.tensor([[9.0, -0.5]]), torch.float32, "initial_dual")
    torch.testing.assert_close(dual, torch.tensor([[math.pi / 2, -0.5]]))
    energy = ib.QuadraticEnergy.from_matrices(-torch.eye(2))
    found = ib.find_critical_point(energy, phi, torch.tensor([[0.3, 0.1]]), initial_dual=torch.tensor([[9.0, -0.5]]))
    torch.testing.assert_close(found.value, torch.tensor([[0.3, 0.1]]))


def test_duals_that_are_not_finite_are_their_samples_fault() -> None:
    energy = ib.QuadraticEnergy.from_matrices(-torch.eye(1))
    # (the last one is finite in float64 only)
    dual = torch.tensor([[0.1], [math.nan], [math.inf], [1e300]], dtype=DOUBLE)
    with pytest.warns(ib.ConvergenceWarning, match="INVALID_INPUT"):
        found = ib.find_critical_point(energy, "tanh", torch.full((4, 1), 0.2), initial_dual=dual)
    assert found.status.tolist() == [0, *[ib.Status.INVALID_INPUT] * 3]
    assert bool(torch.isfinite(found.dual).all())


def test_what_is_refused() -> None:
    energy = ib.QuadraticEnergy.from_matrices(-torch.eye(2))
    x, y = torch.zeros(3, 2), torch.zeros(3, 2)
    with pytest.raises(ValueError, match="initial and initial_dual both give the start: give one of them"):
        ib.find_critical_point(energy, "tanh", x, y, initial_dual=y)
    with pytest.raises(ValueError, match=re.escape("initial_dual must have shape (3, 2), got (2, 3)")):
        ib.find_critical_point(energy, "tanh", x, initial_dual=torch.zeros(2, 3))
    with pytest.raises(TypeError, match=r"initial_dual must be a floating-point tensor, got torch\.int64"):
        ib.find_critical_point(energy, "tanh", x, initial_dual=torch.zeros(3, 2).long())
    solution = ib.find_critical_point(energy, "tanh", x)
    with pytest.raises(TypeError, match="initial_dual must be a floating-point tensor, got Solution"):
        ib.find_critical_point(energy, "tanh", x, initial_dual=solution)  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solution_with_a_huge_dual_is_a_start(solver: str, dtype: torch.dtype) -> None:
    """arsinh(y) = 88 in float32, 700 in float64: the solution's dual holds it, and the next solve starts there."""
    energy = ib.QuadraticEnergy.from_matrices(-torch.eye(2, dtype=dtype))
    far = 88.0 if dtype == torch.float32 else 700.0
    x = torch.tensor([[far, -far]], dtype=dtype)
    first = ib.find_critical_point(energy, "arcsinh", x)
    torch.testing.assert_close(first.value, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = ib.find_critical_point(energy, "arcsinh", x, first, solver=solver)
    assert bool(again.converged.all())
    torch.testing.assert_close(again.value, x)
