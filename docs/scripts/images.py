"""What a convolutional layer costs: beside the same energy written by a user, a Peaceman–Rachford loop, and torchdeq.

Run

    OMP_NUM_THREADS=1 python docs/scripts/images.py [--growth]

A pass is everything from the kernels to the gradients of all parameters and of x, in float32, 32 images. Each contender
is given the loosest tolerance with which its z and all its gradients come within 1e-3, or 1e-5, of those in float64
(in the 2-norm, relative), and the loop the best of four steps α besides the one that monDEQ's code has by default.
torchdeq (from the extra `experiments`) solves z = Π(z − τ(Hz − c)), or for γ = 1 either z = ρ(c − Hz) or MM's step in
y, with H by `conv2d`, and is given the best of its solvers, forward and backward.
Times are processor time, the least of several, in milliseconds. With `--growth` images go up to 128 × 128.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional
from torchdeq import get_deq

import implicit_bregman as ib
from implicit_bregman.solvers import solver_named

SAMPLES, REPETITIONS = 32, 3
TOLERANCES = (1e-2, 1e-3, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 1e-7)
#: α of the loop, the first that of monDEQ's code.
STEPS = (1.0, 0.5, 2.0, 4.0)
MARGIN = 0.1
#: torchdeq's solvers, and the iterations that they may take.
METHODS = (
    ("fixed_point_iter", {}),
    ("broyden", {}),
    ("anderson", {"m": 6, "lam": 1e-4}),
    ("anderson", {"m": 6, "lam": 1e-8}),
)
LONGEST = 100

Pass = Callable[[], list[Tensor]]
"""z, and the gradients of x and all parameters."""
Map = Callable[..., Tensor]


def layer(
    channels: int, weight: str, gamma: float, scale: float, dtype: torch.dtype = torch.float32
) -> ib.BregmanDEQ2d:
    """A layer whose kernels are drawn as monDEQ draws them, times `scale`."""
    generator = torch.Generator().manual_seed(0)
    made = ib.BregmanDEQ2d(channels, channels, 3, "softplus", weight, gamma, margin=MARGIN, dtype=torch.float64)
    with torch.no_grad():
        for parameter in made.energy.weight_map.parameters():
            reach = scale * parameter[0].numel() ** -0.5
            parameter.copy_(reach * (2 * torch.rand(parameter.shape, generator=generator, dtype=torch.float64) - 1))
        made.energy.injection.weight.copy_(
            torch.randn(made.energy.injection.weight.shape, generator=generator, dtype=torch.float64)
            * made.energy.injection.weight[0].numel() ** -0.5
        )
    return made.to(dtype)


def images(channels: int, size: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """x, and dL/dz."""
    generator = torch.Generator().manual_seed(1)
    x, g = torch.randn(2, SAMPLES, channels, size, size, generator=generator, dtype=torch.float64)
    return (2 * x).to(dtype), g.to(dtype)


def ours(made: ib.BregmanDEQ2d, x: Tensor, g: Tensor, tol: float) -> Pass:
    """The layer."""
    made.solver = replace(solver_named("auto"), tol=tol, on_failure="ignore")
    made.adjoint = ib.adjoints.Implicit(tol=tol, on_failure="ignore")

    def run() -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        z = made(leaf)
        return [z.detach(), *torch.autograd.grad(z, [leaf, *made.parameters()], g)]

    return run


class Own(ib.Energy):
    """The energy of the same layer, as a user writes it."""

    def __init__(self, made: ib.BregmanDEQ2d, features: tuple[int, ...]) -> None:
        super().__init__(features, convex=True)
        self.factor = made.energy.weight_map.factor
        self.injection = made.energy.injection

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        image = functional.conv2d(z, self.factor, padding=2)
        return (0.5 * MARGIN * z.square() - z * self.injection(x)).sum((1, 2, 3)) + 0.5 * image.square().sum((1, 2, 3))


def users(made: ib.BregmanDEQ2d, x: Tensor, g: Tensor, tol: float) -> Pass:
    """The same energy, of which `value` alone is known."""
    energy = Own(made, tuple(g.shape[1:]))
    own = ib.CriticalPoint(
        energy,
        made.geometry,
        made.regularization,
        replace(solver_named("auto"), tol=tol, on_failure="ignore"),
        ib.adjoints.Implicit(tol=tol, on_failure="ignore"),
    )

    def run() -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        z = own(leaf)
        return [z.detach(), *torch.autograd.grad(z, [leaf, *energy.parameters()], g)]

    return run


def loop(made: ib.BregmanDEQ2d, x: Tensor, g: Tensor, tol: float, alpha: float) -> Pass:
    """monDEQ's iteration: one c × c inverse per frequency of the image with a border that is kept at 0."""
    gamma, geometry, size = made.regularization, made.geometry, x.shape[-1]
    around, channels = size + 2, made.channels

    def run() -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        c = made.energy.injection(leaf)
        operator = made.energy.operator((size, size))
        with torch.no_grad():
            spectrum = torch.fft.fft2(operator.kernel, s=(around, around)).permute(2, 3, 0, 1)
            shifted = torch.fft.fftfreq(around) * 4 * torch.pi  # (the middle of five taps)
            spectrum = (spectrum * torch.exp(1j * (shifted[:, None] + shifted))[..., None, None]).conj()
            half = spectrum[:, : around // 2 + 1].reshape(-1, channels, channels)
            inverse = torch.linalg.inv(torch.eye(channels) + alpha * half)

            def filtered(matrix: Tensor, v: Tensor) -> Tensor:
                waves = torch.fft.rfft2(v).flatten(2).permute(2, 0, 1) @ matrix.mT
                waves = waves.permute(1, 2, 0).reshape(len(v), channels, around, around // 2 + 1)
                return torch.fft.irfft2(waves, s=(around, around))

            def border(v: Tensor) -> Tensor:
                return functional.pad(v[..., :size, :size], (0, 2, 0, 2))

            def iterate(matrix: Tensor, offset: Tensor, prox: Callable[[Tensor], Tensor]) -> Tensor:
                offset = alpha * functional.pad(offset, (0, 2, 0, 2))
                u = z = torch.zeros_like(offset)
                for _ in range(1000):
                    target = 2 * z - u
                    half = filtered(matrix, target + offset)
                    u = 2 * half - target
                    new = border(prox(u))
                    error = float((new - z).norm() / new.norm())
                    z = new
                    if error <= tol:
                        break
                return z[..., :size, :size]

            dual = torch.zeros(len(x), channels, around, around)

            def nearest(v: Tensor) -> Tensor:
                nonlocal dual
                if not gamma:
                    return v.clamp_min(0)
                for _ in range(2):
                    z = geometry.activation(dual)
                    dual = dual - (z - v + alpha * gamma * dual) / (geometry.slope(dual) + alpha * gamma)
                return geometry.activation(dual)

            z = iterate(inverse, c.detach(), nearest)
            if gamma:
                slope = geometry.slope(dual)
                share = slope / (slope + alpha * gamma)
            else:
                share = (functional.pad(z, (0, 2, 0, 2)) > 0).to(z.dtype)
            v = iterate(inverse.mH, g, lambda v: share * v)
        field = operator.product(z.flatten(1)) - c.flatten(1)
        parameters = [leaf, *made.parameters()]
        return [z, *torch.autograd.grad(-(field * v.flatten(1)).sum(), parameters)]

    return run


def maps(made: ib.BregmanDEQ2d, size: int) -> list[tuple[Map, Map]]:
    """The fixed-point equations for torchdeq: (H, c, v) ↦ the next v, and v ↦ z."""
    operator, gamma, rho = made.energy.operator((size, size)), made.regularization, made.geometry.activation
    with torch.no_grad():
        low, high = operator.bounds()
        step = 2 / (low + high) if operator.symmetric else 1 / operator.step_bound_guess()
    if not gamma:
        return [(lambda h, c, z: (z - step * (h(z) - c)).clamp_min(0), lambda z: z)]
    return [
        (lambda h, c, z: rho((c - h(z)) / gamma), lambda z: z),
        (lambda h, c, y: (y - (h(rho(y)) - c) / high) / (1 + gamma / high), rho),
    ]


def torchdeqs(made: ib.BregmanDEQ2d, x: Tensor, g: Tensor) -> list[Callable[[float], Pass]]:
    """torchdeq with each of its solvers, for each equation."""

    def of(method: tuple[str, dict[str, float]], same: bool, equation: tuple[Map, Map], tol: float) -> Pass:
        name, options = method
        deq = get_deq(
            ift=True,
            f_solver=name,
            b_solver=name if same else "fixed_point_iter",
            f_tol=tol,
            b_tol=tol,
            f_max_iter=LONGEST,
            b_max_iter=LONGEST,
            f_stop_mode="rel",
            b_stop_mode="rel",
        )
        following, value = equation

        def run() -> list[Tensor]:
            leaf = x.clone().requires_grad_()
            kernel, c = made.energy.weight_map(), made.energy.injection(leaf)
            around = tuple(k // 2 for k in kernel.shape[2:])

            def product(v: Tensor) -> Tensor:
                return functional.conv2d(v, kernel, padding=around)

            found = deq(lambda v: following(product, c, v), torch.zeros_like(c), solver_kwargs=options)[0][-1]
            z = value(found)
            return [z.detach(), *torch.autograd.grad(z, [leaf, *made.parameters()], g)]

        return run

    choices = itertools.product(METHODS, (True, False), maps(made, x.shape[-1]))
    return [partial(of, *choice) for choice in choices if choice[1] or choice[0][0] != "fixed_point_iter"]


def error(found: list[Tensor], true: list[Tensor]) -> float:
    """The largest relative error of z and all gradients."""
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(found, true, strict=True))


def truth(made: ib.BregmanDEQ2d, x: Tensor, g: Tensor) -> list[Tensor]:
    """In float64."""
    wide = ib.BregmanDEQ2d(
        *(made.channels,) * 2,
        3,
        made.geometry,
        _weight_of(made),
        made.regularization,
        margin=MARGIN,
        dtype=torch.float64,
    )
    wide.load_state_dict({name: tensor.double() for name, tensor in made.state_dict().items()})
    leaf = x.double().requires_grad_()
    z = wide(leaf)
    return [z.detach(), *torch.autograd.grad(z, [leaf, *wide.parameters()], g.double())]


def _weight_of(made: ib.BregmanDEQ2d) -> str:
    return "convex" if made.energy.symmetric else "monotone"


def clocked(run: Pass) -> float:
    """The least time, in milliseconds."""
    times = []
    for _ in range(REPETITIONS):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
        if sum(times) > 4:
            break
    return 1e3 * min(times)


def to_accuracy(of: Callable[[float], Pass], true: list[Tensor], target: float, limit: float = math.inf) -> float:
    """The time with the loosest tolerance that suffices; inf where none does, or not in that many milliseconds."""
    for tol in TOLERANCES:
        run, start = of(tol), time.process_time()
        found = run()
        if 1e3 * (time.process_time() - start) > limit:
            break
        if error(found, true) <= target:
            return clocked(run)
    return math.inf


def best_to_accuracy(of_all: list[Callable[[float], Pass]], true: list[Tensor], target: float, limit: float) -> float:
    """The least of their times; those that are much slower are given up, as are those that take longer than `limit`."""
    best = math.inf
    for of in of_all:
        # (torchdeq's Anderson solves a system that may be singular)
        with suppress(torch.linalg.LinAlgError):
            best = min(best, to_accuracy(of, true, target, min(2 * best, limit)))
    return best


def cells() -> Iterator[tuple[int, int, str, float, float]]:
    """Channels, size, weight, the scale of the kernels and γ."""
    for channels, size, scale in ((16, 14, 1.0), (16, 14, 3.0), (32, 16, 1.0)):
        for weight in ("convex", "monotone"):
            for gamma in (0.0, 1.0):
                yield channels, size, weight, scale, gamma


def compare() -> None:
    """A table of the contenders."""
    print(f"{'layer':>34} {'to':>6} {'layer':>8} {'user':>8} {'loop':>8} {'α = 1':>8} {'torchdeq':>8}")
    for channels, size, weight, scale, gamma in cells():
        made = layer(channels, weight, gamma, scale)
        x, g = images(channels, size)
        true = truth(made, x, g)
        low, high = made.energy.operator((size, size)).bounds()
        name = f"{channels} × {size} × {size} {weight} γ = {gamma:g} κ = {high / low:.0f}"
        for target in (1e-3, 1e-5):
            times = [
                to_accuracy(partial(ours, made, x, g), true, target),
                to_accuracy(partial(users, made, x, g), true, target) if weight == "convex" else float("nan"),
            ]
            loops = [to_accuracy(partial(loop, made, x, g, alpha=a), true, target) for a in STEPS]
            times += [min(loops), loops[0], best_to_accuracy(torchdeqs(made, x, g), true, target, 10 * times[0])]
            print(f"{name:>34} {target:6.0e} " + " ".join(f"{t:8.1f}" for t in times), flush=True)


def grow() -> None:
    """Times of growing images, per pixel."""
    for gamma in (0.0, 1.0):
        for size in (16, 32, 64, 128):
            made, (x, g) = layer(16, "convex", gamma, 1.0), images(16, size)
            run = ours(made, x, g, 1e-5)
            milliseconds = clocked(run)
            each = 1e6 * milliseconds / (SAMPLES * size * size)
            print(f"γ = {gamma:g} {size:4d} × {size:<4d} {milliseconds:9.1f} ms {each:9.0f} ns/pixel", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--growth", action="store_true")
    arguments = parser.parse_args()
    grow() if arguments.growth else compare()
