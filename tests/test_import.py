"""Importing the package costs torch and nothing else, and finds every public name."""

import inspect
import subprocess
import sys

import pytest

import implicit_bregman as ib

HEAVY = ("scipy", "sklearn", "matplotlib", "typer", "rich", "torchdeq", "pandas", "hypothesis", "pytest")
HEAVY += ("PIL", "lightning_fabric", "lightning", "pytorch_lightning", "tensorboardX")

NAMES = (
    "BregmanDEQ",
    "BregmanGraphDEQ",
    "BregmanLinear",
    "BregmanProjection",
    "CriticalPoint",
    "Energy",
    "EuclideanLinear",
    "FeedForward",
    "Field",
    "LegendreFunction",
    "QuadraticEnergy",
    "Solution",
    "StandardLinear",
    "Status",
    "adjoints",
    "attach_gradient",
    "certify",
    "find_critical_point",
    "geometries",
    "geometry",
    "solver_statistics",
    "solvers",
)


def in_a_new_interpreter(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_loads_no_heavy_package() -> None:
    code = f"""
import torch, sys
before = set(sys.modules)
import implicit_bregman as ib
ib.BregmanDEQ(3, 2)(torch.ones(1, 3)).sum().backward()
print(*sorted(name for name in set(sys.modules) - before if name.split(".")[0] in {HEAVY}))
"""
    assert in_a_new_interpreter(code).split() == []


def test_importing_warns_of_nothing_and_changes_no_global_setting() -> None:
    code = """
import warnings
warnings.simplefilter("error")
import torch
before = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), torch.initial_seed()
import implicit_bregman
after = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), torch.initial_seed()
assert before == after, (before, after)
"""
    assert in_a_new_interpreter(code) == ""


@pytest.mark.parametrize("name", NAMES)
def test_public_names_exist_and_are_documented(name: str) -> None:
    assert name in ib.__all__
    assert inspect.getdoc(getattr(ib, name))


def test_all_is_complete() -> None:
    assert sorted(ib.__all__) == sorted(set(ib.__all__))
    for name in ib.__all__:
        assert hasattr(ib, name)
    assert ib.__version__.count(".") == 2


@pytest.mark.parametrize("name", ["MM", "Anderson", "Broyden", "TorchDEQ"])
def test_solvers_have_their_names(name: str) -> None:
    assert name in ib.solvers.__all__
    assert inspect.isclass(getattr(ib.solvers, name))


@pytest.mark.parametrize("name", ["Implicit", "Unrolled", "Phantom", "OneStep", "Shine"])
def test_adjoints_have_their_names(name: str) -> None:
    assert name in ib.adjoints.__all__
    assert inspect.isclass(getattr(ib.adjoints, name))


@pytest.mark.parametrize("field", ["value", "dual", "residual", "iterations", "evaluations", "status", "converged"])
def test_a_solution_has_the_promised_fields(field: str) -> None:
    assert hasattr(ib.Solution, field) or field in ib.Solution.__dataclass_fields__


def test_signature_of_the_one_function() -> None:
    parameters = inspect.signature(ib.find_critical_point).parameters
    assert list(parameters) == [
        "energy",
        "geometry",
        "x",
        "initial",
        "regularization",
        "solver",
        "adjoint",
        "initial_dual",
    ]
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    assert defaults == {
        "initial": None,
        "regularization": 0.0,
        "solver": "auto",
        "adjoint": "implicit",
        "initial_dual": None,
    }
