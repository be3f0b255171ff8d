"""Modules: the layer of any energy, the deep-equilibrium layer and the feed-forward layers of Sec. 6.1."""

from implicit_bregman.nn.critical_point import CriticalPoint
from implicit_bregman.nn.deq import BregmanDEQ
from implicit_bregman.nn.feedforward import BregmanLinear, EuclideanLinear, FeedForward, StandardLinear

__all__ = ["BregmanDEQ", "BregmanLinear", "CriticalPoint", "EuclideanLinear", "FeedForward", "StandardLinear"]
