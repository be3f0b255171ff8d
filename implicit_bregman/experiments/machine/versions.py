"""The machine, the versions, and which peers are there."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import platform
from pathlib import Path

import torch

import implicit_bregman
from implicit_bregman.experiments.machine.devices import available_cores

PEERS = ("torchdeq", "proxsuite", "osqp", "bregmanet")
INSTALL = "pip install 'implicit-bregman[benchmark]'"


def missing_peers() -> dict[str, str]:
    """The peers that are not installed, and how to install them."""
    return {name: f"not installed: {INSTALL}" for name in PEERS if importlib.util.find_spec(name) is None}


def environment(threads: int) -> dict[str, object]:
    """Machine, versions and date, for the report."""
    found: dict[str, object] = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": available_cores(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "implicit_bregman": implicit_bregman.__version__,
    }
    for name in ("torch", "numpy", *PEERS):
        found[name] = _version(name)
    found["GPU"] = f"not measured ({torch.cuda.get_device_name(0)})" if torch.cuda.is_available() else "none"
    return found


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
