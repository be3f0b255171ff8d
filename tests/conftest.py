"""Strict globals and the fixtures that every test may ask for."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from tests import sharing

# The same examples on every run and machine, no clock and no database: a failure is then the code's.
settings.register_profile("strict", derandomize=True, deadline=None, database=None)
settings.load_profile("strict")

SEED = 20260101


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--share 1/N`, see `tests.sharing`."""
    sharing.add_option(parser)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """After the markers (`-m`) have been asked."""
    sharing.select(config, items)


def pytest_configure(config: pytest.Config) -> None:
    """Under xdist the workers are the parallelism: threads inside each would only compete."""
    if os.environ.get("PYTEST_XDIST_WORKER"):
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def strict_globals() -> Iterator[None]:
    """Seed the global generator, and fail the test that leaves one of torch's global settings changed."""
    torch.manual_seed(SEED)
    before = _global_settings()
    yield
    after = _global_settings()
    torch.set_default_dtype(before["default dtype"])
    torch.set_grad_enabled(before["grad mode"])
    torch.use_deterministic_algorithms(before["deterministic algorithms"])
    assert after == before, "the test changed a global setting of torch and did not put it back"


def _global_settings() -> dict[str, object]:
    return {
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded CPU generator; what it draws goes to a device with ``.to(device)``."""
    return torch.Generator().manual_seed(SEED)


@pytest.fixture(params=["cpu", pytest.param("cuda", id="gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and the GPU where there is one."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return torch.device(request.param)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Single and double precision."""
    return request.param
