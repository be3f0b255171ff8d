"""The grid: nothing is computed twice, nothing that was finished is lost, and what cannot be used is said."""

import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from implicit_bregman.cli import main
from implicit_bregman.experiments.grid import run as grid
from implicit_bregman.experiments.grid.cells import Cell, Computed, load_cell, store_cell
from implicit_bregman.experiments.grid.report import environment
from implicit_bregman.experiments.grid.run import Backend, Grid
from implicit_bregman.experiments.output.statistics import mean_and_spread

CALLS: list[float] = []


@dataclass(frozen=True)
class Task:
    """Settings of a cell: what to square, or how to fail."""

    number: float
    failure: str = ""


def square(task: Task, bias: float = 0.0) -> dict[str, object]:
    CALLS.append(task.number)
    if task.failure == "error":
        raise ArithmeticError(f"no square of {task.number}")
    if task.failure == "interrupt":
        raise KeyboardInterrupt
    return {"value": task.number**2 + bias, "pair": (1, float("nan")), "threads": torch.get_num_threads()}


@pytest.fixture(autouse=True)
def no_calls() -> None:
    CALLS.clear()


def cell(number: float, failure: str = "", version: str = "1", **resources: float) -> Cell:
    return Cell(f"square of {number:g}", square, Task(number, failure), resources, version)


def local(folder: Path, told: list[str] | None = None, jobs: int = 1) -> Grid:
    return Grid(folder, Backend(jobs=jobs), tell=(told if told is not None else []).append)


def values(results: list[dict[str, float]]) -> list[float]:
    return [result["value"] for result in results]


def test_results_come_in_order_and_are_not_computed_again(tmp_path: Path) -> None:
    told: list[str] = []
    wanted = [cell(3), cell(1), cell(2), cell(3)]
    first = local(tmp_path, told).run(wanted)
    assert values(first) == [9, 1, 4, 9]
    assert CALLS == [3, 1, 2]
    again = local(tmp_path, told).run([cell(2), cell(4), cell(3)])
    assert values(again) == [4, 16, 9]
    assert CALLS == [3, 1, 2, 4]
    assert told == []
    assert len(list((tmp_path / "cells").iterdir())) == 4


def test_a_fresh_result_is_what_a_stored_one_is(tmp_path: Path) -> None:
    """A tuple becomes a list at once, not only after a restart; numbers keep every digit."""
    fresh, stored = (local(tmp_path).run([cell(1 / 3)])[0] for _ in range(2))
    assert len(CALLS) == 1
    assert fresh["value"] == stored["value"] == (1 / 3) ** 2
    assert repr(fresh) == repr(stored)
    assert fresh["pair"][0] == 1


def test_what_does_not_change_the_result_does_not_change_the_key(tmp_path: Path) -> None:
    assert values(local(tmp_path).run([cell(1, bias=5.0)])) == [6]
    assert values(local(tmp_path).run([cell(1, bias=7.0)])) == [6]
    assert cell(1).key != cell(2).key
    assert cell(1).key == cell(1, version="2").key


def damaged(content: bytes) -> dict[str, bytes]:
    record = json.loads(content)
    changed = record | {"result": {"value": 5}}
    return {
        "empty": b"",
        "half": content[: len(content) // 2],
        "no record": b"[1, 2]",
        "no digest": json.dumps({"result": 1}).encode(),
        "changed": json.dumps(changed).encode(),
        "no text": b"\xff\xfe\x00",
    }


@pytest.mark.parametrize("kind", ["empty", "half", "no record", "no digest", "changed", "no text"])
def test_a_damaged_file_is_computed_again_and_said(kind: str, tmp_path: Path) -> None:
    told: list[str] = []
    local(tmp_path).run([cell(2), cell(3)])
    file = tmp_path / "cells" / cell(2).file
    file.write_bytes(damaged(file.read_bytes())[kind])
    assert values(local(tmp_path, told).run([cell(2), cell(3)])) == [4, 9]
    assert CALLS == [2, 3, 2]
    assert told == [f"{file} is damaged; it is computed again"]
    assert values(local(tmp_path, told).run([cell(2)])) == [4]
    assert CALLS == [2, 3, 2]


def test_a_result_of_other_code_is_computed_again_and_said(tmp_path: Path) -> None:
    told: list[str] = []
    local(tmp_path).run([cell(2)])
    assert values(local(tmp_path, told).run([cell(2, version="2")])) == [4]
    assert CALLS == [2, 2]
    assert len(told) == 1
    assert "was made by other code" in told[0]
    assert len(list((tmp_path / "cells").iterdir())) == 1


def test_by_default_it_is_a_warning(tmp_path: Path) -> None:
    Grid(tmp_path, Backend(jobs=1)).run([cell(2)])
    with pytest.warns(UserWarning, match="other code"):
        Grid(tmp_path, Backend(jobs=1)).run([cell(2, version="2")])


def test_an_interrupted_grid_goes_on(tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        local(tmp_path, told).run([cell(1), cell(2), cell(3, "interrupt"), cell(4)])
    assert "2 finished cells" in told[0]
    assert values(local(tmp_path).run([cell(1), cell(2), cell(3), cell(4)])) == [1, 4, 9, 16]
    assert CALLS == [1, 2, 3, 3, 4]


def test_a_failing_cell_is_raised_as_it_is_and_the_others_stay(tmp_path: Path) -> None:
    with pytest.raises(ArithmeticError, match="no square of 2"):
        local(tmp_path).run([cell(1), cell(2, "error"), cell(3)])
    assert values(local(tmp_path).run([cell(1), cell(3)])) == [1, 9]
    assert CALLS == [1, 2, 3]


KILLED = """
import os, sys
from dataclasses import dataclass
from pathlib import Path
from implicit_bregman.experiments.grid.cells import Cell
from implicit_bregman.experiments.grid.run import Backend, Grid

@dataclass(frozen=True)
class Task:
    number: int

def work(task):
    if task.number == 2 and len(sys.argv) > 2:
        os._exit(9)
    print("computed", task.number, flush=True)
    return task.number

wanted = [Cell(str(number), work, Task(number), version="1") for number in range(4)]
print("results", Grid(Path(sys.argv[1]), Backend(jobs=1)).run(wanted))
"""


def test_a_killed_grid_goes_on(tmp_path: Path) -> None:
    """No chance to clean up: what had finished is there, and only the rest is computed."""

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", KILLED, str(tmp_path), *more]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    killed, finished = run("kill"), run()
    assert (killed.returncode, killed.stdout) == (9, "computed 0\ncomputed 1\n")
    assert finished.stdout == "computed 2\ncomputed 3\nresults [0, 1, 2, 3]\n", finished.stderr


def test_local_processes_compute_with_one_thread_each(tmp_path: Path) -> None:
    results = local(tmp_path, jobs=2).run([cell(1), cell(2), cell(3)])
    assert values(results) == [1, 4, 9]
    assert [result["threads"] for result in results] == [1, 1, 1]
    assert CALLS == []  # not in this process


def test_threads_are_put_back_in_this_process(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert local(tmp_path).run([cell(1)])[0]["threads"] == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Visit:
    """Settings of a cell that says where it ran; or kills its process, once two cells are stored in a folder."""

    number: int
    wait: float = 0.0
    fatal_beside: str | None = None


def visit(settings: Visit) -> dict[str, object]:
    """Who computed it, when, and with how many threads."""
    started = time.monotonic()
    time.sleep(settings.wait)
    if settings.fatal_beside is not None:
        while len(list(Path(settings.fatal_beside).glob("*.json"))) < 2:
            time.sleep(0.05)
        os._exit(9)
    return {"process": os.getpid(), "threads": torch.get_num_threads(), "time": [started, time.monotonic()]}


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """The address of a cluster of two workers on this machine, which see the package and this module."""
    distributed = pytest.importorskip("distributed", reason="the extra cluster is not installed")
    path = os.pathsep.join(
        [*map(str, (Path(__file__).parents[3], Path(__file__).parent)), os.environ.get("PYTHONPATH", "")]
    )
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", env={"PYTHONPATH": path}
    ) as cluster:
        yield cluster.scheduler_address


def visits(count: int, **settings: float) -> list[Cell]:
    return [Cell(f"visit {number}", visit, Visit(number, **settings), version="1") for number in range(count)]


def test_a_local_dask_cluster_of_two_workers(scheduler: str, tmp_path: Path) -> None:
    run = Grid(tmp_path, Backend("dask", scheduler))
    results = run.run(visits(4, wait=0.3))
    assert len({result["process"] for result in results}) == 2
    assert os.getpid() not in {result["process"] for result in results}
    assert [result["threads"] for result in results] == [1] * 4
    assert run.run(visits(4, wait=0.3)) == results
    assert Grid(tmp_path, Backend(jobs=1)).run(visits(4, wait=0.3)) == results
    assert set(run.origins.values()) == {f"PyTorch {torch.__version__}, cpu"}


def test_jobs_limits_what_a_cluster_computes_at_a_time(scheduler: str, tmp_path: Path) -> None:
    results = Grid(tmp_path, Backend("dask", scheduler, jobs=1)).run(visits(3, wait=0.2))
    times = sorted(result["time"] for result in results)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(times))


def test_workers_with_other_code_are_refused(scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may have been started before the code was changed: their results must not count as the new code's."""
    monkeypatch.setattr(grid, "package_version", lambda: "newer")
    with pytest.raises(OSError, match=r"another version of implicit_bregman.*start the workers again"):
        Grid(tmp_path, Backend("dask", scheduler)).run(visits(1))
    assert list((tmp_path / "cells").iterdir()) == []


def test_a_command_computes_on_a_cluster(scheduler: str, tmp_path: Path) -> None:
    command = ["reproduce", "fig5", "--quick", "--epochs", "2", "--seeds", "1", "--out", str(tmp_path)]
    assert main([*command, "--backend", "dask", "--scheduler", scheduler]) == 0
    assert len(list((tmp_path / "cells").iterdir())) == 2
    first = json.loads((tmp_path / "results.json").read_text())
    assert first["environment"]["computed with"] == f"PyTorch {torch.__version__}, cpu (2 cells)"
    assert main([*command, "--jobs", "1"]) == 0
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == first["rows"]


def test_an_error_on_a_cluster_is_raised_as_it_is(scheduler: str, tmp_path: Path) -> None:
    with pytest.raises(ArithmeticError, match="no square of 2"):
        Grid(tmp_path, Backend("dask", scheduler)).run([cell(2, "error")])


def test_a_scheduler_without_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed", reason="the extra cluster is not installed")
    monkeypatch.setattr(grid, "CONNECT_SECONDS", 1)
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=":0", processes=False) as cluster,
        pytest.raises(OSError, match="has no workers; start some"),
    ):
        Grid(tmp_path, Backend("dask", cluster.scheduler_address)).run([cell(1)])


def test_a_worker_that_dies_is_one_line_and_the_rest_stays(tmp_path: Path) -> None:
    wanted = [*visits(2), Cell("fatal", visit, Visit(9, fatal_beside=str(tmp_path / "cells")), version="1")]
    with pytest.raises(OSError, match=r"ended without a result.*fewer --jobs.*goes on from there"):
        local(tmp_path, jobs=2).run(wanted)
    assert len(list((tmp_path / "cells").glob("visit*"))) == 2


def test_a_scheduler_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="the extra cluster is not installed")
    monkeypatch.setattr(grid, "CONNECT_SECONDS", 1)
    with pytest.raises(OSError, match=r"no Dask scheduler answers at --scheduler tcp://127\.0\.0\.1:1"):
        Grid(tmp_path, Backend("dask", "tcp://127.0.0.1:1")).run([cell(1)])


def test_progress_goes_from_one_share_to_the_other(tmp_path: Path) -> None:
    seen: list[float] = []
    run = Grid(tmp_path, Backend(jobs=1), lambda share, text: seen.append(share)).run
    run([cell(1), cell(2)], 0.0, 0.5)
    run([cell(1), cell(2), cell(3), cell(4)], 0.5, 1.0)
    assert seen == [0.0, 0.25, 0.5, 0.75, 0.875, 1.0]


def test_what_computed_the_cells_is_kept(tmp_path: Path) -> None:
    """A report names the device and the PyTorch of the cells, not those of the command that reads them."""
    local(tmp_path).run([cell(1)])
    file = tmp_path / "cells" / cell(1).file
    record = json.loads(file.read_text())
    assert (record["torch"], record["device"]) == (torch.__version__, "cpu")
    store = local(tmp_path)
    computed = Computed({"value": 9.0}, 1.0, "2.99", "some GPU")
    store_cell(tmp_path / "cells", cell(3), computed)
    assert values(store.run([cell(1), cell(3)])) == [1, 9]
    told = str(environment(store.origins.values())["computed with"])
    assert told == f"PyTorch {torch.__version__}, cpu (1 cells); PyTorch 2.99, some GPU (1 cells)"


def test_a_seed_that_diverged_does_not_break_the_report() -> None:
    mean, spread = mean_and_spread([math.nan, 1.0])
    assert math.isnan(mean)
    assert spread is None
    assert mean_and_spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))


def test_an_empty_grid(tmp_path: Path) -> None:
    assert local(tmp_path).run([]) == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"name": "cloud"}, "local.*dask.*cloud"),
        ({"name": "dask"}, "--scheduler tcp"),
        ({"scheduler": "tcp://host:8786"}, "add --backend dask"),
        ({"jobs": 0}, "jobs must be at least 1, got 0"),
    ],
)
def test_bad_backends_are_refused(arguments: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Backend(**arguments)


def test_settings_must_be_frozen() -> None:
    @dataclass
    class Loose:
        number: int = 1

    for settings in (Loose(), {"number": 1}, Task):
        with pytest.raises(TypeError, match="frozen dataclass"):
            Cell("name", square, settings, version="1")


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write"):
        local(tmp_path / "file")


def test_a_missing_cell_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_cell(tmp_path, cell(1))
