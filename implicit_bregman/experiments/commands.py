"""The commands behind `implicit-bregman`: options, progress bar, files."""

import warnings
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

import implicit_bregman
from implicit_bregman.experiments.doctor.command import doctor
from implicit_bregman.experiments.files import writable_folder, write_all
from implicit_bregman.experiments.reproduce.command import make_app as reproduce_app
from implicit_bregman.experiments.settings import CompareSettings
from implicit_bregman.experiments.study.command import make_app as study_app
from implicit_bregman.experiments.terminal import Interrupted, progress_bar, show, warn
from implicit_bregman.experiments.train.command import train

DEFAULTS = CompareSettings()

app = typer.Typer(
    name="implicit-bregman",
    help="Neural layers whose output is a critical point of a learnable objective.",
    add_completion=False,
)
# typer.BadParameter is one kind of usage error; its base class is all of them, in every version of typer.
USAGE_ERROR: type[Any] = typer.BadParameter.__bases__[0]


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code.

    Raises:
        ValueError: For mistakes on the command line and for everything that a command refuses.
        OSError: For files that cannot be read or written.
    """
    try:
        result = app(args=arguments or ["--help"], prog_name="implicit-bregman", standalone_mode=False)
    except USAGE_ERROR as error:
        raise ValueError(f"{error.format_message()} (see --help)") from None
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Interrupted as stop:
        raise KeyboardInterrupt(str(stop)) from None
    return result if isinstance(result, int) else 0


def _show_version(asked: bool) -> None:
    if asked:
        print(f"implicit-bregman {implicit_bregman.__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def compare(
    dataset: Annotated[str, typer.Option(help="digits, spirals, mnist, fashion or cifar10.")] = DEFAULTS.dataset,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with the files of mnist, fashion and cifar10.")
    ] = DEFAULTS.data_dir,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch them into --data-dir from OpenML.")
    ] = DEFAULTS.download,
    train_size: Annotated[int | None, typer.Option(help="Use only so many training samples.")] = DEFAULTS.train_size,
    rows: Annotated[
        str | None,
        typer.Option(help="Rows, separated by commas, for example implicit,one-step,unrolled-10,truncated-5-of-50."),
    ] = None,
    geometry: Annotated[str, typer.Option(help="Name of the geometry.")] = DEFAULTS.geometry,
    regularization: Annotated[
        float, typer.Option(help="γ, the weight of φ in the objective.")
    ] = DEFAULTS.regularization,
    weight: Annotated[str, typer.Option(help="Kind of W: convex, symmetric, monotone or general.")] = DEFAULTS.weight,
    width: Annotated[int, typer.Option(help="Width of the representation.")] = DEFAULTS.width,
    epochs: Annotated[int, typer.Option(help="Budget of steps, in epochs.")] = DEFAULTS.epochs,
    seconds: Annotated[
        float | None,
        typer.Option(help="Budget of time, seconds of training; default: what the first implicit row takes."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples per training step.")] = DEFAULTS.batch_size,
    learning_rate: Annotated[float, typer.Option(help="Adam's learning rate.")] = DEFAULTS.learning_rate,
    tol: Annotated[
        float | None, typer.Option(help="Tolerance of the solvers that a row names; default: theirs.")
    ] = DEFAULTS.tol,
    max_iter: Annotated[
        int | None, typer.Option(help="Largest number of iterations of these solvers; default: theirs.")
    ] = DEFAULTS.max_iter,
    threads: Annotated[int, typer.Option(help="CPU threads; one is fastest for small layers.")] = DEFAULTS.threads,
    seed: Annotated[int, typer.Option(help="First seed.")] = DEFAULTS.seed,
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = DEFAULTS.seeds,
    device: Annotated[str, typer.Option(help="PyTorch device, for example cpu or cuda.")] = DEFAULTS.device,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("compare-results"),
) -> None:
    """Train one model per way of differentiating it: accuracy, gradient error, time and memory."""
    from implicit_bregman.experiments.compare import check, run_comparison
    from implicit_bregman.experiments.plots import comparison_figures
    from implicit_bregman.experiments.report import to_csv, to_json, to_markdown, to_tables

    names = DEFAULTS.rows if rows is None else tuple(name.strip() for name in rows.split(","))
    given = {**locals(), "rows": names}
    settings = CompareSettings(**{item.name: given[item.name] for item in fields(CompareSettings)})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        data = check(settings)
    for warning in caught:
        warn(warning.message)
    folder = writable_folder(out)
    with progress_bar() as progress:
        comparison = run_comparison(settings, data, progress)
    figures = comparison_figures(comparison)
    captions = {name: caption for name, (_, caption) in figures.items()}
    texts = {
        "results.json": to_json(comparison),
        "results.csv": to_csv(comparison),
        "report.md": to_markdown(comparison, captions),
    }
    contents = {name: text.encode() for name, text in texts.items()}
    written = write_all(folder, contents | {name: png for name, (png, _) in figures.items()})
    show(*to_tables(comparison))
    show(f"Written to {folder}: {', '.join(path.name for path in written)}")


app.command()(train)
app.command()(doctor)


@app.command()
def convergence(
    problem: Annotated[str | None, typer.Option(help="Name of the problem, see --list.")] = None,
    list_problems: Annotated[bool, typer.Option("--list", help="List the problems and stop.")] = False,
    solvers: Annotated[str | None, typer.Option(help="Solvers, separated by commas; default: all.")] = None,
    tol: Annotated[float, typer.Option(help="Tolerance of the relative residual.")] = 1e-11,
    max_iter: Annotated[int, typer.Option(help="Largest number of iterations.")] = 1000,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("convergence-results"),
) -> None:
    """Follow residual, objective and gradient error of every solver, iteration by iteration, in float64."""
    from implicit_bregman.experiments.convergence import (
        DEFAULT_PROBLEM,
        ConvergenceSettings,
        default_solvers,
        find_problem,
        run_convergence,
    )
    from implicit_bregman.experiments.convergence_report import to_csv, to_json, to_table
    from implicit_bregman.experiments.plots import convergence_figure
    from implicit_bregman.experiments.problems import collection

    if list_problems:
        show("\n".join(item.name for item in collection()))
        return
    names = default_solvers() if solvers is None else tuple(name.strip() for name in solvers.split(","))
    settings = ConvergenceSettings(problem or DEFAULT_PROBLEM, names, tol, max_iter)
    chosen = find_problem(settings.problem)
    folder = writable_folder(out)
    with progress_bar() as progress:
        result = run_convergence(settings, chosen, progress)
    contents = {
        "convergence.json": to_json(result).encode(),
        "convergence.csv": to_csv(result).encode(),
        "convergence.png": convergence_figure(result),
    }
    written = write_all(folder, contents)
    show(to_table(result))
    show(f"Written to {folder}: {', '.join(path.name for path in written)}")


@app.command()
def benchmark(
    quick: Annotated[bool, typer.Option("--quick", help="A subset, in less than five minutes on two cores.")] = False,
    cells: Annotated[
        str | None,
        typer.Option(help="Cells, separated by commas, see --list; 'mondeq*' is several; default: all, or of --quick."),
    ] = None,
    list_cells: Annotated[bool, typer.Option("--list", help="List the cells and stop.")] = False,
    cap: Annotated[float | None, typer.Option(help="Seconds per cell; default: 48, with --quick 15.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of every contender; default: all cores.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Timed repeats; default: 15, with --quick 7.")] = None,
    accuracy: Annotated[str, typer.Option(help="Relative errors to be reached, separated by commas.")] = "1e-3,1e-6",
    scaling: Annotated[bool, typer.Option(help="Time and memory against d, B, condition and iterations.")] = True,
    others: Annotated[bool, typer.Option(help="Feed-forward layers, and the share of samples on MM's limit.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of the problems.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("benchmark-results"),
) -> None:
    """Time to accuracy, side by side with torchdeq, monDEQ, plain loops in PyTorch, ProxQP, OSQP and bregmanet."""
    from implicit_bregman.experiments.benchmark.cells import QUICK, catalogue
    from implicit_bregman.experiments.benchmark.figures import benchmark_figures
    from implicit_bregman.experiments.benchmark.report import to_csv, to_markdown, to_tables
    from implicit_bregman.experiments.benchmark.run import run_benchmark
    from implicit_bregman.experiments.benchmark.settings import BenchmarkSettings, parse_accuracies

    if list_cells:
        for cell in catalogue():
            show(f"{cell.name}{' (quick)' if cell.name in QUICK else ''}: {cell.text}")
        return
    settings = BenchmarkSettings(
        cells=None if cells is None else tuple(name.strip() for name in cells.split(",")),
        quick=quick,
        cap=cap,
        threads=threads,
        repeats=repeats,
        accuracies=parse_accuracies(accuracy),
        scaling=scaling,
        others=others,
        seed=seed,
    )
    folder = writable_folder(out)
    with progress_bar() as progress:
        result = run_benchmark(settings, progress)
    figures = benchmark_figures(result)
    captions = {name: caption for name, (_, caption) in figures.items()}
    texts = {
        "results.json": result.to_json(),
        "results.csv": to_csv(result),
        "report.md": to_markdown(result, captions),
    }
    contents = {name: text.encode() for name, text in texts.items()}
    written = write_all(folder, contents | {name: png for name, (png, _) in figures.items()})
    show(*to_tables(result))
    show(f"Written to {folder}: {', '.join(path.name for path in written)}")


app.add_typer(reproduce_app(), name="reproduce")
app.add_typer(study_app(), name="study")
