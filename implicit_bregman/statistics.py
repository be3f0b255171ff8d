"""How the layers of a model were solved, as a few numbers that can be logged."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from implicit_bregman.solution import Solution

#: What a wrapper (`torch.compile`, Lightning Fabric) puts before the names of the modules in it.
_WRAPPERS = ("_orig_mod", "_forward_module", "_original_module")


def solver_statistics(model: nn.Module) -> dict[str, float]:
    """How every layer of a model was solved in its last call.

    The names are those of `model.named_modules()`, followed by a slash and one of these:

    - `converged`: the share of samples whose residual is within the tolerance. 0 for `Unrolled`, which does not ask.
    - `iterations`: the mean number of solver steps.
    - `residual`: the largest residual.
    - `active`: the share of coordinates that a bound holds back, which are those with a multiplier.
    - `gradient_error`: the largest `Solution.gradient_error`; only after `backward()`, where the adjoint tells it.

    Every layer costs one transfer from its device.

    Args:
        model: a module with implicit layers in it, or one of them. Any submodule whose `last_solution` is a `Solution`
            is counted as a layer. What has not been called is left out, as is a layer inside a compiled graph.

    Returns:
        The numbers, in the order of the layers; of a model that is itself a layer without the slash. NaN for a batch
        without samples.

    Raises:
        TypeError: if `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}: pass the model, not its output")
    found: dict[str, float] = {}
    for name, layer in model.named_modules():
        solution = getattr(layer, "last_solution", None)
        if isinstance(solution, Solution):
            path = ".".join(part for part in name.split(".") if part and part not in _WRAPPERS)
            found |= {f"{path}/{key}" if path else key: value for key, value in _numbers(solution).items()}
    return found


@torch.no_grad()
def _numbers(solution: Solution) -> dict[str, float]:
    numbers = {
        "converged": _mean(solution.converged),
        "iterations": _mean(solution.iterations),
        "residual": _largest(solution.residual),
        "active": _mean(solution.multiplier.abs() > 0),
    }
    if solution.gradient_error is not None:
        numbers["gradient_error"] = _largest(solution.gradient_error)
    return dict(zip(numbers, torch.stack(list(numbers.values())).tolist(), strict=True))


def _mean(each: Tensor) -> Tensor:
    return each.double().mean()


def _largest(each: Tensor) -> Tensor:
    return each.double().amax() if each.numel() else each.new_full((), torch.nan, dtype=torch.float64)
