"""Versions of the software, and the machine that it runs on, as reports name them."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import platform
from pathlib import Path

import torch

import implicit_bregman
from implicit_bregman.experiments.machine.devices import available_cores


def versions(*names: str) -> dict[str, object]:
    """Versions by name.

    Args:
        names: "python", "platform", "implicit_bregman", "torch", or any package.
    """
    known = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "implicit_bregman": implicit_bregman.__version__,
        "torch": torch.__version__,
    }
    return {name: known[name] if name in known else _version(name) for name in names}


def hardware() -> dict[str, object]:
    """Processor, cores and system."""
    return {
        "processor": _processor(),
        "cores": available_cores(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def today() -> str:
    """The date, in UTC."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown" if importlib.util.find_spec(name) is not None else "not installed"


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()
