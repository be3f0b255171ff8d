"""What C and φ are: mirror maps, separable ones and the simplex, boxes, the catalogue."""

from implicit_bregman.legendre.base import LegendreFunction
from implicit_bregman.legendre.box import Box
from implicit_bregman.legendre.boxes import Boxes
from implicit_bregman.legendre.halfline import Bent, Burg, Exp, Softplus
from implicit_bregman.legendre.line import Arcsinh, Identity
from implicit_bregman.legendre.mirror import MirrorMap
from implicit_bregman.legendre.product import Product
from implicit_bregman.legendre.registry import geometries, geometry, separable_geometries
from implicit_bregman.legendre.scaled_tanh import ScaledTanh
from implicit_bregman.legendre.sigmoidal import ISRU, DoubleBurg, Sigmoid, Tanh
from implicit_bregman.legendre.simplex import Simplex
from implicit_bregman.legendre.trigonometric import Arctan, Sin

__all__ = [
    "ISRU",
    "Arcsinh",
    "Arctan",
    "Bent",
    "Box",
    "Boxes",
    "Burg",
    "DoubleBurg",
    "Exp",
    "Identity",
    "LegendreFunction",
    "MirrorMap",
    "Product",
    "ScaledTanh",
    "Sigmoid",
    "Simplex",
    "Sin",
    "Softplus",
    "Tanh",
    "geometries",
    "geometry",
    "separable_geometries",
]
