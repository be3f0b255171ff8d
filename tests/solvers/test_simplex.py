"""Critical points on the simplex: against SciPy, long iterations, finite differences; every solver and adjoint."""

import itertools

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf
from scipy.optimize import minimize
from torch import Tensor

import implicit_bregman as ib
from tests.problems import hessian_and_offset
from tests.solvers.helpers import FIRST_ORDER, solver_of

DTYPES = (torch.float32, torch.float64)
GEOMETRIES = {
    "simplex": ib.geometry("simplex"),
    "total 2": ib.geometry("simplex", total=2.0),
    "capped": ib.geometry("simplex", hi=0.4),
    "entmax": ib.geometry("simplex", order=1.5),
}
D, B = 6, 4


def drawn(kind: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """W and c in float64."""
    hessian, c = hessian_and_offset(kind, D, B, 0.5, 1.5, seed)
    return -hessian, c


def solve(weight: Tensor, c: Tensor, phi: ib.MirrorMap, gamma: float, **settings: object) -> ib.Solution:
    return ib.find_critical_point(ib.QuadraticEnergy.from_matrices(weight), phi, c, regularization=gamma, **settings)


def gradients(weight: Tensor, c: Tensor, phi: ib.MirrorMap, gamma: float, **settings: object) -> tuple[Tensor, ...]:
    """z, dL/dW and dL/dc for L = ⟨g, z⟩ with a fixed g."""
    leaves = [tensor.clone().requires_grad_() for tensor in (weight, c)]
    z = solve(*leaves, phi, gamma, **settings).value
    g = torch.linspace(-1, 1, z.numel(), dtype=z.dtype).reshape(z.shape).sin()
    return (z.detach(), *torch.autograd.grad(z, leaves, g))


@pytest.mark.parametrize("gamma", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_minimisers_against_scipy(name: str, gamma: float) -> None:
    phi, (weight, c) = GEOMETRIES[name], drawn("convex")
    found = solve(weight, c, phi, gamma)
    assert bool(found.converged.all())
    lo, hi = phi.domain
    total = phi.coupling.total
    for z, row in zip(found.value.numpy(), c.numpy(), strict=True):

        def value(z: np.ndarray, row: np.ndarray = row) -> float:
            entropy = float(phi.potential(torch.from_numpy(np.clip(z, lo, hi)))) if gamma else 0.0
            return float(-0.5 * z @ weight.numpy() @ z - row @ z) + gamma * entropy

        result = minimize(
            value,
            np.full(D, total / D),
            bounds=[(lo, hi)] * D,
            constraints={"type": "eq", "fun": lambda z: z.sum() - total},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert value(z) <= result.fun + 1e-9
        np.testing.assert_allclose(z, result.x, atol=3e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("name", "kind"), [*itertools.product(GEOMETRIES, ("convex", "monotone", "indefinite"))])
def test_gradients_against_finite_differences(name: str, kind: str, gamma: float) -> None:
    phi, (weight, c) = GEOMETRIES[name], drawn(kind, seed=3)
    z, by_weight, by_c = gradients(weight, c, phi, gamma)
    g, step = torch.linspace(-1, 1, z.numel(), dtype=z.dtype).reshape(z.shape).sin(), 1e-5
    random = torch.Generator().manual_seed(1)
    for _ in range(3):
        dc = torch.randn(c.shape, generator=random, dtype=torch.float64)
        dw = torch.randn(weight.shape, generator=random, dtype=torch.float64)
        dw = dw if kind == "monotone" else dw + dw.mT
        up, down = (solve(weight + t * dw, c + t * dc, phi, gamma).value for t in (step, -step))
        expected = (g * (up - down)).sum() / (2 * step)
        torch.testing.assert_close((by_weight * dw).sum() + (by_c * dc).sum(), expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize(("name", "method"), [*itertools.product(GEOMETRIES, (*FIRST_ORDER, "newton"))])
def test_every_solver_finds_the_same(name: str, method: str, gamma: float, dtype: torch.dtype) -> None:
    phi, (weight, c) = GEOMETRIES[name], drawn("convex")
    exact = gradients(weight, c, phi, gamma)
    found = gradients(weight.to(dtype), c.to(dtype), phi, gamma, solver=solver_of(method))
    tol = 3e-5 if dtype == torch.float32 else 1e-9
    for one, two in zip(found, exact, strict=True):
        assert float((one - two).norm()) <= tol * float(two.norm())


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_implicit_is_the_limit_of_unrolled(gamma: float) -> None:
    phi, (weight, c) = GEOMETRIES["simplex"], drawn("convex", seed=5)
    exact = gradients(weight, c, phi, gamma)
    long = gradients(weight, c, phi, gamma, adjoint=ib.adjoints.Unrolled(steps=3000))
    for one, two in zip(long, exact, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("adjoint", [ib.adjoints.Phantom(steps=300, damping=1.0), ib.adjoints.OneStep()])
def test_approximate_adjoints(adjoint: ib.adjoints.Phantom) -> None:
    """Many phantom steps give the gradient, one a biased one."""
    phi, (weight, c) = GEOMETRIES["simplex"], drawn("convex")
    exact, found = (gradients(weight, c, phi, 1.0, adjoint=how)[2] for how in ("implicit", adjoint))
    error = float((found - exact).norm() / exact.norm())
    assert error < 1e-10 if isinstance(adjoint, ib.adjoints.Phantom) else 1e-3 < error < 1


def test_shine_is_refused() -> None:
    weight, c = drawn("convex")
    with pytest.raises(ValueError, match="couples coordinates"):
        solve(weight, c, GEOMETRIES["simplex"], 1.0, adjoint="shine")


@pytest.mark.parametrize("seed", range(5))
def test_several_equilibria_are_those_of_mm(seed: int) -> None:
    weight, c = drawn("indefinite", seed)
    weight, c = 4 * weight, 0.2 * c
    for gamma in (0.0, 0.2):
        fast = solve(weight, c, GEOMETRIES["simplex"], gamma)
        slow = solve(weight, c, GEOMETRIES["simplex"], gamma, solver=solver_of("mm", exact=False, max_iter=200_000))
        assert bool(fast.converged.all())
        torch.testing.assert_close(fast.value, slow.value, rtol=0, atol=1e-6)


def test_blocks_are_the_last_dimension_of_the_state() -> None:
    """A state of shape (2, 3) that falls apart is two states of shape 3."""
    random = torch.Generator().manual_seed(0)
    weight = -torch.eye(6, dtype=torch.float64) * torch.tensor([1.0, 2.0, 3.0, 0.5, 1.5, 2.5])
    c = torch.randn(5, 6, generator=random, dtype=torch.float64)

    class Energy(ib.Energy):
        def __init__(self) -> None:
            super().__init__(features=(2, 3), convex=True)

        def value(self, z: Tensor, x: Tensor) -> Tensor:
            return (-0.5 * z.flatten(1) @ weight * z.flatten(1) - z.flatten(1) * x).sum(-1)

    for gamma in (0.3, 0.0):
        whole = ib.find_critical_point(Energy(), "simplex", c, regularization=gamma).value
        assert whole.shape == (5, 2, 3)
        for part in range(2):
            rows = slice(3 * part, 3 * part + 3)
            alone = solve(weight[rows, rows], c[:, rows], GEOMETRIES["simplex"], gamma).value
            torch.testing.assert_close(whole[:, part], alone, rtol=1e-6, atol=1e-7)


def test_next_to_a_vertex_the_gradient_keeps_its_digits() -> None:
    """All but one of the coordinates are tiny: the closed form of two coordinates, a sigmoid, is the oracle."""
    weight = torch.zeros(2, 2, dtype=torch.float64)
    for gap in (1.0, 10.0, 30.0, 100.0):
        c = torch.tensor([[gap, 0.0]], dtype=torch.float64, requires_grad=True)
        z = solve(weight, c, GEOMETRIES["simplex"], 1.0).value
        small = 1 / (1 + np.exp(gap))
        assert float(z[0, 1].detach()) == pytest.approx(small, rel=1e-11)
        (by_c,) = torch.autograd.grad(z[0, 0], c)
        assert by_c[0].tolist() == pytest.approx([small * (1 - small), -small * (1 - small)], rel=1e-9)


def test_higher_derivatives_and_transforms() -> None:
    weight, c = drawn("convex")
    phi = GEOMETRIES["simplex"]

    def layer(weight: Tensor, c: Tensor) -> Tensor:
        return solve(weight, c, phi, 0.7).value

    assert torch.autograd.gradcheck(layer, (weight.clone().requires_grad_(), c.clone().requires_grad_()), atol=1e-6)
    assert torch.autograd.gradgradcheck(layer, (weight.clone().requires_grad_(), c.clone().requires_grad_()), atol=1e-5)
    forward = torch.func.jacfwd(layer, argnums=1)(weight, c[:1])
    backward = torch.func.jacrev(layer, argnums=1)(weight, c[:1])
    torch.testing.assert_close(forward, backward)


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_the_objective_and_its_gradient(gamma: float) -> None:
    weight, c = drawn("convex")
    c = c.requires_grad_()
    found = solve(weight, c, GEOMETRIES["simplex"], gamma)
    z = found.value
    expected = -0.5 * ((z @ weight) * z).sum(-1) - (c * z).sum(-1)
    expected = expected + gamma * torch.special.xlogy(z, z).sum(-1)
    torch.testing.assert_close(found.objective, expected)
    torch.testing.assert_close(torch.autograd.grad(found.objective.sum(), c)[0], -z)


def test_multipliers_of_the_bounds() -> None:
    """On a face ∇f is constant, and larger off it by the multipliers."""
    weight, c = drawn("convex", seed=1)
    found = solve(weight, c, GEOMETRIES["simplex"], 0.0)
    gradient, z = -found.value @ weight - c, found.value
    level = (gradient * z).sum(-1, keepdim=True)
    off = z == 0
    assert bool(off.any())
    torch.testing.assert_close(found.multiplier, torch.where(off, level - gradient, 0.0), rtol=1e-9, atol=1e-9)
    assert bool((found.multiplier <= 0).all())


def test_sparsemax_is_the_projection() -> None:
    c = 2 * torch.randn(7, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = -torch.eye(9, dtype=torch.float64)
    ours = gradients(weight, c, GEOMETRIES["simplex"], 0.0)
    leaf = c.clone().requires_grad_()
    z = GEOMETRIES["simplex"].project(leaf)
    g = torch.linspace(-1, 1, z.numel(), dtype=z.dtype).reshape(z.shape).sin()
    torch.testing.assert_close(ours[0], z.detach(), rtol=0, atol=1e-14)
    torch.testing.assert_close(ours[2], torch.autograd.grad(z, leaf, g)[0], rtol=0, atol=1e-13)


def test_degenerate_supports_are_named() -> None:
    """A coordinate that has just reached 0 has no multiplier: the status says so."""
    weight, c = -torch.eye(3, dtype=torch.float64), torch.tensor([[0.75, 0.25, 0.0], [0.8, 0.25, 0.0]]).double()
    c[0] += torch.tensor([0.0, 0.0, 0.0], dtype=torch.float64)
    found = solve(weight, c, GEOMETRIES["simplex"], 0.0)
    assert [ib.Status(code).name for code in found.status.tolist()] == ["DEGENERATE", "CONVERGED"]


def test_a_vertex_is_not_degenerate() -> None:
    """The coordinate that has the whole sum is held by no bound of its own."""

    class Energy(ib.Energy):
        def __init__(self) -> None:
            super().__init__(features=3, convex=True)

        def value(self, z: Tensor, x: Tensor) -> Tensor:
            return 0.25 * z.square().square().sum(-1) - (x * z).sum(-1)

    c = torch.tensor([[3.0, 0.5, 0.0], [1.0, 0.9, -2.0]], dtype=torch.float64)
    for energy in (Energy(), ib.QuadraticEnergy.from_matrices(-torch.eye(3, dtype=torch.float64))):
        found = ib.find_critical_point(energy, "simplex", c)
        assert found.status.tolist() == [int(ib.Status.CONVERGED)] * 2
        torch.testing.assert_close(found.value[0], torch.tensor([1.0, 0.0, 0.0]).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("total", [1e-6, 1e6, 1e12])
def test_sums_of_any_size(total: float) -> None:
    weight, c = drawn("convex")
    phi = ib.geometry("simplex", total=total)
    found = solve(weight / total, c, phi, 1.0)
    assert bool(found.converged.all())
    expected = total * solve(weight, c, GEOMETRIES["simplex"], 1.0).value
    torch.testing.assert_close(found.value, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0])
def test_logit_equilibria_of_a_game(scale: float) -> None:
    """z = softmax(λ A z) by blocks, a field without a potential: the residual of the equation itself."""
    random = torch.Generator().manual_seed(2)
    a, b = torch.rand(2, 3, 3, generator=random, dtype=torch.float64)

    class Game(ib.Field):
        def __init__(self) -> None:
            super().__init__(features=(2, 3))

        def field(self, z: Tensor, x: Tensor) -> Tensor:
            return -scale * torch.stack([z[:, 1] @ a.mT, z[:, 0] @ b], 1) - x

    x = torch.zeros(1, 2, 3, dtype=torch.float64)
    found = ib.find_critical_point(Game(), "simplex", x, regularization=1.0)
    z = found.value
    assert bool(found.converged.all())
    expected = torch.softmax(scale * torch.stack([z[:, 1] @ a.mT, z[:, 0] @ b], 1), -1)
    torch.testing.assert_close(z, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("adjoint", ["implicit", ib.adjoints.Unrolled(steps=300)])
def test_the_gradient_in_the_order(adjoint: str | ib.adjoints.Adjoint) -> None:
    """Of the point and of F, by finite differences; for γ = 0 the entropy does not matter."""
    weight, c = drawn("convex")
    direction = torch.linspace(-1, 1, c.numel(), dtype=torch.float64).reshape(c.shape).sin()

    def losses(order: Tensor | float, gamma: float) -> list[Tensor]:
        phi = ib.geometry("simplex", order=order)
        found = solve(weight, c, phi, gamma, **({"adjoint": adjoint} if isinstance(order, Tensor) else {}))
        return [(direction * found.value).sum(), *([found.objective.sum()] if adjoint == "implicit" else [])]

    order = torch.tensor(1.4, dtype=torch.float64, requires_grad=True)
    for loss, ahead, behind in zip(losses(order, 0.3), losses(1.4 + 1e-6, 0.3), losses(1.4 - 1e-6, 0.3), strict=True):
        (grad,) = torch.autograd.grad(loss, order, retain_graph=True)
        assert float(grad) == pytest.approx(float(ahead - behind) / 2e-6, rel=1e-5, abs=1e-8)
    if adjoint == "implicit":
        (grad,) = torch.autograd.grad(losses(order, 0.0)[0], order)
        assert abs(float(grad)) < 1e-12
        (grad,) = torch.autograd.grad(losses(order, 0.3)[0], order, create_graph=True)
        with pytest.raises(RuntimeError, match="a second time in the bounds lo and hi, or the order"):
            grad.backward()


def zero_sum(payoffs: Tensor, rationality: float) -> ib.Solution:
    """p = softmax(λAq), q = softmax(−λAᵀp): the equilibrium of a monotone field, and there is only one."""
    n = len(payoffs)
    nothing = torch.zeros_like(payoffs)
    field = torch.cat([torch.cat([nothing, -payoffs], 1), torch.cat([payoffs.T, nothing], 1)], 0)
    energy = ib.QuadraticEnergy.from_matrices(-field)
    return ib.find_critical_point(
        energy, ib.geometry("simplex", size=n), torch.zeros(1, 2 * n).double(), regularization=1 / rationality
    )


def by_homotopy(payoffs: list[list[float]], rationality: float) -> list[mpf]:
    """The same with 30 digits: Newton's method in the duals, from λ = 0 on."""
    n, a = len(payoffs), mpmath.matrix(payoffs)

    def softmax(y: list[mpf]) -> mpmath.matrix:
        most = max(y)
        shares = [mpmath.exp(each - most) for each in y]
        return mpmath.matrix([share / sum(shares) for share in shares])

    def play(y: list[mpf]) -> mpmath.matrix:
        return mpmath.matrix([*softmax(y[:n]), *softmax(y[n:])])

    def newton(scale: mpf, y: mpmath.matrix) -> mpmath.matrix:
        for _ in range(60):
            z = play(list(y))
            p, q = z[:n], z[n:]
            wanted = mpmath.matrix([*(scale * (a * q)), *(-scale * (a.T * p))])
            error = y - wanted
            if mpmath.norm(error, mpmath.inf) < mpf(10) ** -26:
                return y
            metrics = [mpmath.diag(list(part)) - part * part.T for part in (p, q)]
            jacobian = mpmath.eye(2 * n)
            jacobian[:n, n:] = -scale * a * metrics[1]
            jacobian[n:, :n] = scale * a.T * metrics[0]
            y = y - mpmath.lu_solve(jacobian, error)
        raise AssertionError("the homotopy took too long a step")

    y = mpmath.zeros(2 * n, 1)
    for step in range(1, 41):
        y = newton(mpf(rationality) * mpf(step) / 40, y)
    return list(play(list(y)))


@pytest.mark.parametrize("rationality", [0.1, 1.0, 10.0, 100.0])
def test_zero_sum_games_against_a_homotopy(rationality: float) -> None:
    """Values, and the derivative of the game's value in a payoff, with 30 digits."""
    payoffs = torch.rand(3, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64).requires_grad_()
    found = zero_sum(payoffs, rationality)
    assert bool(found.converged.all())
    p, q = found.value[0].split(3)
    (grad,) = torch.autograd.grad(p @ payoffs @ q, payoffs)

    with mpmath.workdps(30):
        table = payoffs.detach().tolist()
        expected = by_homotopy(table, rationality)
        assert max(abs(float(e) - z) for e, z in zip(expected, found.value[0].tolist(), strict=True)) < 1e-9

        def worth(change: mpf) -> mpf:
            moved = [[mpf(entry) for entry in row] for row in table]
            moved[0][1] += change
            z = by_homotopy(moved, rationality)
            return sum(z[i] * moved[i][j] * z[3 + j] for i in range(3) for j in range(3))

        slope = (worth(mpf(10) ** -9) - worth(-(mpf(10) ** -9))) / (2 * mpf(10) ** -9)
    assert float(grad[0, 1]) == pytest.approx(float(slope), rel=1e-7, abs=1e-9)


def test_attention_is_one_step() -> None:
    """MM's step on −⟨Kq, z⟩ from the uniform z: softmax(Kq/√d), and with it a retrieval of Hopfield's, Kᵀz."""
    random = torch.Generator().manual_seed(7)
    keys, queries = (torch.randn(n, 4, generator=random, dtype=torch.float64) for n in (7, 5))
    linear = ib.QuadraticEnergy.from_matrices(torch.zeros(7, 7, dtype=torch.float64))
    for beta in (0.5, 8.0):
        found = ib.find_critical_point(
            linear, "simplex", beta * queries @ keys.T, adjoint=ib.adjoints.Unrolled(steps=1)
        )
        expected = torch.softmax(beta * queries @ keys.T, -1)
        torch.testing.assert_close(found.value, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.value @ keys, expected @ keys, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("initial", "message"),
    [
        ([0.5, 0.5, 0.5], "sum 1 in each block"),
        ([1.5, -0.25, -0.25], "interior of the domain"),
    ],
)
def test_starts_off_the_simplex_are_refused(initial: list[float], message: str) -> None:
    weight = -torch.eye(3, dtype=torch.float64)
    c = torch.zeros(1, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        solve(weight, c, GEOMETRIES["simplex"], 1.0, initial=torch.tensor([initial], dtype=torch.float64))


def test_what_has_no_form_on_the_simplex() -> None:
    weight, c = drawn("convex")
    with pytest.raises(ValueError, match="no proximal map of simplex"):
        solve(weight, c, GEOMETRIES["simplex"], 1.0, solver=ib.solvers.Splitting())
    with pytest.raises(ValueError, match="couples its coordinates"):
        ib.BregmanProjection(4, 2, "simplex")
    with pytest.raises(ValueError, match="couples coordinates"):
        ib.BregmanGraphDEQ(4, 2, geometry="simplex")
    with pytest.raises(ValueError, match="with room to spare"):
        solve(weight, c, ib.geometry("simplex", hi=0.1), 1.0)
