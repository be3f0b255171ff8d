"""What is logged of the layers of a model, and how."""

import copy
import math
import sys
import types
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

import implicit_bregman as ib
from implicit_bregman.experiments.reference.active import active_coordinates
from implicit_bregman.lightning import LogSolverStatistics


def a_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), ib.BregmanDEQ(8, 6), ib.BregmanDEQ(6, 4, "softplus", regularization=0.5))


def an_input() -> Tensor:
    return 5 * torch.randn(20, 3)


def test_nothing_is_known_before_the_first_call() -> None:
    assert ib.solver_statistics(a_model()) == {}
    assert ib.solver_statistics(nn.Linear(2, 2)) == {}


def test_the_numbers_are_those_of_the_last_solutions() -> None:
    model = a_model()
    model(an_input()).square().sum().backward()
    found = ib.solver_statistics(model)
    assert all(type(value) is float for value in found.values())
    for name in ("1", "2"):
        layer = model.get_submodule(name)
        solution = layer.last_solution
        expected = {
            "converged": 1.0,
            "iterations": solution.iterations.double().mean().item(),
            "residual": solution.residual.max().item(),
            "active": active_coordinates(solution.value, layer.geometry).double().mean().item(),
            "gradient_error": solution.gradient_error.max().item(),
        }
        assert {key: found[f"{name}/{key}"] for key in expected} == pytest.approx(expected, rel=1e-12)
    assert len(found) == 10
    assert 0.2 < found["1/active"] < 1
    assert found["2/active"] == 0


def test_of_a_layer_alone_and_without_a_backward_pass() -> None:
    layer = ib.BregmanDEQ(3, 4)
    layer(an_input())
    assert list(ib.solver_statistics(layer)) == ["converged", "iterations", "residual", "active"]


def test_samples_that_failed_count() -> None:
    layer = ib.BregmanDEQ(3, 4, solver=ib.solvers.MM(max_iter=2, tol=1e-12, exact=False, on_failure="ignore"))
    layer(an_input())
    found = ib.solver_statistics(layer)
    assert found["converged"] == layer.last_solution.converged.double().mean().item() < 1
    assert found["residual"] > 1e-12


def test_an_unrolled_layer_does_not_converge_and_has_no_gradient_error() -> None:
    layer = ib.BregmanDEQ(3, 4, adjoint=ib.adjoints.Unrolled(steps=5))
    layer(an_input()).sum().backward()
    found = ib.solver_statistics(layer)
    assert found["converged"] == 0
    assert "gradient_error" not in found


def test_a_batch_without_samples() -> None:
    layer = ib.BregmanDEQ(3, 4)
    layer(torch.zeros(0, 3))
    assert all(math.isnan(value) for value in ib.solver_statistics(layer).values())


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (ib.BregmanProjection(5, 2), lambda: (torch.rand(7, 5),)),
        (ib.BregmanDEQ2d(2, 3), lambda: (torch.randn(4, 2, 6, 6),)),
        (ib.BregmanGraphDEQ(3, 2), lambda: (torch.randn(4, 3), torch.ones(4, 4).fill_diagonal_(0).to_sparse())),
        (ib.BregmanDEQ(3, 4, ib.geometry("tanh").to_box(-torch.rand(4), torch.rand(4))), lambda: (an_input(),)),
        (ib.BregmanDEQ(3, 4, "simplex", regularization=1.0), lambda: (an_input(),)),
    ],
    ids=["projection", "images", "graph", "box", "simplex"],
)
def test_every_kind_of_layer(layer: nn.Module, inputs: Any) -> None:
    layer(*inputs()).square().sum().backward()
    found = ib.solver_statistics(layer)
    assert found["converged"] == 1
    assert 0 <= found["active"] <= 1
    assert found["gradient_error"] < 1e-2


def test_names_do_not_tell_of_wrappers() -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    model = fabric.setup_module(a_model())
    model(an_input())
    assert next(iter(ib.solver_statistics(model))) == "1/converged"


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match="Module, got Tensor"):
        ib.solver_statistics(an_input())  # type: ignore[arg-type]


# The callback --------------------------------------------------------------------------------------------------------


class Logging(nn.Module):
    """What of a LightningModule the callback needs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = a_model()
        self.logged: list[dict[str, float]] = []

    def log_dict(self, numbers: dict[str, float]) -> None:
        self.logged.append(numbers)


class Trainer:
    """The loop of a Trainer, as far as it concerns callbacks."""

    def fit(self, module: Logging, callback: LogSolverStatistics, batches: int) -> None:
        for number in range(batches):
            module.net(an_input()).square().sum().backward()
            callback.on_train_batch_end(self, module, None, None, number)


def test_a_trainer_logs_after_every_batch() -> None:
    module = Logging()
    Trainer().fit(module, LogSolverStatistics(), 3)
    assert len(module.logged) == 3
    assert module.logged[-1] == {f"solver/{name}": value for name, value in ib.solver_statistics(module).items()}
    assert "solver/net.1/gradient_error" in module.logged[-1]


def test_every_fifth_batch_and_another_prefix() -> None:
    module = Logging()
    Trainer().fit(module, LogSolverStatistics(every=5, prefix=""), 12)
    assert len(module.logged) == 2
    assert "net.1/converged" in module.logged[0]


class Logger:
    """A logger of Fabric's."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.logged.append(metrics)


def test_fabric_calls_it() -> None:
    logger = Logger()
    fabric = Fabric(accelerator="cpu", devices=1, callbacks=[LogSolverStatistics()], loggers=[logger])
    model = fabric.setup_module(a_model())
    fabric.backward(model(an_input()).square().sum())
    fabric.call("on_train_batch_end", fabric, model, None, None, 0)
    assert logger.logged == [{f"solver/{name}": value for name, value in ib.solver_statistics(model).items()}]


def test_nowhere_to_log_to_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"neither the module \(Sequential\) nor the trainer \(object\) has log_dict"):
        LogSolverStatistics().on_train_batch_end(object(), a_model())


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_impossible_intervals_are_refused(every: Any) -> None:
    with pytest.raises(ValueError, match="every must be a whole number"):
        LogSolverStatistics(every)


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_lightnings_own_class_is_the_base_where_it_is_installed(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = type("Callback", (), {"on_fit_end": lambda self, trainer, module: None})
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    parts = package.split(".")
    for depth in range(len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[: depth + 1]), types.ModuleType(parts[depth]))
    sys.modules[package].Callback = base  # type: ignore[attr-defined]
    monkeypatch.delitem(sys.modules, "implicit_bregman.lightning")
    from implicit_bregman.lightning import LogSolverStatistics as Fresh

    assert issubclass(Fresh, base)
    assert callable(copy.copy(Fresh()).on_fit_end)
