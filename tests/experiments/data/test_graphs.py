"""Citation graphs: what is read, and what is said about damaged files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from implicit_bregman.experiments.data.graphs import SPLITS, load_graph

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
NODES, WORDS = 12, 6


def arrays(**changes: Any) -> dict[str, np.ndarray]:
    """Two classes on two rings of six nodes, each with words of its own; node 11 has no words and no label."""
    ring = [(i, (i + 1) % 6) for i in range(6)]
    words = [[i // 6 * 3 + j for j in range(1 + i % 3)] for i in range(NODES - 1)] + [[]]
    masks = np.zeros((3, SPLITS, NODES), dtype=bool)
    for split in range(SPLITS):
        order = (np.arange(NODES - 1) + split) % (NODES - 1)
        for part, nodes in enumerate(([*order[:5], NODES - 1], order[5:8], order[8:])):
            masks[part, split, nodes] = True
    made = {
        "num_nodes": np.int64(NODES),
        "num_features": np.int64(WORDS),
        "feature_indptr": np.cumsum([0, *map(len, words)]).astype(np.int32),
        "feature_indices": np.concatenate([np.array(own, dtype=np.int16) for own in words]),
        "labels": np.array([0] * 6 + [1] * 5 + [-1], dtype=np.int8),
        "edges": np.array(ring + [(i + 6, j + 6) for i, j in ring[:-2]], dtype=np.int32),
        **{f"{name}_mask": np.packbits(masks[i], axis=1) for i, name in enumerate(("train", "val", "test"))},
    }
    return made | changes


def write(folder: Path, name: str = "cora", **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{name}.npz", **arrays(**changes))
    return folder


@pytest.mark.parametrize("place", [".", "graphs"])
def test_what_is_read(tmp_path: Path, place: str) -> None:
    write(tmp_path / place)
    data = load_graph("cora", tmp_path)
    adjacency = data.graph.to_dense()
    assert torch.equal(adjacency, adjacency.mT)
    assert adjacency.sum() == 2 * len(arrays()["edges"])
    assert adjacency[0].nonzero().flatten().tolist() == [1, 5]
    assert data.features.shape == (NODES, WORDS)
    torch.testing.assert_close(data.features.to_dense().norm(dim=1)[:11], torch.ones(11))
    torch.testing.assert_close(data.features.to_dense()[1], torch.tensor([0.5**0.5, 0.5**0.5, 0, 0, 0, 0]))
    assert data.features.to_dense()[11].sum() == 0
    assert (data.classes, data.labels.tolist()) == (2, [0] * 6 + [1] * 5 + [-1])
    assert data.train.sum(1).tolist() == [5] * SPLITS  # (without node 11)
    assert (data.train.int() + data.validation.int() + data.test.int()).sum(0)[:11].tolist() == [SPLITS] * 11


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edges": np.array([[0, 99]])}, "is not the cora that it should be"),
        ({"num_nodes": np.int64(10)}, "num_nodes is 10, but there are words of 12 nodes"),
        ({"labels": np.full(NODES, -1, dtype=np.int8)}, "10 splits of 12 nodes into three parts"),
        ({"test_mask": arrays()["train_mask"]}, "10 splits of 12 nodes into three parts without overlap"),
        ({"val_mask": arrays()["val_mask"][:3]}, "is not the cora that it should be"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_graph("cora", tmp_path)


def test_what_is_missing_or_unknown(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown graph 'pubmed'; the known ones are cora, citeseer"):
        load_graph("pubmed", tmp_path)
    with pytest.raises(ValueError, match="pass its folder as data_dir"):
        load_graph("cora", None)
    with pytest.raises(FileNotFoundError, match=r"no cora in .*graphs/cora.npz or .*cora.npz; it is made of"):
        load_graph("cora", tmp_path)
    (tmp_path / "cora.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not the cora that it should be"):
        load_graph("cora", tmp_path)
    np.savez(tmp_path / "cora.npz", labels=np.zeros(3))
    with pytest.raises(ValueError, match="num_nodes"):
        load_graph("cora", tmp_path)


@pytest.mark.skipif(not (SHARED / "graphs").is_dir(), reason="needs the files of the citation graphs")
@pytest.mark.parametrize(
    ("name", "nodes", "words", "edges", "classes"), [("cora", 2708, 1433, 5278, 7), ("citeseer", 3327, 3703, 4552, 6)]
)
def test_the_real_ones(name: str, nodes: int, words: int, edges: int, classes: int) -> None:
    data = load_graph(name, SHARED)
    assert tuple(data.features.shape) == (nodes, words)
    assert data.graph.values().sum() == 2 * edges
    assert data.classes == classes
