"""The study of Poisson imaging: the objective against SciPy, the gradients, the references, and what is written."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage, optimize
from skimage.restoration import richardson_lucy as skimage_richardson_lucy

from implicit_bregman.adjoints import Implicit
from implicit_bregman.cli import main
from implicit_bregman.experiments.grid.run import Backend, Grid
from implicit_bregman.experiments.study.imaging import references, training
from implicit_bregman.experiments.study.imaging.energy import LearnedRegularizer, PoissonEnergy, TotalVariation
from implicit_bregman.experiments.study.imaging.pictures import (
    BACKGROUND,
    BLURS,
    HELD_OUT,
    TRAINING,
    Observed,
    blur_kernel,
    blurred,
    decibels,
    held_out,
    load_picture,
    observe,
    training_batch,
)
from implicit_bregman.experiments.study.imaging.references import ReferenceRun, judge_reference, places
from implicit_bregman.experiments.study.imaging.report import study_imaging
from implicit_bregman.experiments.study.imaging.run import measure_imaging
from implicit_bregman.experiments.study.imaging.settings import ImagingSettings, Problem
from implicit_bregman.experiments.study.imaging.training import (
    RestorationRun,
    gradient_check,
    make_layer,
    restored,
    train_restoration,
)
from implicit_bregman.status import Status

PROBLEM = Problem(("gaussian", "motion"), (40.0, 100.0), 16)
SETTINGS = ImagingSettings(
    PROBLEM, ("implicit", "unrolled-3"), 1, 0.1, patch=12, batch_size=2, filters=3, kernel_size=3
)


@pytest.fixture
def few_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Total variation has one weight to choose from."""
    monkeypatch.setitem(references.METHODS, "total-variation", (references.total_variation, (2.0,)))


def few(seen: Observed, count: int) -> Observed:
    return seen.select(torch.arange(count))


def test_the_pictures_are_grey_and_apart() -> None:
    assert not set(TRAINING) & set(HELD_OUT)
    for name in (*TRAINING, *HELD_OUT):
        picture = load_picture(name)
        assert picture.dim() == 2
        assert min(picture.shape) >= 96
        assert 0 <= picture.min() < 0.3 < picture.max() <= 1


@pytest.mark.parametrize("name", BLURS)
def test_blurring_is_scipys(name: str) -> None:
    picture, kernel = torch.rand(2, 20, 14, dtype=torch.float64), torch.stack([blur_kernel(name)] * 2)
    kernel[1] = torch.rand(9, 9, dtype=torch.float64)  # each picture has its own
    for one, weight, found in zip(picture, kernel, blurred(picture, kernel), strict=True):
        expected = ndimage.correlate(one.numpy(), weight.numpy(), mode="mirror") + BACKGROUND
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-12)
    assert float(blur_kernel(name).sum()) == pytest.approx(1)


def test_photons_are_counted() -> None:
    clean = torch.full((400, 16, 16), 0.3, dtype=torch.float64)
    kernel, peak = blur_kernel("uniform").expand(400, 9, 9), torch.full((400,), 50.0, dtype=torch.float64)
    seen = observe(clean, kernel, peak, torch.Generator().manual_seed(0))
    assert torch.equal((seen.counts * 50).round(), (seen.counts * 50).round(decimals=9))
    light = 0.3 + BACKGROUND
    assert float(seen.counts.mean()) == pytest.approx(light, rel=0.01)
    assert float(seen.counts.var()) == pytest.approx(light / 50, rel=0.02)
    assert ((seen.start() > 0) & (seen.start() < 1)).all()


def test_held_out_pictures_come_in_order_and_with_the_same_noise() -> None:
    seen = held_out(PROBLEM.blurs, PROBLEM.peaks, PROBLEM.size)
    assert len(seen.clean) == len(HELD_OUT) * 4
    assert torch.equal(seen.counts, held_out(PROBLEM.blurs, PROBLEM.peaks, PROBLEM.size).counts)
    index = places(PROBLEM, "motion", 40.0, len(HELD_OUT))
    assert (seen.peak[index] == 40).all()
    assert all(torch.equal(kernel, blur_kernel("motion")) for kernel in seen.kernel[index])
    assert not torch.equal(seen.clean[index[0]], seen.clean[index[1]])


def test_batches_depend_on_the_generator_alone() -> None:
    one, other = (training_batch(BLURS, (40.0,), 12, 3, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(one.counts, other.counts)
    assert one.clean.shape == (3, 12, 12)


@pytest.mark.parametrize("regularizer", [LearnedRegularizer(3, 3), TotalVariation(2.0)], ids=["learned", "variation"])
def test_the_restored_picture_is_scipys_minimiser(regularizer: torch.nn.Module) -> None:
    seen = few(held_out(("uniform",), (60.0,), 12), 1)
    regularizer = regularizer.double()
    energy = PoissonEnergy((12, 12), regularizer)
    layer = make_layer(PROBLEM, 12, regularizer, Implicit(), 1e-9)
    found = layer(seen.inputs, seen.start())
    assert layer.last_solution is not None
    assert set(layer.last_solution.status.tolist()) <= {Status.CONVERGED, Status.DEGENERATE}

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        z = torch.from_numpy(flat.reshape(1, 12, 12)).requires_grad_()
        value = energy.value(z, seen.inputs).sum()
        return float(value.detach()), torch.autograd.grad(value, z)[0].flatten().numpy()

    start = seen.start().flatten().numpy()
    options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 5000, "maxfun": 10000}
    best = optimize.minimize(objective, start, jac=True, bounds=[(0, 1)] * 144, method="L-BFGS-B", options=options)
    assert objective(found.detach().flatten().numpy())[0] <= best.fun + 1e-9
    np.testing.assert_allclose(found.detach().flatten().numpy(), best.x, rtol=0, atol=2e-4)


def test_the_objective_is_convex_and_its_filters_are_normalized() -> None:
    regularizer = LearnedRegularizer(4, 5).double()
    torch.testing.assert_close(regularizer.filters.mean((-2, -1)), torch.zeros(4, 1, dtype=torch.float64))
    torch.testing.assert_close(regularizer.filters.square().sum((-2, -1)), torch.ones(4, 1, dtype=torch.float64))
    energy = PoissonEnergy((9, 9), regularizer)
    seen = few(held_out(("motion",), (40.0,), 9), 1)
    hessian = torch.autograd.functional.hessian(lambda z: energy.value(z, seen.inputs).sum(), seen.start())
    assert torch.linalg.eigvalsh(hessian.reshape(81, 81)).min() > -1e-10


def test_the_implicit_gradient_is_that_of_finite_differences() -> None:
    seen = few(held_out(("gaussian",), (60.0,), 12), 2)
    regularizer = LearnedRegularizer(2, 3).double()
    layer = make_layer(PROBLEM, 12, regularizer, Implicit(tol=1e-10), 1e-10)

    def loss() -> torch.Tensor:
        return (layer(seen.inputs, seen.start()) - seen.clean).square().mean()

    gradients = torch.autograd.grad(loss(), list(regularizer.parameters()))
    for parameter, gradient in zip(regularizer.parameters(), gradients, strict=True):
        direction = torch.randn_like(parameter)
        ends = []
        with torch.no_grad():
            for shift in (1e-5, -2e-5, 1e-5):  # the last one goes back
                parameter += shift * direction
                ends.append(float(loss()))
        assert float((gradient * direction).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-9)


def test_gradients_other_than_the_implicit_one_are_off() -> None:
    def check(method: str) -> tuple[float, float]:
        return gradient_check(RestorationRun(method, 0, SETTINGS), LearnedRegularizer(3, 3))

    error, cosine = check("implicit")
    assert error < 0.05  # (the tolerance is 0.01)
    assert cosine > 0.999
    for method in ("one-step", "unrolled-3"):
        assert check(method)[0] > 0.1


@pytest.mark.parametrize("method", ["implicit", "unrolled-3"])
def test_a_training_can_be_repeated_from_its_parameters(method: str) -> None:
    settings = replace(SETTINGS, seconds=0.5)
    result = train_restoration(RestorationRun(method, 0, settings))
    assert result["steps"] >= training.LOOKS
    assert [point[0] for point in result["curve"]] == sorted(point[0] for point in result["curve"])
    assert (result["converged"] is None) is (method != "implicit")
    regularizer = LearnedRegularizer(3, 3)
    before = regularizer.state_dict()
    regularizer.load_state_dict({name: torch.tensor(value) for name, value in result["parameters"].items()})
    assert not torch.equal(before["weight"], LearnedRegularizer(3, 3, seed=1).weight)
    seen = held_out(PROBLEM.blurs, PROBLEM.peaks, PROBLEM.size)
    adjoint = training.make_adjoint(method, PROBLEM.tol)
    again = restored(PROBLEM, regularizer, seen.to(torch.float32), adjoint).double()
    assert decibels(again, seen.clean) == pytest.approx(result["psnr"], abs=1e-3)
    if method == "implicit":
        assert result["equilibrium"] == result["psnr"]
    else:
        assert result["equilibrium"] != result["psnr"]


def test_training_improves_what_it_is_for() -> None:
    settings = replace(SETTINGS, problem=replace(PROBLEM, size=32), seconds=4.0, patch=16)
    curve = train_restoration(RestorationRun("implicit", 0, settings))["curve"]
    assert curve[-1][1] > curve[0][1]


def test_richardson_and_lucy_are_scikit_images_inside() -> None:
    seen = few(held_out(("gaussian",), (60.0,), 64), 1)
    made = references.richardson_lucy(PROBLEM, seen, 3.0)
    expected = skimage_richardson_lucy((seen.counts - BACKGROUND).clamp_min(0)[0].numpy(), seen.kernel[0].numpy(), 3)
    inner = slice(28, 36)  # beyond the reach of three blurs
    np.testing.assert_allclose(made[0, inner, inner].numpy(), expected[inner, inner], rtol=1e-6)
    assert made.shape == seen.clean.shape


def test_references_choose_on_training_pictures() -> None:
    run = ReferenceRun("richardson-lucy", "gaussian", 40.0, PROBLEM)
    result = judge_reference(run)
    tuning = held_out(("gaussian",), (40.0,), PROBLEM.size, TRAINING)
    qualities = {
        iterations: sum(decibels(references.richardson_lucy(PROBLEM, tuning, iterations), tuning.clean))
        for iterations in references.ITERATIONS
    }
    assert result["setting"] == max(qualities, key=qualities.__getitem__)
    assert len(result["psnr"]) == len(result["ssim"]) == len(HELD_OUT)
    assert judge_reference(replace(run, method="observed"))["setting"] is None


@pytest.mark.usefixtures("few_weights")
def test_report_and_resumption(tmp_path: Path) -> None:
    settings = replace(SETTINGS, problem=replace(PROBLEM, blurs=("gaussian",), peaks=(40.0,)))
    report = study_imaging(settings, Grid(tmp_path, Backend(jobs=1)))
    report.report("a command", {}, []).deliver(tmp_path)
    document = json.loads((tmp_path / "results.json").read_text())
    rows = {row["method"]: row for row in document["rows"]}
    assert list(rows) == ["observed", "richardson-lucy", "total-variation", "implicit", "unrolled-3"]
    gap = rows["implicit"]["psnr"] - rows["richardson-lucy"]["psnr"]
    assert f"{gap:+.2f} dB over richardson-lucy" in report.findings[0]
    assert "over unrolled-3" in report.findings[1]
    for name in ("imaging.png", "imaging-curves.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    found = measure_imaging(settings, Grid(tmp_path, Backend(jobs=1), tell=pytest.fail))
    assert found.learned[0].runs[0]["psnr"] == document["data"]["found"]["learned"][0]["runs"][0]["psnr"]
    assert found.references[0].psnr == document["data"]["found"]["references"][0]["psnr"]


@pytest.mark.usefixtures("few_weights")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--quick", "--seconds", "0.1", "--size", "16", "--methods", "implicit", "--jobs", "1"]
    assert main(["study", "imaging", *words, "--out", str(tmp_path / "out")]) == 0
    assert "All of its solves converged" in capsys.readouterr().out
    assert "--seconds 0.1" in (tmp_path / "out" / "report.md").read_text()
    assert main(["study", "imaging", "--blurs", "fog", "--out", str(tmp_path)]) == 2
    assert "blurs must be one of gaussian, uniform, motion, got 'fog'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ()}, "methods must name at least one"),
        ({"methods": ("implicit", "implicit")}, "methods must be different, got implicit, implicit"),
        ({"methods": ("exact",)}, "adjoint must be one of .* got 'exact'"),
        ({"seconds": 0.0}, "seconds must be"),
        ({"patch": 4}, "patch must be between 9 and 151 pixels"),
        ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"seeds": 0}, "seeds must be a whole number"),
    ],
)
def test_settings_that_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blurs": ("fog",)}, "blurs must be one of"),
        ({"peaks": (0.0,)}, "peaks must be"),
        ({"peaks": (40.0, 40.0)}, "peaks must be different"),
        ({"geometry": "tanh"}, "geometry must be one of double_burg, burg, got 'tanh'"),
        ({"size": 1000}, "size must be between 9 and 150 pixels"),
        ({"tol": 0.0}, "tol must be"),
    ],
)
def test_problems_that_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PROBLEM, **changes)
