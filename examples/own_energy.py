"""An energy of your own

Robust smoothing of signals is a subclass of `Energy` with one method, `value`, for
Σ δ² (√(1 + (zᵢ − xᵢ)²/δ²) − 1) + λ/2 Σ (zᵢ₊₁ − zᵢ)² with z in [0, 1]. Outliers in x
weigh little: the first sum grows linearly there. Implicit differentiation learns λ and
δ from pairs of signals.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import implicit_bregman as ib


class RobustSmoothing(ib.Energy):
    def __init__(self) -> None:
        super().__init__(convex=True)  # a promise: f(·; x) is convex for every x
        self.log_delta = nn.Parameter(torch.tensor(0.0))
        self.log_lambda = nn.Parameter(torch.tensor(0.0))

    def value(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        delta = self.log_delta.exp()
        data = delta**2 * ((1 + ((z - x) / delta) ** 2).sqrt() - 1)
        return data.sum(-1) + self.log_lambda.exp() / 2 * z.diff().square().sum(-1)


def signals(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean waves that saturate at 0 and 1, and the same with noise and outliers."""
    time = torch.arange(48) / 48 * (1 + torch.rand(count, 1))
    clean = (0.5 + 0.7 * (6.28 * (time + torch.rand(count, 1))).sin()).clamp(0, 1)
    noisy, outliers = clean + 0.05 * torch.randn(count, 48), torch.rand(2, count, 48)
    return clean, torch.where(outliers[0] < 0.1, outliers[1], noisy)


# %% Learn λ and δ
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
smooth = ib.CriticalPoint(
    RobustSmoothing(), "sigmoid", solver=ib.solvers.Newton(tol=1e-9)
)
(clean, x), (clean_test, x_test) = signals(8), signals(8)
before = smooth(x_test).detach()
optimizer = torch.optim.Adam(smooth.parameters(), lr=0.3)
for _ in range(10):
    optimizer.zero_grad()
    (smooth(x) - clean).square().mean().backward()
    optimizer.step()
after = smooth(x_test).detach()
for name, z in (("noisy", x_test), ("before training", before), ("after", after)):
    print(f"rms error, {name}: {(z - clean_test).square().mean().sqrt():.4f}")

# %% Figure
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
axes.plot(x_test[0], ".", color="gray", label="noisy")
for name, curve in {"clean": clean_test, "before": before, "after": after}.items():
    axes.plot(curve[0], label=name)
axes.legend()
figure.savefig("own_energy.png")
