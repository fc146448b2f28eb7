"""What goes wrong with checkpoints and arguments, and what its exception has to tell."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from error_cases import AGAIN, FILE, Case, ours
from oracle import Api, Entry, write_raw
from safetensors import SafetensorError
from safetensors_streaming import load_checkpoint, load_file, load_into

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

INDEX = "model.safetensors.index.json"


# Checkpoints.


def checkpoint(folder: Path, weight_map: object) -> Path:
    """Two shards with a tensor each, and an index that says what it likes."""
    write_raw(folder / "1.safetensors", {"a": Entry("U8", [4])})
    write_raw(folder / "2.safetensors", {"b": Entry("U8", [4])})
    text = weight_map if isinstance(weight_map, str) else json.dumps({"weight_map": weight_map})
    (folder / INDEX).write_text(text)
    return folder


def _twice(folder: Path) -> object:
    for name in ("1.safetensors", "2.safetensors"):
        write_raw(folder / name, {"a": Entry("U8", [4])})
    return load_checkpoint(folder)


def _bad_shard(folder: Path) -> object:
    checkpoint(folder, {"a": "1.safetensors", "b": "2.safetensors"})
    (folder / "2.safetensors").write_bytes(b"<html></html>")
    return load_checkpoint(folder)


def _two_indexes(folder: Path) -> object:
    checkpoint(folder, {"a": "1.safetensors"})
    (folder / f"other.{INDEX}").write_text("{}")
    return load_checkpoint(folder)


def _huge_index(folder: Path) -> object:
    os.truncate(checkpoint(folder, {}) / INDEX, 1 << 40)
    return load_checkpoint(folder)


def of_checkpoints() -> Iterator[Case]:
    """Files that do not belong together."""
    index = {"file": f"{{folder}}/{INDEX}"}
    right = {"a": "1.safetensors", "b": "2.safetensors"}
    gone = right | {"c": "3.safetensors"}
    for name, weight_map, told in (
        (
            "a missing shard",
            gone,
            {"cause": r"missing shard.*3\.safetensors", "advice": AGAIN},
        ),
        (
            "a tensor in another shard",
            right | {"a": "2.safetensors"},
            {"tensor": "tensor `a`", "cause": "is not in 2.safetensors", "advice": AGAIN},
        ),
        (
            "a tensor that no index names",
            right | {"b": "1.safetensors"},
            {"tensor": "tensor `b`", "cause": "is not in 1.safetensors", "advice": AGAIN},
        ),
        ("no JSON", "index", {"cause": "expected value at line 1 column 1", "advice": AGAIN}),
        ("no weight_map", "{}", {"cause": "missing field `weight_map`", "advice": AGAIN}),
        ("a shard of nobody", {"a": "../x"}, {"cause": "`../x` is no file below its folder"}),
    ):
        call = ours(lambda folder, known=weight_map: load_checkpoint(checkpoint(folder, known)))
        error = FileNotFoundError if name == "a missing shard" else SafetensorError
        yield Case("checkpoint", name, call, index | told, error)
    both = {"cause": r"1\.safetensors and in .*2\.safetensors", "tensor": "tensor `a`"}
    told = both | {"file": "{folder}/1.safetensors", "advice": "name the|index"}
    yield Case("checkpoint", "a name in two shards", ours(_twice), told)
    told = {"file": "{folder}/2.safetensors", "cause": "HTML", "advice": AGAIN}
    yield Case("checkpoint", "a shard that is none", ours(_bad_shard), told)
    told = {"file": f"{{folder}}/{INDEX}", "cause": "several indexes", "advice": "name one"}
    yield Case("checkpoint", "two indexes", ours(_two_indexes), told)
    told = index | {"cause": r"\d+ bytes, where \d+ are the most"}
    yield Case("checkpoint", "an index without end", ours(_huge_index), told, OSError)
    told = {"file": "{folder}", "cause": "No .safetensors file in folder"}
    yield Case("checkpoint", "an empty folder", ours(load_checkpoint), told, FileNotFoundError)
    told = {"file": "{folder}/*.safetensors", "cause": "No such file"}
    no_match = ours(lambda folder: load_checkpoint(f"{folder}/*.safetensors"))
    yield Case("checkpoint", "a pattern without files", no_match, told, FileNotFoundError)


# Arguments.


def sample(folder: Path) -> Path:
    """A small file."""
    return write_raw(folder / FILE, {"a": Entry("F32", [4, 3])})


def of_arguments() -> Iterator[Case]:
    """Calls that ask for what is not."""
    calls: dict[str, tuple[Callable[[Api, Path], object], str, str]] = {
        "backend": (lambda api, path: api.load_file(path, backend="x"), "backend.*x", "mmap"),
        "device": (lambda api, path: api.load_file(path, "nowhere"), "nowhere", ""),
        "framework": (lambda api, path: api.safe_open(path, "x"), "framework.*x", ""),
        "bytes for a path": (lambda api, path: api.load_file(os.fsencode(path)), "filename", ""),
        "no bytes": (lambda api, _: api.load("text"), "bytes|str", ""),
        "dimension": (lambda api, path: _slice(api, path)[:, :, :], "dimension 2", ""),
        "beyond the end": (lambda api, path: _slice(api, path)[9], "9|range|bound", ""),
        "by text": (lambda api, path: _slice(api, path)[{}], "dict|ndex", ""),
        "closed": (lambda api, path: _closed(api, path).keys(), "closed", ""),
    }
    for name, (call, cause, advice) in calls.items():
        told = {"cause": cause} | ({"advice": advice} if advice else {})
        yield Case("argument", name, partial(_sampled, call), told, Exception, stock=True)
    told = {"file": f"{{folder}}/{FILE}", "tensor": "tensor none", "cause": "does not contain"}
    call = partial(_sampled, lambda api, path: api.safe_open(path, "pt").get_tensor("none"))
    yield Case("argument", "no such tensor", call, told, stock=True)
    for name, own, cause, advice in (
        ("cache", lambda path: load_checkpoint(path, cache="x"), "cache.*x", "auto"),
        ("allocator", lambda path: load_file(path, allocator="x"), "allocator.*x", "torch"),
        ("dtype", lambda path: load_file(path, dtype=torch.int8), "dtype.*int8", "floating"),
        ("verify", lambda path: load_file(path, verify="x"), "verify.*x", "expected"),
        ("no digest", lambda path: load_file(path, verify="sha256"), "no SHA-256", "give it"),
        ("two devices", _two_devices, "device_map", "or"),
        ("no device", _no_device, "no device for tensor 'a'", ""),
        ("no files", lambda _: load_checkpoint([]), "no files", ""),
        ("no folder", lambda _: load_file("http://h/m", cache_dir=""), "cache_dir", "name a"),
        ("a path of an address", lambda _: load_file(Path("https://h/m")), "https:/h/m", "str"),
        ("no address", lambda _: load_file("https://"), "host", ""),
        ("no key", lambda _: load_file("s3://bucket"), "<address>", "s3://bucket/key"),
        ("no model", lambda _: load_file("hf://model"), "hf://model", "expected hf://"),
        ("another size", _another_size, "size mismatch for a", ""),
        ("unknown names", _unknown_names, 'Missing key.*"c"', ""),
    ):
        told = {"cause": cause} | ({"advice": advice} if advice else {})
        call = ours(lambda folder, own=own: own(sample(folder)))
        error = RuntimeError if name in {"another size", "unknown names"} else ValueError
        yield Case("argument", name, call, told, error)


def _sampled(call: Callable[[Api, Path], object], folder: Path) -> Callable[[Api], object]:
    path = sample(folder)
    return lambda api: call(api, path)


def _slice(api: Api, path: Path) -> Any:  # noqa: ANN401 - stock's has no name
    return api.safe_open(path, "pt").get_slice("a")


def _closed(api: Api, path: Path) -> Any:  # noqa: ANN401 - stock's has no name
    with api.safe_open(path, "pt") as handle:
        return handle


def _two_devices(path: Path) -> object:
    return load_checkpoint(path, "cuda", device_map={"": "cpu"})


def _no_device(path: Path) -> object:
    return load_checkpoint(path, device_map={"b": "cpu"})


def _another_size(path: Path) -> object:
    return load_into({"a": torch.zeros(2)}, path)


def _unknown_names(path: Path) -> object:
    return load_into({"a": torch.zeros(4, 3), "c": torch.zeros(2)}, path)
