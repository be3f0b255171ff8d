"""An objective of your own: robust smoothing of signals, with its two parameters learned through the minimiser.

    f(z; x) = Σ δ² (√(1 + (zᵢ − xᵢ)²/δ²) − 1) + λ/2 Σ (zᵢ₊₁ − zᵢ)²,    z in [0, 1]

The first sum is quadratic for small and linear for large deviations, so that outliers in x weigh little. The class
below says just this; gradients and Hessian-vector products come from autograd. λ and δ are learned by implicit
differentiation, from signals whose clean version is known, and the gradient is checked against finite differences.
"""

import torch
from torch import nn

import implicit_bregman as ib


class RobustSmoothing(ib.Energy):
    def __init__(self) -> None:
        super().__init__(convex=True)  # a promise: f(·; x) is convex for every x
        self.log_delta = nn.Parameter(torch.tensor(0.0))
        self.log_lambda = nn.Parameter(torch.tensor(0.0))

    def value(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        delta, strength = self.log_delta.exp(), self.log_lambda.exp()
        data = delta**2 * ((1 + ((z - x) / delta) ** 2).sqrt() - 1)
        return data.sum(-1) + strength / 2 * z.diff().square().sum(-1)

    def curvature_bound(self) -> torch.Tensor:  # optional: MM then needs no line search
        return 1 + 4 * self.log_lambda.exp()


def signals(count: int, length: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean waves that saturate at 0 and 1, and the same with noise and a tenth of outliers."""
    phase = 2 * torch.pi * (torch.rand(count, 1) + torch.arange(length) / length * (1 + torch.rand(count, 1)))
    clean = (0.5 + 0.7 * phase.sin()).clamp(0, 1)
    noisy = clean + 0.05 * torch.randn(count, length)
    return clean, torch.where(torch.rand(count, length) < 0.1, torch.rand(count, length), noisy)


def main() -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    energy = RobustSmoothing()
    (clean, x), (clean_test, x_test) = signals(8), signals(8)

    def loss(target: torch.Tensor, signal: torch.Tensor) -> torch.Tensor:
        solution = ib.find_critical_point(energy, "sigmoid", signal, solver=ib.solvers.Newton(tol=1e-9))
        assert solution.converged.all()
        return (solution.value - target).square().mean().sqrt()

    parameters = dict(energy.named_parameters())
    gradients = torch.autograd.grad(loss(clean, x), list(parameters.values()))
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        ends = []
        with torch.no_grad():
            for shift in (1e-5, -2e-5, 1e-5):  # the last one goes back to the start
                parameter += shift
                ends.append(loss(clean, x))
        print(f"dL/d{name}: implicit {gradient:.6f}, finite differences {(ends[0] - ends[1]) / 2e-5:.6f}")

    print(f"rms error of the noisy test signals: {(x_test - clean_test).square().mean().sqrt():.4f}")
    print(f"smoothed, before training: {loss(clean_test, x_test):.4f}")
    optimizer = torch.optim.Adam(energy.parameters(), lr=0.3)
    for _ in range(10):
        optimizer.zero_grad()
        loss(clean, x).backward()
        optimizer.step()
    print(f"smoothed, after training:  {loss(clean_test, x_test):.4f}")
    print(f"learned: delta = {energy.log_delta.exp():.3f}, lambda = {energy.log_lambda.exp():.2f}")


if __name__ == "__main__":
    main()
