"""`python -m implicit_bregman` is the command `implicit-bregman`."""

import sys

from implicit_bregman.cli import main

if __name__ == "__main__":
    sys.exit(main())
