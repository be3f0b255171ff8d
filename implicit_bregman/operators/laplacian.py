"""The symmetric normalized Laplacian of a sparse graph, or one for each of several graphs."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from implicit_bregman.operators.sparse import Sparse
from implicit_bregman.tensors import check_numbers, coalesced, rows_where

#: The eigenvalues of every normalized Laplacian lie between these.
_ENDS = (0.0, 2.0)
#: Two weights of an edge differ by rounding up to so many of its units.
_ROUNDING = 4


def laplacian(
    graph: Tensor,
    dtype: torch.dtype,
    places: Int[Tensor, " N"] | None = None,
    width: int | None = None,
    samples: int | None = None,
) -> Sparse:
    """L = I − D^{-1/2} A D^{-1/2} with the degrees D of an undirected graph A; gradients flow to the weights of edges.

    An edge from a node to itself counts in its degree, as in a graph convolution. The row of a node without edges is 0.

    Args:
        graph: A, (N, N), sparse, symmetric, its entries ≥ 0.
        dtype: of L.
        places: the rows of L that the nodes get, (N,), ascending; None: as they are.
        width: the number of rows of L; None: N.
        samples: the number of graphs, where L has a block of its own for each of them.

    Raises:
        TypeError: for a graph that is no sparse tensor.
        ValueError: for one that is not square, not symmetric, or has a weight that is negative or not finite, and for
            an edge between two graphs.
        RuntimeError: inside transforms of a PyTorch that does not know sparse tensors there (2.6).
    """
    listed = _listed(graph)
    weights, count = listed.values().to(dtype), len(graph)
    rows, columns = listed.indices()
    _check_weights(listed, weights)
    if samples is not None and places is not None and width is not None:
        _check_apart(rows, columns, places // (width // samples))
    degree = weights.new_zeros(count).index_add(0, rows, weights)
    # (a node without edges has no scale, and no derivative)
    scale = torch.where(degree > 0, degree, 1.0).rsqrt()
    coupling = -weights * scale[rows] * scale[columns]
    own = (degree > 0).nonzero().squeeze(-1)
    if places is not None:
        rows, columns, own = places[rows], places[columns], places[own]
    indices = torch.cat([torch.stack([rows, columns]), own.expand(2, -1)], 1)
    values = torch.cat([coupling, coupling.new_ones(len(own))])
    size = count if width is None else width
    matrix = torch.sparse_coo_tensor(indices, values, (size, size), check_invariants=False)
    return Sparse(matrix, symmetric=True, bounds=_ENDS, samples=samples)


def _listed(graph: object) -> Tensor:
    """The edges as a list, after checking that it is the square sparse matrix that it should be."""
    if not isinstance(graph, Tensor) or graph.layout == torch.strided:
        kind = "a dense tensor" if isinstance(graph, Tensor) else type(graph).__name__
        remedy = "graph.to_sparse()" if isinstance(graph, Tensor) else "torch.sparse_coo_tensor(edges, weights, (N, N))"
        raise TypeError(f"graph must be a sparse tensor, the adjacency matrix, got {kind}: give {remedy}")
    if graph.dim() != 2 or graph.shape[0] != graph.shape[1]:
        raise ValueError(f"graph must be a square matrix, (N, N), got shape {tuple(graph.shape)}")
    if len(graph) == 0:
        raise ValueError("graph must have at least one node, got shape (0, 0)")
    check_numbers("graph", graph)
    return coalesced("graph", graph)


def _check_weights(listed: Tensor, weights: Tensor) -> None:
    weights = weights.detach()
    bad = rows_where(~torch.isfinite(weights) | (weights < 0))
    if len(bad):
        i, j = listed.indices()[:, int(bad[0])].tolist()
        raise ValueError(
            f"graph must have finite weights >= 0, got {float(weights[int(bad[0])]):.3g} at ({i}, {j}): take "
            "graph.abs(), or leave the edge out"
        )
    # Sorted by columns, then rows, the entries of a symmetric matrix are those sorted by rows, then columns.
    rows, columns = listed.indices()
    order = (columns * len(listed) + rows).argsort()
    mirrored = torch.equal(rows[order], columns) and torch.equal(columns[order], rows)
    rounding = _ROUNDING * torch.finfo(weights.dtype).eps
    if not mirrored or bool(((weights[order] - weights).abs() > rounding * weights).any()):
        raise ValueError(
            "graph must be symmetric, each edge in both directions with one weight: give "
            "(graph + graph.transpose(0, 1)).coalesce(), or half of it"
        )


def _check_apart(rows: Tensor, columns: Tensor, graph_of: Tensor) -> None:
    across = (graph_of[rows] != graph_of[columns]).nonzero()
    if len(across):
        i, j = int(rows[across[0]]), int(columns[across[0]])
        raise ValueError(
            f"graph has an edge from node {i} to node {j}, which sizes puts into the graphs {int(graph_of[i])} and "
            f"{int(graph_of[j])}: give the nodes of each graph one after the other, and no edges between graphs"
        )
