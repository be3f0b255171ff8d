"""What several ways to the gradient give where coordinates lie on their bounds, for the table of the README.

Run

    python docs/scripts/boundary.py

It needs torchdeq. The problem is z⁺ = tanh(artanh(z) + Wz + c) with 40 coordinates in [-1, 1], γ = 0. Its fixed point
minimises −½ zᵀWz − cᵀz over the box. The loss is ½‖z − t‖², and the gradient is that with respect to W. Everything runs
in float32. The reference is an active-set solution in float64 that uses nothing of this library: projected gradient
steps find which coordinates lie on a bound, and one linear system gives the others.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torchdeq import get_deq

import implicit_bregman as ib

FEATURES, SAMPLES, CONDITION = 40, 64, 100.0
CLAMP = 1e-6


def problem() -> tuple[Tensor, Tensor, Tensor]:
    """W, c and t in float64."""
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(FEATURES, FEATURES, dtype=torch.float64)).Q
    W = -(basis * torch.logspace(0, 2, FEATURES, dtype=torch.float64) / CONDITION) @ basis.T
    c, target = torch.randn(2, SAMPLES, FEATURES, dtype=torch.float64)
    return (W + W.T) / 2, 0.2 * c, target


def active_set(W: Tensor, c: Tensor) -> Tensor:
    """The minimiser of −½ zᵀWz − cᵀz over [-1, 1] in float64, differentiable in W and c."""
    with torch.no_grad():
        z = torch.zeros_like(c)
        for _ in range(20_000):
            z = (z + z @ W.T + c).clamp(-1, 1)
    rows = []
    for point, linear in zip(z, c, strict=True):
        free = point.abs() < 1
        pull = linear[free] + W[free][:, ~free] @ point[~free]
        rows.append(point.index_put((free.nonzero()[:, 0],), torch.linalg.solve(-W[free][:, free], pull)))
    return torch.stack(rows)


def torchdeq(iterations: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Anderson's method on the map in z, clamped away from the bounds, where artanh is infinite."""
    settings = {"f_max_iter": iterations, "b_max_iter": iterations, "f_tol": 1e-6, "b_tol": 1e-6}

    def solve(W: Tensor, c: Tensor) -> Tensor:
        def step(z: Tensor) -> Tensor:
            return torch.tanh(torch.atanh(z.clamp(CLAMP - 1, 1 - CLAMP)) + z @ W.T + c)

        return get_deq(f_solver="anderson", ift=True, **settings)(step, torch.zeros_like(c))[0][-1]

    return solve


def ours(adjoint: str | ib.adjoints.Adjoint) -> Callable[[Tensor, Tensor], Tensor]:
    """This library with one of its adjoints."""

    def solve(W: Tensor, c: Tensor) -> Tensor:
        return ib.find_critical_point(ib.QuadraticEnergy.from_matrices(W), "tanh", c, adjoint=adjoint).value

    return solve


METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "torchdeq on z, clamped, 200 iterations": torchdeq(200),
    "torchdeq on z, clamped, 2,000 iterations": torchdeq(2000),
    "one step at the solution (`OneStep`)": ours("one_step"),
    "through 20 unrolled steps (`Unrolled`)": ours(ib.adjoints.Unrolled(steps=20)),
    "**this library, default**": ours("implicit"),
}


def value_and_gradient(solve: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """z and ∂loss/∂W, in float64."""
    W, c, target = (part.to(dtype) for part in problem())
    W.requires_grad_()
    z = solve(W, c)
    (gradient,) = torch.autograd.grad(0.5 * (z - target).square().sum(), W)
    return z.detach().double(), gradient.double()


def relative(found: Tensor, exact: Tensor) -> str:
    """‖found − exact‖ / ‖exact‖, in words where it is no number."""
    error = float((found - exact).norm() / exact.norm())
    return "NaN" if error != error else f"{100 * error:.2g} %" if error > 1e-4 else f"{error:.0e}"


def main() -> None:
    """Print the table."""
    z, gradient = value_and_gradient(active_set, torch.float64)
    print(f"{100 * (z.abs() == 1).double().mean():.0f} % of the coordinates lie on a bound\n")
    print("| gradient by | error of $z$ | error of the gradient | cosine |")
    print("| --- | ---: | ---: | ---: |")
    for name, solve in METHODS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, slope = value_and_gradient(solve, torch.float32)
        cosine = float((slope * gradient).sum() / slope.norm() / gradient.norm())
        print(f"| {name} | {relative(found, z)} | {relative(slope, gradient)} | {cosine:.2f} |")


if __name__ == "__main__":
    main()
