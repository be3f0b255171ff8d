"""Networks as fields beside torchdeq: time of a forward and a backward pass, to equal accuracy.

Run

    OMP_NUM_THREADS=1 python docs/scripts/fields.py

It needs torchdeq, from the extra `experiments`. torchdeq's solvers, memories and tolerances are swept, and the fastest
setting that reaches an error of the gradient is shown; of ours the tolerance alone. Errors are relative, of all
gradients together, against a float64 solve to 1e-12. The three fastest of each are then timed in turn: times are the
least of thirty, in milliseconds of processor time, in float32.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchdeq import get_deq

import implicit_bregman as ib

LEVELS = (1e-3, 1e-5)
REPETITIONS, IN_TURN, NEAR_BEST = 5, 30, 3


class Recurrent(nn.Module):
    """N(z, x) of a multilayer perceptron."""

    def __init__(self, d: int = 256) -> None:
        super().__init__()
        self.inner, self.outer, self.inject = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(64, d)
        with torch.no_grad():
            self.inner.weight.mul_(1.4)
            self.outer.weight.mul_(1.4)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(z))) + self.inject(x)


class Transformer(nn.Module):
    """N(z, x) of a transformer block, with its normalization at the end."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, 4, batch_first=True)
        self.feed = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))
        self.first, self.second, self.last = (nn.LayerNorm(channels) for _ in range(3))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        z = self.first(z + x)
        z = z + self.attention(z, z, z, need_weights=False)[0]
        return 0.7 * self.last(z + self.feed(self.second(z)))


class Residual(nn.Module):
    """N(z, x) of the residual block of a DEQ-ResNet, with group normalization."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.one = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.two = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(4, channels) for _ in range(3))
        nn.init.normal_(self.one.weight, std=0.02)
        nn.init.normal_(self.two.weight, std=0.02)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        y = self.norms[0](torch.relu(self.one(z)))
        return 0.7 * self.norms[2](torch.relu(z + self.norms[1](x + self.two(y))))


class FixedPoint(ib.Field):
    """The field of any network: what vanishes at z = N(z, x) with the geometry "identity" and γ = 1."""

    def __init__(self, network: nn.Module, features: int | tuple[int, ...]) -> None:
        super().__init__(features)
        self.network = network

    def field(self, z: Tensor, x: Tensor) -> Tensor:
        return -self.network(z, x)


PROBLEMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    "MLP, d = 256, B = 64": (Recurrent, (256,), (64, 64)),
    "transformer block, 16 × 64, B = 16": (Transformer, (16, 64), (16, 16, 64)),
    "DEQ-ResNet block, 32 × 16 × 16, B = 8": (Residual, (32, 16, 16), (8, 32, 16, 16)),
}

Run = Callable[[Tensor, Tensor], Tensor]


def gradients(network: nn.Module, x: Tensor, z: Tensor, weight: Tensor) -> Tensor:
    """All gradients of ⟨weight, z⟩ in one row."""
    found = torch.autograd.grad((z * weight).sum(), (x, *network.parameters()))
    return torch.cat([gradient.flatten() for gradient in found])


def ours(network: nn.Module, features: tuple[int, ...], tol: float) -> Run:
    layer = ib.CriticalPoint(
        FixedPoint(network, features if len(features) > 1 else features[0]),
        "identity",
        regularization=1.0,
        solver=ib.solvers.Newton(tol=tol, on_failure="ignore"),
        adjoint=ib.adjoints.Implicit(tol=tol, on_failure="ignore"),
    )
    return lambda x, start: layer(x)


def torchdeq_runs(network: nn.Module) -> list[tuple[str, Run]]:
    """All settings of torchdeq that are tried."""
    runs: list[tuple[str, Run]] = []
    methods = [("fixed_point_iter", {}), ("broyden", {})]
    methods += [("anderson", {"m": m, "lam": lam}) for m in (6, 10) for lam in (1e-4, 1e-8)]
    for (name, options), tol, back in itertools.product(methods, (1e-2, 1e-3, 1e-4, 1e-5, 1e-6), ("fp", "same")):
        backward = "fixed_point_iter" if back == "fp" else name
        deq = get_deq(
            ift=True, f_solver=name, b_solver=backward, f_tol=tol, b_tol=tol, f_max_iter=150, b_max_iter=150,
            f_stop_mode="rel", b_stop_mode="rel",
        )  # fmt: skip

        def run(x: Tensor, start: Tensor, deq: nn.Module = deq, options: dict[str, float] = options) -> Tensor:
            value: Tensor = deq(lambda z: network(z, x), start, solver_kwargs=options)[0][-1]
            return value

        runs.append((f"{name} {options or ''}, backward {backward}, tol {tol:g}", run))
    return runs


def measured(run: Run, network: nn.Module, x: Tensor, weight: Tensor, truth: Tensor) -> tuple[float, float]:
    """The error of the gradient, and the time of both passes."""
    error, best = math.inf, math.inf
    for repetition in range(REPETITIONS):
        before = time.process_time()
        found = gradients(network, x, run(x, torch.zeros_like(weight)), weight)
        best = min(best, time.process_time() - before)
        if repetition == 0:
            error = float((found.double() - truth).norm() / truth.norm())
            if not error <= max(LEVELS) or best > 3:
                break
    return error, 1e3 * best


def in_turn(runs: list[Run], network: nn.Module, x: Tensor, weight: Tensor) -> list[float]:
    """The least time of each, in milliseconds; they take turns, so that what else the machine does meets all alike."""
    best = [math.inf] * len(runs)
    for _ in range(IN_TURN):
        for number, run in enumerate(runs):
            before = time.process_time()
            gradients(network, x, run(x, torch.zeros_like(weight)), weight)
            best[number] = min(best[number], time.process_time() - before)
    return [1e3 * least for least in best]


def main() -> None:
    for name, (make, features, shape) in PROBLEMS.items():
        torch.manual_seed(0)
        network = make()
        x, weight = torch.randn(shape, requires_grad=True), torch.randn(shape[0], *features)
        wide, wide_x = make().double(), x.detach().double().requires_grad_()
        wide.load_state_dict(network.state_dict())
        truth = gradients(wide, wide_x, ours(wide, features, 1e-12)(wide_x, wide_x), weight.double())
        print(name)
        both = [
            [(f"tol {tol:g}", ours(network, features, tol)) for tol in (1e-2, 1e-3, 1e-4, 1e-5, 3e-6, 1e-6)],
            torchdeq_runs(network),
        ]
        measures = [[(text, run, *measured(run, network, x, weight, truth)) for text, run in runs] for runs in both]
        for level in LEVELS:
            good = [[(ms, text, run, error) for text, run, error, ms in results if error <= level]
                    for results in measures]  # fmt: skip
            if not all(good):
                nearest = [min(error for _, _, error, _ in results) for results in measures]
                print(f"  gradient to {level:g}: not reached by both, nearest {nearest}")
                continue
            fastest = [sorted(results, key=lambda result: result[0])[:NEAR_BEST] for results in good]
            chosen = [(who, *result) for who, results in zip(("ours", "torchdeq"), fastest, strict=True)
                      for result in results]  # fmt: skip
            times = in_turn([run for *_, run, _ in chosen], network, x, weight)
            for who in ("ours", "torchdeq"):
                ms, text, error = min((ms, text, error) for ms, (name, _, text, _, error)
                                      in zip(times, chosen, strict=True) if name == who)  # fmt: skip
                print(f"  gradient to {level:g}: {who} {ms:.1f} ms, error {error:.1e} ({text})")


if __name__ == "__main__":
    main()
