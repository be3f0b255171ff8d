"""What the study of graphs is asked to do."""

from __future__ import annotations

from dataclasses import dataclass

from implicit_bregman.experiments.data.graphs import GRAPHS, SPLITS
from implicit_bregman.settings import check_choice, check_count


@dataclass(frozen=True)
class Candidate:
    """Hyper-parameters, to be chosen by the accuracy on validation nodes.

    Attributes:
        dropout: Share that is dropped before each map.
        weight_decay: Adam's, on all parameters.
        learning_rate: Adam's.
        geometry: φ; of no meaning for the graph convolutional network, as are all below.
        regularization: γ.
        reach: λ(F)/margin at the start.
        loops: Whether nodes see themselves as neighbours.
    """

    dropout: float = 0.6
    weight_decay: float = 1e-3
    learning_rate: float = 0.01
    geometry: str = "tanh"
    regularization: float = 1.0
    reach: float = 5.0
    loops: bool = True


#: What is tried for the implicit layer (its unrolled twins take over what it chooses), and for the convolutions.
IMPLICIT = (
    Candidate(dropout=0.6, weight_decay=1e-3, regularization=0.1),
    Candidate(dropout=0.5, weight_decay=5e-4, regularization=0.1),
    Candidate(dropout=0.6, weight_decay=5e-4, regularization=1.0),
)
GCN = tuple(Candidate(dropout=dropout, weight_decay=decay) for dropout in (0.5, 0.8) for decay in (5e-4, 1e-3))


@dataclass(frozen=True)
class GraphSettings:
    """What the study of graphs is asked to do.

    Attributes:
        datasets: Names of graphs, see `load_graph`.
        depths: L, of the unrolled twins.
        tuning: The number of splits, the first ones, on whose validation nodes hyper-parameters are chosen.
        splits: The number of splits on whose test nodes the chosen ones are judged.
        epochs: Most steps of a training.
        patience: Steps without a better validation after which it ends.
        implicit: What is tried for the implicit layer.
        gcn: What is tried for the convolutions.

    Raises:
        ValueError: For an unknown graph, a depth named twice, or a number out of range.
    """

    datasets: tuple[str, ...] = GRAPHS
    depths: tuple[int, ...] = (10,)
    tuning: int = 2
    splits: int = SPLITS
    epochs: int = 200
    patience: int = 50
    implicit: tuple[Candidate, ...] = IMPLICIT
    gcn: tuple[Candidate, ...] = GCN

    def __post_init__(self) -> None:
        for name in self.datasets:
            check_choice("datasets", name, GRAPHS)
        for depth in self.depths:
            check_count("depths", depth)
        for name in ("datasets", "depths"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} must be different, got {', '.join(map(str, values))}")
        for name in ("tuning", "splits", "epochs", "patience"):
            check_count(name, getattr(self, name))
        for name in ("tuning", "splits"):
            if getattr(self, name) > SPLITS:
                raise ValueError(f"{name} must be at most {SPLITS}, so many there are, got {getattr(self, name)}")

    @classmethod
    def quick(cls) -> GraphSettings:
        """A subset for a look: Cora, two splits, one candidate of each, 60 steps."""
        return cls(("cora",), (2,), 1, 2, 60, 30, IMPLICIT[:1], GCN[:1])

    def run(self, dataset: str, model: str, split: int, candidate: Candidate) -> GraphRun:
        """One training."""
        return GraphRun(dataset, model, split, candidate, epochs=self.epochs, patience=self.patience)


@dataclass(frozen=True)
class GraphRun:
    """Asks for one training.

    Attributes:
        dataset: Name of the graph.
        model: "implicit", "unrolled-L" or "gcn".
        split: Number of the split, which is the seed as well.
        candidate: How.
        hidden: Hidden features.
        width: Features of the layer.
        epochs: Most steps, each on all training nodes.
        patience: Steps without a better validation after which it ends.
        margin: Of the layer.
        tol: Of the solver while training.
    """

    dataset: str
    model: str
    split: int
    candidate: Candidate
    hidden: int = 64
    width: int = 16
    epochs: int = 200
    patience: int = 50
    margin: float = 1.0
    tol: float = 1e-4
