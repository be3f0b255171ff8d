"""One computation of a grid, and the file that keeps its result."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from implicit_bregman.experiments.grid.versions import code_version
from implicit_bregman.experiments.machine.devices import device_name
from implicit_bregman.experiments.output.files import write_all

FORMAT_VERSION = 2


class Unusable(Exception):
    """A stored cell that must be computed again; the text, behind the file's name, says why."""


@dataclass(frozen=True)
class Cell:
    """A function of settings.

    Attributes:
        name: For people, and the beginning of the file's name.
        function: A function of a module, called with the settings and the resources; what it returns must be made of
            what JSON has: dicts with text keys, lists, text, numbers (NaN and infinities included), booleans, None.
        settings: A frozen dataclass: everything that the result depends on. Nested dataclasses, tuples and `Path` are
            allowed.
        resources: Keyword arguments on which the result does not depend, say the device or the folder of the data.
        version: Names the code that computes it; "" stands for `code_version` of the function.

    Raises:
        TypeError: If the settings are no instance of a frozen dataclass.
    """

    name: str
    function: Callable[..., Any]
    settings: Any
    resources: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""

    def __post_init__(self) -> None:
        parameters = getattr(type(self.settings), "__dataclass_params__", None)
        if parameters is None or not parameters.frozen:
            raise TypeError(f"settings must be an instance of a frozen dataclass, got {self.settings!r}")
        if not self.version:
            object.__setattr__(self, "version", code_version(self.function))

    @property
    def identity(self) -> dict[str, Any]:
        """Function and settings, as JSON has them."""
        settings = json.loads(json.dumps(dataclasses.asdict(self.settings), default=str))
        return {"function": f"{self.function.__module__}.{self.function.__qualname__}", "settings": settings}

    @property
    def key(self) -> str:
        """A hash of function and settings."""
        return _digest(self.identity)[:20]

    @property
    def file(self) -> str:
        """Name of the file."""
        return f"{re.sub(r'[^A-Za-z0-9.]+', '-', self.name).strip('-')}-{self.key}.json"

    def compute(self) -> Computed:
        """Call the function."""
        started = time.perf_counter()
        result = self.function(self.settings, **self.resources)
        seconds = time.perf_counter() - started
        return Computed(result, seconds, torch.__version__, device_name(self.resources.get("device", "cpu")))


@dataclass(frozen=True)
class Computed:
    """What a cell returned, and what computed it.

    Attributes:
        result: What the function returned.
        seconds: Seconds that it took.
        torch: Version of PyTorch.
        device: Name of the device.
    """

    result: Any
    seconds: float
    torch: str
    device: str

    @property
    def origin(self) -> str:
        """What computed it, for a report."""
        return f"PyTorch {self.torch}, {self.device}"


def store_cell(folder: Path, cell: Cell, computed: Computed) -> Computed:
    """Write a result, complete or not at all, and return it as `load_cell` will."""
    record = {
        "format": FORMAT_VERSION,
        "version": cell.version,
        **cell.identity,
        "torch": computed.torch,
        "device": computed.device,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "seconds": computed.seconds,
        "result": json.loads(json.dumps(computed.result)),
    }
    text = json.dumps(record | {"digest": _digest(record)}, ensure_ascii=False)
    write_all(folder, {cell.file: text.encode()})
    return replace(computed, result=record["result"])


def load_cell(folder: Path, cell: Cell) -> Computed:
    """The stored result.

    Raises:
        FileNotFoundError: If there is none.
        Unusable: If the file is damaged or was made by other code.
    """
    try:
        record = json.loads((folder / cell.file).read_bytes())
        digest = record.pop("digest")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise Unusable("is damaged") from None
    if digest != _digest(record) or {key: record.get(key) for key in cell.identity} != cell.identity:
        raise Unusable("is damaged")
    if (record["format"], record["version"]) != (FORMAT_VERSION, cell.version):
        raise Unusable("was made by other code")
    return Computed(record["result"], record["seconds"], record["torch"], record["device"])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
