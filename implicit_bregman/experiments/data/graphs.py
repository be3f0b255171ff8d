"""The citation graphs Cora and CiteSeer, with the ten splits of Geom-GCN."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

GRAPHS = ("cora", "citeseer")
SPLITS = 10
RECIPE = (
    "arrays num_nodes, num_features, feature_indptr, feature_indices, labels, edges, train_mask, val_mask and "
    "test_mask in NAME.npz, of the Planetoid data (https://github.com/kimiyoung/planetoid) with the splits of Geom-GCN "
    "(https://github.com/graphdml-uiuc-jlu/geom-gcn)"
)


@dataclass(frozen=True)
class GraphDataset:
    """A graph whose nodes are to be classified, with several splits.

    Attributes:
        name: Its name.
        features: Bag of words of each node, a sparse float32 matrix (N, n), each row of length 1.
        graph: The adjacency matrix, sparse float32, (N, N), without loops.
        labels: int64; −1 where a node has none. Such nodes are taken out of the splits.
        classes: Number of classes.
        train: Training nodes of each split.
        validation: Validation nodes of each split.
        test: Test nodes of each split.
    """

    name: str
    features: Float[Tensor, "N n"]
    graph: Float[Tensor, "N N"]
    labels: Int[Tensor, " N"]
    classes: int
    train: Bool[Tensor, "splits N"]
    validation: Bool[Tensor, "splits N"]
    test: Bool[Tensor, "splits N"]


def load_graph(name: str, data_dir: str | Path | None) -> GraphDataset:
    """Read a citation graph.

    Args:
        name: "cora" or "citeseer".
        data_dir: Folder with DIR/graphs/NAME.npz or DIR/NAME.npz: words of each node in CSR form (`feature_indptr`,
            `feature_indices`), `labels`, undirected `edges` (E, 2), each once, and `train_mask`, `val_mask` and
            `test_mask`, (10, N) bits packed along the nodes.

    Raises:
        ValueError: Unknown name, no `data_dir`, or a file with the wrong content.
        FileNotFoundError: The file is missing; the message says where it was looked for.
    """
    if name not in GRAPHS:
        raise ValueError(f"unknown graph {name!r}; the known ones are {', '.join(GRAPHS)}")
    if data_dir is None:
        raise ValueError(f"graph {name!r} is read from a file: pass its folder as data_dir (--data-dir DIR); {RECIPE}")
    places = [Path(data_dir) / "graphs" / f"{name}.npz", Path(data_dir) / f"{name}.npz"]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"no {name} in {places[0]} or {places[1]}; it is made of {RECIPE}")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return _made(name, dict(arrays))
    except (BadZipFile, KeyError, IndexError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is not the {name} that it should be ({error}): {RECIPE}") from None


def _made(name: str, arrays: dict[str, np.ndarray]) -> GraphDataset:
    count, width = int(arrays["num_nodes"]), int(arrays["num_features"])
    starts = torch.from_numpy(arrays["feature_indptr"].astype(np.int64))
    words = torch.from_numpy(arrays["feature_indices"].astype(np.int64))
    labels = torch.from_numpy(arrays["labels"].astype(np.int64))
    ends = torch.from_numpy(arrays["edges"].astype(np.int64)).mT
    per_node = starts.diff()
    if len(per_node) != count or len(labels) != count or int(starts[-1]) != len(words):
        raise ValueError(f"num_nodes is {count}, but there are words of {len(per_node)} nodes and {len(labels)} labels")
    nodes = torch.arange(count).repeat_interleave(per_node)
    shares = per_node.clamp_min(1).float().rsqrt()[nodes]
    features = torch.sparse_coo_tensor(torch.stack([nodes, words]), shares, (count, width), check_invariants=True)
    both = torch.cat([ends, ends.flip(0)], 1)
    graph = torch.sparse_coo_tensor(both, torch.ones(both.shape[1]), (count, count), check_invariants=True)
    masks = [
        torch.from_numpy(np.unpackbits(arrays[key], axis=1)[:, :count].astype(bool)) & (labels >= 0)
        for key in ("train_mask", "val_mask", "test_mask")
    ]
    overlap = (masks[0] & masks[1]) | (masks[0] & masks[2]) | (masks[1] & masks[2])
    if any(mask.shape != (SPLITS, count) or not bool(mask.any(1).all()) for mask in masks) or bool(overlap.any()):
        raise ValueError(f"the masks must be {SPLITS} splits of {count} nodes into three parts without overlap")
    return GraphDataset(name, features.coalesce(), graph.coalesce(), labels, int(labels.max()) + 1, *masks)
