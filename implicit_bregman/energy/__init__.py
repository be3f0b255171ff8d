"""What is minimised: the energy f_θ(z; x)."""

from implicit_bregman.energy.base import Energy
from implicit_bregman.energy.contract import BoundEnergy, Evaluation
from implicit_bregman.energy.field import Field
from implicit_bregman.energy.quadratic import QuadraticEnergy

__all__ = ["BoundEnergy", "Energy", "Evaluation", "Field", "QuadraticEnergy"]
