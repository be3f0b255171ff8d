"""Convergence of the solvers

MM, Anderson, Broyden and Newton on one convex problem with 40 unknowns in [-1, 1], the
condition number 100 and active bounds. All four look for the same point and measure
the same residual. `trace=True` records every iteration and switches the exact solve
off, so the table shows the methods themselves. An iteration of Newton costs more than
the others: it solves a linear system by conjugate gradients.
"""

import matplotlib.pyplot as plt
import torch

import implicit_bregman as ib

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)

# %% The problem
# f(z; c) = −½ zᵀWz − cᵀz, where the eigenvalues of −W go from 0.01 to 1.
basis = torch.linalg.qr(torch.randn(40, 40)).Q
W = -(basis * torch.logspace(-2, 0, 40)) @ basis.T
energy = ib.QuadraticEnergy.from_matrices((W + W.T) / 2)
c = 0.3 * torch.randn(16, 40)

# %% Four solvers
# The residual is the largest in the batch. A sample that has stopped counts as 0.
# Numbers of later iterations would depend on the last digits of the computer.
SHOWN = (5, 20, 40, 80)
figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
heads = "".join(f"{f'after {k}':>11}" for k in SHOWN)
print(f"{'solver':<10}{heads}{'below 1e-3':>13}")
for name in ("MM", "Anderson", "Broyden", "Newton"):
    settings = {"tol": 1e-8, "max_iter": 1000, "trace": True, "on_failure": "ignore"}
    solver = getattr(ib.solvers, name)(**settings)
    solution = ib.find_critical_point(energy, "tanh", c, solver=solver)
    curve = solution.trace.residual.nan_to_num(0).amax(1)
    cells = (f"{curve[k]:>11.0e}" if k < len(curve) else f"{'-':>11}" for k in SHOWN)
    below = (curve < 1e-3).nonzero().flatten().tolist()
    print(f"{name:<10}{''.join(cells)}{below[0] if below else '> 1000':>13}")
    axes.semilogy(curve.clamp_min(1e-16), label=name)
active = (solution.value.abs() == 1).double().mean()
print(f"coordinates on a bound: {100 * active:.0f} %")

# %% Figure
axes.set(xlabel="iteration", ylabel="largest residual", xlim=(0, 400), ylim=(1e-9, 1))
axes.legend()
figure.savefig("convergence.png")
