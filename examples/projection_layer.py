"""The Bregman projection layer

The data are twelve positive shares in three groups, whose sums are 6, 4 and 2. The
layer is not told. It sees pairs of such a z and its noisy version x, and learns V and β
so that the projection of x onto {Vᵀz = β} comes near to z. With the geometry `exp` the
projection is that of the Kullback-Leibler divergence, and stays positive.
"""

import matplotlib.pyplot as plt
import torch

import implicit_bregman as ib

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
GROUPS = torch.eye(3).repeat_interleave(4, 0)  # (12, 3): which share is in which group
SUMS = torch.tensor([6.0, 4.0, 2.0])


def data(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors that satisfy the equations, and the same with multiplicative noise."""
    z = (torch.randn(count, 3, 4).softmax(-1) * SUMS[:, None]).flatten(1)
    return z, z * (0.3 * torch.randn(count, 12)).exp()


def error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output - target).square().mean().sqrt()


def projector(V: torch.Tensor) -> torch.Tensor:
    """The orthogonal projector onto the span of V."""
    basis = torch.linalg.qr(V.detach()).Q
    return basis @ basis.T


# %% Train
(z, x), (z_test, x_test) = data(256), data(256)
layer = ib.BregmanProjection(12, 3, "exp")
start = projector(layer.V)
optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
print(f"noisy input: rms error {error(x_test, z_test):.3f}")
print(f"before training: {error(layer(x_test), z_test):.3f}")
for _ in range(200):
    optimizer.zero_grad()
    error(layer(x), z).square().backward()
    optimizer.step()
output = layer(x_test)
known = x_test * ((SUMS / (x_test @ GROUPS)) @ GROUPS.T)  # if the groups are known
print(f"after training: {error(output, z_test):.3f}")
print(f"projection onto the true equations: {error(known, z_test):.3f}")
print(f"all outputs are positive: {bool((output > 0).all())}")

# %% Figure
figure, axes = plt.subplots(1, 3, figsize=(8, 2.8), layout="constrained")
shown = {"before": start, "learned": projector(layer.V), "true": projector(GROUPS)}
for axis, (name, matrix) in zip(axes, shown.items(), strict=True):
    axis.imshow(matrix.numpy(), cmap="RdBu", vmin=-0.5, vmax=0.5)
    axis.set(title=f"span of V, {name}", xticks=[], yticks=[])
figure.savefig("projection_layer.png")
