"""Several geometries on one box: what is left of φ when its domain is the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from implicit_bregman.adjoints import Unrolled
from implicit_bregman.critical_point import find_critical_point
from implicit_bregman.energy import QuadraticEnergy
from implicit_bregman.experiments.data import Dataset
from implicit_bregman.experiments.learning.model import Classifier
from implicit_bregman.experiments.learning.training import epoch_batches, evaluate
from implicit_bregman.experiments.reference.problems import make_problem
from implicit_bregman.experiments.study.geometry.training import plain_mm
from implicit_bregman.experiments.study.task import Task, without_warnings
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.legendre import geometry as find_geometry
from implicit_bregman.solution import Solution
from implicit_bregman.solvers import Newton

BOX = (-1.0, 1.0)
# The first is what the others are compared with. On this box sigmoid and scaled_tanh are tanh again, with 2φ and 1.5φ.
BOX_GEOMETRIES = ("tanh", "isru", "sin", "arctan", "sigmoid", "scaled_tanh")
SAMPLES = 64
# Plain MM is run to this residual in float64.
MM_TOL = 1e-8
# Limits that differ by more in some coordinate are different ones.
APART = 1e-3
BASIN_WIDTH = 16


@dataclass(frozen=True)
class BoxRegime:
    """What is computed on the common box, with W convex.

    Attributes:
        name: For people.
        regularization: γ ≥ 0; with `relative`, γσ, σ being the least curvature of each φ.
        steps: L; None: the limit.
        relative: Whether γ is divided by σ, so that γφ has the same curvature in the middle of the box.
        solver: Name of the solver of the limit. For γ = 0 the default one works on the box alone and cannot see φ; "mm"
            steps in the geometry of φ, and ends with an exact solve.
    """

    name: str
    regularization: float
    steps: int | None = None
    relative: bool = False
    solver: str = "auto"

    def gamma(self, geometry: MirrorMap) -> float:
        """γ for this φ."""
        return self.regularization / (geometry.strong_convexity if self.relative else 1.0)


BOX_REGIMES = (
    BoxRegime("limit, γ=0", 0.0),
    BoxRegime("limit by MM, γ=0", 0.0, solver="mm"),
    BoxRegime("limit, γ=0.1", 0.1),
    BoxRegime("limit, γσ=0.1", 0.1, relative=True),
    BoxRegime("L=10, γ=0", 0.0, 10),
)


@dataclass(frozen=True)
class Boxes:
    """Asks for one training per geometry, all from the same parameters and with the same batches, in float64.

    Attributes:
        task: Data and recipe.
        regime: γ and L.
        geometries: Names, moved to the box; the others are compared with the first.
        max_steps: MM steps, at most, on the way to plain MM's limit.
    """

    task: Task
    regime: BoxRegime
    geometries: tuple[str, ...]
    max_steps: int


@dataclass(frozen=True)
class Basins:
    """Asks for MM's limits where W is indefinite, γ = 0 and nothing is trained.

    Attributes:
        seed: Of the problem.
        geometries: Names, moved to the box; the others are compared with the first.
        max_steps: Iterations, at most.
        samples: Number of offsets c.
    """

    seed: int
    geometries: tuple[str, ...]
    max_steps: int
    samples: int = SAMPLES


def on_box(name: str) -> MirrorMap:
    """The bounded geometry of that name, moved to [-1, 1]."""
    return find_geometry(name).to_box(*BOX)


def train_on_one_box(settings: Boxes) -> dict[str, Any]:
    """Train in all geometries side by side.

    Returns:
        "steps", those at which parameters were compared, and by geometry: "parameters", at these steps the distance
        ‖θ − θ₁‖/‖θ₁‖ to the first geometry's; "accuracy"; "answers", the share of the test samples that get another
        answer than from the first; "limit", the largest |z − z₁| over 64 test samples at the first geometry's last
        parameters, as the models compute z; with the solver "mm" also "mm_limit", the same where both are left to
        plain MM, and "mm_short", the share of samples that MM did not take to its residual (left out of "mm_limit");
        and "unsolved", the share of the solves of the training that failed.
    """
    task, regime = settings.task, settings.regime
    data = task.data()
    data = replace(data, train_x=data.train_x.double(), test_x=data.test_x.double())
    geometries = [on_box(name) for name in settings.geometries]
    with without_warnings():
        tasks = [task.with_layer(geometry=phi, regularization=regime.gamma(phi)) for phi in geometries]
        models = [own.model(data, regime.steps).double() for own in tasks]
        for model in models:
            model.layer.solver = regime.solver
        steps, distances, unsolved = _train_together(models, data, task)
        answers = [_answers(model, data.test_x) for model in models]
        accuracy = [evaluate(model, data.test_x, data.test_y)[1] for model in models]
        for model in models[1:]:
            model.load_state_dict(models[0].state_dict())
        limits = [_representation(model, data.test_x[:SAMPLES]) for model in models]
        found: dict[str, Any] = {"steps": steps, "unsolved": {}} | {
            key: {} for key in ("parameters", "accuracy", "answers", "limit", "mm_limit", "mm_short")
        }
        plain: list[Solution | None] = [None] * len(models)
        if regime.solver == "mm":
            plain = [plain_mm(model.layer, data.test_x[:SAMPLES], MM_TOL, settings.max_steps) for model in models]
        for index, name in enumerate(settings.geometries):
            found["parameters"][name] = distances[index]
            found["unsolved"][name] = unsolved[index]
            found["accuracy"][name] = accuracy[index]
            found["answers"][name] = float((answers[index] != answers[0]).double().mean())
            found["limit"][name] = float((limits[index] - limits[0]).abs().max())
            found["mm_limit"][name], found["mm_short"][name] = _compared(plain[index], plain[0])
    return found


def find_basins(settings: Basins) -> dict[str, Any]:
    """Run MM from ρ(0), the middle of the box, on one problem with 8 eigenvalues of W positive, 8 negative, in float64.

    All are as large as the largest σ, so that all geometries take the step σ/λ_max and what differs is φ's shape.

    Returns:
        By geometry: "unsolved", the share without a limit within the iterations; and of those samples that also the
        first geometry solved: the share "elsewhere" whose limits differ by more than 1e-3 from the first geometry's,
        their mean largest coordinate difference "distance" (None if there are none), the shares "lower" and "higher"
        whose objective is below or above the first geometry's; and "nearest", the largest difference of the others.
        "positive": the number of positive eigenvalues of W.
    """
    phis = [on_box(name) for name in settings.geometries]
    problem = make_problem(
        "indefinite",
        "tanh",
        dim=BASIN_WIDTH,
        batch=settings.samples,
        condition=1.0,
        active=0.5,
        stiffness=max(phi.strong_convexity for phi in phis),
        seed=settings.seed,
    )
    energy = QuadraticEnergy.from_matrices(problem.weight)
    solver = Newton(max_iter=settings.max_steps, on_failure="ignore")
    with torch.no_grad():
        solutions = [find_critical_point(energy, phi, problem.offset, solver=solver) for phi in phis]
    first = solutions[0]
    keys = ("unsolved", "elsewhere", "distance", "lower", "higher", "nearest")
    found: dict[str, Any] = {key: {} for key in keys}
    found["positive"] = int((torch.linalg.eigvalsh(problem.weight) > 0).sum())
    for name, solution in zip(settings.geometries, solutions, strict=True):
        both = solution.converged & first.converged
        gap = (solution.value - first.value).abs().amax(-1)[both]
        assert solution.objective is not None
        assert first.objective is not None
        rise = (solution.objective - first.objective)[both]
        apart = gap > APART
        found["unsolved"][name] = 1.0 - float(solution.converged.double().mean())
        found["elsewhere"][name] = _share(apart)
        found["distance"][name] = float(gap[apart].mean()) if bool(apart.any()) else None
        found["lower"][name] = _share(apart & (rise < -1e-9))
        found["higher"][name] = _share(apart & (rise > 1e-9))
        found["nearest"][name] = float(gap[~apart].max()) if bool((~apart).any()) else None
    return found


def _train_together(
    models: list[Classifier], data: Dataset, task: Task
) -> tuple[list[int], list[list[float]], list[float | None]]:
    """Compared steps, distances per model, and the share of failed solves per model."""
    recipe = task.recipe(data)
    optimizers = [torch.optim.Adam(model.parameters(), lr=recipe.learning_rate) for model in models]
    batches = epoch_batches(len(data.train_y), recipe.batch_size, recipe.seed)
    steps: list[int] = []
    distances: list[list[float]] = [[] for _ in models]
    failed: list[list[Tensor]] = [[] for _ in models]
    for step in range(1, recipe.steps + 1):
        index = next(batches)
        for model, optimizer, fails in zip(models, optimizers, failed, strict=True):
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(data.train_x[index]), data.train_y[index]).backward()
            optimizer.step()
            solution = model.layer.last_solution
            assert solution is not None
            fails.append((~solution.converged).double().mean())
        if step <= 5 or step % 5 == 0 or step == recipe.steps:
            steps.append(step)
            first = _flat(models[0])
            for model, curve in zip(models, distances, strict=True):
                curve.append(float((_flat(model) - first).norm() / first.norm()))
    solves = not isinstance(models[0].layer.adjoint, Unrolled)
    return steps, distances, [float(torch.stack(fails).mean()) if solves else None for fails in failed]


def _flat(model: nn.Module) -> Float[Tensor, " parameters"]:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def _answers(model: Classifier, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(-1)


def _representation(model: Classifier, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.layer(x)


def _compared(solution: Solution | None, first: Solution | None) -> tuple[float | None, float | None]:
    """Largest difference of the samples that both solved, and the share that this one did not solve."""
    if solution is None or first is None:
        return None, None
    both = solution.converged & first.converged
    gap = (solution.value - first.value).abs().amax(-1)[both]
    return float(gap.max()) if len(gap) else None, 1.0 - float(solution.converged.double().mean())


def _share(mask: Tensor) -> float | None:
    return float(mask.double().mean()) if len(mask) else None
