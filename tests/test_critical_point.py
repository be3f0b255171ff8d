"""Bad input: one line that names the argument, the value and the remedy; and what odd but good input gives."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

import implicit_bregman as ib
from implicit_bregman import find_critical_point

D = torch.float64
IN, OUT, BATCH = 3, 4, 5


@pytest.fixture
def energy() -> ib.QuadraticEnergy:
    return ib.QuadraticEnergy(OUT, IN, dtype=D)


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(BATCH, IN, generator=generator, dtype=D)


def refuse(error: type[Exception], message: str, energy: object, *args: object, **settings: object) -> None:
    """The call raises `error` with one line that contains the pattern."""
    with pytest.raises(error, match=message) as caught:
        find_critical_point(energy, *args, **settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert type(caught.value) is error


# x ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2,), (5, 4), (5, 2), (2, 3, 1), (0, 4), (3, 0)])
def test_a_wrong_last_dimension_is_refused(energy: ib.Energy, shape: tuple[int, ...]) -> None:
    message = re.escape(f"x must have 3 features in its last dimension, got shape {shape}")
    refuse(ValueError, message, energy, "tanh", torch.zeros(shape, dtype=D))


def test_a_tensor_without_dimensions_is_refused(energy: ib.Energy) -> None:
    refuse(
        ValueError,
        "x must have at least one dimension, the features; got a 0-d tensor",
        energy,
        "tanh",
        torch.tensor(1.0),
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex128], ids=str)
def test_a_dtype_that_is_not_floating_point_is_refused(energy: ib.Energy, dtype: torch.dtype) -> None:
    message = f"x must be a floating-point tensor, got {dtype}: call x.float"
    refuse(TypeError, message, energy, "tanh", torch.ones(2, IN).to(dtype))


@pytest.mark.parametrize("wrong", [[[0.0, 1.0, 2.0]], 1.0, None], ids=str)
def test_something_that_is_no_tensor_is_refused(energy: ib.Energy, wrong: object) -> None:
    refuse(TypeError, f"x must be a tensor, got {type(wrong).__name__}", energy, "tanh", wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_another_precision_than_the_weights_is_refused(energy: ib.Energy, dtype: torch.dtype) -> None:
    message = f"x is {dtype}, but .* of the energy is torch.float64: convert one of them"
    refuse(ValueError, message, energy, "tanh", torch.zeros(2, IN, dtype=dtype))


def test_another_device_than_the_weights_is_refused(energy: ib.QuadraticEnergy, x: Tensor) -> None:
    refuse(ValueError, "x is on meta, but .* of the energy is on cpu: move one of them", energy, "tanh", x.to("meta"))
    refuse(ValueError, "x is on cpu, but .* of the energy is on meta: move one of them", energy.to("meta"), "tanh", x)


def test_device_and_dtype_of_given_matrices_are_checked(x: Tensor) -> None:
    weight = -torch.eye(IN, dtype=D)
    given = ib.QuadraticEnergy.from_matrices(weight)
    refuse(ValueError, "x is torch.float32, but .* is torch.float64: convert", given, "tanh", x.float())
    refuse(ValueError, "x is on meta, but .* is on cpu: move", given, "tanh", x.to("meta"))


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("solver", ["mm", "anderson", "broyden", "newton"])
@pytest.mark.parametrize("regularization", [0.0, 0.3])
def test_a_row_that_is_not_finite_has_its_own_status_and_touches_no_other(
    energy: ib.Energy, x: Tensor, number: float, solver: str, regularization: float
) -> None:
    clean = find_critical_point(energy, "tanh", x, regularization=regularization, solver=solver)
    dirty = x.clone()
    dirty[1, 2] = number
    with pytest.warns(ib.ConvergenceWarning, match="INVALID_INPUT: x, the initial point") as caught:
        solution = find_critical_point(energy, "tanh", dirty, regularization=regularization, solver=solver)
    assert len(caught) == 1
    assert solution.status.tolist() == [0, ib.Status.INVALID_INPUT, 0, 0, 0]
    assert solution.converged.tolist() == [True, False, True, True, True]
    assert bool(solution.value[1].isnan().all())
    assert bool(solution.residual[1].isnan())
    assert bool(solution.dual.isfinite().all())
    others = torch.tensor([0, 2, 3, 4])
    # Within the tolerance of the solves, 1e-11: what is computed for a whole batch at once may differ by that much.
    torch.testing.assert_close(solution.value[others], clean.value[others], rtol=1e-11, atol=1e-11)
    assert "clean the input of this sample" in solution.message
    assert "INVALID_INPUT 1" in repr(solution)


def test_a_batch_of_nothing_but_nan(energy: ib.Energy, x: Tensor) -> None:
    with pytest.warns(ib.ConvergenceWarning, match="INVALID_INPUT"):
        solution = find_critical_point(energy, "tanh", torch.full_like(x, torch.nan))
    assert solution.status.tolist() == [ib.Status.INVALID_INPUT] * BATCH


def test_huge_but_finite_input_is_solved(energy: ib.Energy, x: Tensor) -> None:
    for geometry in ("tanh", "sigmoid", "arctan", "sin", "isru"):
        solution = find_critical_point(energy, geometry, 1e12 * x)
        assert bool(solution.converged.all())
        assert bool(solution.value.isfinite().all())


def test_failures_raise_where_asked_for(energy: ib.Energy, x: Tensor) -> None:
    x[0, 0] = torch.nan
    solver = ib.solvers.Anderson(on_failure="raise")
    refuse(RuntimeError, "find_critical_point: 1 of 5 samples failed. INVALID_INPUT", energy, "tanh", x, solver=solver)
    find_critical_point(energy, "tanh", x, solver=ib.solvers.Anderson(on_failure="ignore"))


# z⁰ -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("geometry", "entry"),
    [
        ("tanh", 1.001),
        ("tanh", -1.5),
        ("exp", -1.0),
        ("arctan", 1.6),
    ],
)
def test_a_start_outside_the_domain_is_refused(energy: ib.Energy, x: Tensor, geometry: str, entry: float) -> None:
    start = ib.geometry(geometry).activation(torch.zeros(BATCH, OUT, dtype=D))
    start[2, 1] = entry
    message = f"initial must lie in the interior of the domain .* of {geometry}, got entries such as {entry:g}: map it"
    refuse(ValueError, message, energy, geometry, x, start)


def test_a_start_of_more_digits_than_x_is_kept(x: Tensor) -> None:
    """1 − 1e-9 is 1 in float32, and its dual is 10.7."""
    single = ib.QuadraticEnergy(OUT, IN)
    start = torch.full((BATCH, OUT), 1 - 1e-9, dtype=D)
    steps = ib.adjoints.Unrolled(steps=1)
    found = find_critical_point(single, "tanh", x.float(), start, adjoint=steps)
    same = find_critical_point(single, "tanh", x.float(), adjoint=steps, initial_dual=torch.atanh(start).float())
    assert torch.equal(found.dual, same.dual)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_a_start_that_is_not_finite_is_that_samples_fault(energy: ib.Energy, x: Tensor, number: float) -> None:
    start = torch.zeros(BATCH, OUT, dtype=D)
    start[3, 0] = number
    with pytest.warns(ib.ConvergenceWarning, match="INVALID_INPUT"):
        solution = find_critical_point(energy, "tanh", x, start)
    assert solution.status.tolist() == [0, 0, 0, ib.Status.INVALID_INPUT, 0]


@pytest.mark.parametrize("shape", [(OUT,), (1, OUT), (BATCH, OUT + 1), (BATCH, 1, OUT), (BATCH + 1, OUT)])
def test_a_start_of_another_shape_is_refused(energy: ib.Energy, x: Tensor, shape: tuple[int, ...]) -> None:
    message = re.escape(f"initial must have shape (5, 4), got {shape}")
    refuse(ValueError, message, energy, "tanh", x, torch.zeros(shape, dtype=D))


def test_a_start_of_another_kind_is_refused(energy: ib.Energy, x: Tensor) -> None:
    integers = torch.zeros(BATCH, OUT).long()
    refuse(
        TypeError, "initial must be a floating-point tensor or a Solution, got torch.int64", energy, "tanh", x, integers
    )
    refuse(TypeError, "initial must be a floating-point tensor or a Solution, got list", energy, "tanh", x, [0.0])
    away = torch.zeros(BATCH, OUT, dtype=D, device="meta")
    refuse(ValueError, "initial is on meta, but x is on cpu: move one of them", energy, "tanh", x, away)


def test_a_solution_of_another_shape_is_refused(energy: ib.Energy, x: Tensor) -> None:
    solution = find_critical_point(energy, "tanh", x)
    refuse(ValueError, r"initial must have shape \(2, 4\), got \(5, 4\)", energy, "tanh", x[:2], solution)


def test_a_solution_may_be_the_start_in_another_precision(energy: ib.QuadraticEnergy, x: Tensor) -> None:
    for geometry in ("tanh", "arctan", "softplus"):
        double = find_critical_point(energy, geometry, 5 * x)
        single = ib.QuadraticEnergy(OUT, IN)
        single.load_state_dict(energy.state_dict())
        again = find_critical_point(single, geometry, 5 * x.float(), double)
        assert bool(again.converged.all())
        torch.testing.assert_close(again.value.double(), double.value, rtol=0, atol=1e-4)


# Names and numbers --------------------------------------------------------------------------------------------------


def test_unknown_names_list_the_known_ones(energy: ib.Energy, x: Tensor) -> None:
    refuse(ValueError, f"unknown geometry 'relu'; known: {', '.join(ib.geometries())}", energy, "relu", x)
    refuse(
        ValueError, "solver must be one of auto, mm, anderson, broyden.*, got 'sgd'", energy, "tanh", x, solver="sgd"
    )
    message = "adjoint must be one of implicit, unrolled, phantom, one_step, shine, got 'bptt'"
    refuse(ValueError, message, energy, "tanh", x, adjoint="bptt")


@pytest.mark.parametrize("wrong", [None, 3, ib.solvers.MM], ids=str)
def test_things_that_are_no_names_are_refused(energy: ib.Energy, x: Tensor, wrong: object) -> None:
    refuse(TypeError, "geometry: got .*; give a LegendreFunction or one of", energy, wrong, x)
    refuse(
        TypeError,
        r"solver must be a name or an instance such as solvers.Anderson\(\), got",
        energy,
        "tanh",
        x,
        solver=wrong,
    )
    refuse(
        TypeError,
        r"adjoint must be a name or an instance such as adjoints.Implicit\(\), got",
        energy,
        "tanh",
        x,
        adjoint=wrong,
    )
    refuse(TypeError, "energy must be an Energy, got .*: subclass implicit_bregman.Energy", wrong, "tanh", x)


@pytest.mark.parametrize("gamma", [-1e-9, -1.0, float("nan"), float("inf"), "0.1", None])
def test_regularization_must_be_a_finite_number_that_is_not_negative(
    energy: ib.Energy, x: Tensor, gamma: object
) -> None:
    message = re.escape(f"regularization must be a finite number >= 0, got {gamma!r}")
    refuse(ValueError, message, energy, "tanh", x, regularization=gamma)


def test_regularization_is_not_learned(energy: ib.Energy, x: Tensor) -> None:
    gamma = torch.tensor(0.1, requires_grad=True)
    refuse(
        ValueError, "regularization must be a finite number >= 0, got tensor", energy, "tanh", x, regularization=gamma
    )


@pytest.mark.parametrize("solver", [ib.solvers.MM, ib.solvers.Anderson, ib.solvers.Broyden], ids=lambda s: s.__name__)
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"tol": 0.0}, ValueError, "tol must be positive and finite, got 0.0"),
        ({"tol": -1e-6}, ValueError, "tol must be positive and finite, got -1e-06"),
        ({"tol": float("nan")}, ValueError, "tol must be positive and finite, got nan"),
        ({"tol": "small"}, ValueError, "tol must be positive and finite, got 'small'"),
        ({"max_iter": 0}, ValueError, "max_iter must be a whole number of at least 1, got 0"),
        ({"max_iter": -3}, ValueError, "max_iter must be a whole number of at least 1, got -3"),
        ({"max_iter": 10.0}, ValueError, "max_iter must be a whole number of at least 1, got 10.0"),
        ({"max_iter": True}, ValueError, "max_iter must be a whole number of at least 1, got True"),
        ({"exact": 1}, ValueError, "exact must be True or False, got 1"),
        ({"trace": "yes"}, ValueError, "trace must be True or False, got 'yes'"),
        ({"on_failure": "log"}, ValueError, "on_failure must be one of warn, raise, ignore, got 'log'"),
        ({"maxiter": 3}, TypeError, "has no setting 'maxiter'; its settings are tol, max_iter"),
    ],
    ids=str,
)
def test_impossible_solver_settings_are_refused(
    solver: type[ib.solvers.MM], settings: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        solver(**settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("solver", [ib.solvers.Anderson, ib.solvers.Broyden], ids=lambda s: s.__name__)
def test_memory_must_be_a_positive_whole_number(solver: type[ib.solvers.Anderson]) -> None:
    with pytest.raises(ValueError, match="memory must be a whole number of at least 1, got 0"):
        solver(memory=0)


# Energies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("matrices", "error", "message"),
    [
        ((torch.zeros(2, 3),), ValueError, r"W must be a square matrix, or one for each sample, got shape \(2, 3\)"),
        ((torch.zeros(0, 0),), ValueError, r"W must be a square matrix, or one for each sample, got shape \(0, 0\)"),
        ((torch.zeros(3),), ValueError, r"W must be a square matrix, or one for each sample, got shape \(3,\)"),
        ((torch.eye(2).long(),), TypeError, "W must be a floating-point tensor, got torch.int64: call .float"),
        ((torch.full((2, 2), torch.nan),), ValueError, "W has NaN or infinite entries"),
        ((torch.eye(2), torch.zeros(3, 2)), ValueError, r"U must have shape \(2, n\) to go with W, got \(3, 2\)"),
        (
            (torch.eye(2), torch.zeros(2, 2).double()),
            ValueError,
            "U is torch.float64 on cpu, but W is torch.float32 on",
        ),
        ((torch.eye(2), None, torch.zeros(3)), ValueError, r"b must have shape \(2,\) to go with W, got \(3,\)"),
        (
            (torch.eye(2), None, torch.zeros(2, device="meta")),
            ValueError,
            "b is .* on meta, but W is .* on cpu: convert",
        ),
        ((torch.eye(2), None, torch.full((2,), torch.inf)), ValueError, "b has NaN or infinite entries"),
    ],
)
def test_matrices_that_do_not_fit_are_refused(
    matrices: tuple[Tensor | None, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        ib.QuadraticEnergy.from_matrices(*matrices)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_refused(energy: ib.QuadraticEnergy, x: Tensor) -> None:
    """What an exploded training step leaves behind."""
    with torch.no_grad():
        energy.weight_map.factor[0, 0] = torch.nan
    refuse(ValueError, "the weight of the energy .*finite|NaN or infinite", energy, "tanh", x)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_an_offset_that_is_not_finite_is_not_silent(energy: ib.QuadraticEnergy, x: Tensor, number: float) -> None:
    with torch.no_grad():
        energy.bias[0] = number
    with pytest.warns(ib.ConvergenceWarning):
        solution = find_critical_point(energy, "tanh", x)
    assert not bool(solution.converged.any())
    assert bool(solution.dual.isfinite().all())


def test_what_is_unbounded_below_is_refused(x: Tensor) -> None:
    indefinite = ib.QuadraticEnergy.from_matrices(torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=D)))
    message = "the objective is unbounded below on the domain .* of {}.*: use weight='convex', a larger regularization"
    for geometry in ("identity", "softplus", "bent", "exp", "arcsinh"):
        refuse(ValueError, message.format(geometry), indefinite, geometry, x)
    refuse(ValueError, message.format("identity"), indefinite, "identity", x, regularization=0.5)
    find_critical_point(indefinite, "identity", x, regularization=1.5)
    find_critical_point(indefinite, "tanh", x)


class Careless(ib.Energy):
    """A value that a test sets."""

    def __init__(self, function: object) -> None:
        super().__init__(OUT)
        self.function = function

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        assert callable(self.function)
        return self.function(z)


def test_a_value_of_another_shape_is_refused(x: Tensor) -> None:
    message = r"Careless.value must return one number per sample, shape \(5,\), got \({}\): sum over the features only"
    refuse(ValueError, message.format(""), Careless(lambda z: z.square().sum()), "tanh", x)
    refuse(ValueError, message.format("5, 4"), Careless(lambda z: z.square()), "tanh", x)


def test_an_energy_without_value_is_refused(x: Tensor) -> None:
    refuse(TypeError, r"Energy must define value\(z, x\): an Energy is its value", ib.Energy(OUT), "tanh", x)


def test_a_value_that_is_not_finite_is_reported(x: Tensor) -> None:
    energy = Careless(lambda z: z.square().sum(-1) * torch.nan)
    with pytest.warns(ib.ConvergenceWarning):
        solution = find_critical_point(energy, "tanh", x)
    assert not bool(solution.converged.any())
    assert bool(solution.value.isfinite().all())


def test_half_precision_is_for_quadratic_energies(x: Tensor) -> None:
    class Learned(Careless):
        def __init__(self) -> None:
            super().__init__(lambda z: z.square().sum(-1))
            self.scale = nn.Parameter(torch.ones((), dtype=torch.float16))

    refuse(ValueError, "scale of the energy is torch.float16: only a QuadraticEnergy", Learned(), "tanh", x.half())


# Odd but good input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0,), (0, 2), (2, 0)])
@pytest.mark.parametrize(
    ("solver", "adjoint"),
    [(solver, "implicit") for solver in ("auto", "newton", "mm", "anderson", "broyden")]
    + [("auto", adjoint) for adjoint in ("phantom", "one_step", "unrolled")],
)
@pytest.mark.parametrize("width", [OUT, 100])
def test_an_empty_batch_is_solved(shape: tuple[int, ...], solver: str, adjoint: str, width: int) -> None:
    for gamma in (0.0, 0.3):
        energy = ib.QuadraticEnergy(width, IN, dtype=D)
        x = torch.zeros(*shape, IN, dtype=D, requires_grad=True)
        solution = find_critical_point(energy, "tanh", x, regularization=gamma, solver=solver, adjoint=adjoint)
        assert solution.value.shape == (*shape, width)
        assert solution.status.shape == shape
        assert solution.message == ""
        assert repr(solution).startswith("Solution(value=")
        solution.value.sum().backward()
        assert x.grad is not None
        assert x.grad.shape == x.shape
        assert energy.bias.grad is not None
        assert not bool(energy.bias.grad.any())


def test_one_sample_without_a_batch_dimension(energy: ib.Energy, x: Tensor) -> None:
    alone = find_critical_point(energy, "tanh", x[0])
    assert alone.value.shape == (OUT,)
    assert alone.status.shape == ()
    torch.testing.assert_close(alone.value, find_critical_point(energy, "tanh", x).value[0], rtol=1e-10, atol=1e-12)


def test_one_feature(x: Tensor) -> None:
    energy = ib.QuadraticEnergy(1, 1, dtype=D)
    solution = find_critical_point(energy, "sigmoid", x[:, :1], regularization=0.1)
    assert bool(solution.converged.all())


def test_the_input_is_not_changed(energy: ib.Energy, x: Tensor) -> None:
    start = torch.full((BATCH, OUT), 0.3, dtype=D)
    before = x.clone(), start.clone(), {name: p.detach().clone() for name, p in energy.named_parameters()}
    for solver in ("mm", "anderson", "broyden", "newton"):
        find_critical_point(energy, "tanh", x, start, solver=solver).value.sum().backward()
    assert torch.equal(x, before[0])
    assert torch.equal(start, before[1])
    assert all(torch.equal(p, before[2][name]) for name, p in energy.named_parameters())


def test_it_is_deterministic(energy: ib.Energy, x: Tensor) -> None:
    for solver in ("mm", "anderson", "broyden", "newton"):
        first, second = (find_critical_point(energy, "tanh", x, solver=solver) for _ in range(2))
        assert torch.equal(first.value, second.value)
        assert torch.equal(first.iterations, second.iterations)
