"""The whole diagnosis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from implicit_bregman.experiments.doctor.packages import Package, packages
from implicit_bregman.experiments.doctor.selftest import PRECISIONS, Check, make_layers, run_checks
from implicit_bregman.experiments.machine.devices import device_name
from implicit_bregman.experiments.machine.versions import hardware, versions


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        machine: versions, cores and threads, by name.
        devices: the devices and what they are called.
        packages: what the library and its extras need.
        checks: the self-test.
    """

    machine: dict[str, str]
    devices: dict[str, str]
    packages: list[Package]
    checks: list[Check]

    @property
    def problems(self) -> list[str]:
        """Why the library cannot be relied on here, one line each; empty: it can."""
        unfit = [
            f"{each.name} is {each.version or 'missing'}, {each.needed or 'any version'} is needed: {each.remedy}"
            for each in self.packages
            if not each.extra and not each.fits
        ]
        return unfit + [
            f"{each.layer} on {each.device} in {each.precision}: "
            + (
                each.complaint
                or f"errors of {each.value:.0e} and {each.gradient:.0e}, at most {each.limit:.0e} is right"
            )
            for each in self.checks
            if not each.passed
        ]

    @property
    def incomplete(self) -> dict[str, list[Package]]:
        """The packages that are missing or too old, by extra."""
        unfit = [each for each in self.packages if each.extra and not each.fits]
        return {
            extra: [each for each in unfit if each.extra == extra] for extra in dict.fromkeys(e.extra for e in unfit)
        }

    @property
    def healthy(self) -> bool:
        """Whether there are no problems. A missing extra is none."""
        return not self.problems

    @property
    def verdict(self) -> str:
        """One line."""
        where = ", ".join(self.devices)
        if self.healthy:
            return f"Healthy: {len(self.checks)} of {len(self.checks)} checks passed on {where}."
        passed = sum(each.passed for each in self.checks)
        return f"Not healthy: {len(self.problems)} problems; {passed} of {len(self.checks)} checks passed on {where}."


def diagnose(progress: Callable[[float, str], None] = lambda share, text: None) -> Diagnosis:
    """Look at the machine and run the self-test.

    Args:
        progress: is told the share that is done and the layer that has been checked.
    """
    found = devices()
    total = len(make_layers()) * len(found) * len(PRECISIONS)
    checks: list[Check] = []
    for check in run_checks(list(found)):
        checks.append(check)
        progress(len(checks) / total, check.layer)
    return Diagnosis(machine(), found, packages(), checks)


def machine() -> dict[str, str]:
    """Versions, processor, cores and threads."""
    found = {
        **versions("implicit_bregman", "python", "torch"),
        "CUDA of PyTorch": torch.version.cuda or "none: this build is for the CPU",
        **hardware(),
        "threads": f"{torch.get_num_threads()} (torch.set_num_threads; small layers are fastest with one)",
    }
    return {name: str(value) for name, value in found.items()}


def devices() -> dict[str, str]:
    """PyTorch's names of the devices that the library runs on, and what people call them."""
    numbers = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return {name: device_name(name) for name in ("cpu", *(f"cuda:{number}" for number in numbers))}
