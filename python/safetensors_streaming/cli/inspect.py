"""`safetensors-streaming inspect`: what a checkpoint holds."""

from collections import Counter
from pathlib import Path

import click

from safetensors_streaming import _native
from safetensors_streaming._checkpoint import paths_of
from safetensors_streaming._verify import FileFacts
from safetensors_streaming.cli._common import (
    NARROW,
    ends_well,
    json_option,
    path_argument,
    say,
    say_json,
    say_table,
    size,
    width,
)

NUMBERS = frozenset({"bytes", "tensors", "offset", "size"})


@click.command()
@path_argument
@json_option
@ends_well
def inspect(path: str, as_json: bool) -> None:  # noqa: FBT001 - click passes it by name
    """Show files, metadata, dtypes and every tensor. Headers are checked, no weight is read."""
    files = _native.describe(paths_of(path))
    if as_json:
        say_json({"files": [_as_json(file) for file in files], "dtypes": _totals(files)})
        return
    rows = [
        [Path(name).name, size(total), f"{len(tensors):,}", size(data_start)]
        for name, total, data_start, _, tensors in files
    ]
    say_table(["file", "bytes", "tensors", "header"], rows, NUMBERS | {"header"})
    say("")
    totals = [
        [dtype, f"{facts['tensors']:,}", size(facts["bytes"])]
        for dtype, facts in _totals(files).items()
    ]
    say_table(["dtype", "tensors", "bytes"], totals, NUMBERS)
    for name, _, _, metadata, _ in files:
        if metadata:
            say("")
            say(f"metadata of {Path(name).name}:")
            for key, value in sorted(metadata.items()):
                say(f"  {key}: {value}")
    say("")
    narrow, several = width() < NARROW, len(files) > 1
    headings = ["tensor", "dtype", "shape"]
    headings += [] if narrow else ["size", "offset", *(["file"] if several else [])]
    tensors = [
        [
            name,
            dtype,
            " x ".join(map(str, shape)) or "scalar",
            f"{end - begin:,}",
            f"{begin:,}",
            Path(file).name,
        ]
        for file, _, _, _, own in files
        for name, dtype, shape, begin, end in own
    ]
    say_table(headings, [row[: len(headings)] for row in tensors], NUMBERS)


def _as_json(file: FileFacts) -> dict[str, object]:
    path, total, data_start, metadata, tensors = file
    return {
        "path": str(path),
        "bytes": total,
        "data_start": data_start,
        "metadata": metadata,
        "tensors": [
            {"name": name, "dtype": dtype, "shape": shape, "begin": begin, "end": end}
            for name, dtype, shape, begin, end in tensors
        ],
    }


def _totals(files: list[FileFacts]) -> dict[str, dict[str, int]]:
    """Tensors and bytes by dtype, the most bytes first."""
    tensors: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for *_, own in files:
        for _, dtype, _, begin, end in own:
            tensors[dtype] += 1
            total[dtype] += end - begin
    return {
        dtype: {"tensors": tensors[dtype], "bytes": total[dtype]}
        for dtype, _ in total.most_common()
    }
