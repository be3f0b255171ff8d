"""Sizes at which one route becomes cheaper than another, all in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Costs:
    """What operations cost relative to one another, as the sizes at which routes change; d is the width of a state.

    An operator carries them (`LinearOperator.costs`). They decide how long a solve takes, never what it finds.

    Attributes:
        matrix_entries: up to so many entries a matrix is made of an operator where it says more: one of width 512 for
            all samples.
        inverse_width: up to this d an inverse costs less than the iterations of a single sample,
        inverse_per_sample: and beyond it where there is a sample for every so many coordinates.
        block: largest size m of a free block that is factorized through the inverse: beyond m³ = this · d², iterations
            with the inverse as preconditioner cost less.
        split_from: operations that padding all free blocks of a batch to the largest may cost, before it is asked what
            two groups would cost,
        split_share: and they are made if that is less than this share.
        kept_block: the factors of free blocks are kept for the backward pass if each has at most this many entries per
            coordinate: else they take more memory than time.
        free_width: up to this d a free block for every sample is factorized; beyond it iterations cost less,
        free_products: or their first d/this products are tried, for projected Newton steps.
        splitting_per_sample: operator splitting takes one inverse, which pays where there is a sample for every so many
            coordinates,
        splitting_block: and, for each sample, iterations that cost d²/(this · m³) of the factorizations of a block of
            width m that an active set takes, corrections included,
        splitting_least: which takes more than so many,
        splitting_most: and it guesses an active set that gradient steps are slow to find where so many are enough.
        splitting_longest: the iterations up to which a splitting of an operator that is no matrix is cheaper than
            Newton steps by conjugate gradients.
        dual_work: multiplications, B d³, up to which one factorization per sample is as fast as a few products,
        dual_width: the d beyond which a factorization per sample is out of the question for Newton steps in the dual,
        dual_patience: and the products after which it would have been faster: so many,
        dual_products: and one for every so many coordinates.
        curve_width: the d up to which a factorization per sample and step of a continuation is affordable.
        exact_width: an exact solve is tried every d/this iterations at most: it costs as much as d/6 of them.
        newton_width: the d beyond which, for γ > 0, the factorizations of Newton's method cost more than the iterations
            that are left near the solution.
        adjoint_width: up to this d a factorization per sample is cheaper than iterating, in the backward pass and for
            the estimate of its error,
        indefinite_width: and up to this one a system that conjugate gradients found indefinite is factorized.
    """

    matrix_entries: int = 2**18
    inverse_width: int = 512
    inverse_per_sample: int = 128
    block: int = 36
    split_from: float = 1e7
    split_share: float = 0.5
    kept_block: int = 2
    free_width: int = 512
    free_products: int = 4
    splitting_per_sample: int = 4
    splitting_block: int = 20
    splitting_least: int = 8
    splitting_most: int = 32
    splitting_longest: int = 200
    dual_work: int = 2**18
    dual_width: int = 1024
    dual_patience: int = 20
    dual_products: int = 4
    curve_width: int = 512
    exact_width: int = 16
    newton_width: int = 128
    adjoint_width: int = 64
    indefinite_width: int = 1024

    def pays_to_invert(self, width: int, batch: int) -> bool:
        """Whether an inverse costs less than solving for so many samples by iteration."""
        return width <= self.inverse_width or width <= self.inverse_per_sample * batch

    def splitting_iterations(self, active: float, width: int) -> float:
        """How many iterations of an operator splitting cost as much as the blocks of an active set of this size."""
        return self.splitting_block * min(active, width - active) ** 3 / width**2


#: What operators have unless they are given others.
DEFAULT_COSTS = Costs()
