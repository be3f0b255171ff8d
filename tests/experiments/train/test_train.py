"""Training: what is logged and saved, and that a run goes on as if nothing had happened."""

import csv
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from implicit_bregman.cli import main
from implicit_bregman.experiments.learning.training import epoch_batches
from implicit_bregman.experiments.train.build import SOLVERS, find_devices, make_adjoint, make_model, make_solver
from implicit_bregman.experiments.train.checkpoint import best_row, load, read_file
from implicit_bregman.experiments.train.lock import LOCK, locked
from implicit_bregman.experiments.train.logs import TAGS, EpochRow
from implicit_bregman.experiments.train.measures import Objective
from implicit_bregman.experiments.train.run import TrainResult, load_data, run_training
from implicit_bregman.experiments.train.settings import TrainSettings
from implicit_bregman.solvers import MM
from tests.experiments.data.test_data import idx, write_set

SETTINGS = TrainSettings(train_size=80, width=6, epochs=3, batch_size=20, accelerator="cpu")
OPTIONS = ["--train-size", "80", "--width", "6", "--batch-size", "20", "--accelerator", "cpu"]
TIMES = ("seconds", "finished")
FILES = {"checkpoint.pt", "metrics.csv", "model.pt", "tensorboard", LOCK}


def run(folder: Path, resume: bool = False, **changes: Any) -> TrainResult:
    folder.mkdir(exist_ok=True)
    return run_training(replace(SETTINGS, **changes), folder, resume)


def numbers(rows: tuple[EpochRow, ...]) -> list[dict[str, Any]]:
    """The rows without what the clock says."""
    return [{name: value for name, value in asdict(row).items() if name not in TIMES} for row in rows]


def table(folder: Path) -> list[dict[str, str]]:
    """The lines of metrics.csv, without what the clock says."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def events(folder: Path) -> list[tuple[int, str, float]]:
    """The scalars in the TensorBoard files: step, tag and value, in their order."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        content, start = path.read_bytes(), 0
        while start < len(content):
            (length,) = struct.unpack_from("<Q", content, start)
            event = Event.FromString(content[start + 12 : start + 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            start += 16 + length
    return found


def same_files(one: Path, other: Path) -> None:
    """All files of two runs hold the same, bit for bit, but for the clock."""
    assert table(one) == table(other)
    assert [event for event in events(one) if "time" not in event[1]] == [
        event for event in events(other) if "time" not in event[1]
    ]
    for name in ("checkpoint.pt", "model.pt"):
        left, right = read_file(one / name), read_file(other / name)
        assert left.keys() == right.keys()
        for part in ("model", "optimizer"):
            same_tensors(left.get(part), right.get(part))
    assert read_file(one / "model.pt")["epoch"] == read_file(other / "model.pt")["epoch"]


def same_tensors(left: Any, right: Any) -> None:
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for name in left:
            same_tensors(left[name], right[name])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five epochs without an interruption."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder, epochs=5)
    return folder


def test_the_logs_agree(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert [row.epoch for row in result.rows] == [1, 2, 3]
    assert [row.steps for row in result.rows] == [4, 8, 12]
    assert result.rows[-1].train_loss < result.rows[0].train_loss
    with (tmp_path / "metrics.csv").open(newline="") as file:
        written = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert written == [asdict(row) for row in result.rows]
    found = events(tmp_path)
    assert Counter((step, tag) for step, tag, _ in found) == {(k, tag): 1 for k in (1, 2, 3) for tag in TAGS.values()}
    for step, tag, value in found:
        name = next(name for name in TAGS if TAGS[name] == tag)
        assert value == pytest.approx(getattr(result.rows[step - 1], name), rel=1e-6, abs=1e-30)


@pytest.mark.filterwarnings("ignore:.*some samples failed")
def test_what_is_logged_is_what_the_layer_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch is the whole epoch, so that the first epoch's means can be computed here."""
    monkeypatch.setitem(SOLVERS, "mm", partial(MM, exact=False))
    half = {"max_iter": 40, "tol": 1e-3}
    settings = replace(SETTINGS, solver="mm", **half)
    result = run(tmp_path, epochs=1, batch_size=100, solver="mm", **half)
    data, _, _ = load_data(settings).held_out(settings.validation)
    model = make_model(settings, data)
    with torch.no_grad():
        solution = model.layer.solve(data.train_x)
        scores = model(data.train_x)
    row = result.rows[0]
    assert row.train_loss == pytest.approx(float(torch.nn.functional.cross_entropy(scores, data.train_y)), rel=1e-5)
    assert row.train_accuracy == pytest.approx(float((scores.argmax(-1) == data.train_y).float().mean()))
    assert row.iterations == pytest.approx(float(solution.iterations.float().mean()))
    assert row.residual == pytest.approx(float(solution.residual.mean()), rel=1e-4)
    assert row.worst_residual == pytest.approx(float(solution.residual.max()), rel=1e-4)
    assert row.converged == pytest.approx(float(solution.converged.float().mean()))
    assert 0 < row.converged < 1
    trained = read_file(tmp_path / "model.pt")["model"]
    model.load_state_dict(trained)
    largest = torch.linalg.eigvalsh(-model.layer.energy.weight.detach())[-1]
    assert row.spectral_bound == pytest.approx(float(largest), rel=1e-5)
    assert row.test_accuracy == pytest.approx(float((model(data.test_x).argmax(-1) == data.test_y).float().mean()))


def test_active_is_the_share_of_coordinates_on_a_bound() -> None:
    data = load_data(SETTINGS)
    objective = Objective(make_model(SETTINGS, data))
    objective(data.train_x, data.train_y, 1.0)
    solution = objective.model.layer.last_solution
    assert solution is not None
    on_a_bound = (solution.value.abs() > 1 - 1e-6).float().mean()
    assert objective.measured(lambda tensor, operation: tensor).active == pytest.approx(float(on_a_bound))
    assert 0.1 < on_a_bound < 0.9


def test_batches_are_those_of_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []

    def record(self: Any, index: torch.Tensor, count: int, step: int) -> None:
        seen.append(index.tolist())
        original(self, index, count, step)

    original = train_loop()._Run._step
    monkeypatch.setattr(train_loop()._Run, "_step", record)
    run(tmp_path, epochs=2, validation=0.0)
    batches = epoch_batches(80, 20, SETTINGS.seed)
    assert seen == [next(batches).tolist() for _ in range(8)]


def train_loop() -> Any:
    from implicit_bregman.experiments.train import run

    return run


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"schedule": "cosine"},
        {"solver": "mm"},
        {"solver": "anderson", "adjoint": "phantom"},
        {"solver": "broyden", "max_iter": 30, "adjoint": "shine"},
        {"weight": "general", "regularization": 0.5},
        {"weight": "monotone"},
        {"weight": "symmetric", "adjoint": "unrolled-3"},
    ],
    ids=lambda changes: ",".join(map(str, changes.values())) or "default",
)
def test_a_resumed_run_is_the_same_bit_for_bit(
    tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    run(once, epochs=4, **changes)
    stop_in_epoch(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(twice, epochs=4, **changes)
    monkeypatch.undo()
    assert len(table(twice)) == 2
    run(twice, resume=True, epochs=4, **changes)
    same_files(once, twice)


def stop_in_epoch(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C after a step of that epoch."""
    original = train_loop()._Run._step

    def step(self: Any, index: torch.Tensor, count: int, step: int) -> None:
        original(self, index, count, step)
        if step == 4 * (number - 1) + 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(train_loop()._Run, "_step", step)


def test_a_killed_run_loses_at_most_an_epoch(tmp_path: Path, whole: Path) -> None:
    """SIGKILL in the middle, from outside: the files are whole, and the resumed run is that of an unbroken one."""
    command = [sys.executable, "-m", "implicit_bregman.cli", "train", *OPTIONS, "--epochs", "100000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*command, "--out", str(tmp_path)], stderr=subprocess.PIPE, env=environment) as process:
        assert process.stderr is not None
        seen = [process.stderr.readline() for _ in range(3)]
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert seen[-1].startswith(b"epoch 3: loss ")
    saved = load(tmp_path)
    assert saved is not None
    done = len(saved.rows)
    assert done >= 3
    assert len(table(tmp_path)) in (done - 1, done)
    result = run(tmp_path, resume=True, epochs=done + 2)
    once = tmp_path / "once"
    run(once, epochs=done + 2)
    assert numbers(result.rows)[:5] == numbers(load(whole).rows)
    same_files(tmp_path, once)


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_is_the_same(tmp_path: Path) -> None:
    """SIGKILL at six moments that have nothing to do with what the process is doing."""
    random = Random(0)
    kills, out = 6, tmp_path / "killed"
    command = [sys.executable, "-m", "implicit_bregman.cli", "train", *OPTIONS, "--epochs", "100000"]
    for _ in range(kills):
        with subprocess.Popen([*command, "--out", str(out), "--resume"], stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            process.stderr.readline()
            time.sleep(random.uniform(0, 0.2))
            process.kill()
    saved = load(out)
    assert saved is not None
    epochs = len(saved.rows) + 1
    assert epochs > kills / 2
    run(out, resume=True, epochs=epochs)
    run(tmp_path / "once", epochs=epochs)
    same_files(out, tmp_path / "once")


@pytest.mark.parametrize("moment", range(9))
def test_a_death_while_files_are_written_is_mended(
    tmp_path: Path, whole: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends at each of the points at which a file appears; what it leaves can be gone on from."""
    calls = 0
    replacing = os.replace

    def end(source: Any, target: Any) -> None:
        nonlocal calls
        if calls == moment:
            raise SystemExit
        calls += 1
        replacing(source, target)

    monkeypatch.setattr("os.replace", end)
    with pytest.raises(SystemExit):
        run(tmp_path, epochs=5)
    monkeypatch.undo()
    (tmp_path / ".checkpoint.pt.left").write_bytes(b"half")
    run(tmp_path, resume=True, epochs=5)
    same_files(tmp_path, whole)
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_a_run_stored_under_the_former_name_of_its_weight_goes_on(tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    run(once, epochs=3, weight="general")
    run(twice, epochs=2, weight="general")
    for name in ("checkpoint.pt", "model.pt"):
        state = torch.load(twice / name, weights_only=True)
        assert state["settings"]["weight"] == "general"
        state["settings"]["weight"] = "free"
        torch.save(state, twice / name)
    run(twice, resume=True, epochs=3, weight="free")
    same_files(once, twice)


def test_a_finished_run_is_left_as_it_is_and_can_be_prolonged(tmp_path: Path, whole: Path) -> None:
    run(tmp_path, epochs=3)
    before = table(tmp_path)
    assert len(run(tmp_path, resume=True, epochs=3).rows) == 3
    assert table(tmp_path) == before
    run(tmp_path, resume=True, epochs=5)
    same_files(tmp_path, whole)


def test_patience_stops_and_the_best_model_is_kept(tmp_path: Path) -> None:
    result = run(tmp_path, epochs=60, learning_rate=0.3, patience=2)
    assert result.stopped_early
    losses = [row.validation_loss for row in result.rows]
    assert result.best.epoch == losses.index(min(losses)) + 1 == len(losses) - 2
    assert read_file(tmp_path / "model.pt")["epoch"] == result.best.epoch
    assert len(run(tmp_path, resume=True, epochs=60, learning_rate=0.3, patience=2).rows) == len(losses)
    assert len(run(tmp_path, resume=True, epochs=60, learning_rate=0.3, patience=4).rows) > len(losses)


def test_the_best_model_is_that_of_its_epoch(tmp_path: Path) -> None:
    result = run(tmp_path, epochs=6, learning_rate=0.3, patience=2)
    once = tmp_path / "once"
    run(once, epochs=result.best.epoch, learning_rate=0.3)
    same_tensors(read_file(tmp_path / "model.pt")["model"], read_file(once / "checkpoint.pt")["model"])


def test_without_a_validation_set_the_last_epoch_counts(tmp_path: Path) -> None:
    result = run(tmp_path, epochs=2, validation=0.0)
    assert result.best.epoch == 2
    assert (result.rows[0].validation_loss, table(tmp_path)[0]["validation_loss"]) == (None, "")
    assert read_file(tmp_path / "model.pt")["epoch"] == 2


def test_a_nan_is_never_the_best(whole: Path) -> None:
    rows = load(whole).rows
    broken = replace(rows[0], validation_loss=float("nan"))
    assert best_row((broken, *rows[1:])).epoch > 1


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, epochs=1)
    monkeypatch.setattr(Objective, "forward", lambda self, x, y, share: original(self, x, y, share) * float("nan"))
    with pytest.raises(ValueError, match=r"W of epoch 2 is not finite.*--learning-rate"):
        run(tmp_path, resume=True)
    assert len(table(tmp_path)) == 1


original = Objective.forward


def test_a_weight_that_diverges_stops_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", *OPTIONS, "--learning-rate", "1e30", "--out", str(tmp_path)]
    assert main(arguments) == 2
    expected = "W of epoch 1 is not finite, or too large to decompose: use a smaller --learning-rate"
    assert capsys.readouterr().err == f"implicit-bregman: {expected}\n"
    assert load(tmp_path) is None


def test_a_weight_that_diverges_later_leaves_the_epochs_before(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"W of epoch \d+ .*--learning-rate, in another --out: .* kept") as caught:
        run(tmp_path, learning_rate=1e18, epochs=40)
    assert caught.value.__cause__ is not None
    number = int(str(caught.value).split()[3])
    assert number > 1
    assert len(table(tmp_path)) == number - 1


def test_another_error_in_an_epoch_is_not_called_divergence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("something else")

    monkeypatch.setattr(Objective, "forward", fail)
    with pytest.raises(ValueError, match=r"^something else$"):
        run(tmp_path)


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "bf16-true"])
def test_precisions_train_and_resume(tmp_path: Path, precision: str) -> None:
    run(tmp_path, precision=precision, epochs=1)
    result = run(tmp_path, precision=precision, epochs=2, resume=True)
    once = run(tmp_path / "once", precision=precision, epochs=2)
    assert numbers(result.rows) == numbers(once.rows)
    assert result.rows[1].train_loss < result.rows[0].train_loss
    dtype = read_file(tmp_path / "checkpoint.pt")["model"]["head.weight"].dtype
    expected = {"32-true": torch.float32, "64-true": torch.float64, "bf16-mixed": torch.float32}
    assert dtype == expected.get(precision, torch.bfloat16)


@pytest.mark.parametrize("name", ["implicit", "one-step", "phantom", "unrolled-3", "truncated-2-of-5"])
def test_adjoints_train(tmp_path: Path, name: str) -> None:
    rows = run(tmp_path, adjoint=name, epochs=2).rows
    assert rows[1].train_loss < rows[0].train_loss
    assert (rows[0].converged == 0) == ("-of-" in name or "unrolled" in name)


@pytest.mark.parametrize("name", ["newton", "anderson", "broyden", "mm", "torchdeq"])
def test_solvers_train(tmp_path: Path, name: str) -> None:
    if name == "torchdeq":
        pytest.importorskip("torchdeq")
    adjoint = "shine" if name == "broyden" else "implicit"
    row = run(tmp_path, solver=name, max_iter=50, epochs=1, adjoint=adjoint).rows[0]
    assert row.train_loss < 2.5
    assert row.iterations > 0


def test_solvers_and_adjoints_are_made_as_asked() -> None:
    assert make_solver("auto") == "auto"
    assert (make_solver("auto", tol=1e-3).tol, make_solver("mm", max_iter=7).max_iter) == (1e-3, 7)
    assert (make_adjoint("truncated-2-of-5").steps, make_adjoint("truncated-2-of-5").last) == (5, 2)


# Between the choice of a port and its use another process may take it.
PORT_TAKEN = ("EADDRINUSE", "ddress already in use")


def ddp(folder: Path, *options: str, launcher: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    done = launch(folder, *options, launcher=launcher)
    if done.returncode and any(sign in done.stderr for sign in PORT_TAKEN):
        done = launch(folder, *options, launcher=launcher)
    return done


def launch(folder: Path, *options: str, launcher: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *launcher, "train", *OPTIONS, *options, "--out", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


OWN = ("implicit_bregman",)
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", *OWN)


@pytest.mark.parametrize(
    ("launcher", "options"),
    [
        pytest.param(TORCHRUN, (), id="torchrun"),
        pytest.param(OWN, ("--devices", "2", "--strategy", "ddp"), id="own", marks=pytest.mark.slow),
    ],
)
def test_two_processes_learn_what_one_does(tmp_path: Path, launcher: tuple[str, ...], options: tuple[str, ...]) -> None:
    """In float64 to 1e-9. The batches, of 23 and of 72 - 3 * 23 = 3, do not divide evenly; then one process goes on."""
    changes: dict[str, Any] = {"batch_size": 23, "precision": "64-true"}
    once = run(tmp_path / "once", epochs=4, **changes)
    done = ddp(tmp_path, *options, "--batch-size", "23", "--precision", "64-true", "--epochs", "3", launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Written to") == 1
    assert done.stderr.count("epoch 3: loss") == 1
    assert json.loads((tmp_path / "run.json").read_text())["environment"]["processes"] == 2
    both = run(tmp_path, resume=True, epochs=4, **changes)
    assert len(both.rows) == 4
    for one, other in zip(numbers(once.rows), numbers(both.rows), strict=True):
        # The residuals are rounding errors.
        rounding = ("residual", "worst_residual")
        assert {name: other[name] for name in other if name not in rounding} == pytest.approx(
            {name: one[name] for name in one if name not in rounding}, rel=1e-9
        )
        assert other["worst_residual"] < 1e-9
    assert len(events(tmp_path)) == 4 * len(TAGS)


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    run(tmp_path, epochs=1)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match=r"holds a run of 1 epochs.*--resume.*--out"):
        run(tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"width": 7}, "width = 6 there, 7 here"),
        ({"adjoint": "phantom", "seed": 3}, "seed = 0 there, 3 here, adjoint = implicit there, phantom here"),
        ({"schedule": "cosine", "epochs": 9}, "schedule = constant there"),
    ],
)
def test_another_run_is_not_resumed(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    run(tmp_path, epochs=1)
    with pytest.raises(ValueError, match=complaint):
        run(tmp_path, resume=True, **changes)


def test_other_data_are_not_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The data folder may be another one, what is in it may not."""
    for name, count in (("one", 40), ("moved", 40), ("other", 40)):
        write_set(tmp_path / name, train=count)
    (tmp_path / "other" / "t10k-images-idx3-ubyte").write_bytes(idx(2051, 5, 3, 2, top=200))
    out = tmp_path / "run"
    command = ["train", "--dataset", "mnist", "--width", "4", "--accelerator", "cpu", "--out", str(out), "--resume"]
    assert main([*command, "--data-dir", str(tmp_path / "one"), "--epochs", "1"]) == 0
    assert "warning: mnist: 40 training and 5 test images, not the published" in capsys.readouterr().err
    before = (out / "checkpoint.pt").read_bytes()
    assert main([*command, "--data-dir", str(tmp_path / "other"), "--epochs", "2"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"other data \(fingerprint \w{16} there, \w{16} here\).*--data-dir.*--out", error)
    assert (out / "checkpoint.pt").read_bytes() == before
    assert main([*command, "--data-dir", str(tmp_path / "moved"), "--epochs", "2"]) == 0
    assert len(table(out)) == 2


def test_a_folder_is_for_one_run_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(tmp_path):
        (tmp_path / ".checkpoint.pt.half").write_bytes(b"of the other run")
        assert main(["train", *OPTIONS, "--epochs", "1", "--out", str(tmp_path), "--resume"]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"implicit-bregman: another run is writing to {tmp_path}: ")
        assert error.count("\n") == 1
        assert (tmp_path / ".checkpoint.pt.half").exists()
        with locked(tmp_path, wanted=False):
            pass
    assert main(["train", *OPTIONS, "--epochs", "1", "--out", str(tmp_path)]) == 0


def test_a_running_process_holds_its_folder_until_it_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "implicit_bregman", "train", *OPTIONS, "--epochs", "100000"]
    with subprocess.Popen([*command, "--out", str(tmp_path)], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.readline()
        with pytest.raises(ValueError, match="another run is writing"):
            run(tmp_path, resume=True)
        process.kill()
    with locked(tmp_path):
        pass


def test_a_system_without_locks_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("implicit_bregman.experiments.train.lock.fcntl", None)
    with locked(tmp_path):
        assert len(run(tmp_path, epochs=1).rows) == 1


def test_too_few_gpus_are_not_replaced_by_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SETTINGS, accelerator="auto", devices=2)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"devices = 2, but the number of GPUs is 1: use --devices 1 .*cpu"):
        find_devices(settings)
    assert not find_devices(replace(settings, accelerator="cpu")).on_gpu
    assert find_devices(replace(settings, devices=None)).on_gpu
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert find_devices(settings).on_gpu
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert not find_devices(settings).on_gpu


def test_the_processes_of_torchrun_do_not_all_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("implicit_bregman.experiments.data.load.fetch", lambda name, root: asked.append(name))
    settings = replace(SETTINGS, dataset="mnist", data_dir=tmp_path, download=True, train_size=None)
    monkeypatch.setattr("torch.distributed.is_torchelastic_launched", lambda: True)
    with pytest.raises(ValueError, match=r"download of 'mnist' under torchrun.*with one process .*--dataset mnist"):
        load_data(settings)
    assert asked == []
    assert len(load_data(replace(settings, dataset="digits")).train_y) == 1438
    write_set(tmp_path)
    assert len(load_data(settings).train_y) == 12
    monkeypatch.setattr("torch.distributed.is_torchelastic_launched", lambda: False)
    load_data(replace(settings, dataset="fashion"))
    assert asked == ["mnist", "fashion"]


def test_a_cosine_schedule_is_not_prolonged(tmp_path: Path) -> None:
    rows = run(tmp_path, epochs=2, schedule="cosine").rows
    assert rows[0].learning_rate > rows[1].learning_rate > 0
    with pytest.raises(ValueError, match="epochs = 2 there, 3 here"):
        run(tmp_path, resume=True, epochs=3, schedule="cosine")


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def test_a_checkpoint_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 2, "settings": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint.pt is damaged or no checkpoint"):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("left", [0, 10, 3000])
def test_a_damaged_checkpoint_says_so(tmp_path: Path, whole: Path, left: int) -> None:
    (tmp_path / "checkpoint.pt").write_bytes((whole / "checkpoint.pt").read_bytes()[:left])
    with pytest.raises(ValueError, match=r"checkpoint.pt is damaged or no checkpoint .*--out") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [({"format": 1}, "format 1, this version reads 2"), ([1], "format None"), ({"format": 2}, "lacks a part")],
    ids=["old", "list", "part"],
)
def test_a_checkpoint_of_another_kind_says_so(tmp_path: Path, content: Any, complaint: str) -> None:
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=complaint):
        load(tmp_path)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "run"
    assert main(["train", *OPTIONS, "--epochs", "2", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 2
    assert "Best of 2 epochs" in captured.out
    assert {path.name for path in out.iterdir()} == FILES | {"run.json"}
    assert json.loads((out / "run.json").read_text())["settings"]["train_size"] == 80
    assert main(["train", *OPTIONS, "--epochs", "3", "--out", str(out), "--resume"]) == 0
    captured = capsys.readouterr()
    assert "going on after epoch 2" in captured.err
    assert "Best of 3 epochs" in captured.out


def test_resume_without_a_checkpoint_is_a_new_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *OPTIONS, "--epochs", "1", "--out", str(tmp_path), "--resume"]) == 0
    assert "a new run" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_in_epoch(2, monkeypatch)
    assert main(["train", *OPTIONS, "--out", str(tmp_path)]) == 130
    error = capsys.readouterr().err
    assert "interrupted" in error.splitlines()[-1]
    assert "--resume" in error.splitlines()[-1]
    assert len(table(tmp_path)) == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--epochs 0", "epochs must be a whole number of at least 1"),
        ("--batch-size 0", "batch_size"),
        ("--learning-rate nan", "learning_rate must be positive"),
        ("--learning-rate 1e38", "learning_rate must be at most 1e+37"),
        ("--weight-decay -1", "weight_decay must be a finite number >= 0"),
        ("--shift -1", "shift must be a finite number >= 0"),
        ("--rotation nan", "rotation must be a finite number >= 0"),
        ("--zoom 1", "zoom must be a share in [0, 1)"),
        ("--input-dropout 1", "input_dropout must be a share in [0, 1)"),
        ("--validation 1", "validation must be a share in [0, 1)"),
        ("--validation 0.001 --train-size 50", "holds out none of 50"),
        ("--validation 0 --patience 3", "patience = 3 needs a validation set"),
        ("--schedule linear", "constant, cosine"),
        ("--precision 16-mixed", "bf16-mixed"),
        ("--strategy fsdp", "auto, ddp"),
        ("--accelerator tpu", "auto, cpu, gpu"),
        ("--accelerator gpu --devices 99", "--accelerator cpu"),
        ("--solver nope", "torchdeq, got 'nope'"),
        ("--adjoint nope", "unrolled-L"),
        ("--adjoint truncated-6-of-5", "last must not exceed"),
        ("--adjoint unrolled-5 --solver anderson", "MM"),
        ("--weight nope", "convex"),
        ("--geometry nope", "tanh"),
        ("--dataset nope", "cifar10"),
        ("--dataset cifar10", "--data-dir"),
        ("--dataset cifar10 --data-dir {tmp}", "cifar-10-batches-py"),
        ("--out {tmp}/file", "--out"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(
    arguments: str,
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments.format(tmp=tmp_path).split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("implicit-bregman: ")
    assert captured.err.count("\n") == 1
    assert complaint in captured.err
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("missing", ["lightning_fabric", "tensorboardX"])
def test_a_missing_package_says_how_to_install_it(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["train", *OPTIONS, "--out", str(tmp_path / "results")]) == 2
    expected = f"implicit-bregman: {missing} is not installed; pip install 'implicit-bregman[experiments]'\n"
    assert capsys.readouterr().err == expected
    assert os.listdir(tmp_path) == []


def test_a_lossy_set_is_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    from tests.experiments.data.test_cifar import archive

    np.savez(tmp_path / "cifar10_jpeg.npz", **archive())
    arguments = ["--dataset", "cifar10", "--data-dir", str(tmp_path), "--validation", "0", "--epochs", "1"]
    assert main(["train", *arguments, "--width", "4", "--out", str(tmp_path / "results")]) == 0
    assert "warning: CIFAR-10 as JPEG files (lossy)" in capsys.readouterr().err
