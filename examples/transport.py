"""Entropic optimal transport as a Bregman projection: the plan, its cost, and the gradients of both.

P minimises ⟨C, P⟩ + ε Σ P (log P − 1) over the plans with row sums a and column sums b: it is the projection of
exp(−C/ε) in the geometry `exp`. The start is given in the dual, −C/ε, since exp(−C/ε) underflows. The backward pass
solves one linear system with the plan that was found, whatever the number of iterations.
"""

import argparse

import torch

import implicit_bregman as ib

N, M = 40, 50
EPSILONS = (1e-1, 1e-2, 1e-3)


def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Squared distances C (N, M) of points of [0, 1], two peaks a (N,) and one b (M,)."""
    x, y = torch.linspace(0, 1, N), torch.linspace(0, 1, M)
    a = torch.exp(-((x - 0.25) ** 2) / 0.01) + 0.6 * torch.exp(-((x - 0.8) ** 2) / 0.005)
    b = torch.exp(-((y - 0.5) ** 2) / 0.02)
    return (x[:, None] - y[None]) ** 2, a / a.sum(), b / b.sum()


def transport(C: torch.Tensor, a: torch.Tensor, b: torch.Tensor, epsilon: float) -> torch.Tensor:
    """The plan, (…, N, M): differentiable in C, a and b."""
    sums = ib.operators.Marginals(*C.shape[-2:])
    plans = ib.BregmanProjection.from_matrix(sums, torch.cat([a, b], -1), "exp")
    return plans.solve(initial_dual=-C.flatten(-2) / epsilon).value.unflatten(-1, C.shape[-2:])


def draw(path: str, plans: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
    """A column for each ε: the plan, and how the cost changes with C because the plan moves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(2, len(plans))
    for column, epsilon, plan, gradient in zip(axes.T, EPSILONS, plans, gradients, strict=True):
        most = float(gradient.abs().max())
        column[0].imshow(plan.numpy(), cmap="Blues", aspect="auto")
        column[1].imshow(gradient.numpy(), cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
        column[0].set_title(f"plan, ε = {epsilon:g}")
        column[1].set_title("∂⟨C, P⟩/∂C − P")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], xlabel="to", ylabel="from")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", metavar="FILE", help="draw the plans and the gradients to this file")
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    C, a, b = data()
    plans, gradients = [], []
    direction, shift = torch.randn(N, M), torch.randn(N)
    shift -= shift.mean()  # (what is added to some masses is taken from others)
    for epsilon in EPSILONS:
        leaves = [part.clone().requires_grad_() for part in (C, a, b)]
        plan = transport(*leaves, epsilon)
        cost = (leaves[0] * plan).sum()
        by_cost, by_a, _ = torch.autograd.grad(cost, leaves)

        def along(step: float, epsilon: float = epsilon) -> torch.Tensor:
            moved = C + step * direction, a + 1e-3 * step * shift, b
            return (moved[0] * transport(*moved, epsilon)).sum()

        with torch.no_grad():
            difference = (along(1e-6) - along(-1e-6)) / 2e-6
        slope = (by_cost * direction).sum() + 1e-3 * (by_a * shift).sum()
        miss = torch.maximum((plan.sum(1) - a).abs().max(), (plan.sum(0) - b).abs().max())
        print(
            f"epsilon {epsilon:g}: cost {cost:.5f}, marginals hold to 1e-10 {bool(miss < 1e-10)}, "
            f"slope: implicit {slope:.4f}, finite differences {difference:.4f}"
        )
        plans.append(plan.detach())
        gradients.append(by_cost - plan.detach())

    # A batch: three vectors of masses with the same costs, one of which has no mass at the first ten points.
    many = torch.stack([a, torch.full((N,), 1 / N), torch.cat([torch.zeros(10), a[10:] / a[10:].sum()])])
    batch = transport(C.expand(3, N, M), many, b.expand(3, M), 1e-2)
    costs = (C * batch).sum((1, 2))
    print("costs of a batch: " + ", ".join(f"{cost:.5f}" for cost in costs))
    print(f"rows without mass are 0: {not batch[2, :10].any()}")
    path = parser.parse_args().plot
    if path:
        draw(path, plans, gradients)


if __name__ == "__main__":
    main()
