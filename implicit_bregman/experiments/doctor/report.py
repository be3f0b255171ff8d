"""A diagnosis as tables and as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

from rich.table import Table

from implicit_bregman.experiments.doctor.packages import NAME, Package
from implicit_bregman.experiments.doctor.run import Diagnosis
from implicit_bregman.experiments.doctor.selftest import Check


def to_json(diagnosis: Diagnosis) -> str:
    """Everything, for a program or an issue; what could not be measured is null."""
    document = {
        "verdict": diagnosis.verdict,
        "healthy": diagnosis.healthy,
        "problems": diagnosis.problems,
        "machine": diagnosis.machine,
        "devices": diagnosis.devices,
        "packages": [asdict(each) | {"fits": each.fits} for each in diagnosis.packages],
        "checks": [_as_dict(each) for each in diagnosis.checks],
    }
    return json.dumps(document, indent=1, allow_nan=False)


def to_text(diagnosis: Diagnosis) -> list[object]:
    """Tables for the terminal, and the verdict last."""
    parts: list[object] = [_machine(diagnosis), _packages(diagnosis), _checks(diagnosis)]
    if not diagnosis.packages:
        parts.append(f"{NAME} is not installed as a package, so nobody knows what it needs: pip install .")
    for extra, missing in diagnosis.incomplete.items():
        names = ", ".join(each.name for each in missing)
        parts.append(f"Without the extra {extra} ({names}): pip install '{NAME}[{extra}]'")
    return [*parts, *(f"Problem: {line}" for line in diagnosis.problems), diagnosis.verdict]


def _as_dict(check: Check) -> dict[str, object]:
    numbers = asdict(check) | {"passed": check.passed}
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in numbers.items()}


def _machine(diagnosis: Diagnosis) -> Table:
    table = Table(title="This machine", show_header=False, title_justify="left")
    for name, text in (diagnosis.machine | diagnosis.devices).items():
        table.add_row(name, text)
    return table


def _packages(diagnosis: Diagnosis) -> Table:
    table = Table("package", "needed by", "version", "installed", title="Packages", title_justify="left")
    for each in diagnosis.packages:
        table.add_row(
            each.name, each.extra or "the library", each.needed, _state(each), style="" if each.fits else "yellow"
        )
    return table


def _state(package: Package) -> str:
    if package.version is None:
        return "missing"
    return package.version if package.fits else f"{package.version}, does not fit"


def _checks(diagnosis: Diagnosis) -> Table:
    table = Table(title="Self-test: errors against independent loops, relative to 1 + size", title_justify="left")
    for heading in ("layer", "device", "precision", "value", "gradient", "allowed", "seconds", ""):
        table.add_column(heading, justify="right" if heading in ("value", "gradient", "allowed", "seconds") else "left")
    for each in diagnosis.checks:
        numbers = (f"{each.value:.1e}", f"{each.gradient:.1e}", f"{each.limit:.0e}", f"{each.seconds:.2f}")
        verdict = "passed" if each.passed else "FAILED"
        table.add_row(each.layer, each.device, each.precision, *numbers, verdict, style="" if each.passed else "red")
    return table
