"""`safetensors-streaming load`: loads a checkpoint once, and tells how that went."""

import json
import sys
from importlib import import_module
from typing import TYPE_CHECKING, cast

import click

from safetensors_streaming import Report, last_report, load_checkpoint
from safetensors_streaming.cli._common import (
    device_option,
    ends_well,
    json_option,
    path_argument,
    say,
    say_json,
    size,
)
from safetensors_streaming.cli._output import check_output, write_output

if TYPE_CHECKING:
    from collections.abc import Iterable

    from safetensors_streaming._checkpoint import CachePolicy


@click.command()
@path_argument
@device_option
@click.option(
    "--cache",
    type=click.Choice(["auto", "keep", "bypass"]),
    default="auto",
    show_default=True,
    help="Whether what is read shall be in the page cache afterwards.",
)
@click.option(
    "--trace",
    type=click.Path(),
    metavar="FILE",
    help="Where to write the time line, for chrome://tracing or Perfetto.",
)
@json_option
@ends_well
def load(
    path: str,
    device: str,
    cache: str,
    trace: str | None,
    as_json: bool,  # noqa: FBT001 - click passes it by name
) -> None:
    """Load PATH by the engine, drop it, and say how long each part took and what bound it."""
    if trace is not None:
        check_output(trace)
    import_module("torch")  # seconds that are none of the load's
    load_checkpoint(
        path,
        device,
        backend="pread",
        cache=cast("CachePolicy", cache),  # click has checked it
        progress=sys.stderr.isatty(),
    )
    report = last_report()
    assert report is not None  # noqa: S101 - it was just loaded
    if trace is not None:
        write_output(trace, report.trace() or json.dumps({"traceEvents": []}))
    if as_json:
        say_json(report.to_dict())
        return
    _say(report)
    if trace is not None:
        say(f"time line: {trace}")


def _say(report: Report) -> None:
    say(f"{report.tensors:,} tensors, {size(report.bytes)} from {report.files} files")
    something = report.read_bytes > 0
    say(f"bound by {report.explain()}" if something else report.explain())
    _say_seconds(report.seconds.items())
    if something:
        say("under way during the load:")
        _say_seconds(report.busy.items())
        say(f"reader: {report.reader} ({report.reason})")
        say(f"page cache held {report.cached_fraction:.0%}; slots {size(report.ring_bytes_peak)}")


def _say_seconds(parts: "Iterable[tuple[str, float]]") -> None:
    for part, seconds in parts:
        say(f"  {part:<10} {seconds * 1e3:10.1f} ms")
