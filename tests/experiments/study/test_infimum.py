"""The study of the infimum: its problems, its optimizer and its report."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from implicit_bregman.cli import main
from implicit_bregman.experiments.grid.run import Backend, Grid
from implicit_bregman.experiments.study.infimum.descent import descend
from implicit_bregman.experiments.study.infimum.problem import FAMILIES, Problem, make_data
from implicit_bregman.experiments.study.infimum.report import study_infimum
from implicit_bregman.experiments.study.infimum.search import Search, Sought
from implicit_bregman.experiments.study.infimum.settings import Effort, InfimumSettings
from implicit_bregman.experiments.study.infimum.summary import fit

SETTINGS = InfimumSettings(
    seeds=1,
    depths=(1, 4),
    families=("convex-reg",),
    samples=6,
    effort=Effort(starts=1, tries=2, evaluations=8),
)


def test_the_optimizer_ends_at_a_kink() -> None:
    def kinked(u: np.ndarray) -> tuple[float, np.ndarray]:
        return abs(u[0]) + 10 * (u[1] - u[0]) ** 2, np.array([np.sign(u[0]) - 20 * (u[1] - u[0]), 20 * (u[1] - u[0])])

    assert descend(kinked, np.array([1.0, -0.7]), 400).value < 1e-8


@pytest.mark.parametrize("steps", [1, 7, None])
@pytest.mark.parametrize("family", ["convex", "convex-reg", "convex-arctan", "low-rank", "low-rank-reg"])
def test_gradients_are_those_of_the_loss(family: str, steps: int | None) -> None:
    problem = Problem(FAMILIES[family], *make_data(1, 5))
    (u,) = problem.starts(np.random.default_rng(3), steps, 1, 1)
    _, gradient = problem.loss(u, steps)
    for index in range(problem.parameters):
        shift = 1e-6 * np.eye(problem.parameters)[index]
        slope = (problem.value(u + shift, steps) - problem.value(u - shift, steps)) / 2e-6
        assert gradient[index] == pytest.approx(slope, abs=1e-6)
    assert problem.failed == 0


def test_every_depth_has_a_tanh_that_the_limit_has_not() -> None:
    x, _ = make_data(0, 8)
    t = torch.tanh(0.9 * x[:, 0])
    problem = Problem(FAMILIES["semidefinite"], x, t)

    def theta(depth: int) -> np.ndarray:
        # −W = 0, so that z_L = tanh(L·Ux)
        return np.array([0, 0.9 / depth, 0, 1.0, 0])

    for depth in (1, 4, 64):
        assert problem.value(problem.at(theta(depth)), depth) < 1e-25
    assert problem.value(problem.at(theta(64)), None) > 0.01


def test_the_law_that_fits_is_named() -> None:
    depths, floor = (1, 2, 4, 8, 16), [1e-12] * 5
    assert fit(depths, [0.3 * 0.8**L for L in depths], floor) == ("geometric", pytest.approx(0.8))
    assert fit(depths, [-0.3 * L**-1.5 for L in depths], floor) == ("power", pytest.approx(1.5))
    assert fit(depths, [1.0] * 5, [0.1, 0.1, 2, 2, 2]) is None


@pytest.mark.parametrize("family", ["convex", "convex-reg"])
def test_a_search_ends_where_no_minimiser_is_better_at_another_depth(family: str) -> None:
    """Also where the last exchange finds a lower limit, which is then to be handed to all depths."""
    search = Search(Sought(family, 0, (1, 4, 16), 6, SETTINGS.effort), 0)
    search.explore()
    search.improve()
    for steps, other in itertools.permutations(search.found, 2):
        assert search.problem.value(search.best(other).end.place, steps) >= search.best(steps).end.value - 2e-14


def test_a_minimiser_of_one_depth_is_nowhere_better(tmp_path: Path) -> None:
    result = study_infimum(SETTINGS, Grid(tmp_path, Backend(jobs=1)))
    found = result.data["found"]["convex-reg"][0]
    assert all(best <= value + 1e-12 for best, value in zip(found["inf"], found["at_limit"], strict=True))
    assert all(found["inf"][-1] <= value + 1e-12 for value in found["limit_of"])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"seeds": 0}, "seeds must be"),
        ({"depths": (4, 2)}, "ascending order, got"),
        ({"families": ("nope",)}, "families must be one of convex"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(SETTINGS, **change)


def test_one_search_does_not_know_how_far_it_may_be_off() -> None:
    with pytest.raises(ValueError, match="searches must be"):
        Effort(searches=1)


def test_the_command_writes_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InfimumSettings, "quick", classmethod(lambda cls, seed: replace(SETTINGS, seed=seed)))
    assert main(["study", "infimum", "--quick", "--depths", "1,2", "--jobs", "1", "--out", str(tmp_path)]) == 0
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["command"] == "implicit-bregman study infimum --depths 1,2 --quick"
    assert [row["depth"] for row in document["rows"]] == [1, 2]
    assert (tmp_path / "infimum.png").stat().st_size > 1000
    assert main(["study", "infimum", "--quick", "--depths", "x"]) == 2
    assert main(["study", "infimum", "--quick", "--families", "convex,concave"]) == 2


def lowest_clamp(x: torch.Tensor, t: torch.Tensor) -> float:
    """min ½ mean (a clamp(px + q, −1, 1) + a₀ − t)² by brute force: what convex W, γ = 0 and d = 1 can be."""

    def loss(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        z = (p.unsqueeze(-1) * x + q.unsqueeze(-1)).clamp(-1, 1)
        centred = z - z.mean(-1, keepdim=True)
        a = ((centred * t).mean(-1) / centred.square().mean(-1).clamp_min(1e-12)).clamp(-2, 2)
        rest = a.unsqueeze(-1) * centred - (t - t.mean())
        return 0.5 * rest.square().mean(-1)

    p, q = torch.meshgrid(torch.linspace(0, 20, 401).double(), torch.linspace(-10, 10, 401).double(), indexing="ij")
    values = loss(p, q)
    lowest = math.inf
    for index in values.flatten().argsort()[:100]:
        best, step = (p.flatten()[index], q.flatten()[index]), 0.1
        for _ in range(14):
            around = torch.linspace(-step, step, 21).double()
            near = torch.meshgrid((best[0] + around).clamp(0, 20), (best[1] + around).clamp(-10, 10), indexing="ij")
            found = loss(*near)
            place = found.argmin()
            best, step = (near[0].flatten()[place], near[1].flatten()[place]), step / 3
        lowest = min(lowest, float(found.min()))
    return lowest


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_limit_is_minimised_as_brute_force_does(seed: int) -> None:
    search = Search(Sought("convex", seed, (8,), 20, Effort()), 0)
    search.explore()
    x, t = make_data(seed, 20)
    assert search.best(None).end.value == pytest.approx(lowest_clamp(x.squeeze(1), t), abs=1e-8)
