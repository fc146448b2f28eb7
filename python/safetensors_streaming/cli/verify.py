"""`safetensors-streaming verify`: whether a checkpoint is whole, and its bytes the right ones."""

import json
import sys
import time

import click

from safetensors_streaming import _native
from safetensors_streaming._checkpoint import paths_of, progress_bar
from safetensors_streaming._verify import (
    FileFacts,
    Mismatch,
    check_manifest,
    check_sha256,
    make_manifest,
)
from safetensors_streaming.cli._common import (
    BAD_CHECKPOINT,
    ends_well,
    json_option,
    path_argument,
    say,
    say_json,
    size,
)
from safetensors_streaming.cli._output import check_output, write_output


@click.command()
@path_argument
@click.option("--sha256", metavar="HEX", help="What the only file's SHA-256 should be.")
@click.option("--manifest", type=click.Path(), help="Digests to compare with.")
@click.option("--write-manifest", type=click.Path(), help="Where to write the digests.")
@json_option
@ends_well
def verify(
    path: str,
    sha256: str | None,
    manifest: str | None,
    write_manifest: str | None,
    as_json: bool,  # noqa: FBT001 - click passes it by name
) -> None:
    """Check headers, shards and index, then the content as far as digests are known.

    Digests are those of --sha256 or --manifest; without either, those that the hub's cache has
    named its files by. A manifest holds the SHA-256 of each header and tensor: with it a mismatch
    names the tensor.
    """
    if sum(option is not None for option in (sha256, manifest, write_manifest)) > 1:
        raise click.UsageError("choose one of --sha256, --manifest and --write-manifest")
    if write_manifest is not None:
        check_output(write_manifest)
    began = time.monotonic()
    files = _native.describe(paths_of(path))
    unknown, mismatches = _digest(path, sha256, manifest, write_manifest)
    seconds = time.monotonic() - began
    total = sum(file[1] for file in files)
    digested = total - sum(file[1] for file in files if file[0] in unknown)
    if as_json:
        say_json(
            {
                "files": [file[0] for file in files],
                "tensors": sum(len(file[4]) for file in files),
                "bytes": total,
                "bytes_digested": digested,
                "seconds": seconds,
                "digest_unknown": unknown,
                "mismatches": [mismatch._asdict() for mismatch in mismatches],
            }
        )
    else:
        _say(files, digested, seconds, unknown, mismatches)
        if write_manifest is not None:
            say(f"digests: written to {write_manifest}")
        elif digested and not mismatches:
            say(f"content: {len(files) - len(unknown)} of {len(files)} files agree")
    if mismatches:
        sys.exit(BAD_CHECKPOINT)


def _digest(
    path: str, sha256: str | None, manifest: str | None, write_manifest: str | None
) -> tuple[list[str], list[Mismatch]]:
    """The files of which no digest is known, and what does not agree; writes a manifest."""
    with progress_bar(sys.stderr.isatty(), "verifying") as tell:
        if manifest is not None:
            return [], check_manifest(path, manifest, tell)
        if write_manifest is None:
            return check_sha256(path, sha256, tell)
        content = make_manifest(path, tell)
    write_output(write_manifest, json.dumps(content, indent=1) + "\n")
    return [], []


def _say(
    files: list[FileFacts],
    digested: int,
    seconds: float,
    unknown: list[str],
    mismatches: list[Mismatch],
) -> None:
    tensors = sum(len(file[4]) for file in files)
    say(f"structure: {len(files)} files, {tensors:,} tensors: headers and names agree")
    if digested:
        rate = digested / seconds / 1e9
        say(f"content: {size(digested)} digested in {seconds:.2f} s, {rate:.2f} GB/s")
    for path in unknown:
        say(f"content: not checked, no digest is known of {path}")
    for mismatch in mismatches:
        say(f"MISMATCH: {mismatch}")
