"""Hessians as linear maps, and the equations of projections: the contracts, and the structures that are known."""

from implicit_bregman.operators.base import ROUNDING_ERRORS, Dilation, LinearOperator, Rebuild
from implicit_bregman.operators.blocks import Blocks
from implicit_bregman.operators.convolution import Convolution
from implicit_bregman.operators.costs import Costs
from implicit_bregman.operators.dense import Dense
from implicit_bregman.operators.diagonal import Diagonal
from implicit_bregman.operators.kronecker import Kronecker
from implicit_bregman.operators.linear_map import LinearMap
from implicit_bregman.operators.low_rank import LowRank
from implicit_bregman.operators.marginals import Marginals
from implicit_bregman.operators.sparse import Sparse
from implicit_bregman.operators.stacked import Stacked
from implicit_bregman.operators.sums import Sum

__all__ = [
    "ROUNDING_ERRORS",
    "Blocks",
    "Convolution",
    "Costs",
    "Dense",
    "Diagonal",
    "Dilation",
    "Kronecker",
    "LinearMap",
    "LinearOperator",
    "LowRank",
    "Marginals",
    "Rebuild",
    "Sparse",
    "Stacked",
    "Sum",
]
