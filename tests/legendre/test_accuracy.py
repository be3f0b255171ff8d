"""Every map against many-digit arithmetic, in both precisions."""

import math
from collections.abc import Callable, Sequence

import mpmath
import pytest
import torch
from mpmath import mpf
from torch import Tensor

from implicit_bregman.legendre import Box

# Largest error per map in units of eps: a pair of figures for float32 and float64. The figures of ρ, φ' and so on
# are relative, scaled by the conditioning |f| + |x f'(x)| where the function has a zero.
FIGURES: dict[str, dict[str, tuple[float, float]]] = {
    "isru": {"rho": (1.0e-7, 2.1e-16), "inverse": (5.9e-8, 1.0e-16), "potential": (7.3e-8, 1.3e-16)}
    | {"conjugate": (5.9e-8, 1.1e-16), "log_curvature": (9e-8, 2e-16)}
    | {"dual_divergence": (3.1e-7, 5.0e-16), "divergence": (2.6e-7, 4.6e-16)},
    "sigmoid": {"rho": (9.9e-8, 1.9e-16), "inverse": (8.0e-8, 1.9e-16), "potential": (1.1e-7, 2.5e-16)}
    | {"conjugate": (7.6e-8, 1.8e-16), "log_curvature": (8e-8, 2e-16)}
    | {"dual_divergence": (1.1e-6, 4.6e-15), "divergence": (3.2e-7, 1.4e-15)},
    "softplus": {"rho": (8.6e-8, 1.6e-16), "inverse": (5.6e-8, 1.1e-16), "potential": (1.1e-7, 2.0e-16)}
    | {"conjugate": (1.4e-7, 2.4e-16), "log_curvature": (4e-8, 1e-16)}
    | {"dual_divergence": (4.7e-7, 3.6e-15), "divergence": (4.5e-7, 1.0e-15)},
    "arctan": {"rho": (5.8e-8, 1.1e-16), "inverse": (4.1e-8, 8.1e-17), "potential": (6.7e-8, 1.1e-16)}
    | {"conjugate": (8.0e-8, 1.4e-16), "log_curvature": (5e-8, 1e-16)}
    | {"dual_divergence": (8.8e-7, 1.5e-14), "divergence": (7.1e-7, 1.3e-15)},
    "tanh": {"rho": (5.8e-8, 1.0e-16), "inverse": (4.7e-8, 9.1e-17), "potential": (1.0e-7, 1.8e-16)}
    | {"conjugate": (5.3e-8, 1.1e-16), "log_curvature": (6e-8, 2e-16)}
    | {"dual_divergence": (6.7e-7, 2.0e-15), "divergence": (3.3e-7, 1.8e-15)},
    "sin": {"rho": (5.8e-8, 1.0e-16), "inverse": (5.8e-8, 9.8e-17), "potential": (1.1e-7, 2.2e-16)}
    | {"conjugate": (3.5e-8, 5.5e-17), "log_curvature": (6e-8, 2e-16)}
    | {"dual_divergence": (2.4e-7, 5.0e-15), "divergence": (5.1e-7, 1.3e-14)},
    "arcsinh": {"rho": (1.0e-7, 1.9e-16), "inverse": (2.8e-8, 5.4e-17), "potential": (5.9e-8, 1.1e-16)}
    | {"conjugate": (1.0e-7, 1.7e-16), "log_curvature": (4e-8, 9e-17)}
    | {"dual_divergence": (1.3e-6, 3.0e-15), "divergence": (6.4e-7, 1.2e-15)},
    "identity": {"rho": (0.0, 0.0), "inverse": (0.0, 0.0), "potential": (3e-8, 6e-17)}
    | {"conjugate": (3e-8, 6e-17), "log_curvature": (0.0, 0.0)}
    | {"dual_divergence": (2e-7, 4e-16), "divergence": (2e-7, 4e-16)},
    "exp": {"rho": (5.7e-8, 1.1e-16), "inverse": (2.9e-8, 8.1e-17), "potential": (8.3e-8, 1.4e-16)}
    | {"conjugate": (5.7e-8, 1.1e-16), "log_curvature": (0.0, 0.0)}
    | {"dual_divergence": (1.7e-6, 6.2e-15), "divergence": (7.6e-7, 1.6e-15)},
    "bent": {"rho": (1.3e-7, 2.3e-16), "inverse": (3.7e-8, 7.9e-17), "potential": (7.9e-8, 1.7e-16)}
    | {"conjugate": (2.3e-7, 4.5e-16), "log_curvature": (8e-8, 2e-16)}
    | {"dual_divergence": (1.0e-6, 1.6e-15), "divergence": (3.7e-7, 3.5e-16)},
}
