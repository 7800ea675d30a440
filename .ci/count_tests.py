"""Fail unless every named JUnit file reports at least one test that passed: a green run of nothing is not green."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree as ET


def counts(path: Path) -> dict[str, int]:
    """Return tests, failures, errors and skipped summed over the file's suites. Raises OSError, ET.ParseError."""
    suites = ET.parse(path).getroot().iter("testsuite")  # noqa: S314  # written by our own pytest run
    total = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in suites:
        for key in total:
            total[key] += int(suite.get(key, "0"))
    return total


def main(paths: list[str]) -> int:
    """Print a line per file; return 0 if all of them ran something and nothing failed."""
    good = bool(paths)
    for name in paths:
        try:
            total = counts(Path(name))
        except (OSError, ET.ParseError) as error:
            print(f"{name}: no result: {error}")  # noqa: T201
            good = False
            continue
        failed = total["failures"] + total["errors"]
        passed = total["tests"] - failed - total["skipped"]
        print(f"{name}: {passed} passed, {failed} failed, {total['skipped']} skipped")  # noqa: T201
        good = good and passed > 0 and failed == 0
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
