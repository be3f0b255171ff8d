"""What every operator promises, and that the solvers on top see nothing else of it."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.operators import Costs, LinearOperator
from tests.problems import definite, normal

B = 5


def laplacian(d: int) -> Tensor:
    """Of a path, and one more edge."""
    edges = [(i, i + 1) for i in range(d - 1)] + [(0, d // 2)]
    matrix = torch.zeros(d, d, dtype=torch.float64)
    for i, j in edges:
        matrix[i, i] += 1
        matrix[j, j] += 1
        matrix[i, j] -= 1
        matrix[j, i] -= 1
    return matrix


SOLVERS = ["auto", "newton", "anderson", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mm", "broyden"))]


class Contract:
    """To be inherited, with `tensors` and `operator` written."""

    #: Whether it has to be stated that H is positive definite.
    stated = False
    costs = Costs()

    def tensors(self) -> list[Tensor]:
        raise NotImplementedError

    def operator(self, *tensors: Tensor) -> LinearOperator:
        raise NotImplementedError

    def make(self, dtype: torch.dtype = torch.float64) -> LinearOperator:
        return self.operator(*(tensor.to(dtype) for tensor in self.tensors()))

    def test_the_adjoint_product_is_that_of_the_adjoint(self, dtype: torch.dtype) -> None:
        operator = self.make(dtype)
        u, v = normal(2, B, operator.size, seed=1).to(dtype)
        left, right = (u * operator.product(v)).sum(), (operator.product(u, adjoint=True) * v).sum()
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4 if dtype == torch.float32 else 1e-12)

    def test_products_are_those_of_the_matrix(self, dtype: torch.dtype) -> None:
        operator = self.make(dtype)
        v, matrix = normal(B, operator.size, seed=1).to(dtype), operator.dense()
        torch.testing.assert_close(operator.product(v), (matrix @ v[:, :, None]).squeeze(-1))
        torch.testing.assert_close(operator.product(v, adjoint=True), (matrix.mT @ v[:, :, None]).squeeze(-1))
        assert operator.product(v).dtype == dtype

    @pytest.mark.parametrize("shift", [0.0, 0.3, 20.0])
    @pytest.mark.parametrize("adjoint", [False, True])
    def test_solve_inverts_product_and_shift(self, shift: float, adjoint: bool, dtype: torch.dtype) -> None:
        operator = self.make(dtype)
        v = normal(B, operator.size, seed=1).to(dtype)
        found = operator.solve(v, shift, adjoint)
        if not adjoint:
            torch.testing.assert_close(operator.inverted(shift)(v), found, rtol=1e-3, atol=1e-4)
        rest = operator.product(found, adjoint) + shift * found - v
        size = found.abs().max() * max(1.0, shift, float(operator.dense().abs().max()))
        assert float(rest.abs().max()) <= 1e4 * torch.finfo(dtype).eps * float(size)

    @pytest.mark.parametrize("adjoint", [False, True])
    def test_the_reflected_resolvent_is_that_of_the_matrix(self, adjoint: bool, dtype: torch.dtype) -> None:
        operator, step = self.make(dtype), 0.7
        u, b = normal(2, B, operator.size, seed=1).to(dtype)
        matrix = operator.dense().double()
        matrix = matrix.mT if adjoint else matrix
        shifted = torch.eye(operator.size).double() + step * matrix
        inside = torch.linalg.solve(shifted, u.double()[:, :, None]).squeeze(-1)
        expected = (2 * inside - u.double() + b.double()).to(dtype)
        tol = 1e-3 if dtype == torch.float32 else 1e-9
        torch.testing.assert_close(operator.reflected(step, adjoint)(u, b), expected, rtol=tol, atol=tol)

    def test_bounds_hold(self, dtype: torch.dtype) -> None:
        operator = self.make(dtype)
        ends = operator.bounds()
        if ends is None:
            return
        matrix = operator.dense().double()
        true = torch.linalg.eigvalsh(0.5 * (matrix + matrix.mT))
        rounding = 100 * torch.finfo(dtype).eps * float(true.abs().max())
        assert ends[0] <= float(true.min()) + rounding
        assert ends[1] >= float(true.max()) - rounding

    def test_symmetry_and_diagonal_are_those_of_the_matrix(self, dtype: torch.dtype) -> None:
        operator = self.make(dtype)
        matrix = operator.dense()
        rounding = torch.finfo(dtype).eps * float(matrix.abs().max())  # (a transform leaves no zeros)
        assert operator.symmetric == bool(torch.allclose(matrix, matrix.mT, atol=8 * rounding))
        if operator.diagonal() is not None:
            torch.testing.assert_close(
                operator.diagonal().expand(B, -1), matrix.diagonal(dim1=-2, dim2=-1).expand(B, -1)
            )

    def test_the_derivatives_are_those_of_the_matrix(self) -> None:
        tensors = [tensor.requires_grad_() for tensor in self.tensors()]
        operator = self.operator(*tensors)
        u, v = normal(2, B, operator.size, seed=2)
        by_product = torch.autograd.grad((u * operator.product(v)).sum(), tensors)
        matrix = self.operator(*tensors).dense()
        by_matrix = torch.autograd.grad((u * (matrix @ v[:, :, None]).squeeze(-1)).sum(), tensors)
        for one, other in zip(by_product, by_matrix, strict=True):
            torch.testing.assert_close(one, other)

    def test_rows_do_not_disturb_each_other(self) -> None:
        operator = self.make()
        v = normal(B, operator.size, seed=1)
        spoiled = v.clone()
        spoiled[1] = torch.nan
        others = torch.tensor([0, 2, 3, 4])
        for method in (operator.product, operator.solve):
            assert torch.isfinite(method(spoiled)[others]).all()
            torch.testing.assert_close(method(spoiled)[others], method(v)[others])

    def test_select_is_the_operator_of_those_samples(self) -> None:
        operator = self.make()
        v, rows = normal(B, operator.size, seed=1), torch.tensor([3, 1])
        torch.testing.assert_close(operator.select(rows).product(v[rows]), operator.product(v)[rows])

    def test_pack_and_back(self) -> None:
        operator = self.make()
        tensors, rebuild = operator.pack()
        again = rebuild(*(tensor.clone() for tensor in tensors))
        v = normal(B, operator.size, seed=1)
        assert type(again) is type(operator)
        assert again.symmetric == operator.symmetric
        assert torch.equal(again.product(v), operator.product(v))

    def test_another_precision(self) -> None:
        operator = self.make()
        v = normal(B, operator.size, seed=1)
        single = operator.to(torch.float32)
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.product(v.float()), operator.product(v).float())
        # (the product follows the precision of v)
        assert single.product(v).dtype == torch.float64

    def test_a_product_is_added_in_one_pass(self, dtype: torch.dtype) -> None:
        operator = self.make(dtype)
        b, v = normal(2, B, operator.size, seed=1).to(dtype)
        image = operator.product(v)
        torch.testing.assert_close(operator.add_product(b, v), b + image)
        torch.testing.assert_close(operator.add_product(b, v, beta=-1.0), image - b)
        torch.testing.assert_close(operator.add_product(b, v, beta=0.5, alpha=-2.0), 0.5 * b - 2 * image)

    def test_free_blocks_are_solved(self) -> None:
        """With H, with its adjoint, and damped, where H_FF + diag is definite; 0 on the rest, whatever stands there."""
        operator, d = self.make(), self.make().size
        matrices = operator.dense().expand(B, d, d)
        free, b = normal(B, d, seed=6) < 0.3, normal(B, d, seed=1)
        damping, tol = normal(B, d, seed=2).abs(), torch.full((B,), 1e-11).double()
        found, solved = operator.solve_on(free, torch.where(free, b, torch.nan))
        other, as_well = operator.solve_on(free, b, adjoint=True)
        # (of an indefinite block without symmetry, iterations may say that they have not solved it)
        assert solved.all() or not operator.symmetric
        for one, good, matrix in ((found, solved, matrices), (other, as_well, matrices.mT)):
            left = torch.where(free & good[:, None], (matrix @ one[:, :, None]).squeeze(-1) - b, 0.0)
            assert float(left.abs().max()) <= 1e-7
            assert not one[~free].any()
        if operator.symmetric:
            for at_once in (False, True):
                found, positive = operator.solve_damped_on(free, torch.where(free, b, 0.0), damping, tol, at_once)
                left = (matrices @ found[:, :, None]).squeeze(-1) + damping * found - b
                assert float(torch.where(free, left, 0.0).abs().max()) <= 1e-7
                assert positive.all()
                assert not found[~free].any()

    def test_norms_are_bounds(self) -> None:
        operator = self.make()
        matrix, norm, rows = operator.dense(), operator.norm(), operator.row_sizes()
        assert norm is None or norm >= float(torch.linalg.matrix_norm(matrix, 2).max()) * (1 - 1e-9)
        assert rows is None or torch.allclose(rows, matrix.abs().sum(-1))
        columns = self.make(torch.float32).column_sizes()
        assert columns is None or columns.dtype == torch.float64
        assert columns is None or torch.allclose(columns, matrix.square().sum(-2).sqrt(), rtol=1e-5)

    def test_other_costs_change_nothing_else(self) -> None:
        operator, costs = self.make(), Costs(matrix_entries=0)
        other, v = operator.with_costs(costs), normal(B, operator.size, seed=1)
        assert operator.costs == Costs()
        for one in (other, other.detach(), other.to(torch.float64), other.select(torch.arange(B))):
            assert one.costs == costs
            assert torch.equal(one.product(v), operator.product(v))

    def test_what_it_is_made_of_can_be_pickled(self) -> None:
        """`torch.save(layer)` keeps the function that makes the operator of its tensors."""
        operator, v = self.make(), normal(B, self.make().size, seed=1)
        tensors, rebuild = operator.pack()
        again = pickle.loads(pickle.dumps(rebuild))(*tensors)
        assert torch.equal(again.product(v), operator.product(v))

    def test_rounding_is_a_bound_of_rounding(self) -> None:
        operator, v = self.make(), normal(B, self.make().size, seed=3)
        single = operator.to(torch.float32)
        off = (single.product(v.float()).double() - operator.product(v)).abs()
        assert (off <= single.rounding(v.float()).double() + 1e-12).all()

    @pytest.mark.parametrize("geometry", ["tanh", "softplus"])
    @pytest.mark.parametrize(
        ("solver", "gamma"),
        [
            *itertools.product(["auto", "newton"], [0.0, 0.05, 1.0]),
            *itertools.product(["anderson"], [0.0, 1.0]),
            pytest.param("anderson", 0.05, marks=pytest.mark.slow),
            *(
                pytest.param(*of, marks=pytest.mark.slow)
                for of in itertools.product(["mm", "broyden"], [0.0, 0.05, 1.0])
            ),
        ],
    )
    def test_the_solvers_find_what_they_find_for_the_matrix(self, solver: str, geometry: str, gamma: float) -> None:
        found, twin = [], []
        for results, energy_of in ((found, self._energy), (twin, self._twin)):
            tensors = [tensor.requires_grad_() for tensor in self.tensors()]
            operator = self.operator(*tensors)
            x = (2 * normal(B, operator.size, seed=4)).requires_grad_()
            s = ib.find_critical_point(energy_of(operator), geometry, x, None, gamma, solver)
            gradients = torch.autograd.grad(s.value, [x, *tensors], normal(B, operator.size, seed=5))
            results += [s.value.detach(), s.status, *gradients]
        assert not gamma or bool((found[1] == ib.Status.CONVERGED).all())
        if not gamma:  # several bounds are active
            lo, hi = ib.geometry(geometry).domain
            assert int(((found[0] - lo <= 1e-9) | (hi - found[0] <= 1e-9)).sum()) >= 3
        assert torch.equal(found[1], twin[1])
        for one, other in zip(found, twin, strict=True):
            if one.is_floating_point():
                torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)

    def test_the_solvers_find_it_without_a_matrix(self) -> None:
        """By H's own products and solves alone, where these prove that there is one equilibrium."""
        operator = self.make()
        if operator.symmetric or operator.bounds() is None or operator.bounds()[0] <= 0:
            pytest.skip("symmetric operators are solved so anyway, and others are not known to be monotone")
        self.costs = Costs(matrix_entries=0)
        for gamma in (0.0, 0.05, 1.0):
            for solver in ("auto", ib.solvers.Splitting(), *(() if gamma else ("mm",))):
                self.test_the_solvers_find_what_they_find_for_the_matrix(solver, "tanh", gamma)
        x = normal(B, operator.size, seed=4)
        assert ib.find_critical_point(self._energy(operator), "tanh", x).objective is None

    def _energy(self, operator: LinearOperator) -> ib.QuadraticEnergy:
        return ib.QuadraticEnergy.from_operator(operator.with_costs(self.costs), convex=self.stated)

    def _twin(self, operator: LinearOperator) -> ib.QuadraticEnergy:
        return ib.QuadraticEnergy.from_operator(ib.operators.Dense(operator.dense()))


class TestDense(Contract):
    def tensors(self) -> list[Tensor]:
        return [definite(6)]

    def operator(self, *tensors: Tensor) -> LinearOperator:
        # (perturbed entry by entry, a symmetric matrix is none any more)
        return ib.operators.Dense(tensors[0], symmetric=True)


class TestDiagonal(Contract):
    def tensors(self) -> list[Tensor]:
        return [torch.linspace(0.3, 2.0, 6).double()]

    def operator(self, *tensors: Tensor) -> LinearOperator:
        return ib.operators.Diagonal(*tensors)


class TestLowRank(Contract):
    def tensors(self) -> list[Tensor]:
        return [normal(7, 2), torch.linspace(0.3, 2.0, 7).double()]

    def operator(self, *tensors: Tensor) -> LinearOperator:
        return ib.operators.LowRank(*tensors)


class TestKronecker(Contract):
    def tensors(self) -> list[Tensor]:
        return [definite(3), definite(4, seed=1)]

    def operator(self, *tensors: Tensor) -> LinearOperator:
        return ib.operators.Kronecker(*tensors, symmetric=True)


class TestSum(Contract):
    def tensors(self) -> list[Tensor]:
        return [definite(2), definite(3, seed=1), torch.linspace(0.3, 2.0, 6).double()]

    def operator(self, *tensors: Tensor) -> LinearOperator:
        return ib.operators.Sum(ib.operators.Kronecker(*tensors[:2], symmetric=True), ib.operators.Diagonal(tensors[2]))


class TestBlocks(Contract):
    """Two parts: a matrix and a Kronecker product, coupled by a matrix that is not square."""

    def tensors(self) -> list[Tensor]:
        coupling = 0.1 * normal(3, 4, seed=3)
        factors = [definite(2, seed=1, least=0.8), definite(2, seed=2, least=0.8)]
        return [definite(3, least=0.5), coupling, coupling.mT.clone(), *factors]

    def operator(self, *tensors: Tensor) -> LinearOperator:
        own, across, back, *factors = tensors
        product = ib.operators.Kronecker(*factors, symmetric=True)
        # (perturbed entry by entry, a symmetric matrix is none any more)
        return ib.operators.Blocks([[own, across], [back, product]], symmetric=True)

    def test_its_bounds_prove_it_definite(self) -> None:
        assert self.make().bounds()[0] > 0.05


class TestBlocksOfOperators(Contract):
    """Three parts, one without a block of its own that is wide, and operators off the diagonal."""

    def tensors(self) -> list[Tensor]:
        return [
            *(normal(4, 2), torch.linspace(0.8, 2.0, 4).double()),
            *(torch.tensor([0.2, -0.1, 0.1, 0.3]).double(), torch.linspace(0.9, 1.5, 4).double()),
            *((coupling := 0.1 * normal(4, 2, seed=5)), coupling.mT.clone(), definite(2, least=0.5)),
        ]

    def operator(self, *tensors: Tensor) -> LinearOperator:
        vectors, entries, between, own, across, back, last = tensors
        twice = ib.operators.Diagonal(between)
        return ib.operators.Blocks(
            [
                [ib.operators.LowRank(vectors, entries), twice, None],
                [twice, ib.operators.Sum(ib.operators.Diagonal(own), ib.operators.Diagonal(own)), across],
                [None, back, last],
            ],
            symmetric=True,
        )


class TestBlocksStronglyCoupled(Contract):
    """Positive definite, which the norms of the blocks do not show."""

    stated = True

    def tensors(self) -> list[Tensor]:
        whole = definite(7, least=0.3)
        return [whole[:3, :3].clone(), whole[:3, 3:].clone(), whole[3:, :3].clone(), whole[3:, 3:].clone()]

    def operator(self, *tensors: Tensor) -> LinearOperator:
        a, b, c, d = tensors
        return ib.operators.Blocks([[a, b], [c, d]], symmetric=True)

    def test_its_bounds_prove_nothing(self) -> None:
        assert self.make().bounds()[0] < 0


class TestBlocksWithoutSymmetry(Contract):
    """A saddle: nothing on the diagonal of its second part."""

    test_the_solvers_find_what_they_find_for_the_matrix = None

    def tensors(self) -> list[Tensor]:
        return [definite(4) + 0.2 * normal(4, 4, seed=1), normal(4, 3, seed=2), normal(3, 4, seed=3)]

    def operator(self, *tensors: Tensor) -> LinearOperator:
        a, b, c = tensors
        return ib.operators.Blocks([[a, b], [c, None]])


class TestBlocksMonotone(Contract):
    """Skew couplings, which its norms do not count."""

    def tensors(self) -> list[Tensor]:
        coupling = 0.3 * normal(4, 3, seed=2)
        return [definite(4) + 0.1 * normal(4, 4, seed=1), coupling, -coupling.mT.clone(), definite(3, seed=3)]

    def operator(self, *tensors: Tensor) -> LinearOperator:
        a, b, c, d = tensors
        return ib.operators.Blocks([[a, b], [c, d]], symmetric=False)


def skewed(d: int, seed: int = 0, by: float = 0.5) -> Tensor:
    """Not symmetric, its symmetric part positive definite."""
    skew = normal(d, d, seed=seed + 100)
    return definite(d, seed=seed, least=0.4) + by * (skew - skew.mT) / d**0.5


class TestKroneckerWithoutSymmetry(Contract):
    def tensors(self) -> list[Tensor]:
        return [skewed(2, by=0.2), skewed(3, seed=1, by=0.1)]

    def operator(self, *tensors: Tensor) -> LinearOperator:
        return ib.operators.Kronecker(*tensors)

    def test_nearly_dependent_eigenvectors(self, dtype: torch.dtype) -> None:
        """A Jordan block has one eigenvector."""
        for off in (0.0, 1e-13, 1e-7):
            block = torch.tensor([[1.0, 1.0], [off, 1.0]], dtype=dtype)
            operator, v = ib.operators.Kronecker(block, block), normal(3, 4).to(dtype)
            for adjoint in (False, True):
                left = operator.product(operator.solve(v, 0.5, adjoint), adjoint)
                left = left + 0.5 * operator.solve(v, 0.5, adjoint) - v
                assert float(left.abs().max()) <= 1e3 * torch.finfo(dtype).eps

    def test_a_singular_one_has_no_solution(self) -> None:
        operator = ib.operators.Kronecker(torch.tensor([[1.0, 1.0], [0.0, 0.0]]).double(), skewed(2))
        assert torch.isnan(operator.solve(normal(2, 4))).all()


class TestTransposed(Contract):
    def tensors(self) -> list[Tensor]:
        return [skewed(2, by=0.2), skewed(3, seed=1, by=0.1)]

    def operator(self, *tensors: Tensor) -> LinearOperator:
        return ib.operators.Kronecker(*tensors).transposed()


class TestSumWithoutSymmetry(Contract):
    def tensors(self) -> list[Tensor]:
        return [skewed(2, by=0.2), skewed(3, seed=1, by=0.1), torch.linspace(0.3, 2.0, 6).double()]

    def operator(self, *tensors: Tensor) -> LinearOperator:
        return ib.operators.Sum(ib.operators.Kronecker(*tensors[:2]), ib.operators.Diagonal(tensors[2]))


class TestSparseWithoutSymmetry(Contract):
    """Diffusion and a current."""

    def tensors(self) -> list[Tensor]:
        return [self.matrix().to_sparse_coo().coalesce().values()]

    def matrix(self) -> Tensor:
        current = torch.ones(7, dtype=torch.float64)
        return laplacian(8) + 0.4 * torch.eye(8).double() + 0.5 * (current.diag(-1) - current.diag(1))

    def operator(self, *tensors: Tensor) -> LinearOperator:
        places = self.matrix().to_sparse_coo().coalesce().indices()
        return ib.operators.Sparse(torch.sparse_coo_tensor(places, tensors[0], (8, 8), check_invariants=True))


class TestBlocksForEachSample(Contract):
    """With a matrix for each sample among its blocks."""

    def tensors(self) -> list[Tensor]:
        coupling = 0.1 * normal(3, 2, seed=9)
        stacked = torch.stack([definite(3, seed=seed) for seed in range(B)])
        return [stacked, coupling, coupling.mT.clone(), torch.tensor([0.7, 1.4]).double()]

    def operator(self, *tensors: Tensor) -> LinearOperator:
        own, across, back, entries = tensors
        stacked = ib.operators.Stacked(own, symmetric=True)
        return ib.operators.Blocks([[stacked, across], [back, ib.operators.Diagonal(entries)]], symmetric=True)

    def _twin(self, operator: LinearOperator) -> ib.QuadraticEnergy:
        return ib.QuadraticEnergy.from_operator(ib.operators.Stacked(operator.dense(), symmetric=True))


class TestSparse(Contract):
    def tensors(self) -> list[Tensor]:
        matrix = laplacian(8) + 0.3 * torch.eye(8).double()
        return [matrix.to_sparse_coo().coalesce().values()]

    def operator(self, *tensors: Tensor) -> LinearOperator:
        places = laplacian(8).to_sparse_coo().coalesce().indices()
        return ib.operators.Sparse(
            torch.sparse_coo_tensor(places, tensors[0], (8, 8), check_invariants=True), symmetric=True
        )


class TestSparseWithKnownBounds(TestSparse):
    """Those of its spectrum, closer than Gershgorin's."""

    def operator(self, *tensors: Tensor) -> LinearOperator:
        operator = super().operator(*tensors)
        return ib.operators.Sparse.of(operator.indices, tensors[0], 8, symmetric=True, bounds=(0.3, 5.5))

    def test_they_are_those_given(self) -> None:
        assert self.make().bounds() == (0.3, 5.5)
        assert self.make().select(torch.tensor([0])).to(torch.float32).bounds() == (0.3, 5.5)


def rings() -> Tensor:
    """The Laplacians of B graphs on five nodes, as blocks: rings, each without another edge, one node alone in one."""
    blocks = []
    for sample in range(B):
        edges = [(i, (i + 1) % 5) for i in range(5) if i != sample and (sample != 4 or i not in (0, 1))]
        matrix = torch.zeros(5, 5, dtype=torch.float64)
        for i, j in edges:
            matrix[[i, j], [i, j]] += 1
            matrix[[i, j], [j, i]] -= 1
        blocks.append(matrix)
    return torch.block_diag(*blocks)


class ForEachSample(Contract):
    def _twin(self, operator: LinearOperator) -> ib.QuadraticEnergy:
        return ib.QuadraticEnergy.from_operator(ib.operators.Stacked(operator.dense(), symmetric=operator.symmetric))


class TestSparseForEachSample(ForEachSample):
    def matrix(self) -> Tensor:
        return rings() + 0.3 * torch.eye(5 * B).double()

    def tensors(self) -> list[Tensor]:
        return [self.matrix().to_sparse_coo().coalesce().values()]

    def operator(self, *tensors: Tensor) -> LinearOperator:
        places = self.matrix().to_sparse_coo().coalesce().indices()
        whole = torch.sparse_coo_tensor(places, tensors[0], (5 * B, 5 * B), check_invariants=True)
        return ib.operators.Sparse(whole, symmetric=True, samples=B)


class TestKroneckerShifted(Contract):
    def tensors(self) -> list[Tensor]:
        return [definite(3), definite(4, seed=1, least=0.0)]

    def operator(self, *tensors: Tensor) -> LinearOperator:
        return ib.operators.Kronecker(*tensors, symmetric=True, shift=0.4)


class TestKroneckerShiftedWithoutSymmetry(Contract):
    def tensors(self) -> list[Tensor]:
        return [skewed(2, by=0.2), skewed(3, seed=1, by=0.1)]

    def operator(self, *tensors: Tensor) -> LinearOperator:
        return ib.operators.Kronecker(*tensors, shift=0.4)


class TestKroneckerWithASparseFactor(Contract):
    def tensors(self) -> list[Tensor]:
        # (the second factor is singular: its null space is held by the shift alone)
        return [laplacian(6).to_sparse_coo().coalesce().values(), definite(3, least=0.0)]

    def operator(self, *tensors: Tensor) -> LinearOperator:
        places = laplacian(6).to_sparse_coo().coalesce().indices()
        matrix = torch.sparse_coo_tensor(places, tensors[0], (6, 6), check_invariants=True)
        left = ib.operators.Sparse(matrix, symmetric=True, bounds=(0.0, 6.0))
        return ib.operators.Kronecker(left, tensors[1], symmetric=True, shift=0.5)

    def test_its_bounds_prove_it_definite(self) -> None:
        assert self.make().bounds()[0] > 0.49


class TestKroneckerWithASparseFactorWithoutSymmetry(Contract):
    def tensors(self) -> list[Tensor]:
        return [laplacian(4).to_sparse_coo().coalesce().values(), skewed(2, by=0.2)]

    def operator(self, *tensors: Tensor) -> LinearOperator:
        places = laplacian(4).to_sparse_coo().coalesce().indices()
        matrix = torch.sparse_coo_tensor(places, tensors[0], (4, 4), check_invariants=True)
        return ib.operators.Kronecker(ib.operators.Sparse(matrix, symmetric=True), tensors[1], shift=0.5)


class TestKroneckerWithASparseFactorForEachSample(ForEachSample):
    def tensors(self) -> list[Tensor]:
        return [rings().to_sparse_coo().coalesce().values(), definite(2)]

    def operator(self, *tensors: Tensor) -> LinearOperator:
        places = rings().to_sparse_coo().coalesce().indices()
        whole = torch.sparse_coo_tensor(places, tensors[0], (5 * B, 5 * B), check_invariants=True)
        left = ib.operators.Sparse(whole, symmetric=True, bounds=(0.0, 4.0), samples=B)
        return ib.operators.Kronecker(left, tensors[1], symmetric=True, shift=0.5)


class TestStacked(Contract):
    symmetric: bool | None = True

    def tensors(self) -> list[Tensor]:
        return [torch.stack([definite(4, seed=seed) for seed in range(B)])]

    def operator(self, *tensors: Tensor) -> LinearOperator:
        return ib.operators.Stacked(tensors[0], symmetric=self.symmetric)

    def _twin(self, operator: LinearOperator) -> ib.QuadraticEnergy:
        pytest.skip("no matrix is shared: see the next test")

    @pytest.mark.parametrize("gamma", [0.0, 0.05, 1.0])
    def test_each_sample_has_its_own(self, gamma: float) -> None:
        (matrices,), x = [tensor.requires_grad_() for tensor in self.tensors()], 2 * normal(B, 4, seed=4)
        cotangent = normal(B, 4, seed=5)
        energy = ib.QuadraticEnergy.from_operator(self.operator(matrices))
        found = ib.find_critical_point(energy, "tanh", x, None, gamma)
        (gradient,) = torch.autograd.grad(found.value, matrices, cotangent)
        assert found.converged.all()
        for row in range(B):
            matrix = matrices[row].detach().requires_grad_()
            alone = ib.QuadraticEnergy.from_operator(ib.operators.Dense(matrix, symmetric=self.symmetric))
            one = ib.find_critical_point(alone, "tanh", x[row : row + 1], None, gamma)
            torch.testing.assert_close(found.value[row], one.value[0], rtol=1e-9, atol=1e-9)
            (other,) = torch.autograd.grad(one.value, matrix, cotangent[row : row + 1])
            torch.testing.assert_close(gradient[row], other, rtol=1e-7, atol=1e-9)


class TestStackedWithoutSymmetry(TestStacked):
    symmetric = None

    def tensors(self) -> list[Tensor]:
        return [torch.stack([skewed(4, seed=seed) for seed in range(B)])]


@pytest.mark.parametrize("gamma", [0.0, 0.3])
@pytest.mark.parametrize("symmetric", [True, False])
def test_matrices_for_each_sample(symmetric: bool, gamma: float) -> None:
    make = definite if symmetric else skewed
    matrices = torch.stack([make(3, seed=seed) for seed in range(6)]).neg().requires_grad_()
    U, b, x = normal(3, 2, seed=1), normal(3, seed=2), normal(2, 3, 2, seed=3)
    found = ib.find_critical_point(ib.QuadraticEnergy.from_matrices(matrices, U, b), "tanh", x, regularization=gamma)
    assert found.value.shape == (2, 3, 3)
    (gradient,) = torch.autograd.grad(found.value.sum(), matrices)
    for number, (z, at) in enumerate(zip(found.value.reshape(6, 3), x.reshape(6, 2), strict=True)):
        matrix = matrices[number].detach().requires_grad_()
        one = ib.find_critical_point(
            ib.QuadraticEnergy.from_matrices(matrix, U, b), "tanh", at[None], regularization=gamma
        )
        torch.testing.assert_close(z, one.value[0], rtol=1e-9, atol=1e-9)
        (own,) = torch.autograd.grad(one.value.sum(), matrix)
        at = gradient[number]
        if symmetric:
            own, at = 0.5 * (own + own.mT), 0.5 * (at + at.mT)
        torch.testing.assert_close(at, own, rtol=1e-7, atol=1e-8)


class Circulant(LinearOperator):
    """Written with the three methods that have no default."""

    symmetric = True

    def __init__(self, kernel: Tensor) -> None:
        self.kernel = kernel

    @property
    def size(self) -> int:
        return len(self.kernel)

    def product(self, v: Tensor, adjoint: bool = False) -> Tensor:
        image = torch.fft.rfft(v) * torch.fft.rfft(self.kernel.to(v.dtype)).real
        return torch.fft.irfft(image, n=self.size)

    def pack(self) -> tuple[tuple[Tensor, ...], ib.operators.Rebuild]:
        return (self.kernel,), Circulant


class Rotating(Circulant):
    """Of any kernel, with the bounds of its symmetric part."""

    symmetric = False

    def product(self, v: Tensor, adjoint: bool = False) -> Tensor:
        values = torch.fft.rfft(self.kernel.to(v.dtype))
        return torch.fft.irfft(torch.fft.rfft(v) * (values.conj() if adjoint else values), n=self.size)

    def bounds(self) -> tuple[float, float]:
        least, largest = torch.fft.rfft(self.kernel.detach()).real.aminmax()
        return float(least), float(largest)

    def pack(self) -> tuple[tuple[Tensor, ...], ib.operators.Rebuild]:
        return (self.kernel,), Rotating


class TestOneOfYourOwnWithoutSymmetry(Contract):
    def tensors(self) -> list[Tensor]:
        return [torch.tensor([1.0, -0.6, 0.1, 0.0, 0.0, 0.2], dtype=torch.float64)]

    def operator(self, *tensors: Tensor) -> LinearOperator:
        return Rotating(*tensors)


class TestOneOfYourOwn(Contract):
    """Without bounds of its spectrum."""

    stated = True

    def tensors(self) -> list[Tensor]:
        kernel = torch.zeros(6, dtype=torch.float64)
        kernel[[0, 1, -1]] = torch.tensor([1.0, -0.3, -0.3], dtype=torch.float64)
        return [kernel]

    def operator(self, *tensors: Tensor) -> LinearOperator:
        return Circulant(*tensors)


def test_kronecker_makes_no_matrix_of_its_width() -> None:
    a, b = definite(60), definite(60, seed=1)
    energy = ib.QuadraticEnergy.from_operator(ib.operators.Kronecker(a, b))
    x = normal(2, 3600)
    found = ib.find_critical_point(energy, "tanh", x, regularization=0.1)
    assert found.converged.all()
    z, y = found.value.reshape(2, 60, 60), found.dual.reshape(2, 60, 60)
    assert float((a @ z @ b + 0.1 * y - x.reshape(2, 60, 60)).abs().max()) <= 1e-8


def test_what_is_refused() -> None:
    with pytest.raises(TypeError, match="LinearOperator"):
        ib.QuadraticEnergy.from_operator(torch.eye(3))
    with pytest.raises(TypeError, match="offset must be a module"):
        ib.QuadraticEnergy.from_operator(ib.operators.Diagonal(torch.ones(3)), torch.ones(3))
    skew = ib.operators.Kronecker(torch.eye(2), torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="needs a symmetric H"):
        ib.QuadraticEnergy.from_operator(skew, convex=True)
    with pytest.raises(TypeError, match="no objective"):
        ib.QuadraticEnergy.from_operator(skew).value(torch.ones(1, 4), torch.ones(1, 4))
    with pytest.raises(ValueError, match="diagonal of H has the entry -1"):
        ib.QuadraticEnergy.from_operator(ib.operators.Diagonal(torch.tensor([1.0, -1.0])), convex=True)
    declared = ib.QuadraticEnergy.from_operator(ib.operators.Dense(torch.tensor([[1.0, 2.0], [2.0, 1.0]])), convex=True)
    with pytest.raises(ValueError, match="was declared convex"):
        ib.find_critical_point(declared, "tanh", torch.ones(1, 2))
    with pytest.raises(TypeError, match="sparse"):
        ib.operators.Sparse(torch.eye(3))
    with pytest.raises(ValueError, match="lower and the upper one, got"):
        ib.operators.Sparse(torch.eye(3).to_sparse(), bounds=(2.0, 0.0))
    with pytest.raises(ValueError, match="as many rows for each of samples = 2, got 3"):
        ib.operators.Sparse(torch.eye(3).to_sparse(), samples=2)
    with pytest.raises(ValueError, match=r"2 blocks of width 2 on the diagonal, got one at \(0, 2\)"):
        ib.operators.Sparse(torch.ones(4, 4).triu().to_sparse(), samples=2)
    with pytest.raises(ValueError, match="one width"):
        ib.operators.Sum(ib.operators.Diagonal(torch.ones(3)), ib.operators.Diagonal(torch.ones(4)))
    energy = ib.QuadraticEnergy.from_operator(ib.operators.Diagonal(torch.ones(3)))
    with pytest.raises(ValueError, match="features"):
        ib.find_critical_point(energy, "tanh", torch.ones(1, 4))


def test_parameters_of_the_operator_are_those_of_the_energy() -> None:
    entries = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    energy = ib.QuadraticEnergy.from_operator(ib.operators.Diagonal(entries), torch.nn.Linear(2, 3).double())
    assert [tuple(parameter.shape) for parameter in energy.parameters()] == [(3,), (3, 2), (3,)]
    x = normal(4, 2)
    before = ib.find_critical_point(energy, "tanh", x).value
    with torch.no_grad():
        entries.mul_(2.0)
    after = ib.find_critical_point(energy, "identity", x).value
    torch.testing.assert_close(after, energy.linear(x) / 2)
    assert before.shape == after.shape


@pytest.mark.parametrize("kind", ["kronecker", "sparse"])
def test_it_is_a_module_like_any_other(kind: str) -> None:
    made = {"kronecker": TestKronecker, "sparse": TestSparse}[kind]()
    tensors, rebuild = made.make().pack()
    operator = rebuild(*(torch.nn.Parameter(tensor) if tensor.is_floating_point() else tensor for tensor in tensors))
    energy = ib.QuadraticEnergy.from_operator(operator)
    x = normal(3, operator.size)
    value = ib.find_critical_point(energy, "tanh", x, regularization=0.1).value
    twin = copy.deepcopy(energy)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    assert not torch.allclose(ib.find_critical_point(twin, "tanh", x, regularization=0.1).value, value)
    twin.load_state_dict(energy.state_dict())
    torch.testing.assert_close(ib.find_critical_point(twin, "tanh", x, regularization=0.1).value, value)
    single = ib.find_critical_point(copy.deepcopy(energy).float(), "tanh", x.float(), regularization=0.1).value
    torch.testing.assert_close(single.double(), value, rtol=1e-5, atol=1e-5)
    with energy.frozen(), torch.no_grad():
        again = ib.find_critical_point(energy, "tanh", x, regularization=0.1).value
    torch.testing.assert_close(again, value)
    torch.testing.assert_close(energy.gradient(value, x), value @ operator.dense().mT - x)
    z = value.detach().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(energy.value(z, x).sum(), z)[0], energy.gradient(z, x))
    assert "operator=" in repr(energy)
    torch.testing.assert_close(energy.weight, -operator.dense())
