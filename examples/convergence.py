"""How fast the solvers converge: MM, Anderson, Broyden and Newton on one convex problem.

The problem has 40 unknowns in [-1, 1], the condition number 100 and bounds that are active at the solution. All solvers
look for the same point and are measured by the same residual. `trace=True` records every iteration; the exact solve
is then off, so that the table shows the methods themselves. `--plot FILE` draws the residuals (it needs matplotlib).
"""

import argparse

import torch

import implicit_bregman as ib

TOL = 1e-8
SHOWN = (5, 40, 160)


def problem(d: int = 40, samples: int = 16) -> tuple[ib.QuadraticEnergy, torch.Tensor]:
    """f(z; c) = −½ zᵀWz − cᵀz with eigenvalues of −W from 0.01 to 1, and a batch of c."""
    basis = torch.linalg.qr(torch.randn(d, d)).Q
    W = -(basis * torch.logspace(-2, 0, d)) @ basis.T
    return ib.QuadraticEnergy.from_matrices((W + W.T) / 2), 0.3 * torch.randn(samples, d)


def residuals(solution: ib.Solution) -> torch.Tensor:
    """The largest residual in the batch after every iteration; samples that have stopped count as 0."""
    return solution.trace.residual.nan_to_num(0).amax(1)


def plot(curves: dict[str, torch.Tensor], file: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.semilogy(curve.clamp_min(1e-16).numpy(), label=name)
    axes.set(xlabel="iteration", ylabel="largest residual in the batch", ylim=(TOL / 10, None))
    axes.legend()
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--plot", metavar="FILE", help="draw the residuals into FILE")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    energy, c = problem()
    curves = {}

    heads = "".join(f"{f'after {k}':>11}" for k in SHOWN)
    print(f"{'solver':<10}{heads}{'to 1e-8':>11}{'gradients':>11}")
    for kind in (ib.solvers.MM, ib.solvers.Anderson, ib.solvers.Broyden, ib.solvers.Newton):
        solver = kind(tol=TOL, max_iter=1000, trace=True, on_failure="ignore")
        solution = ib.find_critical_point(energy, "tanh", c, solver=solver)
        curve = curves[kind.__name__] = residuals(solution)
        after = "".join(f"{curve[k]:>11.0e}" if k < len(curve) else f"{'-':>11}" for k in SHOWN)
        reached = str(int(solution.iterations.max())) if solution.converged.all() else "> 1000"
        print(f"{kind.__name__:<10}{after}{reached:>11}{int(solution.evaluations.max()):>11}")
    active = (solution.value.abs() == 1).double().mean()
    print(f"coordinates on a bound: {100 * active:.0f} %")
    if arguments.plot:
        plot(curves, arguments.plot)


if __name__ == "__main__":
    main()
