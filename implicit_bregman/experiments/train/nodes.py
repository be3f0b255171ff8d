"""Nodes of a graph as samples: each is a number, and all are classified at once."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from implicit_bregman.adjoints import Implicit
from implicit_bregman.experiments.data import Dataset
from implicit_bregman.experiments.data.graphs import SPLITS, GraphDataset
from implicit_bregman.experiments.learning.graph_models import ImplicitGraphModel, with_loops
from implicit_bregman.nn import BregmanGraphDEQ


def nodes_of(graph: GraphDataset, seed: int) -> Dataset:
    """The nodes of one of the ten splits, `seed` modulo ten.

    The training set is that of the split and its validation nodes, of which training holds out a share of its own.
    """
    split = seed % SPLITS
    train, test = (mask[split].nonzero()[:, 0] for mask in (graph.train | graph.validation, graph.test))
    return Dataset(
        train[:, None].float(),
        graph.labels[train],
        test[:, None].float(),
        graph.labels[test],
        graph.classes,
        graph.name,
        (1,),
        torch.zeros(1),
        1.0,
    )


class NodeClassifier(nn.Module):
    """Scores of nodes by their numbers: the model of the study of graphs, on the whole graph at each call.

    Args:
        data: The graph.
        width: Features of the layer.
        geometry: φ.
        regularization: γ.
    """

    features: Tensor
    graph: Tensor

    def __init__(self, data: GraphDataset, width: int, geometry: str, regularization: float) -> None:
        super().__init__()
        self.model = ImplicitGraphModel(data, width, geometry, regularization, Implicit())
        self.register_buffer("features", data.features, persistent=False)
        self.register_buffer("graph", with_loops(data.graph), persistent=False)

    @property
    def layer(self) -> BregmanGraphDEQ:
        """The layer."""
        return self.model.layer

    def forward(self, x: Float[Tensor, "batch 1"]) -> Float[Tensor, "batch classes"]:
        """Scores, one row per node."""
        self.model.starts = {}  # (a run that is resumed has none)
        scores: Tensor = self.model(self.features, self.graph)
        return scores[x[:, 0].long()]
