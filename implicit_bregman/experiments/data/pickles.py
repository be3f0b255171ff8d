"""A reader of pickled NumPy arrays that runs nothing of what the file asks for.

A pickle is a program: loading one may call any function. Here the names that the pickles of arrays contain stand for
the small classes below, and every other name is refused.
"""

from __future__ import annotations

import io
import math
import pickle
from typing import Any

import numpy as np

from implicit_bregman.experiments.data.dataset import Bytes

_BYTE_TYPES = ("u1", b"u1")


class _Type:
    """Stands for numpy.dtype: remembers the name."""

    def __init__(self, name: object = None, *_: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment, without a meaning for bytes."""


class _Array:
    """Stands for numpy.ndarray: remembers shape, type and content."""

    def __init__(self, *_: object) -> None:
        self.shape: object = ()
        self.type: object = None
        self.columns_first: object = False
        self.content: object = b""

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) == 5:
            _, self.shape, self.type, self.columns_first, self.content = state


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _from_buffer(content: object, type_: object, shape: object, order: object) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, type_, order != "C", content))
    return array


def _encode(text: object, encoding: object = "latin1") -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("it encodes text in an unusual way")
    return text.encode("latin1")


_NAMES = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """What a name in the file stands for."""
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not part of an array")
        return _NAMES[module, name]


def read_pickle(content: bytes) -> object:
    """The lists, dictionaries, numbers and texts of a pickle; its arrays of bytes as NumPy arrays with `as_bytes`.

    Text of Python 2 comes as bytes.

    Raises:
        ValueError: If it is damaged, or asks for anything but arrays.
    """
    try:
        return _Reader(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"{error or type(error).__name__}") from None


def as_bytes(value: object) -> Bytes | None:
    """The array of unsigned bytes that a part of a pickle is, or None if it is something else."""
    if not isinstance(value, _Array) or not isinstance(value.type, _Type) or value.type.name not in _BYTE_TYPES:
        return None
    shape, content = value.shape, value.content
    if not isinstance(shape, tuple) or not all(isinstance(extent, int) and extent >= 0 for extent in shape):
        return None
    if not isinstance(content, (bytes, bytearray)) or len(content) != math.prod(shape):
        return None
    return np.frombuffer(content, dtype=np.uint8).reshape(shape, order="F" if value.columns_first else "C")
