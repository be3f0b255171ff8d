"""Implicit layers z = h(x; θ) ∈ crit(f_θ(·; x) + γφ + ι_C), solved and differentiated at the critical point."""

from implicit_bregman import adjoints, operators, solvers
from implicit_bregman.adjoints import AdjointReport
from implicit_bregman.constraints import ConstrainedSolution, Constraints, find_constrained_point
from implicit_bregman.critical_point import attach_gradient, find_critical_point
from implicit_bregman.energy import Energy, Field, QuadraticEnergy
from implicit_bregman.legendre import LegendreFunction, MirrorMap, Product, geometries, geometry
from implicit_bregman.majorization import Certificate, certify
from implicit_bregman.nn import (
    BregmanDEQ,
    BregmanDEQ2d,
    BregmanGraphDEQ,
    BregmanLinear,
    BregmanProjection,
    CriticalPoint,
    EuclideanLinear,
    FeedForward,
    StandardLinear,
)
from implicit_bregman.solution import Solution
from implicit_bregman.statistics import solver_statistics
from implicit_bregman.status import ConvergenceWarning, Status

__version__ = "0.1.0"

__all__ = [
    "AdjointReport",
    "BregmanDEQ",
    "BregmanDEQ2d",
    "BregmanGraphDEQ",
    "BregmanLinear",
    "BregmanProjection",
    "Certificate",
    "ConstrainedSolution",
    "Constraints",
    "ConvergenceWarning",
    "CriticalPoint",
    "Energy",
    "EuclideanLinear",
    "FeedForward",
    "Field",
    "LegendreFunction",
    "MirrorMap",
    "Product",
    "QuadraticEnergy",
    "Solution",
    "StandardLinear",
    "Status",
    "adjoints",
    "attach_gradient",
    "certify",
    "find_constrained_point",
    "find_critical_point",
    "geometries",
    "geometry",
    "operators",
    "solver_statistics",
    "solvers",
]
