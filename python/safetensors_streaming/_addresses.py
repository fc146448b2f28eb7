"""Addresses of remote files, and what each is reached with."""

import configparser
import json
import os
import re
from functools import cache
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from safetensors_streaming import _native

if TYPE_CHECKING:
    from collections.abc import Iterator

Named = str | PathLike[str]
#: What the native half opens: a path, or an address with what it is reached with.
Located = Named | _native.Address

_SCHEMES = ("http", "https", "s3", "gs", "az", "hf")
#: What a path makes of an address.
_FLATTENED = re.compile(r"(https?|s3|gs|az|hf):/[^/]")
_INDEX = "model.safetensors.index.json"
#: Variables that name credentials other than those of the machine itself.
_AWS_SOURCES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
#: What a model of the hub is loaded from where no file is named, in this order.
_MODEL_FILES = (_INDEX, "model.safetensors")


def scheme_of(path: object) -> str | None:
    """The scheme of an address that is served here, or None for what is a path."""
    if not isinstance(path, str):
        return None
    scheme, colon, _ = path.partition("://")
    scheme = scheme.lower()
    return scheme if colon and scheme in _SCHEMES else None


def file_name(path: str) -> str:
    """The name of a file without its folder, of a path or an address that a web server reads."""
    name = path.rsplit("/", 1)[-1]
    return unquote(name) if scheme_of(path) in {"http", "https"} else name


def located(path: Named, cache_dir: Named | None = None, *, whole: bool = True) -> Located:
    """What a path or an address stands for.

    Args:
        path: A path, or an address: "http(s)://", "s3://bucket/key", "gs://bucket/key",
            "az://container/key", "hf://organisation/model[@revision][/file]".
        cache_dir: The folder that keeps what is read of an address.
        whole: Whether all of the file is read: nothing else is kept.

    Returns:
        The path as it is; the path of a file that the hub's cache has; or an address, with the
        settings that the environment and the provider's own files give.

    Raises:
        ValueError: It is no address that is served here, or the files of AWS are not as they should
            be.
        ImportError: It is one of the hub, and huggingface_hub is not installed.
    """
    scheme = scheme_of(path)
    if scheme is None:
        if isinstance(path, PathLike) and _FLATTENED.match(str(text := os.fspath(path))):
            raise ValueError(f"an address has to be a str, which pathlib has made {text!r} of")
        return path
    text = os.fspath(path)
    settings: dict[str, str] = {}
    if scheme == "hf":
        found = _of_hub(text)
        if isinstance(found, str):
            return found
        text, settings = found
    elif scheme == "s3":
        settings = _aws_settings()
    elif scheme == "az" and (account := os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")):
        settings = {"azure_storage_account_name": account}
    if cache_dir is None:
        return _native.Address(text, settings)
    if not os.fspath(cache_dir):
        raise ValueError("cache_dir is empty: name a folder, or None for none")
    _settle_at_exit(os.getpid())
    return _native.Address(text, settings, str(Path(cache_dir).expanduser().absolute()), whole)


@cache
def _settle_at_exit(process: int) -> None:  # noqa: ARG001 - once in each
    """Has this process wait, before it ends, for files that were loaded and have no name yet.

    `atexit` would not do: a child that multiprocessing has forked ends without it.
    """
    from multiprocessing.util import Finalize  # noqa: PLC0415 - only who keeps files needs it

    Finalize(None, _native.settle, exitpriority=0)


def _of_hub(text: str) -> str | tuple[str, dict[str, str]]:
    """The path of a file that the hub's cache has, or its address and the token."""
    try:
        import huggingface_hub as hub  # noqa: PLC0415 - only who names the hub needs it
    except ImportError as error:
        raise ImportError(f"{text}: addresses of the hub need huggingface_hub") from error
    model, revision, file = _parts_of_hub(text)
    names = (file,) if file else _MODEL_FILES
    for name in names:
        cached = hub.try_to_load_from_cache(model, name, revision=revision)
        if isinstance(cached, str) and _is_whole(Path(cached)):
            return cached
    there = names[0]
    if len(names) > 1 and not hub.file_exists(model, there, revision=revision):
        there = names[1]
    token = hub.get_token()
    return hub.hf_hub_url(model, there, revision=revision), {"token": token} if token else {}


def _parts_of_hub(text: str) -> tuple[str, str | None, str]:
    """Model, revision and file of an address; a revision's slashes are written as %2F."""
    parts = text.split("://", 1)[1].split("/", 2)
    if len(parts) < 2 or not all(parts[:2]):  # noqa: PLR2004 - organisation and model
        raise ValueError(f"{text} is invalid (expected hf://organisation/model[@revision][/file])")
    name, _, revision = parts[1].partition("@")
    return f"{parts[0]}/{name}", unquote(revision) or None, parts[2] if len(parts) > 2 else ""  # noqa: PLR2004


def _is_whole(cached: Path) -> bool:
    """Whether a file of the hub's cache is there with all the shards that it names."""
    if not cached.name.endswith(".index.json"):
        return True
    try:
        shards = set(json.loads(cached.read_text())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return True  # what is wrong with it is told when it is read
    return all((cached.parent / shard).exists() for shard in shards)


def _aws_settings() -> dict[str, str]:
    """What the files of the AWS command line say, where the environment says nothing."""
    profiles = (os.environ.get(name) for name in ("AWS_DEFAULT_PROFILE", "AWS_PROFILE"))
    named = next(filter(None, profiles), None)
    profile = named or "default"
    found: dict[str, str] = {}
    for variable, default, section in (
        (
            "AWS_CONFIG_FILE",
            "~/.aws/config",
            profile if profile == "default" else f"profile {profile}",
        ),
        ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials", profile),
    ):
        found |= dict(_section(Path(os.environ.get(variable, default)).expanduser(), section))
    settings: dict[str, str] = {}
    if not any(name in os.environ for name in _AWS_SOURCES):
        keys = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
        settings |= {key: found[key] for key in keys if key in found}
    if not {"AWS_REGION", "AWS_DEFAULT_REGION"} & set(os.environ) and "region" in found:
        settings["aws_region"] = found["region"]
    endpoint = os.environ.get("AWS_ENDPOINT_URL", found.get("endpoint_url"))
    if endpoint is not None:
        settings["aws_endpoint_url"] = endpoint
    if named and not found:
        raise ValueError(f"no file of the AWS command line knows the profile {profile!r}")
    found_any = "aws_access_key_id" in settings or any(name in os.environ for name in _AWS_SOURCES)
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true" and not found_any:
        settings["aws_skip_signature"] = "true"
    return settings


def _section(file: Path, name: str) -> "Iterator[tuple[str, str]]":
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read(file, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):  # whose texts repeat lines of it
        raise ValueError(f"{file} is not a file of settings in sections") from None
    if parser.has_section(name):
        yield from parser.items(name)
