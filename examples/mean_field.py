"""Mean field of a fully connected random field: pixels, each with shares of two labels, agree with their neighbours.

The images are digits under noise. The marginals solve z = softmax((unary - H z) / gamma), a critical point on one
simplex per pixel; how strongly pixels agree, and how far, is learned through it.
"""

import torch
from sklearn.datasets import load_digits

import implicit_bregman as ib


def main() -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    truth = torch.from_numpy(load_digits().images[:12] > 7).flatten(1).long()  # twelve digits of 8 x 8 pixels
    unary = 1.2 * torch.nn.functional.one_hot(truth, 2) + torch.randn(12, 64, 2)

    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    place = torch.stack([rows.flatten(), columns.flatten()], 1)
    distance = torch.cdist(place, place).square() + 1e9 * torch.eye(64)  # (a pixel is no neighbour of itself)
    differ = 1 - torch.eye(2)  # what two labels cost that are not the same
    pixels = ib.geometry("simplex", size=2)

    def marginals(log_strength: torch.Tensor, log_reach: torch.Tensor) -> ib.Solution:
        kernel = log_strength.exp() * torch.exp(-distance / log_reach.exp())
        energy = ib.QuadraticEnergy.from_operator(ib.operators.Kronecker(kernel, differ))
        return ib.find_critical_point(energy, pixels, unary.flatten(1), regularization=1.0)

    parameters = [torch.tensor(-2.0, requires_grad=True), torch.tensor(0.0, requires_grad=True)]
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    print(f"noise alone: {(unary.argmax(-1) == truth).double().mean():.3f} of the pixels right")
    for step in range(41):
        found = marginals(*parameters)
        z = found.value.unflatten(1, (64, 2))
        loss = torch.nn.functional.nll_loss(z.log().flatten(0, 1), truth.flatten())
        if step % 20 == 0:
            right = (z.argmax(-1) == truth).double().mean()
            print(f"step {step:2d}: {right:.3f} right, loss {loss.item():.3f}, all converged {found.converged.all()}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    (slope,) = torch.autograd.grad(marginals(*parameters).value[:, ::2].square().sum(), parameters[0])
    with torch.no_grad():
        ends = [marginals(parameters[0] + t, parameters[1]).value[:, ::2].square().sum() for t in (1e-5, -1e-5)]
        kernel = parameters[0].exp() * torch.exp(-distance / parameters[1].exp())
        z = torch.full((12, 64, 2), 0.5)
        for _ in range(400):  # the usual iteration, damped
            z = 0.5 * z + 0.5 * torch.softmax(unary - kernel @ z @ differ, -1)
        gap = (z.flatten(1) - marginals(*parameters).value).abs().max()
    print(f"against 400 plain iterations: {gap:.1e}")
    print(f"slope {slope.item():.5f}, finite differences {(ends[0] - ends[1]).item() / 2e-5:.5f}")


if __name__ == "__main__":
    main()
