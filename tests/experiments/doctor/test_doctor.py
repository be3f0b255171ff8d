"""`implicit-bregman doctor`: it passes here, and it notices what is wrong."""

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from implicit_bregman.cli import main
from implicit_bregman.experiments.doctor import packages, run, selftest
from implicit_bregman.experiments.doctor.packages import Package
from implicit_bregman.experiments.doctor.selftest import Layer, make_layers


def test_it_passes_here_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("Healthy: ")
    for word in ("torch", torch.__version__, "threads", "scikit-learn", "optimal transport", "float32"):
        assert word in out


def test_json_has_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["healthy"] is True
    assert document["problems"] == []
    assert document["machine"]["torch"] == torch.__version__
    layers, devices = make_layers(), document["devices"]
    assert len(document["checks"]) == len(layers) * len(devices) * 2
    assert {each["name"]: each["extra"] for each in document["packages"]}["torch"] == ""


@pytest.mark.parametrize("layer", make_layers(), ids=lambda layer: layer.name)
def test_the_loops_have_converged(layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    enough = layer.loop(*layer.tensors)
    monkeypatch.setattr(selftest, "STEPS", selftest.STEPS // 4)
    torch.testing.assert_close(layer.loop(*layer.tensors), enough, rtol=1e-9, atol=1e-9)


def of_a_broken_layer(break_it: Callable[[Tensor], Tensor]) -> list[Layer]:
    layer = make_layers()[1]
    return [Layer(layer.name, lambda *t: break_it(layer.library(*t)), layer.loop, layer.tensors, layer.directions)]


def raises(z: Tensor) -> Tensor:
    raise RuntimeError("no kernel\nimage is available")


@pytest.mark.parametrize(
    ("break_it", "complaint"),
    [
        (lambda z: z + 0.01, "errors of"),
        (lambda z: z + (z - z.detach()), "errors of"),
        (lambda z: z * float("nan"), "errors of nan and nan"),
        (raises, "RuntimeError: no kernel image is available"),
    ],
    ids=["value", "gradient", "nan", "error"],
)
def test_a_wrong_layer_is_noticed(
    break_it: Callable[[Tensor], Tensor],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(selftest, "make_layers", lambda: of_a_broken_layer(break_it))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("Not healthy: ")
    assert complaint in out
    assert "FAILED" in out
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["healthy"] is False


def test_packages_are_listed_with_what_brings_them() -> None:
    found = {each.name: each for each in packages.packages()}
    assert len(found) == len(packages.packages())
    assert (found["torch"].extra, found["scipy"].extra, found["distributed"].extra) == ("", "experiments", "cluster")
    assert found["torch"].version.partition("+")[0] == torch.__version__.partition("+")[0]
    assert all(each.fits for each in found.values() if each.extra in ("", "experiments"))


@pytest.mark.parametrize("version", [None, "1.0"])
def test_a_missing_extra_is_told_and_no_problem(
    version: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = [Package("scipy", "experiments", ">=1.12", version)]
    monkeypatch.setattr(run, "packages", lambda: listed)
    assert main(["doctor"]) == 0
    assert (
        "Without the extra experiments (scipy): pip install 'implicit-bregman[experiments]'" in capsys.readouterr().out
    )


def test_a_pytorch_that_is_too_old_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "packages", lambda: [Package("torch", "", ">=2.6", "2.5.1")])
    assert main(["doctor"]) == 1
    assert "torch is 2.5.1, >=2.6 is needed: pip install 'torch>=2.6'" in capsys.readouterr().out
