"""One scenario: ``python -m faulting NAME FOLDER``; the last line it prints is the outcome."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

from faulting.machine import MissingError
from faulting.table import SCENARIOS


def main() -> None:
    """Makes the fault; what is not as promised ends in an exception."""
    name, folder = sys.argv[1:]
    [scenario] = [scenario for scenario in SCENARIOS if scenario.name == name]
    module, _, function = scenario.function.partition(":")
    outcome: dict[str, object] = {}
    try:
        make = getattr(import_module(f"faulting.{module}"), function)
        outcome["facts"] = make(Path(folder), *scenario.arguments) or {}
    except MissingError as missing:
        outcome["missing"] = str(missing)
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
