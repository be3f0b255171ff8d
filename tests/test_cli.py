"""The command line: what it writes, and one line on stderr with exit code 2 for everything that is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import implicit_bregman
from implicit_bregman.cli import main

TINY = ["compare", "--rows", "implicit,unrolled-2", "--train-size", "40", "--batch-size", "20"]
TINY += ["--width", "5", "--epochs", "1", "--seeds", "1"]


def test_compare_writes_its_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--out", str(tmp_path / "new" / "results")]) == 0
    files = {path.name: path for path in (tmp_path / "new" / "results").iterdir()}
    assert set(files) == {
        "results.json",
        "results.csv",
        "report.md",
        "accuracy_and_gradient.png",
        "memory_and_time.png",
        "training.png",
    }
    assert all(path.stat().st_size > 100 for path in files.values())
    document = json.loads(files["results.json"].read_text())
    assert [row["name"] for row in document["rows"]] == ["implicit", "unrolled-2"]
    assert document["settings"]["train_size"] == 40
    report = files["report.md"].read_text()
    assert all(f"]({name})" in report for name in files if name.endswith(".png"))
    out = capsys.readouterr().out
    assert "unrolled-2" in out
    assert "Written to" in out


def test_convergence_writes_its_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["convergence", "--solvers", "mm,anderson", "--max-iter", "200", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert set(os.listdir(tmp_path)) == {"convergence.json", "convergence.csv", "convergence.png"}
    assert [entry["name"] for entry in json.loads((tmp_path / "convergence.json").read_text())["solvers"]] == [
        "mm",
        "anderson",
        "unrolled",
    ]
    assert "anderson" in capsys.readouterr().out


def test_problems_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convergence", "--list"]) == 0
    names = capsys.readouterr().out.split()
    assert len(names) > 30
    assert all("\x1b" not in name for name in names)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"implicit-bregman {implicit_bregman.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["compare", "--help"], ["convergence", "--help"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "Usage" in captured.out
    assert captured.err == ""


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("nope", "nope"),
        ("compare --nope 1", "--nope"),
        ("compare --epochs", "--epochs"),
        ("compare --epochs many", "--epochs"),
        ("compare --epochs 0", "epochs must be at least 1"),
        ("compare --seeds 0", "seeds must be at least 1"),
        ("compare --tol 0", "tol must be positive"),
        ("compare --tol -1e-3", "tol must be positive"),
        ("compare --regularization -1", "regularization must be"),
        ("compare --regularization nan", "regularization must be"),
        ("compare --dataset nope", "digits, spirals, mnist, fashion"),
        ("compare --dataset mnist", "--data-dir"),
        ("compare --dataset mnist --data-dir {tmp}", "train-images-idx3-ubyte"),
        ("compare --geometry nope", "tanh"),
        ("compare --weight nope", "convex"),
        ("compare --rows nope", "unrolled-L"),
        ("compare --rows implicit,,one-step", "unknown row ''"),
        ("compare --device nope", "--device cpu"),
        ("compare --out {tmp}/file", "--out"),
        ("compare --out {tmp}/file/below", "--out"),
        ("convergence --tol 0", "tol must be positive"),
        ("convergence --max-iter 0", "max_iter must be at least 1"),
        ("convergence --problem nope", "--list"),
        ("convergence --solvers nope", "anderson"),
        ("convergence --out {tmp}/file", "--out"),
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
    assert main(arguments.format(tmp=tmp_path).split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("implicit-bregman: ")
    assert captured.err.count("\n") == 1
    assert complaint in captured.err
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("missing", ["typer", "matplotlib"])
def test_a_missing_extra_says_how_to_install_it(missing: str, tmp_path: Path) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None\nfrom implicit_bregman.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, *TINY, "--out", str(tmp_path / "results")],
        capture_output=True,
        text=True,
        check=False,
    )
    expected = f"implicit-bregman: {missing} is not installed; pip install 'implicit-bregman[experiments]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
    assert os.listdir(tmp_path) == []


def test_a_warning_about_the_settings_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--geometry", "identity", "--out", str(tmp_path)]) == 0
    error = capsys.readouterr().err
    assert error.startswith("implicit-bregman: warning: ")
    assert error.count("\n") == 1


def test_ctrl_c_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("implicit_bregman.experiments.compare.run.train", interrupt)
    assert main([*TINY, "--out", str(tmp_path)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("module", ["implicit_bregman", "implicit_bregman.cli"])
def test_as_a_program(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "compare", "--epochs", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "implicit-bregman: epochs must be at least 1, got 0\n"
    assert done.stdout == ""


def test_the_package_run_as_a_program_has_the_commands_name() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "implicit_bregman", "train", "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "Usage: implicit-bregman train" in done.stdout
