"""The deep-equilibrium layer on graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from implicit_bregman.adjoints import Adjoint
from implicit_bregman.compilation import uncompiled, without_autocast
from implicit_bregman.critical_point import find_critical_point
from implicit_bregman.energy.graph import GraphEnergy
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.nn.critical_point import CriticalPoint
from implicit_bregman.objective import potential
from implicit_bregman.operators.laplacian import laplacian
from implicit_bregman.solution import Solution
from implicit_bregman.solvers import Solver
from implicit_bregman.tensors import check_dense
from implicit_bregman.valuation import Values


class BregmanGraphDEQ(CriticalPoint):
    """The deep-equilibrium layer of a graph: node features Z = h(X, L; θ) that minimise an energy on its edges.

    Z is the critical point of

        ½⟨Z, margin·Z + L Z F⟩ − ⟨XUᵀ + b, Z⟩ + γφ(Z) on C,    F = PPᵀ ⪰ 0,

    with the symmetric normalized Laplacian L = I − D^{-1/2} A D^{-1/2} of a sparse graph A. Every node sees all nodes
    that it is connected with, at any distance. It differs from `BregmanDEQ` only in its energy, a `GraphEnergy`, whose
    Hessian margin·I + L ⊗ F is positive definite: there is one critical point, whatever the graph. No matrix of N × N
    entries is made.

    One graph is one sample, which stops as a whole and has one status. To pass several graphs, join them into one,
    their nodes one graph after the other (a block-diagonal matrix), and give their `sizes`. Each is then a sample of
    its own. The layer pads them to the largest.

    Args:
        in_features: n, the width of a node's input.
        features: d, the width of a node's representation.
        geometry: φ, by name or instance.
        regularization: γ ≥ 0.
        solver: a name or an instance from `implicit_bregman.solvers`.
        adjoint: a name or an instance from `implicit_bregman.adjoints`.
        bias: whether to learn b.
        margin: the least eigenvalue of the Hessian. λ_max(F)/margin says how far features spread.
        device: where the parameters are made.
        dtype: in which precision the parameters are made.

    Attributes:
        energy: the `GraphEnergy`.
        solver: may be assigned at any time, as may `adjoint` and `regularization`; see `CriticalPoint`.
        last_solution: the `Solution` of the last call, detached; None before the first.

    Shape:
        x `(…, N, n)` and a graph `(N, N)` → `(…, N, d)`; with `sizes`, x `(N, n)` → `(N, d)`.

    Raises:
        ValueError: for unknown names, widths below 1, a margin that is not positive, or γ < 0.
    """

    energy: GraphEnergy

    def __init__(
        self,
        in_features: int,
        features: int,
        geometry: str | MirrorMap = "tanh",
        regularization: float = 0.0,
        solver: str | Solver = "auto",
        adjoint: str | Adjoint = "implicit",
        *,
        bias: bool = True,
        margin: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        energy = GraphEnergy(features, in_features, bias=bias, margin=margin, device=device, dtype=dtype)
        super().__init__(energy, geometry, regularization, solver, adjoint)
        if self.geometry.coupling is not None:
            raise ValueError(
                f"geometry {self.geometry.name!r} couples coordinates, which a graph's states do not allow so far: use "
                "a geometry of single coordinates, and a softmax behind the layer"
            )
        self.in_features = in_features
        self.features = features

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "*batch N n"],
        graph: Float[Tensor, "N N"],
        sizes: Sequence[int] | Int[Tensor, " graphs"] | None = None,
        initial: Float[Tensor, "*batch N d"] | Solution | None = None,
    ) -> Float[Tensor, "*batch N d"]:
        """Z = h(X, L; θ), from Z⁰ = `initial`; see `solve`."""
        return self.solve(x, graph, sizes, initial).value

    @uncompiled
    def solve(  # type: ignore[override]
        self,
        x: Float[Tensor, "*batch N n"],
        graph: Float[Tensor, "N N"],
        sizes: Sequence[int] | Int[Tensor, " graphs"] | None = None,
        initial: Float[Tensor, "*batch N d"] | Solution | None = None,
        initial_dual: Float[Tensor, "*batch N d"] | None = None,
    ) -> Solution:
        """The same as calling the layer, with everything known about the solve.

        Args:
            x: the nodes' inputs, (*, N, n); with `sizes`, (N, n).
            graph: the adjacency matrix A, (N, N), a sparse tensor of any layout: symmetric, with weights ≥ 0 of any
                real dtype. An edge from a node to itself counts in the node's degree, as in a graph convolution; none
                is added. A node without edges is on its own. Gradients flow to weights that require them.
            sizes: how many nodes each graph has, in their order; None: all nodes are one graph.
            initial: Z⁰, of the shape of the result, in int C, or a `Solution` to start from; default ρ(0).
            initial_dual: Y⁰ = ρ⁻¹(Z⁰) instead of `initial`.

        Returns:
            The solution: `value`, `dual` and `multiplier` of the shape of the result; what there is one of for each
            sample, such as `status`, has the shape of the leading dimensions of x, with `sizes` (graphs,).

        Raises:
            TypeError: for a graph that is no sparse tensor, or an x that is no floating-point tensor.
            ValueError: for shapes, dtypes or devices that do not fit, a graph that is not symmetric or has negative
                weights, sizes that do not add up to N, an edge between two graphs, or a start that is given twice.
        """
        x = self._checked(x, graph)
        with without_autocast(x.device.type):
            offset = self.energy(x)
            nodes = _Nodes.of(sizes, tuple(offset.shape), offset.device)
            coupled = laplacian(graph, offset.dtype, nodes.places, nodes.rows, nodes.samples)
            middle = self.geometry.activation(offset.new_full((), self.geometry.middle))
            solution = find_critical_point(
                self.energy.on(coupled),
                self.geometry,
                # (what fills up a graph is then solved by its start, inside C)
                nodes.states(offset, self._force_of_padding(middle)),
                _start(nodes, "initial", initial, middle),
                self.regularization,
                self.solver,
                self.adjoint,
                _start(nodes, "initial_dual", initial_dual, self.geometry.middle),
            )
        solution = _on_nodes(solution, nodes, self._of_padding(middle))
        self.last_solution = solution.detach()
        return solution

    def reset_parameters(self) -> None:
        """Draw all parameters anew, as the constructor does."""
        self.energy.reset_parameters()

    def extra_repr(self) -> str:
        """Everything that is not a submodule."""
        return f"in_features={self.in_features}, features={self.features}, {super().extra_repr()}"

    def _force_of_padding(self, middle: Tensor) -> Tensor:
        """The offset of an entry that fills up a graph: its critical point is the middle of C."""
        return self.energy.margin * middle + self.regularization * self.geometry.middle

    def _of_padding(self, middle: Tensor) -> Tensor:
        """What an entry that fills up a graph adds to F."""
        dual = middle.new_full((1, 1), self.geometry.middle)
        value = 0.5 * self.energy.margin * middle.square() - self._force_of_padding(middle) * middle
        return potential(self.geometry, self.regularization, dual)[0] + value

    def _checked(self, x: object, graph: object) -> Tensor:
        """x, in the precision of the parameters under autocast."""
        check_dense("x", x)
        assert isinstance(x, Tensor)
        weight = self.energy.input_weight
        if not x.is_floating_point():
            raise TypeError(f"x must be a floating-point tensor, got {x.dtype}: call x.float()")
        if weight.dtype.itemsize == 2:
            raise ValueError(f"the parameters of the layer are {weight.dtype}, which it does not take: call .float()")
        if x.dim() < 2 or x.shape[-1] != self.in_features:
            raise ValueError(f"x must have shape (..., N, {self.in_features}), got {tuple(x.shape)}")
        if x.dtype.itemsize == 2 and torch.is_autocast_enabled(x.device.type):
            x = x.to(weight.dtype)
        if x.dtype != weight.dtype:
            raise ValueError(f"x is {x.dtype}, but the parameters of the layer are {weight.dtype}: convert one of them")
        if isinstance(graph, Tensor):
            if graph.dim() == 2 and len(graph) != x.shape[-2]:
                raise ValueError(f"graph has {len(graph)} nodes, but x of shape {tuple(x.shape)} has {x.shape[-2]}")
            if graph.device != x.device:
                raise ValueError(f"graph is on {graph.device}, but x is on {x.device}: move one of them")
        return x


@dataclass(frozen=True)
class _Nodes:
    """How the features of nodes are laid out in states, those of a graph in one row of n d numbers, and back.

    Attributes:
        shape: of the features, (*, N, d).
        width: n, the number of nodes of the largest graph.
        samples: the number of graphs that are samples, or None where there is one graph.
        places: where the nodes are among those of all samples, (N,); None where there is no gap.
        padded: how many nodes are added to each graph, (graphs,); None where none are.
    """

    shape: tuple[int, ...]
    width: int
    samples: int | None = None
    places: Int[Tensor, " N"] | None = None
    padded: Int[Tensor, " graphs"] | None = None

    @classmethod
    def of(cls, sizes: object, shape: tuple[int, ...], device: torch.device) -> _Nodes:
        """The layout for graphs of these sizes; None: one graph."""
        if sizes is None:
            return cls(shape, shape[-2])
        if len(shape) != 2:
            raise ValueError(
                f"with sizes, x must have two dimensions, (N, n), got {len(shape)}: give all graphs as one, with their "
                "nodes one after the other"
            )
        counts = _counts(sizes, shape[0])
        width = int(counts.max())
        starts = torch.arange(len(counts)) * width - (counts.cumsum(0) - counts)
        places = torch.arange(shape[0]) + starts.repeat_interleave(counts)
        return cls(shape, width, len(counts), places.to(device), (width - counts).to(device))

    @property
    def rows(self) -> int | None:
        """The rows of the Laplacian, where they are not the nodes."""
        return None if self.samples is None else self.samples * self.width

    def states(self, features: Float[Tensor, "*batch N d"], fill: Tensor | float) -> Float[Tensor, "*batch nd"]:
        """A row for each sample; what stands for nodes that are added is `fill`."""
        if self.samples is None or self.places is None:
            return features.flatten(-2)
        empty = features.new_zeros(self.samples * self.width, features.shape[-1]) + fill
        return empty.index_copy(0, self.places, features).reshape(self.samples, -1)

    def features(self, states: Float[Tensor, "*lead samples nd"]) -> Tensor:
        """What belongs to the nodes, (*lead, *batch, N, d)."""
        d = self.shape[-1]
        if self.places is None:
            return states.reshape(*states.shape[:-1], self.width, d)
        return states.reshape(*states.shape[:-2], -1, d).index_select(-2, self.places)


def _counts(sizes: object, nodes: int) -> Int[Tensor, " graphs"]:
    if isinstance(sizes, Tensor) and (sizes.dim() != 1 or sizes.is_floating_point()):
        raise ValueError(f"sizes must be whole numbers, (graphs,), got {sizes.dtype} of shape {tuple(sizes.shape)}")
    listed = sizes.tolist() if isinstance(sizes, Tensor) else sizes
    if not isinstance(listed, (list, tuple)) or not all(type(size) is int for size in listed):
        raise TypeError(f"sizes must be a sequence of whole numbers, one for each graph, got {sizes!r}")
    if not listed or min(listed) < 1:
        raise ValueError(f"sizes must name at least one graph, each of at least one node, got {listed}")
    if sum(listed) != nodes:
        raise ValueError(f"sizes must add up to the {nodes} nodes of x, got {listed}, {sum(listed)} in all")
    return torch.tensor(listed)


def _start(nodes: _Nodes, name: str, start: Any, fill: Tensor | float) -> Any:
    """A start for the nodes as one of states."""
    if start is None:
        return None
    if isinstance(start, Solution):
        return replace(start, dual=_start(nodes, f"{name}.dual", start.dual, 0.0))
    check_dense(name, start)
    if tuple(start.shape) != nodes.shape:
        raise ValueError(f"{name} must have shape {nodes.shape}, got {tuple(start.shape)}")
    return nodes.states(start, fill)


def _on_nodes(solution: Solution, nodes: _Nodes, of_padding: Tensor) -> Solution:
    """The same solution, in the shape of the nodes and without those that were added."""
    padding = None if nodes.padded is None else nodes.padded.to(of_padding) * nodes.shape[-1] * of_padding
    trace = solution.trace
    if trace is not None:
        objective = trace.objective if padding is None else trace.objective - padding
        trace = replace(trace, objective=objective, dual=nodes.features(trace.dual))
    return replace(
        solution,
        value=nodes.features(solution.value),
        dual=nodes.features(solution.dual),
        trace=trace,
        _valuation=_NodeValues(solution._valuation, nodes.features, padding),
    )


@dataclass(frozen=True)
class _NodeValues:
    """F and μ of the nodes alone.

    Attributes:
        of: those of the states.
        features: from states to nodes.
        padding: what F owes to nodes that were added, (graphs,), or None.
    """

    of: Values
    features: Any
    padding: Tensor | None

    def objective(self) -> Float[Tensor, "*batch"] | None:
        """F, or None where there is no objective."""
        whole = self.of.objective()
        return whole if whole is None or self.padding is None else whole - self.padding

    def multiplier(self) -> Float[Tensor, "*batch N d"]:
        """μ."""
        return self.features(self.of.multiplier())

    def detach(self) -> _NodeValues:
        """The same, without gradient."""
        return replace(self, of=self.of.detach())
