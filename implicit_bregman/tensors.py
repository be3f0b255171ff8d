"""Refusing tensors, and ways of running PyTorch, that nothing here can compute with; finding rows."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from implicit_bregman.transforms import transformed


def rows_where(mask: Bool[Tensor, " rows"]) -> Int[Tensor, " some"]:
    """The numbers of the rows that a mask names.

    The usual answer is "none". It takes one look at the mask then, and no operator whose result has a shape that
    depends on values.
    """
    if not bool(mask.any()):
        return torch.empty(0, dtype=torch.int64, device=mask.device)
    return mask.nonzero().squeeze(-1)


def coalesced(name: str, matrix: Tensor) -> Tensor:
    """A sparse matrix of any layout as a list of its entries, each place once, sorted by rows.

    Raises:
        RuntimeError: inside transforms of a PyTorch that takes sparse tensors for dense ones there (2.6).
    """
    if matrix.detach().layout != matrix.layout:
        raise RuntimeError(
            f"{name} is sparse, and PyTorch {torch.__version__} takes sparse tensors for dense ones inside torch.func "
            "transforms and forward mode: take gradients by backward() or torch.autograd.grad, make what is built of "
            "it outside the transform, or use a newer PyTorch (2.11 can)"
        )
    return (matrix if matrix.layout == torch.sparse_coo else matrix.to_sparse_coo()).coalesce()


def check_dense(name: str, tensor: object) -> None:
    """Refuse what is no dense tensor.

    Raises:
        TypeError: unless it is a tensor.
        ValueError: for a sparse, nested or jagged one.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.is_nested:
        raise ValueError(f"{name} is a nested tensor: give a dense one, {name}.to_padded_tensor(0.0), or its parts")
    if tensor.layout != torch.strided:
        raise ValueError(f"{name} has the layout {tensor.layout}: give a dense tensor, {name}.to_dense()")


def check_numbers(name: str, tensor: Tensor) -> None:
    """Refuse a tensor without numbers.

    Raises:
        ValueError: on the "meta" device.
    """
    if tensor.is_meta:
        raise ValueError(
            f'{name} is on the "meta" device, where there are no numbers to compute with: move it to another one'
        )


def refuse_transforms(where: str, tensors: Iterable[Tensor]) -> None:
    """Refuse to run inside torch.func transforms, forward-mode AD, and what records a computation to replay it.

    Args:
        where: what does not run there.
        tensors: everything that could be recorded.

    Raises:
        RuntimeError: naming what to do instead.
    """
    if transformed():
        raise RuntimeError(
            f"{where} does not run inside torch.func transforms (vmap, grad, jvp, jacrev, ...) and forward "
            "mode: its gradients come from backward() or torch.autograd.grad"
        )
    refuse_recording(tensors)


def refuse_recording(tensors: Iterable[Tensor]) -> None:
    """Refuse to run in what records a computation to replay it.

    Args:
        tensors: everything that could be recorded.

    Raises:
        RuntimeError: naming what to do instead.
    """
    if torch.jit.is_tracing() or any(isinstance(tensor, FakeTensor) for tensor in tensors):
        raise RuntimeError(
            "find_critical_point cannot be recorded (torch.jit.trace, torch.export, make_fx): how many steps it makes "
            "depends on the data. Use torch.compile, which calls it as it is"
        )
