"""From dL/dz to dL/dθ: implicit, unrolled, phantom, one-step, SHINE."""

from implicit_bregman.adjoints.base import Adjoint
from implicit_bregman.adjoints.implicit import Implicit
from implicit_bregman.adjoints.phantom import OneStep, Phantom
from implicit_bregman.adjoints.registry import adjoint_named
from implicit_bregman.adjoints.shine import Shine
from implicit_bregman.adjoints.unrolled import Unrolled
from implicit_bregman.backward import AdjointReport

__all__ = ["Adjoint", "AdjointReport", "Implicit", "OneStep", "Phantom", "Shine", "Unrolled", "adjoint_named"]
