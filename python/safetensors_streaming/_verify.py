"""Whether the bytes of a checkpoint are those that somebody knows the digests of."""

import json
import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from safetensors_streaming import SafetensorError, _native
from safetensors_streaming._addresses import file_name, scheme_of
from safetensors_streaming._checkpoint import PathOrPaths, Progress, paths_of
from safetensors_streaming._known import known_sha256, sha256_of

#: What a manifest says it is.
FORMAT = "safetensors-streaming manifest 1"

#: A file as `_native.describe` tells of it: path, bytes, first byte of the data, metadata, tensors
#: with name, dtype, shape, first byte and the byte after the last.
FileFacts = tuple[str, int, int, dict[str, str] | None, list[tuple[str, str, list[int], int, int]]]


class FileDigests(NamedTuple):
    """What a manifest knows of a file: the SHA-256 of its header, and those of its tensors."""

    header: str
    tensors: dict[str, str]


class Mismatch(NamedTuple):
    """A digest that is not the one that is known.

    Attributes:
        path: The file.
        tensor: The tensor; None where it is the whole file, or its header.
        wanted: The SHA-256 that is known, or None where the manifest knows no such file or tensor.
        got: That of the bytes, or None where they are missing.
    """

    path: str
    tensor: str | None
    wanted: str | None
    got: str | None

    def __str__(self) -> str:
        """Say it in a line."""
        what = f"{self.path}: tensor {self.tensor!r}" if self.tensor is not None else self.path
        if self.got is None:
            return f"{what}: the manifest knows it, and it is missing"
        if self.wanted is None:
            return f"{what}: it is not in the manifest"
        return f"{what}: sha256 is {self.got}, and should be {self.wanted}"


def check_sha256(
    path: PathOrPaths,
    known: str | Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> tuple[list[str], list[Mismatch]]:
    """Compare files with the SHA-256 that is known of them.

    Args:
        path: A checkpoint, as for `load_checkpoint`.
        known: The digest of the only file, or digests by file name; None takes those that the hub's
            cache has named its files by.
        progress: Called with the bytes done and the bytes in all.

    Returns:
        The files of which no digest is known, and what does not agree.
    """
    files = [file for file, *_ in _native.describe(paths_of(path))]
    wanted = known_sha256(files, known)
    # An address is told without what it is reached with.
    remote = any(scheme_of(file) for file in files)
    digested = paths_of(path) if remote else list(wanted)
    digests = _native.digest_checkpoint(digested, progress=progress) if wanted else []
    mismatches = [
        Mismatch(file, None, wanted[file], digest)
        for file, [(_, digest)] in digests
        if file in wanted and digest != wanted[file]
    ]
    return [file for file in files if file not in wanted], mismatches


def make_manifest(path: PathOrPaths, progress: Progress | None = None) -> dict[str, Any]:
    """The SHA-256 of every tensor and header of a checkpoint, ready for JSON."""
    _check_names(_native.describe(paths_of(path)))
    files = {}
    for file, digests in _native.digest_checkpoint(paths_of(path), tensors=True, progress=progress):
        (_, header), *tensors = digests
        files[file_name(file)] = {"header": header, "tensors": dict(tensors)}
    return {"format": FORMAT, "files": files}


def check_manifest(
    path: PathOrPaths, manifest: str | PathLike[str], progress: Progress | None = None
) -> list[Mismatch]:
    """Compare every header and tensor with a manifest that `make_manifest` made.

    Returns:
        What does not agree, files and tensors that only one of both has included.

    Raises:
        SafetensorError: The file is no such manifest.
    """
    wanted = _read_manifest(manifest)
    _check_names(_native.describe(paths_of(path)))
    mismatches = []
    for file, digests in _native.digest_checkpoint(paths_of(path), tensors=True, progress=progress):
        own = wanted.pop(file_name(file), None)
        if own is None:
            mismatches.append(Mismatch(file, None, None, digests[0][1]))
            continue
        (_, header), *tensors = digests
        if header != own.header:
            mismatches.append(Mismatch(file, None, own.header, header))
        known = dict(own.tensors)
        for name, digest in tensors:
            expected = known.pop(name, None)
            if digest != expected:
                mismatches.append(Mismatch(file, name, expected, digest))
        mismatches += [Mismatch(file, name, digest, None) for name, digest in known.items()]
    mismatches += [Mismatch(name, None, own.header, None) for name, own in wanted.items()]
    return mismatches


def _check_names(files: list[FileFacts]) -> None:
    """Refuse files that a manifest, which knows them by name, could not tell apart."""
    names = [file_name(file[0]) for file in files]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"a manifest is of one folder, and these names stand twice: {repeated}")


def _read_manifest(path: str | PathLike[str]) -> dict[str, FileDigests]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return _files_of(content)
    except (ValueError, TypeError, RecursionError) as error:
        text = f"{os.fspath(path)} is no manifest of digests: {error}"
        raise SafetensorError(text) from error


def _files_of(manifest: object) -> dict[str, FileDigests]:
    """The digests in a manifest, of which nothing is known yet."""
    known = manifest if isinstance(manifest, dict) else {}
    if known.get("format") != FORMAT:
        raise ValueError(f"it does not say that its format is {FORMAT!r}")
    files = known.get("files")
    if not isinstance(files, dict):
        raise TypeError("it has no table of files")
    return {name: _digests_of(name, file) for name, file in files.items()}


def _digests_of(name: str, file: object) -> FileDigests:
    known = file if isinstance(file, dict) else {}
    header, tensors = known.get("header"), known.get("tensors")
    if not isinstance(tensors, dict):
        raise TypeError(f"it has no table of tensors of file {name!r}")
    whose = f"of file {name!r}"
    return FileDigests(
        sha256_of(header, f"the header {whose}"),
        {of: sha256_of(digest, f"tensor {of!r} {whose}") for of, digest in tensors.items()},
    )
