"""γ > 0 without symmetry: Newton steps with one Jacobian for the whole batch.

The equation is E(y) = γy + ∇f(ρ(y)) = 0, its Jacobian γ + H D with D = ρ'(y), another for each sample. With the middle
D̄ of all D in its place one inverse serves the batch, and a step shrinks the error by about
‖(γ + HD̄)⁻¹H(D̄ − D)‖. That is not enough where γ is small or ρ bends much: the steps are watched, and given up where
they do not pay.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from implicit_bregman.objective import Objective

#: So often D̄ is taken anew, and so many steps are made with each.
_ROUNDS, _STEPS = 4, 6
#: What a round has to leave at most of the error.
_GAIN = 0.05


def chord_steps(
    objective: Objective, dual: Float[Tensor, "batch d"], tol: float, most: int
) -> tuple[Float[Tensor, "batch d"], int] | None:
    """Steps from y = `dual` that should make E small, and how many; None where they do not pay.

    What they return has to be judged.

    Args:
        objective: F with γ > 0 and one H for all samples.
        dual: the start.
        tol: the E that is wanted, relative to the largest term of c.
        most: bound on the number of steps.
    """
    energy, gamma, geometry = objective.energy.factored, objective.regularization, objective.geometry
    if energy is None:
        return None
    target = tol * (1 + float(energy.offset.abs().amax()))

    def error(y: Tensor) -> Tensor:
        return energy.gradient(geometry.activation(y)).add_(y, alpha=gamma)

    left, steps = error(dual), 0
    size = float(left.abs().amax())
    for _ in range(_ROUNDS):
        least, largest = geometry.slope(dual).aminmax(dim=0)
        inverse = energy.operator.inverted_scaled(gamma, 0.5 * (least + largest), len(dual))
        if inverse is None:
            return None
        count = min(_STEPS, most - steps)
        for _ in range(count):
            dual = inverse.add_product(dual, left, alpha=-1.0)
            left = error(dual)
        steps, before, size = steps + count, size, float(left.abs().amax())
        if size <= target:
            return dual, steps
        if count < _STEPS or not size <= _GAIN * before:
            return None
    return None
