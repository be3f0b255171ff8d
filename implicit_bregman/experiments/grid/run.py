"""Many independent computations, on local cores or a Dask cluster, each kept on disk as soon as it is finished.

A cell is a function and its settings. What it returns is stored in one file; a grid that is started again computes only
what is missing, damaged, or made by other code.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from implicit_bregman.experiments.grid.cells import Cell, Computed, Unusable, load_cell, store_cell
from implicit_bregman.experiments.grid.versions import package_version
from implicit_bregman.experiments.learning.training import cpu_threads
from implicit_bregman.experiments.machine.devices import available_cores
from implicit_bregman.experiments.machine.memory import keep_freed_memory
from implicit_bregman.experiments.output.files import writable_folder
from implicit_bregman.settings import check_choice

BACKENDS = ("local", "dask")
FOLDER = "cells"
CONNECT_SECONDS = 20

Progress = Callable[[float, str], None]
"""Called with the share of all the work that is done, in 0 … 1, and what is being done."""


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=3)


@dataclass(frozen=True)
class Backend:
    """Where cells are computed, one CPU thread each.

    Attributes:
        name: "local": processes of this machine; "dask": a Dask cluster, whose workers need this package and see the
            same data folder.
        scheduler: Address of the cluster's scheduler, for example "tcp://10.0.0.1:8786"; with "dask" alone.
        jobs: Cells at a time; None: one per local core, or as many as the cluster has threads. With 1 local job
            everything happens in this process.

    Raises:
        ValueError: For an unknown name, fewer than one job, or a scheduler that is missing or of no use.
    """

    name: str = "local"
    scheduler: str | None = None
    jobs: int | None = None

    def __post_init__(self) -> None:
        check_choice("backend", self.name, BACKENDS)
        if self.jobs is not None and self.jobs < 1:
            raise ValueError(f"jobs must be at least 1, got {self.jobs}")
        if self.name == "dask" and not self.scheduler:
            raise ValueError("backend 'dask' needs the address of a scheduler: --scheduler tcp://HOST:8786")
        if self.name != "dask" and self.scheduler:
            raise ValueError(f"scheduler {self.scheduler!r} is of no use to backend {self.name!r}: add --backend dask")


@dataclass(frozen=True)
class Grid:
    """Computes cells and keeps what they return in `folder`/cells.

    Attributes:
        folder: Where the results of the experiment go; made if needed.
        backend: Where to compute.
        progress: Told about the progress.
        tell: Told, in one sentence, of every stored cell that cannot be used and is computed again, and where an
            interrupted grid stands; by default a warning.
        origins: What computed each cell that was used so far, by its key.

    Raises:
        ValueError: If the folder cannot be written to.
    """

    folder: Path
    backend: Backend = Backend()
    progress: Progress = lambda share, text: None
    tell: Callable[[str], None] = _warn
    origins: dict[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        writable_folder(self.folder)

    def run(self, cells: Sequence[Cell], start: float = 0.0, end: float = 1.0) -> list[Any]:
        """Results of the cells, in their order; equal cells are computed once.

        Args:
            cells: What to compute.
            start: Share of all the work, for `progress`, that is done before.
            end: Share that is done afterwards.

        Raises:
            Exception: What a cell raises, as it raises it; the others that had finished are stored.
            OSError: If the scheduler cannot be reached, its workers have another version of this package, one of them
                died, a GPU has no memory left, or a file cannot be written.
            KeyboardInterrupt: After Ctrl-C; what had finished is stored.
        """
        store = writable_folder(self.folder / FOLDER)
        results: dict[str, Computed] = {}
        missing: dict[str, Cell] = {}
        for cell in cells:
            if cell.key in results or cell.key in missing:
                continue
            try:
                results[cell.key] = load_cell(store, cell)
            except FileNotFoundError:
                missing[cell.key] = cell
            except Unusable as reason:
                self.tell(f"{store / cell.file} {reason}; it is computed again")
                missing[cell.key] = cell
        total = len(results) + len(missing)

        def report(text: str) -> None:
            self.progress(start + (end - start) * len(results) / max(total, 1), text)

        report(next((cell.name for cell in missing.values()), "all cells are stored"))
        try:
            for key, computed in _computed(list(missing.values()), self.backend):
                # As it will be read next time, so that a grid that was interrupted ends with the same numbers.
                results[key] = store_cell(store, missing[key], computed)
                report(missing[key].name)
        except (BrokenProcessPool, torch.OutOfMemoryError) as error:
            raise OSError(
                f"a computation ended without a result ({_first_line(error)}), perhaps for want of memory; try fewer "
                f"--jobs. What had finished is stored in {store}, the same command goes on from there"
            ) from None
        except KeyboardInterrupt:
            count = sum(1 for _ in store.glob("*.json"))
            self.tell(f"interrupted; {count} finished cells are stored in {store}, the same command goes on from there")
            raise
        self.origins.update((key, computed.origin) for key, computed in results.items())
        return [results[cell.key].result for cell in cells]


def _computed(cells: list[Cell], backend: Backend) -> Iterator[tuple[str, Computed]]:
    """Key and result of each cell, in the order in which they finish."""
    if not cells:
        return
    if backend.name == "dask":
        yield from _on_cluster(cells, backend)
        return
    if (backend.jobs or available_cores()) == 1:
        keep_freed_memory()
        with cpu_threads(1):
            for cell in cells:
                yield cell.key, cell.compute()
        return
    from joblib import Parallel, delayed, parallel_config

    jobs = min(backend.jobs or available_cores(), len(cells))
    with parallel_config(backend="loky", n_jobs=jobs, inner_max_num_threads=1):
        finished = Parallel(batch_size=1, return_as="generator_unordered")(delayed(_worker)(cell) for cell in cells)
        try:
            yield from finished
        finally:
            finished.close()


def _on_cluster(cells: list[Cell], backend: Backend) -> Iterator[tuple[str, Computed]]:
    """Without joblib, whose Dask backend ignores `jobs` and computes in this process where a cluster has one core."""
    from distributed import Client, KilledWorker, as_completed
    from distributed import TimeoutError as NoWorker  # the built-in one only from Python 3.11 on

    waiting, version = iter(cells), package_version()
    try:
        client = Client(backend.scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise OSError(f"no Dask scheduler answers at --scheduler {backend.scheduler} ({error})") from None
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except NoWorker:
            raise OSError(f"the Dask scheduler at --scheduler {backend.scheduler} has no workers; start some") from None

        def submit(cell: Cell) -> Any:
            return client.submit(_cluster_worker, cell, version, pure=False)

        running = as_completed([submit(cell) for cell in islice(waiting, backend.jobs)], loop=client.loop)
        for future in running:
            try:
                yield future.result()
            except KilledWorker as error:
                raise BrokenProcessPool(f"a Dask worker died: {_first_line(error)}") from None
            running.update([submit(cell) for cell in islice(waiting, 1)])


def _cluster_worker(cell: Cell, version: str) -> tuple[str, Computed]:
    """Compute in a process that may have been started before the code was changed, or on another machine."""
    if package_version() != version:
        raise OSError(
            "the Dask workers run another version of implicit_bregman than this command; install the same one there, "
            "and start the workers again"
        )
    return _worker(cell)


def _worker(cell: Cell) -> tuple[str, Computed]:
    """Compute in a process that does nothing else: the cells are the parallelism, threads inside would only compete."""
    torch.set_num_threads(1)
    keep_freed_memory()
    return cell.key, cell.compute()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
