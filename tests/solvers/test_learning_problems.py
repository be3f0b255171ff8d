"""Problems of machine learning as box QPs and on the simplex: against scikit-learn, values and hypergradients."""

import numpy as np
import torch
from sklearn.isotonic import IsotonicRegression
from sklearn.svm import OneClassSVM
from torch import Tensor

import implicit_bregman as ib


def test_isotonic_regression() -> None:
    """The projection onto nondecreasing sequences, by their increments; its derivative averages over the levels."""
    g = torch.Generator().manual_seed(1)
    y = (torch.linspace(-1, 2, 40) + torch.randn(3, 40, generator=g)).double().requires_grad_()
    sums = torch.ones(40, 40).double().tril()
    lower = torch.zeros(40).double()
    lower[0] = -torch.inf
    box = ib.geometry("tanh").to_box(lower, torch.inf)
    found = ib.find_critical_point(ib.QuadraticEnergy.from_matrices(-(sums.T @ sums)), box, y @ sums)
    assert found.converged.all()
    fit = found.value @ sums.T
    weight = torch.randn(3, 40, generator=g).double()
    (grad,) = torch.autograd.grad((weight * fit).sum(), y)
    for row in range(3):
        expected = IsotonicRegression().fit_transform(np.arange(40), y[row].detach().numpy())
        np.testing.assert_allclose(fit[row].detach().numpy(), expected, rtol=0, atol=1e-8)
        _, level = np.unique(np.round(expected, 9), return_inverse=True)
        means = np.bincount(level, weight[row].numpy()) / np.bincount(level)
        np.testing.assert_allclose(grad[row].numpy(), means[level], rtol=0, atol=1e-8)


def test_a_one_class_machine() -> None:
    """min ½αᵀKα, 0 ≤ α ≤ 1/(νn), Σα = 1, a capped simplex; the derivative of min in the kernel's width."""
    g = torch.Generator().manual_seed(2)
    points, nu = torch.randn(50, 2, generator=g).double(), 0.3
    width = torch.tensor(0.8).double().requires_grad_()

    def fit(width: Tensor) -> ib.Solution:
        kernel = torch.exp(-torch.cdist(points, points).square() / (2 * width**2))
        energy = ib.QuadraticEnergy.from_matrices(-kernel)
        return ib.find_critical_point(energy, ib.geometry("simplex", hi=1 / (nu * 50)), torch.zeros(1, 50).double())

    found = fit(width)
    assert found.converged.all()
    theirs = OneClassSVM(nu=nu, gamma=float(1 / (2 * width.detach() ** 2)), tol=1e-12).fit(points.numpy())
    alpha = np.zeros(50)
    alpha[theirs.support_] = theirs.dual_coef_[0] / (nu * 50)
    # (libsvm has its kernel in float32)
    np.testing.assert_allclose(found.value[0].detach().numpy(), alpha, rtol=0, atol=1e-6)
    weight = torch.arange(50).double().cos()
    for loss in (lambda found: found.objective.sum(), lambda found: (weight * found.value).sum()):
        (slope,) = torch.autograd.grad(loss(found), width, retain_graph=True)
        with torch.no_grad():
            difference = (loss(fit(width + 1e-6)) - loss(fit(width - 1e-6))) / 2e-6
        torch.testing.assert_close(slope, difference, rtol=1e-5, atol=1e-7)
