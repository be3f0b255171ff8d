"""Modules: the deep-equilibrium layer and the feed-forward layers of Sec. 6.1."""

from implicit_bregman.nn.deq import BregmanDEQ
from implicit_bregman.nn.feedforward import BregmanLinear, EuclideanLinear, FeedForward, StandardLinear

__all__ = ["BregmanDEQ", "BregmanLinear", "EuclideanLinear", "FeedForward", "StandardLinear"]
