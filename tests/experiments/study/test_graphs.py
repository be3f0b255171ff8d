"""The study of graphs, on two rings: the models, the choice on validation nodes, and what is written."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from implicit_bregman.adjoints import Implicit, Unrolled
from implicit_bregman.cli import main
from implicit_bregman.experiments.data.graphs import SPLITS, GraphDataset
from implicit_bregman.experiments.grid.run import Backend, Grid
from implicit_bregman.experiments.learning.graph_models import ImplicitGraphModel, averaging, with_loops
from implicit_bregman.experiments.study.graphs import run as cells
from implicit_bregman.experiments.study.graphs.report import study_graphs
from implicit_bregman.experiments.study.graphs.run import measure_graphs
from implicit_bregman.experiments.study.graphs.settings import Candidate, GraphRun, GraphSettings
from implicit_bregman.experiments.study.graphs.training import train_graph

NODES, WORDS = 40, 8
SMALL = {"hidden": 8, "width": 4, "epochs": 12}
SETTINGS = GraphSettings(
    ("cora",), (2,), 1, 2, 6, 6, (Candidate(), Candidate(learning_rate=1e-9)), (Candidate(), Candidate(dropout=0.2))
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rings of 20 nodes, and words that are those of the class half of the time."""
    made, random = tmp_path_factory.mktemp("graphs"), np.random.RandomState(0)
    half = NODES // 2
    labels = np.arange(NODES) // half
    words = [sorted({int(4 * label * random.randint(2) + random.randint(4)) for _ in range(3)}) for label in labels]
    ring = [(i, (i + 1) % half) for i in range(half)]
    parts = np.stack([random.permutation(NODES) for _ in range(SPLITS)])
    masks = {"train_mask": parts < 12, "val_mask": (parts >= 12) & (parts < 26), "test_mask": parts >= 26}
    np.savez(
        made / "cora.npz",
        num_nodes=NODES,
        num_features=WORDS,
        feature_indptr=np.cumsum([0, *map(len, words)]),
        feature_indices=np.concatenate(words),
        labels=labels,
        edges=np.array(ring + [(i + half, j + half) for i, j in ring]),
        **{name: np.packbits(mask, axis=1) for name, mask in masks.items()},
    )
    return made


def data_of(folder: Path) -> GraphDataset:
    return cells.load_graph("cora", folder)


@pytest.mark.parametrize("model", ["implicit", "unrolled-3", "gcn"])
def test_each_model_learns(model: str, folder: Path) -> None:
    run = train_graph(GraphRun("cora", model, 0, Candidate(dropout=0.2, learning_rate=0.05), **SMALL), folder)
    assert run["validation"] > 80
    assert run["test"] > 60
    assert 0 < run["steps"] <= 12
    assert run["converged"] is (True if model == "implicit" else None)


def test_training_is_reproducible(folder: Path) -> None:
    asked = GraphRun("cora", "implicit", 1, Candidate(), **{**SMALL, "epochs": 3})
    one, other = (train_graph(asked, folder) for _ in range(2))
    assert {**one, "step_ms": 0} == {**other, "step_ms": 0}


def test_the_twins_have_the_same_parameters_and_limit(folder: Path) -> None:
    data = data_of(folder)
    models = []
    for adjoint in (Implicit(), Unrolled(steps=3000)):
        torch.manual_seed(0)
        models.append(
            ImplicitGraphModel(data, 4, "tanh", 0.5, adjoint, hidden=8, dropout=0.5, reach=3.0, tol=1e-6).eval()
        )
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)
    graph = with_loops(data.graph)
    torch.testing.assert_close(models[0](data.features, graph), models[1](data.features, graph), rtol=1e-3, atol=1e-4)
    energy = models[0].layer.energy
    torch.testing.assert_close(energy.coupling.diagonal().mean(), torch.tensor(3.0), rtol=0.25, atol=0.0)


def test_averaging_is_that_of_the_graph_convolution(folder: Path) -> None:
    adjacency = data_of(folder).graph.to_dense() + torch.eye(NODES)
    root = adjacency.sum(1).rsqrt().diag()
    torch.testing.assert_close(averaging(with_loops(data_of(folder).graph)).to_dense(), root @ adjacency @ root)


def test_hyper_parameters_are_chosen_on_validation_nodes(folder: Path, tmp_path: Path) -> None:
    measured = measure_graphs(SETTINGS, Grid(tmp_path, Backend(jobs=1)), folder)
    assert [one.model for one in measured] == ["implicit", "unrolled-2", "gcn"]
    implicit, unrolled, gcn = measured
    assert implicit.candidate == SETTINGS.implicit[implicit.tried.index(max(implicit.tried))]
    assert unrolled.candidate == implicit.candidate
    assert len(gcn.tried) == 2
    assert all(len(one.runs) == 2 for one in measured)
    assert implicit.runs[0]["validation"] == max(implicit.tried)


def test_report_and_resumption(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = study_graphs(SETTINGS, Grid(tmp_path, Backend(jobs=1)), folder)
    report.report("a command", {}, []).deliver(tmp_path)
    document = json.loads((tmp_path / "results.json").read_text())
    names = ["implicit layer", "unrolled, 2 steps", "two graph convolutions"]
    assert [row["model"] for row in document["rows"]] == names
    assert "cora: the implicit layer reaches" in report.findings[0]
    assert "all solves converged" in report.findings[0]
    assert (tmp_path / "graphs.png").read_bytes().startswith(b"\x89PNG")

    def never(*arguments: object) -> None:
        raise AssertionError("computed again")

    never.__module__, never.__qualname__ = train_graph.__module__, train_graph.__qualname__
    monkeypatch.setattr(cells, "train_graph", never)
    again = study_graphs(SETTINGS, Grid(tmp_path, Backend(jobs=1)), folder)
    assert again.rows == report.rows


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--quick", "--epochs", "4", "--data-dir", str(folder), "--jobs", "1", "--out", str(tmp_path / "out")]
    assert main(["study", "graphs", *words]) == 0
    assert (tmp_path / "out" / "report.md").is_file()
    assert "two graph convolutions" in capsys.readouterr().out
    assert main(["study", "graphs", "--quick", "--jobs", "1", "--out", str(tmp_path)]) == 2
    assert "pass its folder as data_dir (--data-dir DIR)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datasets": ("pubmed",)}, "datasets must be one of cora, citeseer, got 'pubmed'"),
        ({"depths": (2, 2)}, "depths must be different, got 2, 2"),
        ({"depths": (0,)}, "depths must be a whole number"),
        ({"splits": 11}, "splits must be at most 10, so many there are, got 11"),
        ({"tuning": 0}, "tuning must be a whole number"),
    ],
)
def test_settings_that_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **changes)
