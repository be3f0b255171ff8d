"""One MM step, when it descends, how fast it converges, and what a certificate promises of it."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman import Energy, LegendreFunction, QuadraticEnergy, certify
from implicit_bregman.experiments.reference.oracle import reference_solution
from implicit_bregman.experiments.reference.problems import Problem, make_problem
from implicit_bregman.legendre import separable_geometries
from implicit_bregman.majorization import automatic_step, inner_step, mm_step
from implicit_bregman.objective import Objective
from tests.problems import dual_of

BOX = ib.geometry("tanh").to_box(-2.0, 3.0)
GEOMETRIES = (*map(ib.geometry, separable_geometries()), ib.geometry("isru", scale=3.0), BOX)
#: σ > 0: a fixed step exists.
STIFF = tuple(phi for phi in GEOMETRIES if phi.strong_convexity > 0)
every_geometry = pytest.mark.parametrize("phi", GEOMETRIES, ids=repr)
every_stiff_geometry = pytest.mark.parametrize("phi", STIFF, ids=repr)


def symmetric(d: int, generator: torch.Generator, largest: float | None = None) -> Tensor:
    """An indefinite W with λ_max(−W) = `largest`."""
    draw = torch.randn(d, d, generator=generator, dtype=torch.float64)
    weight = 0.5 * (draw + draw.mT)
    return weight if largest is None else weight * (largest / torch.linalg.eigvalsh(-weight)[-1])


def dual_points(phi: LegendreFunction, shape: tuple[int, ...], generator: torch.Generator, spread: float) -> Tensor:
    """Duals of points in int C."""
    return phi.project_dual(dual_of(phi, spread * torch.randn(shape, generator=generator, dtype=torch.float64)))


def inside(phi: LegendreFunction, y: Tensor, g: Tensor, tau: float) -> Tensor:
    """τ, (B, 1), where MM's step stays inside the duals."""
    return inner_step(phi, y, g, torch.tensor(tau, dtype=torch.float64)).expand(len(y), 1)


def value(weight: Tensor, offset: Tensor, z: Tensor) -> Tensor:
    """f(z) = −½ zᵀWz − cᵀz, (B,)."""
    return -(0.5 * z * (z @ weight) + offset * z).sum(-1)


def gradient(weight: Tensor, offset: Tensor, z: Tensor) -> Tensor:
    return -(z @ weight.mT + offset)


def pitch(phi: LegendreFunction) -> float:
    """A dual at which φ'' is within 1e-6 of its infimum σ."""
    return 40.0 if phi.name in ("softplus",) else (2000.0 if phi.name == "bent" else 0.0)


# The step -----------------------------------------------------------------------------------------------------------


@every_geometry
@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_step_minimises_the_surrogate(phi: LegendreFunction, gamma: float, generator: torch.Generator) -> None:
    d = 3
    y = dual_points(phi, (20, d), generator, 1.0)
    g = torch.randn(20, d, generator=generator, dtype=torch.float64)
    tau = inside(phi, y, g, 0.4)
    new = mm_step(phi, y, g, tau, gamma)

    def surrogate(dual: Tensor) -> Tensor:
        z = phi.activation(dual)
        return (g * z + gamma * phi.dual_potential(dual)).sum(-1) + phi.dual_divergence(dual, y) / tau[:, 0]

    least = surrogate(new)
    for spread in (1e-3, 0.1, 1.0):
        other = phi.project_dual(new + spread * torch.randn(20, d, generator=generator, dtype=torch.float64))
        assert bool((surrogate(other) >= least - 1e-12 * (1 + least.abs())).all())


@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_burg_keeps_its_steps_inside(gamma: float, dtype: torch.dtype, generator: torch.Generator) -> None:
    """1 + τz∇f stays at least 1/10; elsewhere, and for a φ with every dual, τ is as it was."""
    phi, tau = ib.geometry("burg"), torch.tensor(0.8, dtype=dtype)
    y = -(10 ** (4 * torch.rand(200, 5, generator=generator, dtype=dtype) - 2))
    g = torch.randn(200, 5, generator=generator, dtype=dtype)
    step = inner_step(phi, y, g, tau)
    factor = 1 + step * phi.activation(y) * g
    least = factor.amin(-1)
    assert bool((least >= 0.1 - 1e-5).all())
    shortened = (step < tau).squeeze(-1)
    assert bool(shortened.any() & ~shortened.all())
    torch.testing.assert_close(least[shortened], torch.full_like(least[shortened], 0.1), rtol=1e-4, atol=0)
    new = mm_step(phi, y, g, step, gamma)
    assert bool((new < 0).all())
    torch.testing.assert_close(phi.activation(new), phi.activation(y) * (1 + step * gamma) / factor)
    assert inner_step(phi, y, g.abs(), tau).unique().tolist() == [tau.item()]
    assert inner_step(phi, y, torch.zeros_like(g), tau).unique().tolist() == [tau.item()]
    assert inner_step(ib.geometry("exp"), y, g, tau) is tau


def test_step_is_the_bregman_layer_of_the_paper(generator: torch.Generator) -> None:
    phi, W = ib.geometry("sigmoid"), symmetric(4, generator)
    y, c = (torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    z = phi.activation(y)
    layer = phi.activation(phi.inverse_activation(z) + z @ W.mT + c)
    step = phi.activation(mm_step(phi, y, gradient(W, c, z), torch.tensor(1.0), 0.0))
    assert torch.allclose(layer, step, rtol=1e-13)


def test_each_sample_may_have_its_own_step(generator: torch.Generator) -> None:
    phi = ib.geometry("tanh")
    y, g = (torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    tau = torch.tensor([[0.1], [0.5], [1.0]], dtype=torch.float64)
    together = mm_step(phi, y, g, tau, 0.3)
    for i in range(3):
        assert torch.allclose(together[i], (y[i] - tau[i] * g[i]) / (1 + 0.3 * tau[i]), rtol=1e-14)


def test_step_stays_on_the_dual_range_of_a_geometry_that_is_not_legendre() -> None:
    gradient = torch.tensor([[-9.0, 9.0]]).double()
    y = mm_step(ib.geometry("sin"), torch.zeros(1, 2).double(), gradient, torch.ones(1), 0.0)
    assert torch.allclose(y, torch.tensor([[math.pi / 2, -math.pi / 2]]).double())


# Descent ------------------------------------------------------------------------------------------------------------


@every_geometry
@pytest.mark.parametrize("gamma", [0.0, 0.5])
@pytest.mark.parametrize("tau", [0.3, 1.0])
def test_descent_identity(phi: LegendreFunction, gamma: float, tau: float, generator: torch.Generator) -> None:
    """F(z) − F(z⁺) = (D(z,z⁺) + D(z⁺,z))/τ + γD(z,z⁺) + ½ dzᵀW dz, whatever the signs of W; ≥ where y⁺ is clamped."""
    d = 6
    W = symmetric(d, generator, largest=0.4)
    c = 0.3 * torch.randn(40, d, generator=generator, dtype=torch.float64)
    y = dual_points(phi, (40, d), generator, 0.7)
    z = phi.activation(y)
    steps = inside(phi, y, gradient(W, c, z), tau)
    unclamped = (y - steps * gradient(W, c, z)) / (1 + steps * gamma)
    y_new = mm_step(phi, y, gradient(W, c, z), steps, gamma)
    z_new = phi.activation(y_new)
    dz = z_new - z

    drop = value(W, c, z) - value(W, c, z_new)
    drop = drop + gamma * (phi.dual_potential(y) - phi.dual_potential(y_new)).sum(-1)
    there, back = phi.dual_divergence(y, y_new), phi.dual_divergence(y_new, y)
    identity = (there + back) / steps[:, 0] + gamma * there + 0.5 * (dz * (dz @ W)).sum(-1)
    rounding = 1e-12 * (1 + value(W, c, z).abs() + value(W, c, z_new).abs())
    exact = (unclamped == y_new).all(-1)
    assert int(exact.sum()) >= 20
    assert bool(((drop - identity).abs() <= rounding)[exact].all())
    assert bool((drop >= identity - rounding).all())


@given(ratio=st.floats(0.05, 2.0), seed=st.integers(0, 2**16), index=st.integers(0, len(STIFF) - 1))
def test_every_step_descends_up_to_twice_the_strong_convexity(ratio: float, seed: int, index: int) -> None:
    phi, generator = STIFF[index], torch.Generator().manual_seed(seed)
    tau = 0.7
    W = symmetric(4, generator, largest=ratio * phi.strong_convexity / tau)
    c = 0.5 * torch.randn(8, 4, generator=generator, dtype=torch.float64)
    y = dual_points(phi, (8, 4), generator, 2.0)
    for _ in range(5):
        z = phi.activation(y)
        y = mm_step(phi, y, gradient(W, c, z), torch.tensor(tau, dtype=torch.float64), 0.0)
        before, after = value(W, c, z), value(W, c, phi.activation(y))
        assert bool((after <= before + 1e-13 * (1 + before.abs() + after.abs())).all())


@every_stiff_geometry
def test_surrogate_majorizes_up_to_the_strong_convexity_and_no_further(
    phi: LegendreFunction, generator: torch.Generator
) -> None:
    d, sigma = 3, phi.strong_convexity
    W, c = -torch.eye(d, dtype=torch.float64), torch.randn(d, generator=generator, dtype=torch.float64)
    at = dual_points(phi, (4000, d), generator, 1.5)
    to = dual_points(phi, (4000, d), generator, 1.5)
    # ... and pairs near the point where φ'' is least, in which the bound is sharp.
    flat = pitch(phi) + 0.02 * torch.randn(2, 500, d, generator=generator, dtype=torch.float64)
    at, to = torch.cat([at, flat[0]]), torch.cat([to, flat[1]])
    s, z = phi.activation(at), phi.activation(to)
    excess = value(W, c, z) - value(W, c, s) - (gradient(W, c, s) * (z - s)).sum(-1)
    divergence = phi.dual_divergence(to, at)
    rounding = 1e-9 * (1 + value(W, c, z).abs() + value(W, c, s).abs())

    inside, beyond = sigma, 1.02 * sigma  # λ_max(−W) = 1
    assert bool((excess <= divergence / inside + rounding).all())
    gap = (excess - divergence / beyond) / excess.clamp_min(1e-300)
    assert float(gap[-500:].max()) >= 0.005
    energy = QuadraticEnergy.from_matrices(W)
    assert certify(energy, phi, step=inside).majorizes
    assert not certify(energy, phi, step=beyond).majorizes


def test_descent_is_sharp_beyond_twice_the_strong_convexity() -> None:
    """tanh, W = −2.2, τ = 1: f(z) = 1.1 z² rises, and MM ends in a 2-cycle (the root of 2y = 2.2 tanh y)."""
    phi, W = ib.geometry("tanh"), torch.tensor([[-2.2]], dtype=torch.float64)
    energy, c = QuadraticEnergy.from_matrices(W), torch.zeros(1, 1, dtype=torch.float64)
    judged = certify(energy, phi, step=1.0)
    assert (judged.majorizes, judged.descends, judged.converges) == (False, False, False)

    y, values = torch.full((1, 1), 0.1, dtype=torch.float64), []
    for _ in range(500):
        z = phi.activation(y)
        values.append(float(value(W, c, z)))
        y = mm_step(phi, y, gradient(W, c, z), torch.tensor(1.0), 0.0)
    assert abs(float(y)) == pytest.approx(0.5532, abs=1e-4)
    assert values[-1] - values[0] > 0.25
    assert float(mm_step(phi, y, gradient(W, c, phi.activation(y)), torch.tensor(1.0), 0.0)) == pytest.approx(-float(y))

    start = torch.full((1, 1), 0.1, dtype=torch.float64)
    found = ib.find_critical_point(energy, phi, c, initial=start, solver=ib.solvers.MM(exact=False))
    assert bool(found.converged.all())
    assert float(found.step) == pytest.approx(1 / 2.2)
    assert float(found.value) == pytest.approx(0.0, abs=1e-10)


# Rates --------------------------------------------------------------------------------------------------------------


def dual_of_solution(problem: Problem) -> Tensor:
    found = reference_solution(problem.weight, problem.offset, problem.geometry, problem.regularization)
    if problem.regularization == 0:
        return problem.geometry.inverse_activation(found.value)
    force = found.value @ problem.weight.T + problem.offset
    return problem.geometry.project_dual(force / problem.regularization)


RATE_CASES = [
    *[("convex", phi, gamma, stiffness) for phi in STIFF for gamma, stiffness in ((0.05, 1.0), (1.0, 0.5), (0.5, 4.0))],
    *[("indefinite", phi, 0.6, 1.0) for phi in (ib.geometry("tanh"), ib.geometry("sigmoid"), ib.geometry("sin"), BOX)],
    ("indefinite", ib.geometry("tanh"), 0.6, 3.0),
    ("convex", ib.geometry("identity"), 0.0, 1.0),
]


@pytest.mark.parametrize(("kind", "phi", "gamma", "stiffness"), RATE_CASES, ids=lambda v: str(v))
def test_certified_rate_holds_at_every_step_of_a_real_run(
    kind: str, phi: LegendreFunction, gamma: float, stiffness: float
) -> None:
    active = 0.3 if kind == "indefinite" else 0.0
    # The negative eigenvalues of an indefinite −W are the small ones: γ = 0.6 outweighs them.
    problem = make_problem(kind, phi, 8, 4, 10.0, active, gamma, stiffness, seed=3)
    energy = QuadraticEnergy.from_matrices(problem.weight)
    certificate = certify(energy, phi, gamma)
    assert certificate.rate is not None
    assert 0 < certificate.rate < 1
    assert certificate.unique
    target = dual_of_solution(problem)
    solver = ib.solvers.MM(trace=True, max_iter=60, on_failure="ignore")
    start = dual_points(phi, (4, 8), torch.Generator().manual_seed(5), 0.4)
    found = ib.find_critical_point(
        energy, phi, problem.offset, phi.activation(start), regularization=gamma, solver=solver
    )
    assert torch.allclose(found.step, torch.full((4,), certificate.step, dtype=torch.float64))
    divergence = phi.dual_divergence(target.expand(len(found.trace.dual), -1, -1), found.trace.dual)
    before, after = divergence[:-1], divergence[1:]
    seen = (before > 1e-20) & torch.isfinite(after)
    assert int(seen.sum()) >= 20
    assert bool((after <= certificate.rate * before * (1 + 1e-6) + 1e-22)[seen].all())


@pytest.mark.parametrize("gamma", [0.0, 0.2])
def test_no_rate_is_certified_where_none_is_known(gamma: float) -> None:
    energy = QuadraticEnergy.from_matrices(torch.diag(torch.tensor([0.5, -1.0])))
    assert certify(energy, "tanh", gamma).rate is None


# Certificates -------------------------------------------------------------------------------------------------------


def test_certificate_of_a_convex_energy() -> None:
    energy = QuadraticEnergy.from_matrices(-torch.diag(torch.tensor([0.5, 4.0]).double()))
    found = certify(energy, "tanh")
    assert found.curvature_bound == pytest.approx(4.0)
    assert found.curvature_least == pytest.approx(0.5)
    assert found.step == pytest.approx(0.25)
    assert found.strong_convexity == 1.0
    assert found.has_objective
    assert found.majorizes
    assert found.descends
    assert found.unique
    assert found.converges
    assert found.rate is None
    regular = certify(energy, "tanh", regularization=0.5)
    assert regular.rate == pytest.approx(1 / (1 + 0.25 * 0.5))


@pytest.mark.parametrize(
    ("step", "majorizes", "descends"),
    [(0.24, True, True), (0.26, False, True), (0.49, False, True), (0.51, False, False)],
)
def test_certificate_of_a_step_that_was_asked_for(step: float, majorizes: bool, descends: bool) -> None:
    found = certify(QuadraticEnergy.from_matrices(-4 * torch.eye(2)), "tanh", step=step)
    assert (found.step, found.majorizes, found.descends) == (step, majorizes, descends)


@pytest.mark.parametrize(("gamma", "unique"), [(0.0, False), (0.4, False), (0.6, True)])
def test_certificate_of_an_indefinite_energy(gamma: float, unique: bool) -> None:
    energy = QuadraticEnergy.from_matrices(torch.diag(torch.tensor([0.5, -1.0]).double()))
    found = certify(energy, "tanh", gamma)
    assert found.curvature_least == pytest.approx(-0.5)
    assert found.step == 1.0
    assert found.majorizes
    assert found.descends
    assert found.unique is unique
    assert found.rate == (pytest.approx(1.5 / 1.6) if unique else None)


def test_a_flat_direction_is_not_unique() -> None:
    flat = QuadraticEnergy.from_matrices(torch.diag(torch.tensor([0.0, -1.0]).double()))
    assert not certify(flat, "tanh").unique
    assert certify(flat, "tanh", 0.1).unique, "γφ is strictly convex"
    level = QuadraticEnergy.from_matrices(0.5 * torch.eye(2).double())
    assert not certify(level, "identity", 0.5).unique, "γφ makes up for the curvature exactly, and no more"


def test_certificate_of_a_general_energy_promises_no_descent() -> None:
    monotone = QuadraticEnergy.from_matrices(torch.tensor([[-0.5, 0.3], [-0.3, -0.5]]).double())
    found = certify(monotone, "tanh")
    assert not found.has_objective
    assert not found.majorizes
    assert not found.descends
    assert found.rate is None
    assert found.unique
    assert found.curvature_bound == pytest.approx((0.25 + 0.09) / 0.5)

    rotation = certify(QuadraticEnergy.from_matrices(torch.tensor([[0.1, 1.0], [-1.0, 0.1]])), "tanh")
    assert not rotation.unique
    assert not rotation.converges


class Bowl(Energy):
    """½ κ ‖z − x‖² with or without saying so."""

    def __init__(self, bound: float | None = None, convex: bool = False) -> None:
        super().__init__(convex=convex)
        self.bound = bound

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        return 2.0 * (z - x).square().sum(-1)

    def curvature_bound(self) -> float | None:
        return self.bound


def test_certificate_of_a_user_energy() -> None:
    unknown = certify(Bowl(), "tanh")
    assert unknown.step is None
    assert unknown.curvature_bound is None
    assert unknown.descends, "each step is tested before it is taken"
    assert not unknown.majorizes
    assert not unknown.unique
    assert unknown.rate is None
    bounded = certify(Bowl(bound=4.0), "tanh")
    assert bounded.step == 0.25
    assert bounded.majorizes
    assert bounded.descends
    assert certify(Bowl(convex=True), "tanh", regularization=0.1).unique
    assert certify(Bowl(4.0, convex=True), "tanh", regularization=0.1).rate == pytest.approx(1 / 1.025)
    assert not certify(Bowl(), "tanh", regularization=0.1).unique


def test_certificate_where_sigma_is_zero() -> None:
    found = certify(QuadraticEnergy.from_matrices(-torch.eye(2)), "exp")
    assert found.step is None
    assert found.descends
    assert not found.majorizes
    assert found.unique


def test_certificate_as_text() -> None:
    text = str(certify(QuadraticEnergy.from_matrices(-4 * torch.eye(2)), "tanh", regularization=1.0))
    assert text == "step 0.25, largest curvature 4, sigma 1, relative curvature 4: majorizes, descends, rate 0.8"
    assert "by backtracking" in str(certify(Bowl(), "exp"))
    assert "descent not guaranteed" in str(certify(QuadraticEnergy.from_matrices(-4 * torch.eye(2)), "tanh", step=1.0))


# The simplex: constants in the norm of the sums ---------------------------------------------------------------------


def shares(blocks: int, n: int, count: int, generator: torch.Generator, total: float = 1.0) -> Tensor:
    """Points of `blocks` simplices, some next to a face, (count, blocks · n)."""
    draw = 6 * torch.randn(count, blocks, n, generator=generator, dtype=torch.float64)
    return total * torch.softmax(draw, -1).flatten(1)


def in_sums(v: Tensor, blocks: int) -> Tensor:
    """Σ‖v_k‖₁² over the blocks, (count,)."""
    return v.unflatten(-1, (blocks, -1)).abs().sum(-1).square().sum(-1)


BLOCKS = pytest.mark.parametrize(("blocks", "n"), [(1, 5), (3, 4), (1, 2)])
SIGNS = pytest.mark.parametrize("convex", [True, False], ids=["convex", "indefinite"])


@pytest.mark.parametrize("total", [1.0, 0.1, 30.0])
@BLOCKS
def test_the_entropy_is_strongly_convex_in_the_sums(
    total: float, blocks: int, n: int, generator: torch.Generator
) -> None:
    phi = ib.geometry("simplex", total=total, size=n)
    u, v = (shares(blocks, n, 500, generator, total) for _ in range(2))
    least = 0.5 * phi.strong_convexity_in_sums * in_sums(u - v, blocks)
    divergence = phi.divergence(u, v)
    assert bool((divergence >= least * (1 - 1e-12)).all())


def test_that_constant_is_the_best() -> None:
    phi = ib.geometry("simplex", total=3.0)
    middle = torch.tensor([[1.5, 1.5]], dtype=torch.float64)
    near = middle + 1e-3 * torch.tensor([1.0, -1.0], dtype=torch.float64)
    least = 0.5 * phi.strong_convexity_in_sums * in_sums(near - middle, 1)
    torch.testing.assert_close(phi.divergence(near, middle), least, rtol=1e-5, atol=0.0)


@SIGNS
@BLOCKS
def test_curvature_between_sums_is_a_bound(blocks: int, n: int, convex: bool, generator: torch.Generator) -> None:
    draw = torch.randn(blocks * n, blocks * n, generator=generator, dtype=torch.float64)
    matrix = draw @ draw.mT if convex else draw + draw.mT
    coupling = ib.geometry("simplex", size=n).coupling
    assert coupling is not None
    bound = coupling.largest_curvature(matrix)
    corners = torch.cat([shares(blocks, n, 2000, generator), torch.eye(n).double().repeat(1, blocks)])
    ways = corners[:, None] - corners[None, torch.randperm(len(corners), generator=generator)[:50]]
    ways = torch.cat([ways.flatten(0, 1), (corners[-n:, None] - corners[None, -n:]).flatten(0, 1)])
    ways = ways[in_sums(ways, blocks) > 1e-6]
    reached = (ways @ matrix * ways).sum(-1) / in_sums(ways, blocks)
    assert bool((reached <= bound * (1 + 1e-12)).all())
    if convex and blocks == 1:
        torch.testing.assert_close(reached.max(), bound)
        assert float(bound) <= 0.5 * float(torch.linalg.eigvalsh(matrix)[-1]) * (1 + 1e-12)


@SIGNS
@BLOCKS
def test_the_step_on_the_simplex_majorizes_and_descends(
    blocks: int, n: int, convex: bool, generator: torch.Generator
) -> None:
    draw = torch.randn(blocks * n, blocks * n, generator=generator, dtype=torch.float64)
    weight = -(draw @ draw.mT) if convex else draw + draw.mT
    c = torch.randn(blocks * n, generator=generator, dtype=torch.float64)
    phi = ib.geometry("simplex", size=n)
    found = certify(QuadraticEnergy.from_matrices(weight), phi)
    assert found.majorizes
    assert found.descends
    assert found.step is not None
    highest = float(torch.linalg.eigvalsh(-weight)[-1])
    assert found.step >= min(1.0, 1 / highest) * (1 - 1e-12)
    assert found.step >= min(1.0, 2 / highest) * (1 - 1e-12) or not convex or blocks > 1
    z, u = (shares(blocks, n, 500, generator) for _ in range(2))
    linear = value(weight, c, z) + (gradient(weight, c, z) * (u - z)).sum(-1)
    surrogate = linear + phi.divergence(u, z) / found.step
    assert bool((value(weight, c, u) <= surrogate + 1e-9).all())
    after = phi.activation(
        mm_step(phi, phi.inverse_activation(z), gradient(weight, c, z), torch.tensor([found.step]).double(), 0.0)
    )
    assert bool((value(weight, c, after) <= value(weight, c, z) + 1e-12).all())


def test_a_constant_in_the_matrix_costs_no_steps(generator: torch.Generator) -> None:
    """λ_max grows with the constant, which no difference of two points of C sees."""
    plain, c = torch.eye(50, dtype=torch.float64), torch.randn(4, 50, generator=generator, dtype=torch.float64)
    solver = ib.solvers.MM(tol=1e-10, max_iter=60, exact=False)
    for matrix in (plain, plain + 3.0):
        energy = QuadraticEnergy.from_matrices(-matrix)
        found = ib.find_critical_point(energy, "simplex", c, regularization=1.0, solver=solver)
        assert bool(found.converged.all())
        assert certify(energy, "simplex", 1.0).step == pytest.approx(1.0)


@pytest.mark.parametrize("operator", [False, True], ids=["matrix", "operator"])
def test_the_certificate_has_the_solvers_step(operator: bool, generator: torch.Generator) -> None:
    draw = torch.rand(6, 6, generator=generator, dtype=torch.float64)
    H = 4 * draw @ draw.mT
    dense = ib.operators.Dense(H)
    energy = QuadraticEnergy.from_operator(dense) if operator else QuadraticEnergy.from_matrices(-H)
    step = Objective(energy.bind(torch.zeros(1, 6).double()), ib.geometry("simplex", size=6), 0.0).step
    assert certify(energy, "simplex").step == pytest.approx(float(step), rel=1e-14)
    assert float(step) > 2 / float(torch.linalg.eigvalsh(H)[-1])


def test_capped_and_sparse_simplices_keep_their_step() -> None:
    for phi in (ib.geometry("simplex", hi=0.5), ib.geometry("simplex", order=1.5)):
        assert phi.strong_convexity_in_sums == 0
        found = certify(QuadraticEnergy.from_matrices(-8 * torch.eye(4)), phi)
        assert found.step == pytest.approx(min(1.0, phi.strong_convexity / 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"regularization": -0.1}, "regularization must be .*>= 0, got -0.1"),
        ({"regularization": math.nan}, "regularization must be"),
        ({"regularization": math.inf}, "regularization must be"),
        ({"step": 0.0}, "step must be positive and finite, got 0.0"),
        ({"step": math.inf}, "step must be positive and finite"),
    ],
)
def test_impossible_questions_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        certify(Bowl(), "tanh", **arguments)


# The automatic step -------------------------------------------------------------------------------------------------


@every_stiff_geometry
@pytest.mark.parametrize("largest", [0.1, 1.0, 50.0])
def test_automatic_step(phi: LegendreFunction, largest: float, generator: torch.Generator) -> None:
    energy = QuadraticEnergy.from_matrices(symmetric(5, generator, largest).requires_grad_())
    wanted = min(1.0, phi.strong_convexity / largest)
    step = automatic_step(energy.curvature_bound(), phi)
    assert float(step) == pytest.approx(wanted)
    assert not step.requires_grad
    assert certify(energy, phi).step == pytest.approx(wanted)


def test_automatic_step_of_a_concave_energy_is_one() -> None:
    assert float(automatic_step(QuadraticEnergy.from_matrices(torch.eye(3)).curvature_bound(), BOX)) == 1.0


def test_no_automatic_step_without_a_bound_or_without_sigma() -> None:
    assert automatic_step(None, ib.geometry("tanh")) is None
    assert automatic_step(torch.tensor(1.0), ib.geometry("exp")) is None


def test_the_step_carries_no_gradient() -> None:
    W = (-4 * torch.eye(2, dtype=torch.float64)).requires_grad_()
    found = ib.find_critical_point(QuadraticEnergy.from_matrices(W), "tanh", torch.zeros(1, 2).double(), solver="mm")
    assert found.step.tolist() == [0.25]
    assert not found.step.requires_grad


# Backtracking -------------------------------------------------------------------------------------------------------


class Steep(Energy):
    """Σ exp(xz) + ¼z⁴ − z: curvature that no bound holds, different from sample to sample."""

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        return (torch.exp(x * z) + 0.25 * z**4 - z).sum(-1)


class Wavy(Energy):
    """A smooth function that is not convex."""

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        return (torch.cos(3 * z + x) + 0.5 * z * z.roll(1, -1)).sum(-1)


def run_mm(energy: Energy, phi: str, x: Tensor, gamma: float = 0.0, max_iter: int = 200) -> ib.Solution:
    solver = ib.solvers.MM(trace=True, max_iter=max_iter, on_failure="ignore")
    return ib.find_critical_point(energy, phi, x, regularization=gamma, solver=solver)


@pytest.mark.parametrize("gamma", [0.0, 0.3])
@pytest.mark.parametrize(
    ("energy", "phi"),
    [
        *((Steep(), phi) for phi in ("tanh", "exp", "softplus", "arcsinh", "isru", "sin")),
        *((Wavy(), phi) for phi in ("tanh", "isru", "sin")),  # unbounded below on an unbounded domain
    ],
    ids=lambda part: part if isinstance(part, str) else type(part).__name__,
)
def test_every_step_that_backtracking_accepts_descends(
    energy: Energy, phi: str, gamma: float, dtype: torch.dtype, generator: torch.Generator
) -> None:
    x = torch.randn(6, 4, generator=generator, dtype=torch.float64).to(dtype)
    found = run_mm(energy, phi, x, gamma)
    objective = found.trace.objective
    rise = (objective[1:] - objective[:-1]).nan_to_num()
    rounding = 16 * torch.finfo(dtype).eps * (1 + objective[0].abs())
    assert bool((rise <= rounding).all())
    assert bool((objective[0] - found.objective > 1e-3).any()), "the runs must go somewhere"
    assert bool(torch.isfinite(found.value).all())


def test_accepted_steps_are_majorized(generator: torch.Generator) -> None:
    """What backtracking tests: f(z⁺) ≤ f(z) + ⟨∇f(z), Δz⟩ + D(z⁺, z)/τ, with the step that led there."""
    phi, energy = ib.geometry("exp"), Steep()
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    found = run_mm(energy, "exp", x)
    duals = found.trace.dual
    checked = 0
    for old, new in itertools.pairwise(duals):
        moved = torch.isfinite(new).all(-1) & (new != old).any(-1)
        if not bool(moved.any()):
            continue
        old, new, c = old[moved], new[moved], x[moved]
        z, z_new = phi.activation(old), phi.activation(new)
        g = energy.gradient(z, c)
        tau = ((old - new) / g)[:, :1]
        assert torch.allclose(old - new, tau * g, rtol=1e-6, atol=1e-12)
        model = energy.value(z, c) + (g * (z_new - z)).sum(-1) + phi.dual_divergence(new, old) / tau.squeeze(-1)
        assert bool((energy.value(z_new, c) <= model + 1e-12 * (1 + model.abs())).all())
        checked += int(moved.sum())
    assert checked > 20


@pytest.mark.parametrize("active", [0.0, 0.3])
def test_quadratic_energy_where_sigma_is_zero(active: float) -> None:
    problem = make_problem("convex", "exp", 12, 4, 10.0, active)
    found = run_mm(QuadraticEnergy.from_matrices(problem.weight), "exp", problem.offset, max_iter=3000)
    objective = found.trace.objective
    assert bool(((objective[1:] - objective[:-1]).nan_to_num() <= 1e-13).all())
    assert float((found.value - problem.solution).abs().max()) <= 1e-4


def test_steps_are_found_per_sample() -> None:
    class Scaled(Energy):
        def value(self, z: Tensor, x: Tensor) -> Tensor:
            return (0.5 * x * (z - 0.5).square()).sum(-1)

    x = torch.tensor([[0.5], [40.0], [2000.0]]).double()
    found = run_mm(Scaled(), "tanh", x, max_iter=5000)
    assert bool(found.converged.all())
    assert torch.allclose(found.value, torch.full((3, 1), 0.5).double(), atol=1e-8)
    assert found.step[0] == 1
    assert found.step[0] > found.step[1] > found.step[2]
    # A step is halved until it majorizes (φ'' = 1/(1 − z²) ≤ 4/3 up to the solution), not until it is tiny.
    assert bool((found.step * x.squeeze(-1) <= 2 * 4 / 3).all())
    assert bool((found.step[1:] * x[1:, 0] >= 0.25).all())
    alone = [run_mm(Scaled(), "tanh", row[None], max_iter=5000) for row in x]
    assert torch.equal(found.step, torch.cat([one.step for one in alone]))
    assert found.evaluations.tolist() == [int(one.evaluations) for one in alone]
