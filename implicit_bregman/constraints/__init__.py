"""Critical points under a few affine constraints l ≤ Vᵀz ≤ u."""

from implicit_bregman.constraints.affine import Constraints
from implicit_bregman.constraints.point import ConstrainedSolution, find_constrained_point

__all__ = ["ConstrainedSolution", "Constraints", "find_constrained_point"]
