"""Parametrizations of the weight W of a quadratic energy."""

from __future__ import annotations

import numbers

import torch
from jaxtyping import Float
from torch import Tensor, nn

from implicit_bregman.settings import check_positive, is_number

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
    """

    symmetric: bool | None

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""


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
        self.margin = _checked_margin(margin)
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
        self.margin = _checked_margin(margin)
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


class LowRankWeight(Weight):
    """W = −V Vᵀ, of rank r at most: the weight of f = ½‖Vᵀz − β‖².

    Args:
        features: d.
        rank: r, the number of columns of V.
        softening: what the energy's `softening` is.
    """

    symmetric = True

    def __init__(
        self,
        features: int,
        rank: int | None,
        softening: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        if rank is None or not is_number(rank, numbers.Integral) or not 1 <= rank <= features:
            raise ValueError(
                f'weight="low_rank" needs rank, the number of columns of V: a whole number from 1 to features = '
                f"{features}, got {rank!r}"
            )
        check_positive("softening", softening)
        self.rank = int(rank)
        self.softening = float(softening)
        self.vectors = nn.Parameter(torch.empty(features, self.rank, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Orthonormal columns: every system Vᵀz = β is then well conditioned, and the step τ = 1 within reach."""
        with torch.no_grad():
            wide = self.vectors.to(torch.promote_types(self.vectors.dtype, torch.float32))  # no QR in half precision
            self.vectors.copy_(torch.linalg.qr(torch.randn_like(wide)).Q)

    def forward(self) -> Float[Tensor, "d r"]:
        """V, (d, r)."""
        return self.vectors

    def extra_repr(self) -> str:
        """Sizes and softening, for `print(module)`."""
        return f"features={self.vectors.shape[0]}, rank={self.rank}, softening={self.softening:g}"


#: The name of `GeneralWeight` in layers that were pickled before.
FreeWeight = GeneralWeight


class GivenWeight(Weight):
    """A matrix that somebody else owns; gradients flow to it.

    Training, a state dict or a mask may change it at any time, and whether it is symmetric. There is no
    distribution to draw it from: `reset_parameters` leaves it alone.
    """

    symmetric = None
    matrix: Tensor

    def __init__(self, matrix: Float[Tensor, "d d"]) -> None:
        super().__init__()
        hold(self, "matrix", matrix)

    def forward(self) -> Float[Tensor, "d d"]:
        """W, (d, d)."""
        return self.matrix


def at_least_single(tensor: Tensor) -> Tensor:
    """A half-precision tensor in float32, any other as it is."""
    return tensor.float() if tensor.dtype.itemsize == 2 else tensor


def hold(module: nn.Module, name: str, tensor: Tensor | None) -> None:
    """Register a tensor given by the user: a parameter as a parameter, anything else as a buffer."""
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
    else:
        module.register_buffer(name, tensor)


def _checked_margin(margin: float) -> float:
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
