"""Residual, objective and gradient error of every solver, iteration by iteration: `implicit-bregman convergence`."""
