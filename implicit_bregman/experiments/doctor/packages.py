"""Packages that the library and its extras need, and which of them are there."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

NAME = "implicit-bregman"
# What the package itself needs, and what its users may want; the others are for contributors.
EXTRAS = ("", "experiments", "cluster", "benchmark")


@dataclass(frozen=True)
class Package:
    """A package that the library or one of its extras needs.

    Attributes:
        name: as one installs it.
        extra: the first extra that brings it; "": the library needs it.
        needed: the versions that fit, for example ">=2.6"; "": all.
        version: what is installed; None: it is not.
    """

    name: str
    extra: str
    needed: str
    version: str | None

    @property
    def fits(self) -> bool:
        """Whether it is there in a version that fits."""
        return self.version is not None and SpecifierSet(self.needed).contains(self.version, prereleases=True)

    @property
    def remedy(self) -> str:
        """What to do where it does not fit."""
        return f"pip install '{NAME}[{self.extra}]'" if self.extra else f"pip install '{self.name}{self.needed}'"


def packages() -> list[Package]:
    """What the installed metadata say that the library and its extras need, each once; empty where there are none."""
    found: dict[str, Package] = {}
    for extra in EXTRAS:
        for needed in _requirements(extra):
            found.setdefault(needed.name, Package(needed.name, extra, str(needed.specifier), _version(needed.name)))
    return list(found.values())


def _requirements(extra: str) -> Iterator[Requirement]:
    try:
        texts = importlib.metadata.requires(NAME) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for requirement in map(Requirement, texts):
        if requirement.name != NAME and _wanted(requirement, extra):
            yield requirement


def _wanted(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
