"""The quadratic energy f_θ(z; x) = −½ zᵀWz − (Ux + b)ᵀz, whose MM step is the paper's Bregman layer (eq. 20)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from implicit_bregman.energy.base import Energy
from implicit_bregman.energy.bound import BoundQuadratic
from implicit_bregman.energy.contract import BoundEnergy
from implicit_bregman.energy.weights import (
    WEIGHTS,
    ConvexWeight,
    GeneralWeight,
    GivenWeight,
    MonotoneWeight,
    SymmetricWeight,
    Weight,
    at_least_single,
    check_shared,
    hold,
    present_name,
)
from implicit_bregman.linalg.spectrum import Spectrum
from implicit_bregman.operators import LinearOperator, Stacked
from implicit_bregman.operators.dense import Dense, is_symmetric
from implicit_bregman.tensors import check_dense, check_numbers
from implicit_bregman.transforms import numbers


class QuadraticEnergy(Energy):
    """f_θ(z; x) = −½ zᵀWz − (Ux + b)ᵀz.

    Its MM step with γ = 0 and τ = 1 is the weight-tied Bregman layer z⁺ = ρ(ρ⁻¹(z) + Wz + Ux + b) of the paper
    (Definition 4.3).

    With `weight="low_rank"`, W = −VVᵀ with V of r columns and Ux + b stands for β, (r,): up to a constant

        f_θ(z; x) = ½‖Vᵀz − β(x)‖²,    β(x) = Ux + b,    c = Vβ(x),

    with U (r, n) and b (r,). For γ = 0 the critical point, the limit of MM from z⁰, is then the *Bregman projection*
    of z⁰ onto {z : Vᵀz = β}, that is, the point of {Vᵀz = β} that minimises D_φ(z, z⁰). Where no z in C solves the
    system (softened form) it is the minimiser of D_φ(z, z⁰) + ‖Vᵀz − β‖²/(2ε) with ε = softening · ‖V‖²/r, and the
    sample has the status INFEASIBLE. For γ > 0 it is the one minimiser of f + γφ, whatever z⁰.

    As a module it is called once per solve, with x alone, and returns c = Ux + b (β(x) for a low-rank weight); hooks
    see this x and this output. Pruning and weight normalization of `input_weight`, `bias` and the parameters of
    `weight_map` work as they do on `torch.nn.Linear`. Called with (z, x) it returns f(z; x).

    Args:
        features: d, the width of z.
        in_features: n, the width of x; default d.
        weight: "convex" (W ≺ 0 by construction: one critical point), "symmetric" (indefinite allowed: there may
            be several), "monotone" (−W = margin·I + AᵀA + Bᵀ − B as in monDEQ: one equilibrium, but no objective
            unless B is symmetric), "general" (any W: equilibria, but no objective, because a common objective of all
            steps forces W to be symmetric; "free" is its former name) or "low_rank" (W = −VVᵀ, see above).
        bias: whether to learn b.
        margin: for "convex" and "monotone", the least eigenvalue that −W, or its symmetric part, can have. It bounds
            the condition number.
        rank: for "low_rank", r, the number of equations Vᵀz = β.
        softening: for "low_rank", the ε of infeasible systems relative to ‖V‖²/r (Frobenius norm), the mean square
            of V's singular values. Default 1e-3.
        device: where the parameters are made.
        dtype: in which precision the parameters are made.

    Raises:
        ValueError: for an unknown `weight`, widths below 1, a margin or a softening that is not positive, a `rank`
            that does not fit, or `rank` or `softening` without `weight="low_rank"`.
    """

    features: int
    input_weight: Tensor | None
    bias: Tensor | None
    in_features: int | None
    takes_half = True
    _held: _Held | None = None

    def __init__(
        self,
        features: int,
        in_features: int | None = None,
        weight: str = "convex",
        *,
        bias: bool = True,
        margin: float = 0.1,
        rank: int | None = None,
        softening: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if isinstance(features, (tuple, list)):
            raise TypeError(
                f"features of a QuadraticEnergy must be a whole number, got {features}: flatten the states, or "
                "subclass Energy"
            )
        weight = present_name(weight)
        super().__init__(features, convex=weight in ("convex", "low_rank"))
        n = features if in_features is None else in_features
        if n < 1:
            raise ValueError(f"in_features must be at least 1, got {n}")
        self.in_features = n
        if weight == "convex":
            self.weight_map: Weight = ConvexWeight(features, margin, device, dtype)
        elif weight == "symmetric":
            self.weight_map = SymmetricWeight(features, device, dtype)
        elif weight == "monotone":
            self.weight_map = MonotoneWeight(features, margin, device, dtype)
        elif weight == "general":
            self.weight_map = GeneralWeight(features, device, dtype)
        elif weight == "low_rank":
            self.weight_map = Weight.named[weight](features, rank, softening, device, dtype)
        else:
            raise ValueError(f"weight must be one of {', '.join(WEIGHTS)}, got {weight!r}")
        _refuse_unless_low_rank(weight, rank=rank, softening=softening)
        rows = features if rank is None else int(rank)
        hold(self, "input_weight", nn.Parameter(torch.empty(rows, n, device=device, dtype=dtype)))
        hold(self, "bias", nn.Parameter(torch.empty(rows, device=device, dtype=dtype)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw U anew, and set b to 0; W is reset by `weight_map`. Given matrices stay as they are."""
        if self.weight_map.given:
            return
        # Half as wide for β: a system with a random right-hand side should have a solution in C at the start.
        if self.input_weight is not None:
            reach = (0.5 if self.low_rank else 1.0) * self.input_weight.shape[1] ** -0.5
            nn.init.uniform_(self.input_weight, -reach, reach)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @classmethod
    def from_matrices(
        cls,
        W: Float[Tensor, "d d"] | Float[Tensor, "batch d d"],
        U: Float[Tensor, "d n"] | None = None,
        b: Float[Tensor, " d"] | None = None,
        *,
        convex: bool = False,
    ) -> QuadraticEnergy:
        """The energy of given matrices; gradients flow to the tensors given.

        Whether W is symmetric is judged at every call. dL/dW is the derivative with respect to d² independent
        entries and not symmetric, so that after one step of an optimizer on W itself there is an equilibrium problem
        and no objective any more. To stay within the symmetric matrices use `QuadraticEnergy(d, weight="symmetric")`,
        or make the energy in each forward pass from a symmetric function of what is learned:
        `from_matrices(0.5 * (P + P.T))`.

        Args:
            W: (d, d). Where it is not symmetric (up to rounding) the energy is "general". Or one matrix for each
                sample, (B, d, d), in the order of the flattened batch of x; "general" where one is not symmetric.
            U: (d, n). None: the identity, so that x is added as it is.
            b: (d,). None: no offset.
            convex: state that W ⪯ 0. That is found without it up to 16 rounding errors of the largest eigenvalue; with
                it a W that was computed in a rounder way counts as convex as well.

        Raises:
            TypeError: if something is not a floating-point tensor.
            ValueError: if shapes, dtypes, layouts or devices do not fit, an entry is not finite, or W is declared
                convex and is not symmetric or has an eigenvalue that is positive beyond rounding. (The last is judged
                again whenever a solve depends on it.)
        """
        _check_matrices(W, U, b)
        if W.dim() == 3:
            from implicit_bregman.energy.structured import Affine

            offset = None if U is None and b is None else Affine(U, b)
            return cls.from_operator(Stacked(-W), offset, convex=convex)
        energy = cls.__new__(cls)
        Energy.__init__(energy, W.shape[0])
        energy.in_features = W.shape[0] if U is None else U.shape[1]
        energy.weight_map = GivenWeight(W)
        hold(energy, "input_weight", U)
        hold(energy, "bias", b)
        if convex:
            energy._declare_convex()
        return energy

    @classmethod
    def from_operator(
        cls, operator: LinearOperator, offset: nn.Module | None = None, *, convex: bool = False
    ) -> QuadraticEnergy:
        """f(z; x) = ½⟨z, Hz⟩ − ⟨c(x), z⟩ with any `LinearOperator` H; gradients flow to the tensors it is made of.

        Without symmetry there is no f, and what is solved is Hz − c(x) + γ∇φ(z) = 0 on C.

        Args:
            operator: H, such as `ib.operators.Kronecker(A, B)`. A d × d matrix is made of it only where it
                `fits_a_matrix` (up to d = 512) and is not symmetric, or its bounds do not prove that it is positive
                definite.
            offset: a module that maps x to c, (B, d); None: c = x.
            convex: where H is a matrix or one is made of it, as in `from_matrices`. Else state that H is positive
                definite, where the bounds of its spectrum do not prove it: there is one critical point then.

        Raises:
            TypeError: if one of the two is of another kind.
            ValueError: if H cannot be convex as declared.
        """
        from implicit_bregman.energy.structured import OperatorEnergy  # which is a QuadraticEnergy

        return OperatorEnergy(operator, offset, convex)

    @property
    def has_matrix(self) -> bool:
        return not self.low_rank

    def matrix_to_trace(self) -> tuple[Float[Tensor, "d d"], tuple[int, float, bool]]:
        """H, and what is known of it: whether it is symmetric (1, 0, or -1: not known), λ_min or NaN, and convex."""
        weight, known = check_shared("W", self.weight_map()), self.weight_map.symmetric
        least = getattr(self.weight_map, "margin", None)
        of = -1 if known is None else int(known), math.nan if least is None else least, self.convex
        return -at_least_single(weight), of

    @property
    def input_width(self) -> int | None:
        return self.in_features

    def _declare_convex(self) -> None:
        if not self.symmetric:
            raise ValueError("convex=True needs a symmetric W: without symmetry there is no objective to be convex")
        self.convex = True
        known = self._operator().factor
        if not known.is_definite():
            _ = known.semidefinite  # raises where it is not

    @property
    def weight(self) -> Float[Tensor, "d d"]:
        """W, (d, d), as a function of the parameters and in their precision; symmetric where there is an objective."""
        return self.weight_map.dense().to(_sources(self)[0].dtype)

    @property
    def symmetric(self) -> bool:
        """Whether W, as it is now, is symmetric, that is, whether there is an objective."""
        known = self.weight_map.symmetric
        return is_symmetric(self.weight_map()) if known is None else known

    @property
    def low_rank(self) -> bool:
        """Whether the weight is W = −VVᵀ with a V of its own."""
        return self.weight_map.low_rank

    def linear(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch d"]:
        """c = Ux + b, (B, d); for a low-rank weight c = Vβ(x)."""
        return self.weight_map.offset(self.weight_map.affine(x, self.input_weight, self.bias))

    def target(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch r"]:
        """β(x) = Ux + b of a low-rank weight, (B, r); b alone where there is no U.

        Raises:
            TypeError: for any other weight.
        """
        if not self.low_rank:
            raise TypeError('only a QuadraticEnergy with weight="low_rank" has a target: use linear(x)')
        return self.weight_map.affine(x, self.input_weight, self.bias)

    def forward(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """f(z; x), (B,), as `value`; of x alone, what a solver asks for once: c, (B, d), or β, (B, r).

        Half-precision U and b are then lifted to x's precision.
        """
        if x is not None:
            return self.value(z, x)
        x = z
        u, b = (None if t is None else t.to(x.dtype) for t in (self.input_weight, self.bias))
        if u is not None:
            check_shared("U", u)
        return self.weight_map.affine(x, u, b)

    def value(self, z: Float[Tensor, "*batch d"], x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
        """f(z; x), (B,).

        Raises:
            TypeError: for a weight without symmetry, which has no objective.
        """
        if not self.symmetric:
            raise TypeError(
                'a QuadraticEnergy with a non-symmetric weight has no value: use weight="symmetric" or "convex", '
                "or gradient(z, x), the field whose zero is the equilibrium"
            )
        return -(z * (0.5 * (z @ self.weight) + self.linear(x))).sum(-1)

    def gradient(self, z: Float[Tensor, "*batch d"], x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch d"]:
        """∇f(z; x) = −(Wz + Ux + b), (B, d); without symmetry the field with this formula."""
        return -(z @ self.weight.mT + self.linear(x))

    def hessian_product(
        self, z: Float[Tensor, "*batch d"], x: Tensor, v: Float[Tensor, "*batch d"]
    ) -> Float[Tensor, "*batch d"]:
        """∇²f v = −Wv, (B, d)."""
        return -(v @ self.weight.mT)

    def curvature_bound(self) -> Tensor:
        """λ_max(−W), exact; without symmetry the reciprocal of the cocoercivity constant (see `certify`)."""
        return self._spectrum().curvature

    def curvature_range(self) -> tuple[Tensor, Tensor]:
        """λ_min of −W (of its symmetric part) and the same bound as `curvature_bound`."""
        ends = self._spectrum()
        return ends.lowest, ends.curvature

    def shared_hessian(self) -> Float[Tensor, "d d"] | None:
        shared = None if self.low_rank else self._operator().shared
        return None if shared is None else shared.matrix

    def _spectrum(self) -> Spectrum:
        known = self.weight_map.spectrum()
        return self._operator().factor.spectrum if known is None else known

    def bind(self, x: Float[Tensor, "batch n"]) -> BoundEnergy:
        """This energy at the input x; half-precision parameters are lifted to float32 here."""
        bound = self.weight_map.bind(x, self)
        if bound is not None:
            return bound
        operator = self._held.operator(self) if self._held is not None else self._operator()
        return BoundQuadratic(operator, self(x.to(operator.dtype)))

    def _operator(self) -> Dense:
        """H = −W, at least float32."""
        weight, known = check_shared("W", self.weight_map()), self.weight_map.symmetric
        symmetric = is_symmetric(weight) if known is None else known
        least = getattr(self.weight_map, "margin", None)
        return Dense(-at_least_single(weight), symmetric, least, convex=self.convex)

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

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles are not frozen."""
        return {**self.__dict__, "_held": None}

    def extra_repr(self) -> str:
        """Widths and kind of weight, for `print(module)`."""
        return f"features={self.features}, in_features={self.in_features}, bias={self.bias is not None}"


class _Held:
    """The Hessian of an energy inside its `frozen` context."""

    def __init__(self, energy: QuadraticEnergy) -> None:
        self._operator = energy._operator()
        self._state = self._now(energy)

    def operator(self, energy: QuadraticEnergy) -> Dense:
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
        return self._operator

    @staticmethod
    def _now(energy: QuadraticEnergy) -> list[tuple[int, int]]:
        return [(tensor.data_ptr(), tensor._version) for tensor in _sources(energy)]


def _sources(energy: QuadraticEnergy) -> list[Tensor]:
    """The tensors that W is made from."""
    return [*energy.weight_map.parameters(), *energy.weight_map.buffers()]


def _refuse_unless_low_rank(weight: str, **settings: object) -> None:
    for name, value in settings.items():
        if value is not None and weight != "low_rank":
            raise ValueError(f'{name} = {value!r} has a meaning for weight="low_rank" only, got weight="{weight}"')


def _check_matrices(W: Tensor, U: Tensor | None, b: Tensor | None) -> None:
    for name, tensor in (("W", W), ("U", U), ("b", b)):
        if name == "W" or tensor is not None:
            check_dense(name, tensor)
    if W.dim() not in (2, 3) or W.shape[-1] != W.shape[-2] or W.shape[-1] == 0:
        raise ValueError(f"W must be a square matrix, or one for each sample, got shape {tuple(W.shape)}")
    d = W.shape[-1]
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
        check_numbers(name, tensor)
        if not bool(torch.isfinite(numbers(tensor)).all()):
            raise ValueError(f"{name} has NaN or infinite entries: check what it was computed from")
