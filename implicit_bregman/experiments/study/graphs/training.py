"""One training of the study of graphs: a cell."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from implicit_bregman.adjoints import Implicit, Unrolled
from implicit_bregman.experiments.data.graphs import load_graph
from implicit_bregman.experiments.learning.graph_models import (
    GraphConvolutionalNetwork,
    ImplicitGraphModel,
    averaging,
    with_loops,
)
from implicit_bregman.experiments.study.graphs.settings import GraphRun
from implicit_bregman.experiments.study.task import without_warnings

# Steps between two looks at the validation nodes.
EVERY = 2


def train_graph(settings: GraphRun, data_dir: str | Path | None = None) -> dict[str, Any]:
    """Train one model; of the step that is best on the validation nodes, its accuracies.

    Returns:
        "validation" and "test" accuracy in percent at the step with the highest validation accuracy (of several the
        one with the lowest validation loss), "steps", "parameters", "step_ms" (median), "converged": whether all
        solves did.
    """
    data = load_graph(settings.dataset, data_dir)
    torch.manual_seed(settings.split)
    candidate = settings.candidate
    graph = with_loops(data.graph) if candidate.loops or settings.model == "gcn" else data.graph
    model: nn.Module
    if settings.model == "gcn":
        model, graph = GraphConvolutionalNetwork(data, settings.hidden, candidate.dropout), averaging(graph)
    else:
        depth = settings.model.partition("-")[2]
        model = ImplicitGraphModel(
            data,
            settings.width,
            candidate.geometry,
            candidate.regularization,
            Unrolled(steps=int(depth)) if depth else Implicit(),
            hidden=settings.hidden,
            dropout=candidate.dropout,
            margin=settings.margin,
            reach=candidate.reach,
            tol=settings.tol,
        )
    train, validation, test = (mask[settings.split] for mask in (data.train, data.validation, data.test))
    optimizer = torch.optim.Adam(model.parameters(), candidate.learning_rate, weight_decay=candidate.weight_decay)
    best, kept, times, converged = (-1.0, 0.0), (0.0, 0), [], True
    with without_warnings():
        for step in range(settings.epochs):
            started = time.perf_counter()
            model.train()
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(data.features, graph)[train], data.labels[train])
            loss.backward()
            optimizer.step()
            times.append(time.perf_counter() - started)
            if step % EVERY:
                continue
            model.eval()
            with torch.no_grad():
                scores = model(data.features, graph)
            if settings.model == "implicit":
                converged = converged and bool(model.layer.last_solution.converged)  # type: ignore[union-attr]
            right = scores.argmax(-1) == data.labels
            held = nn.functional.cross_entropy(scores[validation], data.labels[validation])
            now = (100 * float(right[validation].float().mean()), -float(held))
            if now > best:
                best, kept = now, (100 * float(right[test].float().mean()), step + 1)
            if step + 1 - kept[1] >= settings.patience:
                break
    return {
        "validation": best[0],
        "test": kept[0],
        "steps": kept[1],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "step_ms": 1e3 * statistics.median(times),
        "converged": converged if settings.model == "implicit" else None,
    }
