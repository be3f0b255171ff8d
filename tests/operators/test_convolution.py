"""Convolutions: what they compute, their matrix, their adjoints and inverses, and the layers of them."""

from __future__ import annotations

import itertools
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import implicit_bregman as ib
from implicit_bregman.operators import Blocks, Convolution, LinearOperator
from implicit_bregman.operators.kernels import spectral_bound
from tests.operators.test_contract import B, Contract
from tests.problems import normal


def kernel(*shape: int, seed: int = 0, size: float = 0.7) -> Tensor:
    return size * normal(*shape, seed=seed) / (shape[1] * torch.Size(shape[2:]).numel()) ** 0.5


class TestGram(Contract):
    """Zeros around a grid that is not square."""

    settings: ClassVar[dict[str, object]] = {}
    shape, grid = (3, 2, 3, 3), (2, 3)

    def tensors(self) -> list[Tensor]:
        return [kernel(*self.shape)]

    def operator(self, *tensors: Tensor) -> LinearOperator:
        return Convolution.gram(*tensors, self.grid, margin=0.3, **self.settings)

    def test_pack_and_back(self) -> None:
        super().test_pack_and_back()
        assert self.make().pack()[1](self.make().kernel).bounds() == self.make().bounds()

    def test_its_inverse_is_part_of_none_that_is_cheaper_than_its_dilation(self) -> None:
        operator = self.make()
        found = operator.dilation()
        v = normal(B, operator.size)
        if found is None:
            assert operator.padding == "circular" or operator.kernel[0, 0].numel() == 1
            return
        torch.testing.assert_close(found.restrict(found.operator.product(found.embed(v))), operator.product(v))
        assert found.operator.dilation() is None
        torch.testing.assert_close(found.restrict(found.embed(v)), v)
        assert found.operator.bounds()[0] <= operator.bounds()[0]


class TestGramCircular(TestGram):
    settings: ClassVar[dict[str, object]] = {"padding": "circular"}


class TestGramInOneDimension(TestGram):
    shape, grid = (2, 2, 3), (5,)


class TestGramOfAnEvenKernel(TestGram):
    shape, grid = (2, 2, 2, 2), (3, 2)


class TestGramOfAnEvenKernelOnACircle(TestGramCircular):
    shape, grid = (1, 2, 4), (6,)


class TestGramOfOneByOne(TestGram):
    shape, grid = (2, 3, 1, 1), (2, 2)


class TestGramWithAStride(TestGram):
    shape, grid, settings = (3, 2, 3, 3), (2, 4), {"stride": 2}


class TestGramWithAStrideOnACircle(TestGram):
    shape, grid, settings = (3, 1, 2, 2), (4, 2), {"stride": 2, "padding": "circular"}


class TestGramOfAKernelWiderThanItsGrid(TestGram):
    """Its taps wrap round more than once."""

    shape, grid, settings = (2, 2, 5), (3,), {"padding": "circular"}


class TestMonotone(Contract):
    settings: ClassVar[dict[str, object]] = {}

    def tensors(self) -> list[Tensor]:
        return [kernel(2, 2, 3, 3), kernel(2, 2, 3, 3, seed=1)]

    def operator(self, *tensors: Tensor) -> LinearOperator:
        return Convolution.gram(tensors[0], (2, 3), margin=0.4, skew=tensors[1], **self.settings)


class TestMonotoneCircular(TestMonotone):
    settings: ClassVar[dict[str, object]] = {"padding": "circular"}


class TestMonotoneWithKernelsOfSeveralLengths(TestMonotone):
    def tensors(self) -> list[Tensor]:
        return [kernel(1, 2, 2), kernel(2, 2, 4, seed=1)]

    def operator(self, *tensors: Tensor) -> LinearOperator:
        return Convolution.gram(tensors[0], 4, margin=0.4, skew=tensors[1])


class TestSymmetric(Contract):
    """One's own symmetric kernel, whose bounds come from the frequencies."""

    def tensors(self) -> list[Tensor]:
        taps = 0.1 * normal(2, 2, 3, 3)
        taps = taps + taps.transpose(0, 1).flip(2, 3)
        taps[:, :, 1, 1] += 1.5 * torch.eye(2)
        return [taps]

    def operator(self, *tensors: Tensor) -> LinearOperator:
        # (perturbed entry by entry it is symmetric no more)
        return Convolution(tensors[0], (3, 2), symmetric=True)

    def test_symmetry_is_looked_at(self, dtype: torch.dtype) -> None:
        (taps,) = self.tensors()
        assert Convolution(taps.to(dtype), 3).symmetric
        assert not Convolution(taps + 1e-3 * kernel(2, 2, 3, 3), 3).symmetric
        assert not Convolution(kernel(2, 2, 2, 2), 3).symmetric
        alone = torch.zeros(1, 1, 2)
        alone[0, 0, 0] = 2.0
        assert Convolution(alone, 4).symmetric


class TestTiers(Contract):
    """Two resolutions, coupled by a strided convolution and minus its adjoint."""

    def tensors(self) -> list[Tensor]:
        return [kernel(1, 1, 3), kernel(2, 2, 3, seed=1), kernel(2, 1, 3, seed=2, size=0.3)]

    def operator(self, *tensors: Tensor) -> LinearOperator:
        fine, coarse, down = tensors
        return Blocks(
            [
                [Convolution.gram(fine, 5, margin=0.4), Convolution(-down, 5, stride=2).transposed()],
                [Convolution(down, 5, stride=2), Convolution.gram(coarse, 3, margin=0.5)],
            ]
        )

    def test_what_couples_them_moves_no_bound(self) -> None:
        assert self.make().bounds()[0] == pytest.approx(0.4)
        down = self.tensors()[2]
        gram = [Convolution.gram(one, n, margin=2.0) for one, n in zip(self.tensors(), (5, 3), strict=False)]
        couplings = Convolution(down, 5, stride=2).transposed(), Convolution(down, 5, stride=2)
        operator = Blocks([[gram[0], couplings[0]], [couplings[1], gram[1]]], symmetric=True)
        true = torch.linalg.matrix_norm(couplings[1].product(torch.eye(5).double()), 2)
        assert 2.0 - 1.7 * float(true) <= operator.bounds()[0] <= 2.0 - float(true)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", ["zeros", "circular"])
@pytest.mark.parametrize("size", [(5,), (4, 7)])
def test_it_is_the_convolution_of_torch(
    k: int, stride: int, padding: str, size: tuple[int, ...], dtype: torch.dtype
) -> None:
    taps = kernel(2, 3, *[k] * len(size)).to(dtype)
    operator, z = Convolution(taps, size, padding, stride), normal(B, 3, *size, seed=1).to(dtype)
    left = (k - 1) // 2
    around = functional.pad(z, [left, k - 1 - left] * len(size), "constant" if padding == "zeros" else padding)
    convolve = functional.conv1d if len(size) == 1 else functional.conv2d
    expected = convolve(around, taps, stride=stride)
    found = operator.product(z.flatten(1))
    close = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 1e-13}
    torch.testing.assert_close(found, expected.flatten(1), **close)
    assert operator.shape == (expected[0].numel(), z[0].numel())
    v = normal(*found.shape, seed=2).to(dtype)
    torch.testing.assert_close((operator.product(v, adjoint=True) * z.flatten(1)).sum(-1), (v * found).sum(-1), **close)


@pytest.mark.parametrize("padding", ["zeros", "circular"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_the_gram_form_is_that_of_a_convolution(k: int, stride: int, padding: str) -> None:
    """A taken on a grid so wide that nothing of it is cut off."""
    taps, size = kernel(2, 2, k, k), (6, 12)
    operator = Convolution.gram(taps, size, padding, margin=0.2, stride=stride)
    v = normal(B, 2, *size)
    if padding == "zeros":
        more = 2 * stride * -(-k // stride)  # (a whole number of strides, so that the outputs are at the same places)
        wide = Convolution(taps, [n + 2 * more for n in size], "zeros", stride)
        around = functional.pad(v, [more] * 4).flatten(1)
        image = wide.product(wide.product(around), adjoint=True).reshape(B, 2, *wide.grid)
        image = image[..., more:-more, more:-more]
    else:
        once = Convolution(taps, size, "circular", stride)
        image = once.product(once.product(v.flatten(1)), adjoint=True).reshape(v.shape)
    torch.testing.assert_close(operator.product(v.flatten(1)), (0.2 * v + image).flatten(1), rtol=0, atol=1e-12)


def test_bounds_of_the_spectrum_come_near_to_it(dtype: torch.dtype) -> None:
    for seed in range(4):
        matrices = torch.randn(7, 12, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.complex128)
        matrices = (10.0**seed * matrices @ matrices.mH).to(
            torch.complex64 if dtype == torch.float32 else torch.complex128
        )
        true = float(torch.linalg.eigvalsh(matrices).max())
        assert true * (1 - 1e-5) <= spectral_bound(matrices) <= 1.09 * true
    assert spectral_bound(torch.zeros(2, 3, 3, dtype=matrices.dtype)) == 0.0


def test_inverses_of_frequencies_that_are_not_definite() -> None:
    """Then they have no Cholesky factors; a singular one has no inverse."""
    operator = Convolution(torch.tensor([[[1.0, 0.0, 1.0]]]).double(), 8, "circular")  # 2 cos ω
    v = normal(2, 8)
    solved = operator.solve(v, -0.3)
    torch.testing.assert_close(operator.product(solved) - 0.3 * solved, v, rtol=1e-9, atol=1e-9)


def test_the_samples_share_one_matrix_per_frequency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a whole solve, forward and backward, the frequencies are inverted a few times, whatever the batch."""
    inverted = []
    real = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda m, **of: inverted.append(m.shape) or real(m, **of))
    counts = []
    for batch in (2, 20):
        inverted.clear()
        taps = kernel(4, 4, 3, 3).requires_grad_()
        energy = ib.QuadraticEnergy.from_operator(Convolution.gram(taps, (12, 14), margin=0.2))
        x = normal(batch, energy.features)
        ib.find_critical_point(energy, "softplus", x, solver="splitting").value.sum().backward()
        counts.append(len(inverted))
        assert {shape[1:] for shape in inverted} == {(4, 4)}
    assert counts[0] == counts[1] <= 8


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda k: Convolution(k[0], 4), ValueError, r"kernel must be .* got torch.float64 of shape \(2, 3, 3\)|"),
        (lambda k: Convolution(k[0, 0], 4), ValueError, r"kernel must be floating point .* of shape \(3, 3\)"),
        (lambda k: Convolution(k.long(), 4), ValueError, "torch.int64"),
        (lambda k: Convolution(k, 4, "reflect"), ValueError, "padding must be one of zeros, circular, got 'reflect'"),
        (
            lambda k: Convolution(k, (4, 0)),
            ValueError,
            r"size must be at least 1 in each of 2 dimensions, got \(4, 0\)",
        ),
        (lambda k: Convolution(k, (4, 4, 4)), ValueError, "each of 2 dimensions"),
        (lambda k: Convolution(k, 4.0), TypeError, "size must be a whole number"),
        (lambda k: Convolution(k, 4, stride=0), ValueError, "stride must be at least 1"),
        (lambda k: Convolution(k[:1], 4, symmetric=True), ValueError, "from 32 to 16 numbers is not symmetric"),
        (lambda k: Convolution.gram(k, 5, stride=2), ValueError, r"stride = 2 must divide the size \(5, 5\)"),
        (lambda k: Convolution.gram(k, 4, margin=-1.0), ValueError, "margin must not be negative, got -1.0"),
        (lambda k: Convolution.gram(k, 4, skew=k[:1]), ValueError, r"skew must have as many channels.*\(1, 2, 3, 3\)"),
        (lambda k: Convolution.gram(k, 4, skew=k, stride=2), ValueError, "none with a stride"),
        (
            lambda k: ib.QuadraticEnergy.from_operator(Convolution(k[:1], 4)),
            ValueError,
            r"shape \(16, 32\), and an H must be square: use Convolution.gram",
        ),
        (
            lambda k: Blocks([[Convolution(k, 4), Convolution(k[:1], 4)], [None, Convolution(k, 4)]]),
            ValueError,
            r"blocks\[0\]\[1\] has shape \(16, 32\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(make: object, kind: type[Exception], message: str) -> None:
    if message.endswith("|"):
        pytest.skip("a kernel of one dimension")
    with pytest.raises(kind, match=message):
        make(kernel(2, 2, 3, 3))


@pytest.mark.parametrize("gamma", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("padding", ["zeros", "circular"])
@pytest.mark.parametrize(("k", "size"), [(3, (3, 5)), (2, (4, 3))])
def test_equilibria_of_a_wide_one_are_those_of_its_matrix(
    k: int, size: tuple[int, int], padding: str, gamma: float
) -> None:
    """Values, gradients and statuses, to 1e-10."""
    for geometry, solver in itertools.product(("softplus", "tanh"), ("auto", "splitting")):
        results = []
        for dense in (False, True):
            taps = kernel(3, 2, k, k, size=1.0).requires_grad_()
            operator = Convolution.gram(taps, size, padding, margin=0.1)
            x = normal(6, operator.size, seed=2).requires_grad_()
            energy = ib.QuadraticEnergy.from_operator(ib.operators.Dense(operator.dense()) if dense else operator)
            found = ib.find_critical_point(energy, geometry, x, None, gamma, "auto" if dense else solver)
            gradients = torch.autograd.grad(found.value, [x, taps], normal(6, operator.size, seed=3))
            results.append((found.status, found.value.detach(), *gradients))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("gamma", [0.0, 0.1])
@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_an_empty_batch(padding: str, gamma: float) -> None:
    kernel = (0.3 * torch.randn(2, 2, 3, 3)).requires_grad_()
    energy = ib.QuadraticEnergy.from_operator(ib.operators.Convolution.gram(kernel, (5, 4), padding, margin=0.5))
    found = ib.find_critical_point(energy, "tanh", torch.zeros(0, 40), regularization=gamma)
    found.value.sum().backward()
    assert found.value.shape == (0, 40)
    assert kernel.grad is not None
    assert (kernel.grad == 0).all()
