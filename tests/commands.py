"""The command line, as tests run it in this process; for a terminal: `process.in_terminal`."""

from __future__ import annotations

import json
import sys
from typing import Any

from click.testing import CliRunner, Result
from safetensors_streaming.cli import main

BAD, USAGE, REFUSED, INTERRUPTED, NOBODY_READS = 1, 2, 3, 130, 141

COMMAND = [sys.executable, "-m", "safetensors_streaming"]


def run(*words: object) -> Result:
    """Runs a command here."""
    return CliRunner().invoke(main, [str(word) for word in words])


def told(*words: object) -> Any:  # noqa: ANN401 - whatever the JSON is
    """What a command that ends well tells as JSON."""
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)
