"""Normalized weights, as users of deep-equilibrium networks expect them."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrizations, parametrize

_NORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight": parametrizations.weight_norm,
    "spectral": parametrizations.spectral_norm,
}


def normalize(module: nn.Module, norm: str) -> None:
    """Parametrize the weight of every linear and convolutional layer of a module, in place.

    Args:
        module: whose layers.
        norm: "weight", PyTorch's `weight_norm` (rows of a length of their own), or "spectral", its `spectral_norm` (the
            largest singular value is 1).

    Raises:
        ValueError: for another norm, a module without such layers, or a weight that is parametrized already.
    """
    if norm not in _NORMS:
        raise ValueError(f"norm must be one of {', '.join(map(repr, _NORMS))}, or None, got {norm!r}")
    layers = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear | _ConvNd)}
    if not layers:
        raise ValueError(
            f"norm={norm!r} is for linear and convolutional layers, of which {type(module).__name__} has none: "
            "use norm=None"
        )
    for name, layer in layers.items():
        if parametrize.is_parametrized(layer, "weight"):
            raise ValueError(
                f"norm={norm!r} normalizes every weight, but {name}.weight is parametrized already: use norm=None"
            )
    for layer in layers.values():
        _NORMS[norm](layer)
