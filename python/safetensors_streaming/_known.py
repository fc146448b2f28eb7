"""What is known of the bytes of files before they are read."""

import os
import re
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path

from safetensors_streaming._addresses import file_name

#: What a load may be asked to verify: "sha256" (as the hub's cache has named the files), the digest
#: of the only file, digests by file name, or "device".
Verify = str | Mapping[str, str]

#: For the native half: "device", or what gives the digests of files, called with their paths.
Known = str | Callable[[list[str | PathLike[str]]], list[str]]

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def hub_sha256(path: str | PathLike[str]) -> str | None:
    """The digest that the hub's cache has named a file by.

    `huggingface_hub` keeps a large file under `blobs/` by the SHA-256 of its content and links to
    it.
    """
    real = Path(os.path.realpath(path))
    named = real.parent.name == "blobs" and _SHA256.fullmatch(real.name)
    return real.name.lower() if named else None


def known_sha256(paths: list[str], known: str | Mapping[str, str] | None) -> dict[str, str]:
    """The digests of files: those given, by name or for the only one, or those of the hub's cache.

    Raises:
        ValueError: A digest is none, or one for several files, or for a file that is not there.
    """
    if known is None:
        found = {path: hub_sha256(path) for path in paths}
        return {path: digest for path, digest in found.items() if digest}
    if isinstance(known, str):
        if len(paths) != 1:
            raise ValueError(f"one SHA-256 for {len(paths)} files: give each its own, by file name")
        known = {file_name(paths[0]): known}
    names = {file_name(path): path for path in paths}
    if len(names) < len(paths):
        raise ValueError(f"several files have one name, which cannot be told apart: {paths}")
    for name in known:
        if name not in names:
            raise ValueError(f"no file {name!r} in this checkpoint, which has {sorted(names)}")
    return {names[name]: sha256_of(digest, f"file {name!r}") for name, digest in known.items()}


def sha256_of(digest: object, what: str) -> str:
    """The digest in lower case, if it is one."""
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise ValueError(f"the digest of {what} is no SHA-256 in hexadecimal digits: {digest!r}")
    return digest.lower()


def expected(verify: Verify | None, gpu: bool, dtype: object) -> Known | None:  # noqa: FBT001 - what is so
    """What the native half shall compare.

    Raises:
        ValueError: It is nothing that can be compared there.
    """
    if verify is None:
        return None
    if verify == "device":
        if not gpu:
            raise ValueError("verify='device' is for a GPU's memory; the device is the CPU")
        if dtype is not None:
            raise ValueError("verify='device' compares the bytes of the file, which dtype changes")
        return "device"
    if not isinstance(verify, str | Mapping):
        raise TypeError(f"verify is a str or a mapping, not {type(verify).__name__}")
    if isinstance(verify, str) and verify != "sha256" and not _SHA256.fullmatch(verify):
        raise ValueError(
            f"verify {verify!r} is invalid (expected 'sha256', 'device', a SHA-256 in hexadecimal "
            "digits, or a mapping of file names to such)"
        )
    known = None if verify == "sha256" else verify

    def digests(paths: list[str | PathLike[str]]) -> list[str]:
        files = [os.fspath(path) for path in paths]
        by_path = known_sha256(files, known)
        if unknown := [path for path in files if path not in by_path]:
            raise ValueError(
                f"no SHA-256 is known of {unknown}, which the hub's cache has not named by it: "
                "give it, or a mapping of file names to digests"
            )
        return [by_path[path] for path in files]

    return digests
