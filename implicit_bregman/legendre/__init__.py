"""What C and φ are: the Legendre function, the catalogue, box changes."""

from implicit_bregman.legendre.base import LegendreFunction
from implicit_bregman.legendre.box import Box
from implicit_bregman.legendre.halfline import Bent, Burg, Exp, Softplus
from implicit_bregman.legendre.line import Arcsinh, Identity
from implicit_bregman.legendre.registry import geometries, geometry
from implicit_bregman.legendre.scaled_tanh import ScaledTanh
from implicit_bregman.legendre.sigmoidal import ISRU, DoubleBurg, Sigmoid, Tanh
from implicit_bregman.legendre.trigonometric import Arctan, Sin

__all__ = [
    "ISRU",
    "Arcsinh",
    "Arctan",
    "Bent",
    "Box",
    "Burg",
    "DoubleBurg",
    "Exp",
    "Identity",
    "LegendreFunction",
    "ScaledTanh",
    "Sigmoid",
    "Sin",
    "Softplus",
    "Tanh",
    "geometries",
    "geometry",
]
