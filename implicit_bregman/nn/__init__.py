"""Modules: the deep-equilibrium layer, the Bregman projection and the feed-forward layers of Sec. 6.1."""

from implicit_bregman.nn.deq import BregmanDEQ
from implicit_bregman.nn.feedforward import BregmanLinear, EuclideanLinear, FeedForward, StandardLinear
from implicit_bregman.nn.projection import BregmanProjection

__all__ = ["BregmanDEQ", "BregmanLinear", "BregmanProjection", "EuclideanLinear", "FeedForward", "StandardLinear"]
