"""Entropic optimal transport

P minimises ⟨C, P⟩ + ε Σ P (log P − 1) over the plans with row sums a and column sums b.
It is the projection of exp(−C/ε) in the geometry `exp`. The start is given in the dual,
−C/ε, because exp(−C/ε) underflows. The backward pass solves one linear system with the
plan, no matter how many iterations found it.
"""

import matplotlib.pyplot as plt
import torch

import implicit_bregman as ib

torch.set_default_dtype(torch.float64)
x, y = torch.linspace(0, 1, 40), torch.linspace(0, 1, 50)
C = (x[:, None] - y[None]) ** 2
a = torch.exp(-((x - 0.25) ** 2) / 0.01) + 0.6 * torch.exp(-((x - 0.8) ** 2) / 0.005)
b = torch.exp(-((y - 0.5) ** 2) / 0.02)
a, b = a / a.sum(), b / b.sum()


def transport(C: torch.Tensor, a: torch.Tensor, b: torch.Tensor, epsilon: float):
    """The plan, (…, N, M): differentiable in C, a and b."""
    sums = ib.operators.Marginals(*C.shape[-2:])
    plans = ib.BregmanProjection.from_matrix(sums, torch.cat([a, b], -1), "exp")
    plan = plans.solve(initial_dual=-C.flatten(-2) / epsilon).value
    return plan.unflatten(-1, C.shape[-2:])


# %% Plans and their derivatives
# ∂⟨C, P⟩/∂C is P itself, plus what comes from the plan's move. The figure has both.
C.requires_grad_()
figure, axes = plt.subplots(2, 3, figsize=(8, 5), layout="constrained")
for column, epsilon in zip(axes.T, (1e-1, 1e-2, 1e-3), strict=True):
    plan = transport(C, a, b, epsilon)
    cost = (C * plan).sum()
    (slope,) = torch.autograd.grad(cost, C)
    plan = plan.detach()
    miss = torch.maximum((plan.sum(1) - a).abs().max(), (plan.sum(0) - b).abs().max())
    print(f"ε = {epsilon:g}: cost {cost:.5f}, marginals to 1e-10: {bool(miss < 1e-10)}")
    column[0].imshow(plan.numpy(), cmap="Blues", aspect="auto")
    move = (slope - plan).numpy()
    most = abs(move).max()
    column[1].imshow(move, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
    column[0].set_title(f"plan, ε = {epsilon:g}")
    column[1].set_title("what the plan's move adds")

# %% A batch
# Three vectors of masses with the same costs. One has no mass at its first ten points.
many = torch.stack([a, torch.full((40,), 1 / 40), a.where(x > 10 / 40, 0)])
many = many / many.sum(1, keepdim=True)
batch = transport(C.detach().expand(3, 40, 50), many, b.expand(3, 50), 1e-2)
costs = (C.detach() * batch).sum((1, 2))
print("costs of a batch: " + ", ".join(f"{cost:.5f}" for cost in costs))
print(f"rows without mass are 0: {not batch[2, :10].any()}")

# %% Figure
for axis in axes.flat:
    axis.set(xticks=[], yticks=[], xlabel="to", ylabel="from")
figure.savefig("transport.png")
