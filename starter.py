"""The operator's command line; talks to Temporal only."""

from __future__ import annotations

import sys
from typing import NoReturn

from whimbrel.cli.app import run
from whimbrel.runtime.exits import leave


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    leave(int(run(sys.argv[1:])))


if __name__ == "__main__":
    main()
