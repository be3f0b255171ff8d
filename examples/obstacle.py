"""Membranes and a bearing: bounds of its own for each grid point, a sparse H, and derivatives in the bounds.

    ½ zᵀHz − cᵀz,    lo ≤ z ≤ hi on a grid of 60 × 60 points, z = 0 around it

* obstacle: a membrane over a bump, z ≥ ψ;
* torsion: an elastic-plastic bar, |z| ≤ the distance to the boundary;
* bearing: the pressure of the oil between a shaft and its bearing, z ≥ 0, H with the width of the gap to the third.

The derivative of the least energy in the obstacle is the force with which the membrane lies on it. That of the solution
tells how the membrane moves with the bump, and is checked by solving once more.
"""

import torch

import implicit_bregman as ib

N = 60


def stiffness(along_x: torch.Tensor, along_y: torch.Tensor) -> torch.Tensor:
    """The sparse matrix of Σ k (z_i − z_j)² over the edges of the grid; its edge comes first and last, where z = 0."""
    number = torch.arange(N * N).reshape(N, N)
    diagonal = along_x[1:] + along_x[:-1] + along_y[:, 1:] + along_y[:, :-1]
    entries = [(number, number, diagonal)]
    for first, second, k in (
        (number[1:], number[:-1], along_x[1:-1]),
        (number[:, 1:], number[:, :-1], along_y[:, 1:-1]),
    ):
        entries += [(first, second, -k), (second, first, -k)]
    rows, columns, values = (torch.cat([part.flatten() for part in parts]) for parts in zip(*entries, strict=True))
    places = torch.stack([rows, columns])
    return torch.sparse_coo_tensor(places, values, (N * N, N * N), check_invariants=True)


def problems() -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """H, c, lo and hi of each problem."""
    h, even = 1 / (N + 1), (torch.ones(N + 1, N), torch.ones(N, N + 1))
    x, y = torch.meshgrid(*[h * torch.arange(1, N + 1)] * 2, indexing="ij")
    bump = 0.4 - 2 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    distance = torch.stack([x, 1 - x, y, 1 - y]).amin(0)
    # the gap 1 + ε cos θ between two circles, in the middle of each edge
    theta = 2 * torch.pi * h
    gaps = [(1 + 0.5 * torch.cos(theta * i)) ** 3 for i in (torch.arange(N + 1) + 0.5, torch.arange(N) + 1.0)]
    bearing = stiffness(gaps[0][:, None].expand(N + 1, N), gaps[1][:, None].expand(N, N + 1))
    free, zero = torch.full_like(x, torch.inf), torch.zeros_like(x)
    return {
        "obstacle": (stiffness(*even), zero, bump, free),
        "torsion": (stiffness(*even), 20 * h * h * torch.ones_like(x), -distance, distance),
        "bearing": (bearing, theta**2 * 0.5 * torch.sin(2 * torch.pi * x), zero, free),
    }


def solve(h: torch.Tensor, c: torch.Tensor, lo: torch.Tensor, hi: torch.Tensor) -> ib.Solution:
    energy = ib.QuadraticEnergy.from_operator(ib.operators.Sparse(h), convex=True)
    geometry = ib.geometry("tanh").to_box(lo.flatten(), hi.flatten())
    return ib.find_critical_point(energy, geometry, c.reshape(1, -1))


def main() -> None:
    torch.set_default_dtype(torch.float64)
    for name, (h, c, lo, hi) in problems().items():
        solution = solve(h, c, lo, hi)
        assert solution.converged.all()
        z = solution.value.detach()[0]
        held = ((z == lo.flatten()) | (z == hi.flatten())).double().mean()
        print(f"{name}: {len(z)} points, {held:.1%} at a bound, largest z {z.max():.4f}")

    h, c, bump, free = problems()["obstacle"]
    bump.requires_grad_()
    solution = solve(h, c, bump, free)
    (force,) = torch.autograd.grad(solution.objective.sum(), bump, retain_graph=True)
    print(f"force on the bump: {force.sum():.4f}, sum of the multipliers {-solution.multiplier.detach().sum():.4f}")
    (moved,) = torch.autograd.grad(solution.value.mean(), bump)
    ends = [solve(h, c, bump.detach() + shift, free).value.mean() for shift in (1e-5, -1e-5)]
    print(f"a higher bump lifts the mean by {moved.sum():.6f}, finite differences {(ends[0] - ends[1]) / 2e-5:.6f}")


if __name__ == "__main__":
    main()
