"""Classifiers of the nodes of a graph: the implicit layer, its unrolled twin, and a graph convolutional network."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from implicit_bregman.adjoints import Adjoint, adjoint_named
from implicit_bregman.experiments.data.graphs import GraphDataset
from implicit_bregman.nn import BregmanGraphDEQ
from implicit_bregman.solution import Solution
from implicit_bregman.solvers import Newton


class SparseLinear(nn.Linear):
    """A linear map of a sparse matrix, whose entries are dropped at random in training."""

    def __init__(self, in_features: int, out_features: int, dropout: float) -> None:
        super().__init__(in_features, out_features)
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "N n"]) -> Float[Tensor, "N d"]:
        """XWᵀ + b."""
        kept = torch.sparse_coo_tensor(
            x.indices(), self.dropout(x.values()), x.shape, is_coalesced=True, check_invariants=False
        )
        return torch.sparse.mm(kept, self.weight.mT) + self.bias


class ImplicitGraphModel(nn.Module):
    """Words → hidden features → `BregmanGraphDEQ` → classes, with dropout before each.

    Args:
        data: Says how wide the ends are.
        width: Features of the layer.
        geometry: φ.
        regularization: γ.
        adjoint: Of the layer.
        hidden: Hidden features.
        dropout: Share that is dropped.
        margin: Of the layer.
        reach: λ(F)/margin at the start: how far features spread.
        tol: Of the solver.
    """

    def __init__(
        self,
        data: GraphDataset,
        width: int,
        geometry: str,
        regularization: float,
        adjoint: Adjoint,
        *,
        hidden: int = 64,
        dropout: float = 0.6,
        margin: float = 1.0,
        reach: float = 5.0,
        tol: float = 1e-4,
    ) -> None:
        super().__init__()
        self.encoder = SparseLinear(data.features.shape[1], hidden, dropout)
        solver = Newton(tol=tol) if adjoint.follows_limit else "auto"
        self.layer = BregmanGraphDEQ(hidden, width, geometry, regularization, solver, adjoint, margin=margin)
        with torch.no_grad():
            factor = self.layer.energy.factor
            factor.mul_((margin * reach) ** 0.5 / factor.diagonal().mean())
        nn.init.xavier_uniform_(self.layer.energy.input_weight)
        self.decoder = nn.Linear(width, data.classes)
        self.dropout = nn.Dropout(dropout)
        self.starts: dict[bool, Solution] = {}

    def forward(self, x: Float[Tensor, "N n"], graph: Float[Tensor, "N N"]) -> Float[Tensor, "N classes"]:
        """Scores of the classes."""
        hidden = self.dropout(self.encoder(x).relu())
        # Where the critical point is followed, the last one is near the next.
        start = self.starts.get(self.training) if adjoint_named(self.layer.adjoint).follows_limit else None
        z = self.layer(hidden, graph, None, start)
        assert self.layer.last_solution is not None
        self.starts[self.training] = self.layer.last_solution
        return self.decoder(self.dropout(z))


class GraphConvolutionalNetwork(nn.Module):
    """Two graph convolutions (Kipf and Welling, 2017): Â relu(Â X W₁) W₂ with loops at all nodes.

    Args:
        data: Says how wide the ends are.
        width: Hidden features.
        dropout: Share that is dropped before each convolution.
    """

    def __init__(self, data: GraphDataset, width: int, dropout: float) -> None:
        super().__init__()
        self.first = SparseLinear(data.features.shape[1], width, dropout)
        self.second = nn.Linear(width, data.classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "N n"], graph: Float[Tensor, "N N"]) -> Float[Tensor, "N classes"]:
        """Scores of the classes; `graph` is `averaging(graph)`."""
        hidden = torch.sparse.mm(graph, self.first(x)).relu()
        return torch.sparse.mm(graph, self.second(self.dropout(hidden)))


def with_loops(graph: Float[Tensor, "N N"]) -> Float[Tensor, "N N"]:
    """A + I."""
    count = len(graph)
    loops = torch.sparse_coo_tensor(
        torch.arange(count).expand(2, -1), torch.ones(count), graph.shape, check_invariants=False
    )
    return (graph + loops).coalesce()


def averaging(graph: Float[Tensor, "N N"]) -> Float[Tensor, "N N"]:
    """D^{-1/2} A D^{-1/2}."""
    rows, columns = graph.indices()
    scale = torch.zeros(len(graph)).index_add(0, rows, graph.values()).rsqrt()
    values = graph.values() * scale[rows] * scale[columns]
    return torch.sparse_coo_tensor(graph.indices(), values, graph.shape, is_coalesced=True, check_invariants=False)
