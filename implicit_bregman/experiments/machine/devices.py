"""Where an experiment computes."""

from __future__ import annotations

import os

import torch


def find_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ValueError: If the name is unknown or the device is not there.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"device {name!r} is not available ({reason}); use --device cpu") from None
    return device


def device_name(device: torch.device | str) -> str:
    """What people call it: the model of a GPU, or "cpu"."""
    place = torch.device(device)
    return torch.cuda.get_device_name(place) if place.type == "cuda" else str(place)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
