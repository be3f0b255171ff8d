"""From z⁰ to the critical point: MM, Anderson, Broyden, and the torchdeq package's solvers."""

from implicit_bregman.solvers.anderson import Anderson
from implicit_bregman.solvers.auto import Auto
from implicit_bregman.solvers.base import Outcome, Solver, Trace
from implicit_bregman.solvers.broyden import Broyden
from implicit_bregman.solvers.mm import MM
from implicit_bregman.solvers.newton import Newton
from implicit_bregman.solvers.registry import solver_named
from implicit_bregman.solvers.splitting import Splitting
from implicit_bregman.solvers.torchdeq import TorchDEQ

__all__ = [
    "MM",
    "Anderson",
    "Auto",
    "Broyden",
    "Newton",
    "Outcome",
    "Solver",
    "Splitting",
    "TorchDEQ",
    "Trace",
    "solver_named",
]
