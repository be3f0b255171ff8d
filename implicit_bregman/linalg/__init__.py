"""Linear algebra for a batch of systems that share one matrix."""

from implicit_bregman.linalg.cg import LinearSolution, conjugate_gradient
from implicit_bregman.linalg.gcr import gcr
from implicit_bregman.linalg.gmres import gmres
from implicit_bregman.linalg.spectrum import Spectrum, spectrum

__all__ = ["LinearSolution", "Spectrum", "conjugate_gradient", "gcr", "gmres", "spectrum"]
