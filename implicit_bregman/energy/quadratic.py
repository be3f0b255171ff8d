"""The quadratic energy f_θ(z; x) = −½ zᵀWz − (Ux + b)ᵀz, whose MM step is the paper's Bregman layer (eq. 20)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from implicit_bregman.energy.base import BoundEnergy, Energy, Evaluation, Hessian
from implicit_bregman.energy.weights import ConvexWeight, FreeWeight, GivenWeight, SymmetricWeight, hold
from implicit_bregman.linalg.shared import SharedMatrix
from implicit_bregman.linalg.spectrum import Spectrum, spectrum

WEIGHTS = ("convex", "symmetric", "free")


class QuadraticEnergy(Energy):
    """f_θ(z; x) = −½ zᵀWz − (Ux + b)ᵀz.

    Its MM step with γ = 0 and τ = 1 is the weight-tied Bregman layer z⁺ = ρ(ρ⁻¹(z) + Wz + Ux + b) of the paper
    (Definition 4.3).

    Args:
        features: d, the width of z.
        in_features: n, the width of x; default d.
        weight: "convex" (W ≺ 0 by construction: one critical point), "symmetric" (indefinite allowed: there may
            be several) or "free" (any W: equilibria, but no objective, because a common objective of all steps
            forces W to be symmetric).
        bias: whether to learn b.
        margin: for "convex", the least eigenvalue that −W can have. It bounds the condition number.
        device: where the parameters are made.
        dtype: in which precision the parameters are made.

    Raises:
        ValueError: for an unknown `weight`, widths below 1 or a margin that is not positive.
    """

    input_weight: Tensor | None
    bias: Tensor | None
    _held: _Held | None = None

    def __init__(
        self,
        features: int,
        in_features: int | None = None,
        weight: str = "convex",
        *,
        bias: bool = True,
        margin: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(features, convex=weight == "convex")
        n = features if in_features is None else in_features
        if n < 1:
            raise ValueError(f"in_features must be at least 1, got {n}")
        self.in_features = n
        if weight == "convex":
            self.weight_map: nn.Module = ConvexWeight(features, margin, device, dtype)
        elif weight == "symmetric":
            self.weight_map = SymmetricWeight(features, device, dtype)
        elif weight == "free":
            self.weight_map = FreeWeight(features, device, dtype)
        else:
            raise ValueError(f"weight must be one of {', '.join(WEIGHTS)}, got {weight!r}")
        entries = nn.Parameter(torch.empty(features, n, device=device, dtype=dtype))
        nn.init.uniform_(entries, -1 / math.sqrt(n), 1 / math.sqrt(n))
        hold(self, "input_weight", entries)
        hold(self, "bias", nn.Parameter(torch.zeros(features, device=device, dtype=dtype)) if bias else None)

    @classmethod
    def from_matrices(
        cls,
        W: Float[Tensor, "d d"],
        U: Float[Tensor, "d n"] | None = None,
        b: Float[Tensor, " d"] | None = None,
    ) -> QuadraticEnergy:
        """The energy of given matrices; gradients flow to the tensors given.

        Args:
            W: (d, d). Where it is not symmetric (up to rounding) the energy is "free".
            U: (d, n). None: the identity, so that x is added as it is.
            b: (d,). None: no offset.

        Raises:
            TypeError: if a tensor is not floating point.
            ValueError: if shapes, dtypes or devices do not fit, or an entry is not finite.
        """
        _check_matrices(W, U, b)
        energy = cls.__new__(cls)
        Energy.__init__(energy, W.shape[0])
        energy.in_features = W.shape[0] if U is None else U.shape[1]
        energy.weight_map = GivenWeight(W)
        hold(energy, "input_weight", U)
        hold(energy, "bias", b)
        return energy

    @property
    def weight(self) -> Float[Tensor, "d d"]:
        """W, (d, d), as a function of the parameters; symmetric unless the energy is "free"."""
        matrix: Tensor = self.weight_map()
        return matrix

    @property
    def symmetric(self) -> bool:
        """Whether W is symmetric, that is, whether there is an objective."""
        return bool(self.weight_map.symmetric)

    def linear(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch d"]:
        """c = Ux + b, (B, d)."""
        return _affine(x, self.input_weight, self.bias)

    def value(self, z: Float[Tensor, "*batch d"], x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
        """f(z; x), (B,).

        Raises:
            TypeError: for a "free" weight, which has no objective.
        """
        if not self.symmetric:
            raise TypeError(
                'a QuadraticEnergy with a non-symmetric weight has no value: use weight="symmetric" or "convex", '
                "or gradient(z, x), the field whose zero is the equilibrium"
            )
        return -(z * (0.5 * (z @ self.weight) + self.linear(x))).sum(-1)

    def gradient(self, z: Float[Tensor, "*batch d"], x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch d"]:
        """∇f(z; x) = −(Wz + Ux + b), (B, d); for a "free" weight the field with this formula."""
        return -(z @ self.weight.mT + self.linear(x))

    def hessian_product(
        self, z: Float[Tensor, "*batch d"], x: Tensor, v: Float[Tensor, "*batch d"]
    ) -> Float[Tensor, "*batch d"]:
        """∇²f v = −Wv, (B, d)."""
        return -(v @ self.weight.mT)

    def curvature_bound(self) -> Tensor:
        """λ_max(−W), exact; for a "free" weight the reciprocal of the cocoercivity constant (see `certify`)."""
        return self._spectrum().curvature

    def curvature_range(self) -> tuple[Tensor, Tensor]:
        """λ_min of −W (of its symmetric part) and the same bound as `curvature_bound`."""
        ends = self._spectrum()
        return ends.lowest, ends.curvature

    def _spectrum(self) -> Spectrum:
        weight = self.weight.detach()
        return spectrum(-(weight.float() if weight.dtype.itemsize == 2 else weight), self.symmetric)

    def bind(self, x: Float[Tensor, "batch n"]) -> BoundEnergy:
        """This energy at the input x; half-precision parameters are lifted to float32 here."""
        weight, shared = self._held.matrices(self) if self._held is not None else self._matrices()
        if x.dtype == weight.dtype and self.bias is None and self.input_weight is None:
            return BoundQuadratic(weight, x, shared)
        u, b = (None if p is None else p.to(weight.dtype) for p in (self.input_weight, self.bias))
        return BoundQuadratic(weight, _affine(x.to(weight.dtype), u, b), shared)

    def _matrices(self) -> tuple[Tensor, SharedMatrix]:
        """W with its gradient, at least float32, and −W without."""
        weight = self.weight
        if weight.dtype.itemsize == 2:
            weight = weight.float()
        return weight, SharedMatrix(weight, self.symmetric, getattr(self.weight_map, "margin", None))

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """W, its spectrum, its factor and its inverse are kept over the calls made inside this context.

        For inference: it saves the factorization from the second call on. Gradients flow to x, U and b, not to W, so
        that W must not need one.

        Raises:
            RuntimeError: (in a call) if W needs a gradient, or has been changed inside the context. A change that
                bypasses autograd's version counter, as fused optimizers make it, is not noticed.
        """
        if self._held is not None:
            yield
            return
        with torch.no_grad():
            self._held = _Held(self)
        try:
            yield
        finally:
            self._held = None

    def extra_repr(self) -> str:
        """Widths and kind of weight, for `print(module)`."""
        return f"features={self.features}, in_features={self.in_features}, bias={self.bias is not None}"


class _Held:
    """W and −W of an energy inside its `frozen` context."""

    def __init__(self, energy: QuadraticEnergy) -> None:
        self._weight, self._shared = energy._matrices()
        self._state = self._now(energy)

    def matrices(self, energy: QuadraticEnergy) -> tuple[Tensor, SharedMatrix]:
        """What is held, after checking that it is still the energy's.

        Raises:
            RuntimeError: if it is not, or W needs a gradient.
        """
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in _sources(energy)):
            raise RuntimeError(
                "inside frozen() the weight has no gradient: use torch.no_grad(), or requires_grad_(False) on it"
            )
        if self._now(energy) != self._state:
            raise RuntimeError("the weight was changed inside frozen(): leave the context before you change it")
        return self._weight, self._shared

    @staticmethod
    def _now(energy: QuadraticEnergy) -> list[tuple[int, int]]:
        return [(tensor.data_ptr(), tensor._version) for tensor in _sources(energy)]


def _sources(energy: QuadraticEnergy) -> list[Tensor]:
    """The tensors that W is made from."""
    return [*energy.weight_map.parameters(), *energy.weight_map.buffers()]


class BoundQuadratic(BoundEnergy):
    """f(z) = −½ zᵀWz − cᵀz for a batch of offsets c, (B, d), and one shared W.

    Args:
        weight: W, with its gradient.
        offset: c, (B, d).
        shared: −W without gradient, and what has been computed of it.
        ends: the matrix whose spectrum counts, where it is not `shared`: a float64 twin does not compute its own.
    """

    affine = True
    shared: SharedMatrix

    def __init__(self, weight: Tensor, offset: Tensor, shared: SharedMatrix, ends: SharedMatrix | None = None) -> None:
        self.weight = weight
        self.offset = offset
        self.dtype = offset.dtype
        self.shared = shared
        self.symmetric = shared.symmetric
        self._ends = shared if ends is None else ends

    @property
    def curvature(self) -> Tensor:
        return self._ends.spectrum.curvature

    @property
    def lowest(self) -> Tensor:
        return self._ends.spectrum.lowest

    @property
    def gradient_step(self) -> float:
        """A length at which a gradient step neither overshoots nor creeps, about 1/λ_max: for guesses."""
        return self._ends.gradient_step

    def evaluate(self, z: Float[Tensor, "batch d"]) -> Evaluation:
        with torch.no_grad():
            product = z @ self.weight.mT
            gradient = -(product + self.offset)
            value = 0.5 * (z * (gradient - self.offset)).sum(-1) if self.symmetric else None
            scale = 1 + torch.maximum(product.abs().amax(-1), self.offset.abs().amax(-1))
        return Evaluation(value, gradient, scale)

    def gradient(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        return -(z @ self.weight.mT + self.offset)

    def hessian(self, z: Float[Tensor, "batch d"]) -> Hessian:
        return SharedHessian(self.shared)

    def is_strictly_convex(self, curvature: float, strictly: bool) -> bool:
        return self._ends.is_definite(curvature, strictly)

    def double(self) -> BoundQuadratic:
        wide = self.shared.wide
        return BoundQuadratic(wide.weight, self.offset.detach().double(), wide, self._ends)

    def select(self, index: Int[Tensor, " kept"]) -> BoundQuadratic:
        return BoundQuadratic(self.weight, self.offset[index], self.shared, self._ends)


class SharedHessian(Hessian):
    """−W, the same for all samples."""

    shared: SharedMatrix

    def __init__(self, shared: SharedMatrix) -> None:
        self.shared = shared
        self.symmetric = shared.symmetric

    def product(self, v: Tensor, transpose: bool = False) -> Tensor:
        return self.shared.product(v, transpose)

    def pack(self) -> tuple[tuple[Tensor, ...], Callable[..., Hessian]]:
        shared = self.shared
        rebuild = partial(_rebuild, symmetric=shared.symmetric, least=shared.least)
        known = shared.known_inverse
        return ((shared.weight,) if known is None else (shared.weight, known)), rebuild

    def select(self, index: Tensor) -> Hessian:
        return self


def _rebuild(weight: Tensor, inverse: Tensor | None = None, *, symmetric: bool, least: float | None) -> SharedHessian:
    return SharedHessian(SharedMatrix(weight, symmetric, least, inverse))


def _affine(x: Tensor, u: Tensor | None, b: Tensor | None) -> Tensor:
    """Ux + b, where None stands for the identity and for 0."""
    if u is not None:
        return nn.functional.linear(x, u, b)
    return x if b is None else x + b


def _check_matrices(W: Tensor, U: Tensor | None, b: Tensor | None) -> None:
    if W.dim() != 2 or W.shape[0] != W.shape[1] or W.shape[0] == 0:
        raise ValueError(f"W must be a square matrix, got shape {tuple(W.shape)}")
    d = W.shape[0]
    if U is not None and (U.dim() != 2 or U.shape[0] != d):
        raise ValueError(f"U must have shape ({d}, n) to go with W, got {tuple(U.shape)}")
    if b is not None and b.shape != (d,):
        raise ValueError(f"b must have shape ({d},) to go with W, got {tuple(b.shape)}")
    for name, tensor in (("W", W), ("U", U), ("b", b)):
        if tensor is None:
            continue
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {tensor.dtype}: call .float() or .double()")
        if tensor.dtype != W.dtype or tensor.device != W.device:
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}, but W is {W.dtype} on {W.device}: convert one of them"
            )
        if not bool(torch.isfinite(tensor.detach()).all()):
            raise ValueError(f"{name} has NaN or infinite entries: check what it was computed from")
