"""What the commands share: the arguments, how they print, and how they end."""

import json
import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import wraps
from itertools import zip_longest
from typing import Any, NoReturn, TypeVar

import click
from rich.cells import cell_len, chop_cells

from safetensors_streaming import SafetensorError

BAD_CHECKPOINT, REFUSED, INTERRUPTED, NOBODY_READS = 1, 3, 130, 128 + signal.SIGPIPE
#: Where there is no terminal whose width would count.
WIDTH_WITHOUT_TERMINAL = 160
#: Narrower ones get fewer columns.
NARROW = 80
#: Columns are folded no narrower than this, which nobody could read: the terminal breaks the lines.
FOLDED_WIDTH_MIN = 8

path_argument = click.argument("path", type=click.Path())
device_option = click.option(
    "--device", default="cpu", show_default=True, metavar="DEVICE", help="cpu, cuda or cuda:N"
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")

Command = TypeVar("Command", bound=Callable[..., Any])


def width() -> int:
    """How many characters stand side by side."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL


def escaped(text: str) -> str:
    """The text on one line, as it is but for what a terminal would obey instead of show."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def say(text: str) -> None:
    """Print a line, on a terminal broken between words."""
    line = escaped(text)
    if sys.stdout.isatty():
        line = textwrap.fill(line, width(), break_on_hyphens=False)
    click.echo(line)


def say_json(content: object) -> None:
    """Print JSON, in ASCII: what a terminal would obey is escaped with the rest."""
    click.echo(json.dumps(content, indent=1))


def say_table(headings: list[str], rows: list[list[str]], numbers: frozenset[str]) -> None:
    """Print a table; columns of numbers stand to the right, and what does not fit is folded."""
    table = [headings, *([escaped(cell) for cell in row] for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
    right = [heading in numbers for heading in headings]
    widths = _fitted(widths, [place for place, number in enumerate(right) if not number])
    click.echo("\n".join(line for row in table for line in _lines(row, widths, right)))


def _fitted(widths: list[int], folding: list[int]) -> list[int]:
    """The widths of columns two spaces apart; the widest of those that may be folded give way."""
    fitted = list(widths)
    left = width() - 2 * (len(widths) - 1) - sum(widths) + sum(widths[place] for place in folding)
    narrowest_first = sorted(folding, key=widths.__getitem__)
    for done, place in enumerate(narrowest_first):
        share = max(FOLDED_WIDTH_MIN, left // (len(folding) - done))
        fitted[place] = min(widths[place], share)
        left -= fitted[place]
    return fitted


def _lines(row: list[str], widths: list[int], right: list[bool]) -> Iterator[str]:
    """A row of a table: a line, or several where a cell is folded."""
    columns = list(zip(row, widths, strict=True))
    folded = [chop_cells(cell, room) if cell_len(cell) > room else [cell] for cell, room in columns]
    for parts in zip_longest(*folded, fillvalue=""):
        places = zip(parts, widths, right, strict=True)
        yield "  ".join(_padded(part, room, number) for part, room, number in places).rstrip()


def _padded(text: str, room: int, number: bool) -> str:  # noqa: FBT001 - a column's own
    padding = " " * (room - cell_len(text))
    return padding + text if number else text + padding


def size(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:  # noqa: PLR2004 - the step of decimal prefixes
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def ends_well(command: Command) -> Command:
    """Have a command end with the code and the words of what went wrong."""

    @wraps(command)
    def checked(*args: Any, **keywords: Any) -> Any:  # noqa: ANN401 - as the command
        try:
            return command(*args, **keywords)
        except SafetensorError as error:
            _end(error, BAD_CHECKPOINT)
        except BrokenPipeError:
            # As a program that SIGPIPE ends; what is still to be written goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(NOBODY_READS)
        except (OSError, RuntimeError, MemoryError, ImportError) as error:
            _end(error, REFUSED)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except ValueError as error:
            raise click.UsageError(escaped(str(error))) from error

    return checked  # type: ignore[return-value]


def _end(error: Exception, code: int) -> NoReturn:
    click.echo(f"error: {escaped(str(error))}", err=True)
    sys.exit(code)
