"""What older versions of PyTorch lack. The table of docs/derivatives.md says the same."""

import pytest
import torch

INSTALLED = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])


def needs_torch(version: str, what: str) -> pytest.MarkDecorator:
    """Skip a test on a PyTorch older than `version`, which lacks `what`."""
    needed = tuple(int(part) for part in version.split("."))
    return pytest.mark.skipif(needed > INSTALLED, reason=f"{what} needs PyTorch {version}, this is {torch.__version__}")
