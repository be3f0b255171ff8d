"""Bounds at each grid point

Two classical problems ½ zᵀHz − cᵀz with lo ≤ z ≤ hi on a grid with a sparse H. A
membrane lies over an obstacle, z ≥ ψ. An elastic-plastic bar is twisted, and |z| is at
most the distance to the boundary. Gradients flow to the bounds: the derivative of the
least energy in the obstacle is the force of the membrane on it.
"""

import matplotlib.pyplot as plt
import torch

import implicit_bregman as ib

torch.set_default_dtype(torch.float64)
N, h = 60, 1 / 61
x, y = torch.meshgrid(*[h * torch.arange(1, N + 1)] * 2, indexing="ij")

# %% H = 4I minus the four neighbours, as a sparse matrix
number = torch.arange(N * N).reshape(N, N)
pairs = [(number[1:], number[:-1]), (number[:, 1:], number[:, :-1])]
edges = torch.cat([torch.stack([i.flatten(), j.flatten()]) for i, j in pairs], 1)
places = torch.cat([number.flatten().expand(2, -1), edges, edges.flip(0)], 1)
values = torch.cat([torch.full((N * N,), 4.0), -torch.ones(2 * edges.shape[1])])
H = torch.sparse_coo_tensor(places, values, (N * N, N * N), check_invariants=True)
energy = ib.QuadraticEnergy.from_operator(ib.operators.Sparse(H), convex=True)


def solve(load: float, lo: torch.Tensor, hi: torch.Tensor) -> ib.Solution:
    box = ib.geometry("tanh").to_box(lo.flatten(), hi.flatten())
    return ib.find_critical_point(energy, box, torch.full((1, N * N), load))


bump = (0.4 - 2 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)).requires_grad_()
distance = torch.stack([x, 1 - x, y, 1 - y]).amin(0)
found = {
    "obstacle": solve(0.0, bump, torch.full_like(x, torch.inf)),
    "torsion": solve(20 * h * h, -distance, distance),
}
touching = {name: s.multiplier.detach().abs() > 1e-9 for name, s in found.items()}
for name, points in touching.items():
    print(f"{name}: {points.double().mean():.1%} of the points at a bound")

# %% The force on the obstacle
lies_over = found["obstacle"]
(force,) = torch.autograd.grad(lies_over.objective.sum(), bump, retain_graph=True)
(moved,) = torch.autograd.grad(lies_over.value.mean(), bump)
print(
    f"force {force.sum():.4f}, multipliers {-lies_over.multiplier.detach().sum():.4f}"
)
print(f"a higher bump lifts the mean by {moved.sum():.6f}")

# %% Figure
figure, axes = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
for axis, (name, s) in zip(axes, found.items(), strict=False):
    axis.imshow(s.value.detach().reshape(N, N).numpy())
    axis.contour(touching[name].reshape(N, N).numpy(), levels=[0.5], colors="white")
axes[2].imshow(force.numpy(), cmap="magma")
for axis, title in zip(axes, [*found, "force on the obstacle"], strict=True):
    axis.set(title=title, xticks=[], yticks=[])
figure.savefig("obstacle.png")
