"""Solves with free blocks that are positive semidefinite, against NumPy's way of thinking: solve and pinv."""

from __future__ import annotations

import torch

from implicit_bregman.linalg.semidefinite import range_basis, solve_damped, solve_definite, solve_minimum_norm

DOUBLE = torch.float64


def test_free_blocks_that_are_singular(generator: torch.Generator) -> None:
    factor = torch.randn(7, 3, generator=generator).double()
    scales = torch.logspace(-6, 6, 7, dtype=DOUBLE)
    hessian = scales[:, None] * (factor @ factor.T) * scales
    free = torch.tensor([[1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 1, 0], [0] * 7, [1] * 7, [0, 1, 0, 1, 1, 0, 0]]).bool()
    rhs = torch.randn(5, 7, generator=generator).double()
    eps = torch.finfo(DOUBLE).eps
    x, definite = solve_definite(hessian, free, rhs, eps)
    assert definite.tolist() == [True, False, True, False, True]
    shortest, same = solve_minimum_norm(hessian, free, rhs @ hessian, eps)
    assert same.tolist() == definite.tolist()
    for row, mask in enumerate(free):
        block = hessian[mask][:, mask]
        assert range_basis(block, eps).shape[1] == min(3, int(mask.sum()))
        assert not bool(x[row][~mask].any())
        if definite[row] and bool(mask.any()):
            s = scales[mask]
            exact = torch.linalg.solve(block / s[:, None] / s, rhs[row][mask] / s) / s
            torch.testing.assert_close(x[row][mask], exact, rtol=1e-8, atol=0)
    plain = factor @ factor.T
    shortest, _ = solve_minimum_norm(plain, free, rhs, eps)
    for row, mask in enumerate(free):
        exact = torch.linalg.pinv(plain[mask][:, mask], rtol=1e-10) @ rhs[row][mask]
        torch.testing.assert_close(shortest[row][mask], exact, rtol=1e-8, atol=1e-8)


def test_damped_systems(generator: torch.Generator) -> None:
    factor = torch.randn(6, 2, generator=generator).double()
    hessian = factor @ factor.T
    free = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0], [1] * 6, [0] * 6]).bool()
    rhs, damping = (torch.randn(4, 6, generator=generator).double().abs() for _ in range(2))
    x, solved = solve_damped(hessian, free, rhs, damping)
    assert bool(solved.all())
    for row, mask in enumerate(free):
        system = (hessian + torch.diag(damping[row]))[mask][:, mask]
        torch.testing.assert_close(x[row][mask], torch.linalg.solve(system, rhs[row][mask]), rtol=1e-9, atol=1e-9)
        assert not bool(x[row][~mask].any())
    # Without damping, a singular block gets as little as it needs.
    x, solved = solve_damped(hessian, free, rhs @ hessian, torch.zeros_like(rhs))
    assert bool(solved.all())
