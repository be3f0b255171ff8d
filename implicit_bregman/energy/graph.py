"""The energy of features on the nodes of a graph."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from implicit_bregman.energy.base import Energy
from implicit_bregman.energy.contract import BoundEnergy
from implicit_bregman.energy.inputs import Inputs
from implicit_bregman.energy.quadratic import QuadraticEnergy
from implicit_bregman.energy.weights import affine
from implicit_bregman.operators import Kronecker, Sparse
from implicit_bregman.settings import check_count, check_positive

#: λ_max(H) of a new energy is about this, as of a new `QuadraticEnergy`: within reach of every geometry's step τ = 1.
_LARGEST = 0.5


class GraphEnergy(Energy):
    """f(Z; X, L) = ½⟨Z, margin·Z + L Z F⟩ − ⟨XUᵀ + b, Z⟩ of node features Z, (N, d), with F = PPᵀ ⪰ 0.

    L is the symmetric normalized Laplacian of a graph. With ⟨Z, LZF⟩ = ½ Σ_ij A_ij ‖Pᵀ(z_i/√d_i − z_j/√d_j)‖² the
    energy asks neighbours for like features, P learns in which directions and how strongly. It is convex whatever the
    graph: there is one critical point.

    Args:
        features: d, the width of a node's representation.
        in_features: n, the width of its input.
        bias: whether to learn b.
        margin: the least eigenvalue of the Hessian.
        device: where the parameters are made.
        dtype: in which precision the parameters are made.

    Attributes:
        factor: P, (d, d).
        input_weight: U, (d, n).
        bias: b, (d,), or None.

    Raises:
        ValueError: for widths below 1, or a margin that is not positive.
    """

    features: int
    bias: nn.Parameter | None

    def __init__(
        self,
        features: int,
        in_features: int,
        *,
        bias: bool = True,
        margin: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_count("features", features)
        check_count("in_features", in_features)
        super().__init__(features, convex=True)
        self.in_features = in_features
        check_positive("margin", margin)
        self.margin = float(margin)
        self.factor = nn.Parameter(torch.empty(features, features, device=device, dtype=dtype))
        self.input_weight = nn.Parameter(torch.empty(features, in_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(features, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew: F ≈ a multiple of I, U as `torch.nn.Linear` has it, b = 0."""
        reach = self.in_features**-0.5
        with torch.no_grad():
            self.factor.normal_(std=0.1 * self.features**-0.5)
            self.factor.diagonal().add_(max(0.5 * (_LARGEST - self.margin), 0.1 * self.margin) ** 0.5)
            self.input_weight.uniform_(-reach, reach)
            if self.bias is not None:
                self.bias.zero_()

    @property
    def coupling(self) -> Float[Tensor, "d d"]:
        """F."""
        return self.factor @ self.factor.mT

    def linear(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch d"]:
        """XUᵀ + b."""
        return affine(x, self.input_weight, self.bias)

    def forward(self, z: Tensor, x: Inputs | None = None) -> Tensor:
        """Of x alone XUᵀ + b: what the layer asks for once in a call, so that hooks run."""
        return self.linear(z) if x is None else self.value(z, x)

    def on(self, laplacian: Sparse) -> QuadraticEnergy:
        """The energy on a graph, of Z row by row, (B, N d); its input is XUᵀ + b in the same form."""
        return QuadraticEnergy.from_operator(Kronecker(laplacian, self.coupling, symmetric=True, shift=self.margin))

    def value(self, z: Tensor, x: Inputs) -> Tensor:
        raise TypeError(_NEEDS_A_GRAPH)

    def bind(self, x: Inputs) -> BoundEnergy:
        raise TypeError(_NEEDS_A_GRAPH)

    def curvature_range(self) -> tuple[Tensor, Tensor]:
        """The bounds for every graph: margin and margin + 2 λ_max(F)."""
        coupling = self.coupling.detach()
        lowest = coupling.new_tensor(self.margin)
        return lowest, lowest + 2 * torch.linalg.eigvalsh(coupling)[-1].clamp_min(0)

    def curvature_bound(self) -> Tensor:
        return self.curvature_range()[1]

    def extra_repr(self) -> str:
        """Widths and margin, for `print(module)`."""
        return (
            f"features={self.features}, in_features={self.in_features}, bias={self.bias is not None}, "
            f"margin={self.margin}"
        )


_NEEDS_A_GRAPH = (
    "a GraphEnergy has a value on a graph only: use energy.on(laplacian), or BregmanGraphDEQ, which takes the graph "
    "with x"
)
