"""Modules: the layer of any energy, the deep-equilibrium layer, the projection and the layers of Sec. 6.1."""

from implicit_bregman.nn.critical_point import CriticalPoint
from implicit_bregman.nn.deq import BregmanDEQ
from implicit_bregman.nn.deq2d import BregmanDEQ2d
from implicit_bregman.nn.feedforward import BregmanLinear, EuclideanLinear, FeedForward, StandardLinear
from implicit_bregman.nn.graph import BregmanGraphDEQ
from implicit_bregman.nn.projection import BregmanProjection

__all__ = [
    "BregmanDEQ",
    "BregmanDEQ2d",
    "BregmanGraphDEQ",
    "BregmanLinear",
    "BregmanProjection",
    "CriticalPoint",
    "EuclideanLinear",
    "FeedForward",
    "StandardLinear",
]
