"""`safetensors-streaming bench`: the stock package and this one on the user's own checkpoint."""

import sys
from collections.abc import Iterator
from importlib.metadata import version
from statistics import median

import click
from tqdm import tqdm

from safetensors_streaming import _native
from safetensors_streaming._addresses import scheme_of
from safetensors_streaming._checkpoint import named_ordinal, paths_of
from safetensors_streaming._comparison import LOADERS, STATES, Loads, Ratio, Row, compare
from safetensors_streaming._statistics import CONFIDENCE
from safetensors_streaming.cli._common import (
    NARROW,
    REFUSED,
    device_option,
    ends_well,
    json_option,
    path_argument,
    say,
    say_json,
    say_table,
    size,
    width,
)
from safetensors_streaming.cuda import gpu_facts

HEADINGS = ["load", "ours", "stock", "ratio of times", "others took"]


@click.command()
@path_argument
@device_option
@click.option(
    "--blocks",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    metavar="N",
    help="Loads by each package, cold and warm.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="The most that a load may take, with the start of its process and its digests.",
)
@json_option
@ends_well
def bench(
    path: str,
    device: str,
    blocks: int,
    timeout: float,
    as_json: bool,  # noqa: FBT001 - click passes it by name
) -> None:
    """Compare loads of PATH by stock safetensors and by this package, cold and warm.

    Each load is that of a fresh process, and the two take turns in random order. A cold one begins
    with nothing of the files in the page cache, a warm one with all of them. It ends when every
    byte was read, or is on the GPU; what was loaded is compared.
    """
    if scheme_of(path):
        raise click.UsageError(
            "an address is on a network: `python -m bench remote` compares those"
        )
    ordinal = named_ordinal(device)
    if ordinal is not None:
        gpu_facts(ordinal)  # refuses one that is not there
    files = _native.describe(paths_of(path))
    total = sum(file[1] for file in files)
    target = "cpu" if ordinal is None else f"cuda:{ordinal}"
    paths = [file[0] for file in files]
    loads = len(STATES) * len(LOADERS) * blocks
    with tqdm(total=loads, desc="loads", leave=False, disable=None) as bar:  # None: a terminal's
        rows = compare(paths, target, blocks, timeout, bar.update)
    if as_json:
        say_json(
            {
                "device": target,
                "bytes": total,
                "files": paths,
                "stock_version": version("safetensors"),
                "loads": {state: row.to_dict(total) for state, row in rows.items()},
            }
        )
    else:
        say(f"{size(total)} in {len(paths)} files to {target}, medians of {blocks} processes each;")
        say(f"stock is safetensors {version('safetensors')}")
        say("")
        headings = HEADINGS[:-1] if width() < NARROW else HEADINGS
        cells = [[state, *_cells(row, total)][: len(headings)] for state, row in rows.items()]
        say_table(headings, cells, frozenset())
        bounds = [f"{state}: {row.explained}" for state, row in rows.items() if row.explained]
        if bounds and ordinal is not None:  # a mapping is nothing that binds
            say("")
            say(f"what bound ours, {'; '.join(bounds)}")
    if any(row.ours.failed for row in rows.values()):
        sys.exit(REFUSED)


def _cells(row: Row, total: int) -> Iterator[str]:
    """A row of the table, without its name."""
    if row.left_out is not None:
        yield from ("-", "-", f"left out: {row.left_out}", "-")
        return
    yield _took(row.ours, total)
    yield _took(row.stock, total)
    ratio = row.ratio
    if ratio is not None:
        yield f"{ratio.median:.3f}{_interval(ratio)}"
    elif row.ours.failed or row.stock.failed:
        yield "-"
    else:
        yield f"too noisy to tell: others were busy in {row.noisy_blocks} of {row.blocks} blocks"
    cores = [*row.ours.foreign_cores, *row.stock.foreign_cores]
    yield f"{median(cores):.2f} cores" if cores else "-"


def _interval(ratio: Ratio) -> str:
    if ratio.confidence is None:
        return ""
    less = "" if ratio.confidence == CONFIDENCE else f" at {ratio.confidence:.0%}"
    return f" [{ratio.low:.3f}..{ratio.high:.3f}]{less}"


def _took(loads: Loads, total: int) -> str:
    if loads.failed is not None:
        return f"failed: {loads.failed}"
    seconds = median(loads.seconds)
    return f"{seconds * 1e3:,.1f} ms, {total / seconds / 1e9:.2f} GB/s"
