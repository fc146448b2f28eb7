"""The command line, as tests run it: in this process, or in a terminal of a width."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from typing import Any

from click.testing import CliRunner, Result
from process import environment
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


def in_terminal(*words: object, columns: int = 80) -> str:
    """What a command that ends well writes to a terminal, without colours."""
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    variables = environment({"NO_COLOR": "1", "TERM": "xterm"})
    variables.pop("COLUMNS", None)  # the terminal says how wide it is
    with subprocess.Popen(  # noqa: S603 - our own command
        [*COMMAND, *map(str, words)], stdout=secondary, stderr=secondary, env=variables
    ) as child:
        os.close(secondary)
        text = b""
        while True:
            try:
                piece = os.read(primary, 1 << 16)
            except OSError:  # the other end is closed
                break
            text += piece
    os.close(primary)
    assert child.returncode == 0, text
    return text.decode()
