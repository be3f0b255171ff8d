"""Parametrizations of the weight W of a quadratic energy."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from implicit_bregman.energy.contract import BoundEnergy
from implicit_bregman.linalg.spectrum import Spectrum

#: The kinds of W, by name.
WEIGHTS = ("convex", "symmetric", "monotone", "general", "low_rank")


def present_name(weight: str) -> str:
    """The name of a kind of W today: "free", which stays for one release, is "general"; any other as it is."""
    return "general" if weight == "free" else weight


class Weight(nn.Module):
    """A parametrization of W. Called, it returns W, or V where W = −VVᵀ.

    What it computes from half-precision parameters is computed, and returned, in float32.

    Attributes:
        symmetric: whether W is symmetric by construction; None: W has to be looked at.
        given: whether somebody else owns what it is made of.
        low_rank: whether W = −VVᵀ, and Ux + b stands for β.
        named: the parametrizations that are added from outside this file, by name (`name=` of the class).
    """

    symmetric: bool | None
    given: bool = False
    low_rank: bool = False
    named: ClassVar[dict[str, type[Weight]]] = {}

    def __init_subclass__(cls, name: str | None = None) -> None:
        if name is not None:
            Weight.named[name] = cls

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""

    def dense(self) -> Float[Tensor, "d d"]:
        """W itself."""
        weight: Tensor = self()
        return weight

    def offset(self, inner: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch d"]:
        """c, for what `affine` gives."""
        return inner

    def affine(self, x: Float[Tensor, "*batch n"], u: Tensor | None, b: Tensor | None) -> Float[Tensor, "*batch r"]:
        """Ux + b, where None stands for the identity and for 0."""
        return affine(x, u, b)

    def spectrum(self) -> Spectrum | None:
        """The ends of the spectrum of −W, where they are found without W; else None."""
        return None

    def bind(self, x: Float[Tensor, "batch n"], inner: Callable[[Tensor], Tensor]) -> BoundEnergy | None:
        """The energy at the input x where it is not that of a matrix W; else None.

        Args:
            x: the input.
            inner: x ↦ what `affine` gives, hooks and all.
        """
        return None


class ConvexWeight(Weight):
    """W = −(P Pᵀ + margin·I), negative definite by construction.

    Args:
        features: d.
        margin: the least eigenvalue that −W can have.
    """

    symmetric = True

    def __init__(
        self, features: int, margin: float, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.margin = checked_margin(margin)
        self.factor = nn.Parameter(torch.empty(features, features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """−W ≈ 0.5·I: well conditioned, within reach of every geometry's step τ = 1."""
        with torch.no_grad():
            self.factor.normal_(std=0.1 * self.factor.shape[0] ** -0.5)
            self.factor.diagonal().add_(max(0.5 - self.margin, 0.0) ** 0.5)

    def forward(self) -> Float[Tensor, "d d"]:
        """W, (d, d)."""
        return -_gram(at_least_single(self.factor), self.margin)


class SymmetricWeight(Weight):
    """W = (P + Pᵀ)/2: symmetric, possibly indefinite."""

    symmetric = True

    def __init__(self, features: int, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.entries = nn.Parameter(torch.empty(features, features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """−0.5·I and noise small enough that W starts negative definite."""
        _negative_with_noise(self.entries)

    def forward(self) -> Float[Tensor, "d d"]:
        """W, (d, d)."""
        entries = at_least_single(self.entries)
        return 0.5 * (entries + entries.mT)


class MonotoneWeight(Weight):
    """W = −(margin·I + AᵀA + Bᵀ − B): the symmetric part of −W is positive definite by construction.

    This is the parametrization of monDEQ (Winston and Kolter, "Monotone operator equilibrium networks", 2020), whose
    own W is I plus this one. It is symmetric, and there is an objective, where B is.

    Args:
        features: d.
        margin: the least eigenvalue that the symmetric part of −W can have; m in monDEQ.
    """

    symmetric = None

    def __init__(
        self, features: int, margin: float, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.margin = checked_margin(margin)
        self.factor = nn.Parameter(torch.empty(features, features, device=device, dtype=dtype))
        self.skew = nn.Parameter(torch.empty(features, features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A and B as monDEQ starts them: uniform between ±1/√d, as the matrices of `torch.nn.Linear`."""
        reach = self.factor.shape[0] ** -0.5
        for entries in (self.factor, self.skew):
            nn.init.uniform_(entries, -reach, reach)

    def forward(self) -> Float[Tensor, "d d"]:
        """W, (d, d)."""
        skew = at_least_single(self.skew)
        return skew - skew.mT - _gram(at_least_single(self.factor).mT, self.margin)


class GeneralWeight(Weight):
    """W = P, any matrix: equilibria exist, an objective does not."""

    symmetric = False

    def __init__(self, features: int, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.entries = nn.Parameter(torch.empty(features, features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """−0.5·I and noise small enough that W starts monotone."""
        _negative_with_noise(self.entries)

    def forward(self) -> Float[Tensor, "d d"]:
        """W, (d, d)."""
        return self.entries


#: The name of `GeneralWeight` in layers that were pickled before.
FreeWeight = GeneralWeight


class GivenWeight(Weight):
    """A matrix that somebody else owns; gradients flow to it.

    Training, a state dict or a mask may change it at any time, and whether it is symmetric. There is no
    distribution to draw it from: `reset_parameters` leaves it alone.
    """

    symmetric = None
    given = True
    matrix: Tensor

    def __init__(self, matrix: Float[Tensor, "d d"]) -> None:
        super().__init__()
        hold(self, "matrix", matrix)

    def forward(self) -> Float[Tensor, "d d"]:
        """W, (d, d)."""
        return self.matrix


def affine(x: Tensor, u: Tensor | None, b: Tensor | None) -> Tensor:
    """Ux + b, where None stands for the identity and for 0."""
    if u is not None:
        return nn.functional.linear(x, u, b)
    return x if b is None else x + b


def check_shared(name: str, matrix: Tensor) -> Tensor:
    """A matrix that is one for all samples.

    Raises:
        ValueError: for a batch of matrices.
    """
    if matrix.dim() > 2:
        raise ValueError(
            f"{name} must be one matrix for all samples, got shape {tuple(matrix.shape)}: of one matrix per "
            "sample make the energy by from_matrices, or use torch.func.vmap"
        )
    return matrix


def at_least_single(tensor: Tensor) -> Tensor:
    """A half-precision tensor in float32, any other as it is."""
    return tensor.float() if tensor.dtype.itemsize == 2 else tensor


def hold(module: nn.Module, name: str, tensor: Tensor | None) -> None:
    """Register a tensor given by the user: a parameter as a parameter, anything else as a buffer."""
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
    else:
        module.register_buffer(name, tensor)


def checked_margin(margin: float) -> float:
    """A margin that may be one.

    Raises:
        ValueError: for one that is not positive.
    """
    if not margin > 0:
        raise ValueError(f"margin must be positive, got {margin}: it bounds -W away from 0")
    return float(margin)


def _gram(factor: Tensor, margin: float) -> Float[Tensor, "d d"]:
    """P Pᵀ + margin·I."""
    product = factor @ factor.mT
    # Some matrix products round P Pᵀ to a matrix that is not quite symmetric.
    gram = 0.5 * (product + product.mT)
    return gram + margin * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)


def _negative_with_noise(entries: nn.Parameter) -> None:
    with torch.no_grad():
        entries.normal_(std=0.1 * entries.shape[0] ** -0.5)
        entries.diagonal().sub_(0.5)
