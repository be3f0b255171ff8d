"""Which code a stored result was made by."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[2]
# They keep and show what a cell returns, so that no result depends on them.
APART = tuple(f"{PACKAGE.name}.experiments.{room}" for room in ("grid", "output"))


def code_version(function: Callable[..., Any]) -> str:
    """A hash of the code that decides what a function returns, as it was when this process first asked.

    It covers the modules of `modules_behind`. Comments, docstrings and layout do not count.

    Args:
        function: A function of a module.
    """
    return _version_of(function.__module__)


@cache
def _version_of(module: str) -> str:
    digest = hashlib.sha256()
    for name in modules_behind(module):
        digest.update(f"{name}\0{_essence(_source_of(name))}\0".encode())
    return digest.hexdigest()[:20]


def modules_behind(module: str) -> tuple[str, ...]:
    """The module and all modules of this package that it imports, directly or not, by name.

    Imports inside functions count. Imports for the type checker do not, nor do the packages `grid` and `output`, which
    keep and show results. A package is its `__init__`, and counts where something is imported from it by its own name.

    Args:
        module: Name of a module that has been imported.
    """
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [other for other in _imported(name) if not _is_apart(other)]
    return tuple(sorted(found))


@lru_cache(maxsize=1)
def package_version() -> str:
    """A hash of all files of the package, as they were when this process first asked."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(file.relative_to(PACKAGE).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:20]


def _imported(module: str) -> Iterator[str]:
    """Names of the modules of this package in the import statements of a module."""
    file = _file_of(module)
    parent = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in _running_nodes(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (item.name for item in node.names if _is_ours(item.name))
        elif isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), parent)
            if _is_ours(origin):
                members = [f"{origin}.{item.name}" for item in node.names]
                modules = [name for name in members if _ours(name) is not None]
                yield from modules
                if len(modules) < len(members):
                    yield origin


def _running_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only the type checker sees."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from _running_nodes(node)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == PACKAGE.name


def _is_apart(module: str) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in APART)


def _ours(module: str) -> Path | None:
    """The file of a module of this package, None if there is none."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def _file_of(module: str) -> Path:
    """The file of a module of this package, or of any that has been imported."""
    file = _ours(module) if _is_ours(module) else None
    return Path(inspect.getfile(sys.modules[module])) if file is None else file


def _source_of(module: str) -> str:
    return _file_of(module).read_text(encoding="utf-8")


def _essence(source: str) -> str:
    """The code without comments and docstrings, in one layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return ast.unparse(tree)
