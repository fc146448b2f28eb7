"""What the commands share: the arguments, how they print, and how they end."""

import json
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from safetensors_streaming import SafetensorError

BAD_CHECKPOINT, REFUSED, INTERRUPTED = 1, 3, 130
#: Where there is no terminal whose width would count.
WIDTH_WITHOUT_TERMINAL = 160
#: Narrower ones get fewer columns.
NARROW = 80

path_argument = click.argument("path", type=click.Path())
device_option = click.option(
    "--device", default="cpu", show_default=True, metavar="DEVICE", help="cpu, cuda or cuda:N"
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")

Command = TypeVar("Command", bound=Callable[..., Any])


def console() -> Console:
    """Where text goes: wrapped to the terminal, coloured unless NO_COLOR says not to."""
    width = None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL
    return Console(highlight=False, emoji=False, width=width)


def say(text: str) -> None:
    """Print a line."""
    console().print(text, markup=False, soft_wrap=not sys.stdout.isatty())


def say_json(content: object) -> None:
    """Print JSON."""
    click.echo(json.dumps(content, indent=1, ensure_ascii=False))


def say_table(headings: list[str], rows: list[list[str]], numbers: frozenset[str]) -> None:
    """Print a table; columns of numbers stand to the right, and what does not fit is folded."""
    table = Table(box=None, pad_edge=False, header_style="")
    for heading in headings:
        right = heading in numbers
        table.add_column(
            heading, justify="right" if right else "left", no_wrap=right, overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console().print(table)


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
            click.echo(f"error: {error}", err=True)
            sys.exit(BAD_CHECKPOINT)
        except (OSError, RuntimeError, MemoryError, ImportError) as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(REFUSED)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except ValueError as error:
            raise click.UsageError(str(error)) from error

    return checked  # type: ignore[return-value]
