"""The small training problems of the study of the infimum: data, a compact set of parameters, and the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.adjoints import Implicit, Unrolled
from implicit_bregman.experiments.study.infimum.descent import Vector
from implicit_bregman.legendre import Arctan, MirrorMap, Tanh
from implicit_bregman.nn import BregmanDEQ
from implicit_bregman.solvers import Newton
from implicit_bregman.status import Status

TOL, MAX_ITER = 1e-12, 1000
REACH = 2.0  # of the entries of U and of the read-out


@dataclass(frozen=True)
class Family:
    """A set of layers that are trained over.

    Attributes:
        text: For people.
        spectrum: Bounds of the eigenvalues of −W; for `low_rank` of the singular value of V. None is larger than
            σ = 1, so that the automatic step is τ = 1 everywhere and the gradient of the unrolled layer is exact.
        regularization: γ.
        geometry: φ, on [−1, 1].
        features: d, 1 or 2. With more the lowest minimum was not found reliably.
        low_rank: Whether W = −vvᵀ.
        rate: What is proved of |inf_L − inf_∞|, see `docs/study.md`.
    """

    text: str
    spectrum: tuple[float, float]
    regularization: float = 0.0
    geometry: MirrorMap = field(default_factory=Tanh)
    features: int = 1
    low_rank: bool = False
    rate: str = "nothing"


FAMILIES = {
    "convex": Family("convex, γ = 0", (0.1, 1.0), rate="O(L^-1/2)"),
    "convex-reg": Family("convex, γ = 0.1", (0.1, 1.0), 0.1, rate="geometric"),
    # The same limit problem as "convex".
    "convex-arctan": Family("convex, γ = 0, arctan on [−1, 1]", (0.1, 1.0), geometry=Arctan().to_box(-1.0, 1.0)),
    "semidefinite": Family("semidefinite, γ = 0", (0.0, 1.0)),
    "indefinite": Family("indefinite, γ = 0", (-1.0, 1.0)),
    "indefinite-reg": Family("indefinite, γ = 0.1", (-1.0, 1.0), 0.1),
    "low-rank": Family("low rank, γ = 0", (0.3, 1.0), features=2, low_rank=True, rate="geometric"),
    "low-rank-reg": Family("low rank, γ = 0.1", (0.3, 1.0), 0.1, features=2, low_rank=True, rate="geometric"),
}


def make_data(seed: int, samples: int) -> tuple[Float[Tensor, "N 1"], Float[Tensor, " N"]]:
    """Inputs in [−1, 1], (N, 1), and targets, (N,), a sine wave of random phase with noise of 0.2."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(samples, 1, generator=generator, dtype=torch.float64) - 1
    phase = 2 * math.pi * torch.rand(1, generator=generator, dtype=torch.float64)
    noise = 0.2 * torch.randn(samples, generator=generator, dtype=torch.float64)
    return x, 0.8 * torch.sin(3 * x.squeeze(1) + phase) + noise


class Problem:
    """F_L(θ) = ½ mean (aᵀz_L(x; θ) + a₀ − t)² and F_∞, over a box of parameters θ, in float64.

    θ is made of the angle of v where d = 2, the eigenvalue or singular value, U, b and the read-out. The box is written
    as centre + radius · sin(u) with any u, so that the optimizer meets no bounds.

    Args:
        family: The set of layers.
        x: (N, 1).
        t: (N,).

    Attributes:
        parameters: Number of entries of u.
        evaluations: Of value and gradient, so far.
        failed: How many of these had a sample whose forward or backward solve failed.
    """

    def __init__(self, family: Family, x: Float[Tensor, "N 1"], t: Float[Tensor, " N"]) -> None:
        self.family, self.x, self.t = family, x, t
        weight, rank = ("low_rank", 1) if family.low_rank else ("symmetric", None)
        self.layer = BregmanDEQ(
            1, family.features, family.geometry, weight, family.regularization, rank=rank, dtype=torch.float64
        )
        # In the low-rank family |Ux + b| ≤ 0.95: the system then always has a solution inside C.
        reach, offset = (0.7, 0.25) if family.low_rank else (REACH, 1.0)
        self.angles = family.features - 1
        bounds: list[tuple[float, float]] = [
            *[(-math.pi, math.pi)] * self.angles,
            family.spectrum,
            (-reach, reach),
            (-offset, offset),
            *[(-REACH, REACH)] * (family.features + 1),
        ]
        low, high = np.array(bounds).T
        self.centre, self.radius = (low + high) / 2, (high - low) / 2
        self.sizes = (self.angles, 1, 1, 1, family.features, 1)
        self.parameters = len(bounds)
        self.evaluations = self.failed = 0

    def starts(self, generator: np.random.Generator, steps: int | None, count: int, tries: int) -> list[Vector]:
        """The best of random θ, uniform in the middle 90 % of the box, each with its best read-out.

        Args:
            generator: Draws θ.
            steps: L; None: ∞.
            count: Number of starts that are returned.
            tries: Number of θ among which they are chosen.

        Returns:
            Their u, (p,), the best first.
        """
        found = []
        for _ in range(tries):
            theta = self.centre + self.radius * generator.uniform(-0.9, 0.9, self.parameters)
            value = self._fit_readout(theta, steps)
            found.append((value, self.at(theta)))
        return [u for _, u in sorted(found, key=lambda item: item[0])[:count]]

    def _fit_readout(self, theta: Vector, steps: int | None) -> float:
        """Put the least-squares read-out, cut off at 0.9 of the box, into θ, in place, and return the loss."""
        readout_size = self.sizes[-2] + 1
        with torch.no_grad():
            z = self._representation(torch.from_numpy(theta), steps, 0.0)
            design = torch.cat([z, torch.ones_like(z[:, :1])], dim=1)
            readout = torch.linalg.lstsq(design, self.t, driver="gelsd").solution.clamp(-0.9 * REACH, 0.9 * REACH)
            theta[-readout_size:] = readout.numpy()
            return float(0.5 * (design @ readout - self.t).square().mean())

    def at(self, theta: Vector) -> Vector:
        """The u of a θ in the box, (p,)."""
        return np.arcsin(np.clip((theta - self.centre) / self.radius, -1, 1))

    def loss(self, u: Vector, steps: int | None, extra: float = 0.0) -> tuple[float, Vector]:
        """F and its gradient with respect to u, (p,).

        Args:
            u: (p,).
            steps: L; None: ∞.
            extra: Added to γ.
        """
        theta = torch.from_numpy(self.centre + self.radius * np.sin(u)).requires_grad_()
        *_, readout, constant = theta.split(self.sizes)
        z = self._representation(theta, steps, extra)
        value = 0.5 * (z @ readout + constant - self.t).square().mean()
        value.backward()
        self.evaluations += 1
        solution = self.layer.last_solution
        assert solution is not None
        assert theta.grad is not None
        solves = [found for found in (solution.status, solution.adjoint.status) if found is not None]
        self.failed += any(Status(code).failed for found in solves for code in found.unique().tolist())
        return float(value.detach()), theta.grad.numpy() * self.radius * np.cos(u)

    def value(self, u: Vector, steps: int | None) -> float:
        """F alone."""
        return self.loss(u, steps)[0]

    def _representation(self, theta: Tensor, steps: int | None, extra: float) -> Float[Tensor, "N d"]:
        angle, spectrum, slope, offset, _, _ = theta.split(self.sizes)
        if self.family.low_rank:
            # β is written in units of the singular value, so that the bound on U and b makes it feasible.
            slope, offset = spectrum * slope, spectrum * offset
            parts = {"weight_map.vectors": (spectrum * torch.cat([angle.cos(), angle.sin()])).unsqueeze(1)}
        else:
            parts = {"weight_map.entries": -spectrum.unsqueeze(1)}
        parts |= {"input_weight": slope.unsqueeze(1), "bias": offset}
        layer = self.layer
        layer.regularization = self.family.regularization + extra
        if steps is None:
            layer.adjoint = Implicit(on_failure="ignore")
            layer.solver = Newton(tol=TOL, max_iter=MAX_ITER, on_failure="ignore")
        else:
            layer.adjoint, layer.solver = Unrolled(steps=steps), "auto"
        named = {f"energy.{name}": tensor for name, tensor in parts.items()}
        z: Tensor = torch.func.functional_call(layer, named, (self.x,))
        return z
