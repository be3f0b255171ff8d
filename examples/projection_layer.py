"""The Bregman projection layer: positive vectors are projected onto linear equations that are learned from data.

The data are vectors z > 0 of twelve shares in three groups, whose sums are 6, 4 and 2. The layer is not told: it sees
pairs of a z and its noisy version x, and learns V and β so that the projection of x onto {Vᵀz = β} comes near to z.
With the geometry `exp` the projection is that of the Kullback-Leibler divergence, and stays positive.
"""

import torch

import implicit_bregman as ib

GROUPS = torch.eye(3, dtype=torch.float64).repeat_interleave(4, 0)  # (12, 3): which share is in which group
SUMS = torch.tensor([6.0, 4.0, 2.0], dtype=torch.float64)


def data(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors that satisfy the equations, and the same with multiplicative noise."""
    shares = torch.randn(count, 3, 4).softmax(-1) * SUMS[:, None]
    z = shares.flatten(1)
    return z, z * (0.3 * torch.randn(count, 12)).exp()


def angle(V: torch.Tensor) -> float:
    """The largest angle, in degrees, between the span of V and that of the true equations."""
    cosines = torch.linalg.svdvals(torch.linalg.qr(V).Q.T @ (GROUPS / 2))  # GROUPS / 2 is orthonormal
    return float(cosines.min().clamp(max=1).acos().rad2deg())


def main() -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    (z, x), (z_test, x_test) = data(256), data(256)
    layer = ib.BregmanProjection(12, 3, "exp")

    def error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (output - target).square().mean()

    def report(when: str) -> None:
        with torch.no_grad():
            rms, degrees = error(layer(x_test), z_test).sqrt(), angle(layer.V)
        print(f"{when}: rms error {rms:.3f}, angle to the true equations {degrees:.1f} degrees")

    print(f"noisy input: rms error {error(x_test, z_test).sqrt():.3f}")
    report("before training")
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        error(layer(x), z).backward()
        optimizer.step()
    report("after training")
    known = x_test * ((SUMS / (x_test @ GROUPS)) @ GROUPS.T)  # the projection, if the groups are known
    print(f"projection onto the true equations: rms error {error(known, z_test).sqrt():.3f}")

    x_test.requires_grad_()
    output = layer(x_test)
    violation = (output @ layer.V - layer.beta).abs().max()
    print(f"outputs: all positive {bool((output > 0).all())}, V'z = beta holds to 1e-9 {bool(violation < 1e-9)}")

    weights, direction = torch.randn_like(output), torch.randn_like(x_test)
    (gradient,) = torch.autograd.grad((weights * output).sum(), x_test)
    with torch.no_grad():
        ends = [(weights * layer(x_test + step * direction)).sum() for step in (1e-6, -1e-6)]
    slope = (gradient * direction).sum()
    print(f"slope in x: implicit {slope:.4f}, finite differences {(ends[0] - ends[1]) / 2e-6:.4f}")


if __name__ == "__main__":
    main()
