"""Many small feed-forward networks that train as one batched computation.

A step computes all networks together, the networks in the last dimension, so that every operation is a long loop over
contiguous numbers. The gradient is written out, because for networks of two neurons autograd's bookkeeping would cost
several times the arithmetic. The tests hold it against autograd on `FeedForward`, one network at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from implicit_bregman.experiments.learning.training import epoch_batches
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.nn.feedforward import KINDS, FeedForward
from implicit_bregman.settings import check_choice

INITS = ("random", "deterministic")


@dataclass(frozen=True)
class Member:
    """One network of an ensemble.

    Attributes:
        kind: "standard", "euclidean" or "bregman".
        seed: Seed of the initial parameters and of the order of the batches.
        rate: Learning rate > 0.
        init: "random": as PyTorch initializes linear layers, equal for all kinds of a seed; "deterministic": no
            biases, W = I for "standard" and 0 for the others (the linear read-out stays random, or no gradient would
            reach the layers).

    Raises:
        ValueError: For an unknown kind or init, or a rate that is not positive.
    """

    kind: str
    seed: int
    rate: float
    init: str = "random"

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        check_choice("init", self.init, INITS)
        if not self.rate > 0:
            raise ValueError(f"rate must be positive, got {self.rate}")


def make_network(member: Member, width: int, depth: int, classes: int, geometry: MirrorMap) -> nn.Sequential:
    """`depth` layers of `width` neurons and a linear read-out, as the member starts; the global seed is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(member.seed)
        layers = FeedForward([width] * (depth + 1), geometry, member.kind)
        head = nn.Linear(width, classes)
    if member.init == "deterministic":
        with torch.no_grad():
            for layer in layers:
                assert isinstance(layer, nn.Linear)
                layer.bias.zero_()
                layer.weight.zero_()
                if member.kind == "standard":
                    layer.weight.fill_diagonal_(1.0)
    return nn.Sequential(layers, head)


class Ensemble:
    """Networks of equal shape with parameters of their own, trained by plain mini-batch gradient descent.

    Made for a few neurons: a product of all networks is held entry by entry before it is summed.

    Args:
        members: The networks.
        width: d, neurons per layer and features of the input.
        depth: L ≥ 1, number of layers.
        classes: K, number of scores of the linear read-out.
        geometry: φ.
        device: Where to compute.
        start: Parameters of every member, as `parameters` gives them; None: each member's initial ones.

    Attributes:
        weights: Per layer W and b side by side, and the read-out as the last, `(d or K, d + 1, members)`.

    Raises:
        ValueError: Without members or layers.
    """

    def __init__(
        self,
        members: Sequence[Member],
        width: int,
        depth: int,
        classes: int,
        geometry: MirrorMap,
        device: torch.device | str = "cpu",
        start: Sequence[Sequence[float]] | None = None,
    ) -> None:
        if not members:
            raise ValueError("members must name at least one network")
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self.members = tuple(members)
        self.geometry = geometry
        self.width, self.depth, self.classes = width, depth, classes
        networks = [make_network(member, width, depth, classes, geometry) for member in members]
        state, _ = torch.func.stack_module_state([*networks])

        def joined(name: str) -> Tensor:
            parts = [state[f"{name}.weight"], state[f"{name}.bias"].unsqueeze(-1)]
            return torch.cat(parts, dim=-1).detach().permute(1, 2, 0).contiguous().to(device)

        self.weights = [*(joined(f"0.{layer}") for layer in range(depth)), joined("1")]
        if start is not None:
            self._load(start)
        self._rates = torch.tensor([member.rate for member in members], device=device)
        self._adds_z = self._mask("euclidean", device)
        self._adds_y = self._mask("bregman", device)

    def network(self, index: int) -> nn.Sequential:
        """A copy of that member as a module on the CPU: `FeedForward` and the linear read-out."""
        network = make_network(self.members[index], self.width, self.depth, self.classes, self.geometry)
        layers, head = network
        with torch.no_grad():
            for linear, joined in zip([*layers, head], self.weights, strict=True):  # type: ignore[misc]
                linear.weight.copy_(joined[:, :-1, index])
                linear.bias.copy_(joined[:, -1, index])
        return network

    def parameters(self) -> list[list[float]]:
        """The parameters of every member as plain numbers, exactly."""
        return torch.cat([weight.flatten(0, 1) for weight in self.weights]).mT.tolist()

    def _load(self, start: Sequence[Sequence[float]]) -> None:
        first = self.weights[0]
        flat = torch.tensor(start, dtype=first.dtype, device=first.device).mT
        sizes = [weight.shape[0] * weight.shape[1] for weight in self.weights]
        if flat.shape != (sum(sizes), len(self.members)):
            expected = f"{sum(sizes)} numbers for each of {len(self.members)} members"
            raise ValueError(f"start must hold {expected}, got shape {tuple(flat.mT.shape)}")
        self.weights = [
            part.reshape(weight.shape).contiguous()
            for part, weight in zip(flat.split(sizes), self.weights, strict=True)
        ]

    @torch.no_grad()
    def train(
        self,
        x: Float[Tensor, "samples d"],
        labels: Int[Tensor, " samples"],
        epochs: int,
        batch_size: int,
        on_epoch: Callable[[int], None] = lambda epoch: None,
        done: int = 0,
    ) -> None:
        """Train all members, each with its own order of the batches and learning rate.

        Args:
            x: Inputs in the interior of C.
            labels: Classes in 0 … K - 1.
            epochs: Passes over the data.
            batch_size: Samples per step; the last batch of an epoch may be smaller.
            on_epoch: Called before the first epoch with 0 and after each with its number.
            done: Epochs that an earlier training with these arguments has seen; the order of the batches goes on
                from there.

        Raises:
            ValueError: If an entry of x lies outside the interior of C.
        """
        orders = {member.seed: epoch_batches(len(x), len(x), member.seed) for member in self.members}
        for order in orders.values():
            for _ in range(done):
                next(order)
        entry = self._entry(x).mT
        target = nn.functional.one_hot(labels, self.classes).to(x.dtype).mT
        inputs = x.mT
        on_epoch(0)
        for epoch in range(1, epochs + 1):
            shuffled = {seed: next(order) for seed, order in orders.items()}
            index = torch.stack([shuffled[member.seed] for member in self.members], dim=-1).to(x.device)
            batches = [part[:, index].split(batch_size, dim=1) for part in (inputs, entry, target)]
            for z, y, wanted in zip(*batches, strict=True):
                self._step(z, y, wanted)
            on_epoch(epoch)

    @torch.no_grad()
    def scores(self, x: Float[Tensor, "samples d"]) -> Float[Tensor, "members samples classes"]:
        """The read-out of every member."""
        outputs, _ = self._forward(*self._everywhere(x))
        return _product(self.weights[-1], outputs[-1]).permute(2, 1, 0)

    @torch.no_grad()
    def layer_outputs(self, x: Float[Tensor, "samples d"]) -> list[Float[Tensor, "members samples d"]]:
        """The output of every layer of every member."""
        outputs, _ = self._forward(*self._everywhere(x))
        return [z[:-1].permute(2, 1, 0) for z in outputs[1:]]

    def _mask(self, kind: str, device: torch.device | str) -> Tensor | None:
        """1 for the members of that kind; None if there are none, and nothing has to be computed."""
        found = [float(member.kind == kind) for member in self.members]
        return torch.tensor(found, device=device) if any(found) else None

    def _entry(self, x: Tensor) -> Tensor:
        """ρ⁻¹ of the inputs, which the first Bregman layer adds."""
        lo, hi = self.geometry.domain
        if not bool(((x > lo) & (x < hi)).all()):
            low, high = float(x.min()), float(x.max())
            raise ValueError(f"x must lie inside ({lo:g}, {hi:g}), got entries from {low:g} to {high:g}: scale it")
        return self.geometry.inverse_activation(x)

    def _everywhere(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x and ρ⁻¹(x) for every member, `(d, samples, members)`."""
        shape = (self.width, len(x), len(self.members))
        return x.mT.unsqueeze(-1).expand(shape), self._entry(x).mT.unsqueeze(-1).expand(shape)

    def _forward(self, z: Tensor, y: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs with a last row of ones, the input's first, and the duals of each layer."""
        one = z.new_ones(1, *z.shape[1:])
        outputs, duals = [torch.cat((z, one))], []
        for weight in self.weights[:-1]:
            dual = _product(weight, outputs[-1])
            if self._adds_z is not None:
                dual.addcmul_(z, self._adds_z)
            if self._adds_y is not None:
                dual.addcmul_(y, self._adds_y)
            y, z = dual, self.geometry.activation(dual)
            duals.append(y)
            outputs.append(torch.cat((z, one)))
        return outputs, duals

    def _step(self, z: Tensor, y: Tensor, target: Tensor) -> None:
        """One step of gradient descent on the mean cross entropy of each member's batch."""
        outputs, duals = self._forward(z, y)
        # Everything that follows is linear in this, so that the learning rate can go in here.
        error = _product(self.weights[-1], outputs[-1]).softmax(0).sub_(target).mul_(self._rates / z.shape[1])
        slope = self._pull_back(self.weights[-1], error)
        self._update(self.weights[-1], error, outputs[-1])
        later = None
        for weight, dual, below in zip(self.weights[-2::-1], reversed(duals), reversed(outputs[:-1]), strict=True):
            error = slope.mul_(self.geometry.slope(dual))
            if later is not None and self._adds_y is not None:
                error.addcmul_(later, self._adds_y)
            if below is not outputs[0]:
                slope = self._pull_back(weight, error)
                if self._adds_z is not None:
                    slope.addcmul_(error, self._adds_z)
            self._update(weight, error, below)
            later = error

    @staticmethod
    def _pull_back(weight: Tensor, error: Tensor) -> Tensor:
        """Wᵀ times the error."""
        return (weight[:, :-1, None] * error[:, None]).sum(0)

    @staticmethod
    def _update(weight: Tensor, error: Tensor, below: Tensor) -> None:
        weight.sub_((error[:, None] * below[None]).sum(2))


def _product(weight: Tensor, z: Tensor) -> Tensor:
    """Wz + b for `(m, d + 1, members)` and z `(d + 1, batch, members)` with a last row of ones."""
    return (weight[:, :, None] * z).sum(1)
