"""The command `implicit-bregman`. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

INTERRUPTED = 130
EXTRA = {
    **dict.fromkeys(("typer", "rich", "numpy", "scipy", "sklearn", "joblib", "matplotlib", "skimage"), "experiments"),
    **dict.fromkeys(("PIL", "lightning_fabric", "tensorboardX"), "experiments"),
    **dict.fromkeys(("dask", "distributed"), "cluster"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What follows the program's name; default: what the shell gave.

    Returns:
        Exit code: 0, or 2 with one line on stderr for bad input, or 130 after Ctrl-C.
    """
    try:
        from implicit_bregman.experiments.app import run
    except ModuleNotFoundError as error:
        return missing(error)
    try:
        code = run(sys.argv[1:] if arguments is None else list(arguments))
    except ModuleNotFoundError as error:
        return missing(error)
    except (ValueError, OSError) as error:
        return fail(str(error))
    except KeyboardInterrupt as stop:
        return _interrupted(str(stop))
    return _interrupted() if code == INTERRUPTED else code


def _interrupted(state: str = "") -> int:
    print(f"implicit-bregman: interrupted, {state or 'nothing was written'}", file=sys.stderr)
    return INTERRUPTED


def missing(error: ModuleNotFoundError) -> int:
    """Say which extra brings the package that is missing.

    Raises:
        ModuleNotFoundError: The same, if no extra brings it.
    """
    package = (error.name or "").split(".")[0]
    if package not in EXTRA:
        raise error
    return fail(f"{package} is not installed; pip install 'implicit-bregman[{EXTRA[package]}]'")


def fail(message: str) -> int:
    """Print a one-line error and return the exit code of bad input."""
    print(f"implicit-bregman: {' '.join(message.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
