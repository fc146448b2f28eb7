"""Stock beside ours: the same call on both, and what each answers."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import safetensors_streaming
import torch

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Api:
    """The loading functions of one of the two packages."""

    safe_open: Any
    load_file: Callable[..., dict[str, torch.Tensor]]
    load: Callable[..., dict[str, torch.Tensor]]
    load_model: Callable[..., tuple[Any, Any]]


# Attributes of an object, not of a module: patch() must not find and replace these.
STOCK = Api(
    safetensors.safe_open,
    safetensors.torch.load_file,
    safetensors.torch.load,
    safetensors.torch.load_model,
)
OURS = Api(
    safetensors_streaming.safe_open,
    safetensors_streaming.load_file,
    safetensors_streaming.load,
    safetensors_streaming.load_model,
)

TORCH_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F4": torch.float4_e2m1fn_x2,
}
DTYPES = list(TORCH_TYPES)
PLAIN_DTYPES = [name for name in DTYPES if name not in {"F8_E8M0", "F4"}]  # load(bytes) knows them
UNKNOWN_DTYPES = ["F6_E2M3", "F6_E3M2"]  # in the format, but torch has no such type


@dataclass(frozen=True)
class Outcome:
    """What a call gave: a value, or the class and words of its exception."""

    value: object = None
    error: type[BaseException] | None = None
    words: str = ""


def outcome(call: Callable[[], object]) -> Outcome:
    """Makes the call and keeps what it gives."""
    try:
        return Outcome(value=call())
    except Exception as error:  # noqa: BLE001  (whatever stock raises is what we compare)
        return Outcome(error=type(error), words=str(error))


def agree(call: Callable[[Api], object], words: Callable[[str], str] = str) -> Outcome:
    """Asserts that stock and ours answer the call alike, and gives our answer.

    A SafetensorError may say more than stock's, after stock's words; ``words`` first cuts from
    stock's words what ours need not repeat.
    """
    stock, ours = outcome(lambda: call(STOCK)), outcome(lambda: call(OURS))
    assert ours.error is stock.error, f"stock: {stock}\nours:  {ours}"
    if stock.error is None:
        assert same(ours.value, stock.value), f"stock: {stock.value!r}\nours:  {ours.value!r}"
    elif issubclass(stock.error, safetensors.SafetensorError):
        assert ours.words.startswith(words(stock.words)), f"{ours.words!r}\n{stock.words!r}"
    else:
        assert words(ours.words) == words(stock.words)
    return ours


def same(one: object, other: object) -> bool:
    """Whether two answers are equal: tensors bit by bit, dicts in order."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return same_tensor(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        pairs = zip(one, other, strict=True) if len(one) == len(other) else None
        return pairs is not None and type(one) is type(other) and all(same(*pair) for pair in pairs)
    return type(one) is type(other) and bool(one == other)


def same_tensor(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have the same type, layout, place and bits."""
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.device == other.device
        and bits(one) == bits(other)
    )


def bits(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor's elements, in order."""
    flat = tensor.detach().cpu()
    if not flat.is_contiguous():
        flat = flat.contiguous()
    return bytes(flat.reshape(-1).view(torch.uint8).numpy())


@dataclass(frozen=True)
class Entry:
    """One tensor of a hand-made file; random bytes where none are given."""

    dtype: str
    shape: Sequence[int]
    data: bytes | None = None

    def content(self, seed: str) -> bytes:
        """The tensor's bytes."""
        if self.data is not None:
            return self.data
        count = 1
        for length in self.shape:
            count *= length
        half_bytes = {"F4": 1, "F6_E2M3": 0, "F6_E3M2": 0}.get(self.dtype)
        if half_bytes is not None:
            size = count // 2 if half_bytes else count * 6 // 8
        else:
            size = count * TORCH_TYPES[self.dtype].itemsize
        content = random.Random(f"{seed}{self.dtype}").randbytes(size)  # noqa: S311
        return bytes(byte & 1 for byte in content) if self.dtype == "BOOL" else content


def header_of(
    sizes: Mapping[str, tuple[str, Sequence[int], int]],
    metadata: Mapping[str, str] | None = None,
    misalign: int = 0,
) -> bytes:
    """The length field and JSON for tensors (dtype, shape, bytes) that stand one after another.

    The data then begins ``misalign`` bytes after a multiple of 64.
    """
    table: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    offset = 0
    for name, (dtype, shape, size) in sizes.items():
        table[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(table).encode()
    text += b" " * ((misalign - 8 - len(text)) % 64)
    return struct.pack("<Q", len(text)) + text


def write_raw(
    path: Path,
    entries: Mapping[str, Entry],
    metadata: Mapping[str, str] | None = None,
    misalign: int = 0,
) -> Path:
    """Writes a file with tensors in the given order, of every type, at any alignment."""
    contents = {name: entry.content(name) for name, entry in entries.items()}
    sizes = {
        name: (entry.dtype, entry.shape, len(contents[name])) for name, entry in entries.items()
    }
    path.write_bytes(header_of(sizes, metadata, misalign) + b"".join(contents.values()))
    return path


def write_header(path: Path, text: bytes, data: bytes = b"") -> Path:
    """Writes a file whose header is exactly ``text``, be it valid or not."""
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def write_sparse(path: Path, tensors: int, tensor_bytes: int) -> Path:
    """Writes a file of zeros that takes no disk, is in no cache, and takes long to read."""
    sizes = {f"t{index:04}": ("U8", [tensor_bytes], tensor_bytes) for index in range(tensors)}
    header = header_of(sizes)
    path.write_bytes(header)
    os.truncate(path, len(header) + tensors * tensor_bytes)
    return path


SLOW_TENSORS = 8
SLOW_BYTES = 64 << 20


def write_slow(path: Path) -> Path:
    """Half a GiB of zeros: takes longer than the time between two progress calls."""
    return write_sparse(path, SLOW_TENSORS, SLOW_BYTES)


def write_checkpoint(folder: Path) -> Path:
    """Writes three shards of every type, and their index, into a new folder."""
    folder.mkdir()
    weight_map = {}
    for shard in range(3):
        file = f"model-0000{shard + 1}-of-00003.safetensors"
        entries = {f"s{shard}.{name}": Entry(name, [5 + shard, 2]) for name in reversed(DTYPES)}
        write_raw(folder / file, entries, {"format": "pt"}, misalign=shard * 3)
        weight_map.update(dict.fromkeys(entries, file))
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def shards(folder: Path) -> list[Path]:
    """The files of a checkpoint, in order."""
    return sorted(folder.glob("*.safetensors"))


def by_stock(folder: Path) -> dict[str, torch.Tensor]:
    """A checkpoint as stock loads it, file by file."""
    merged: dict[str, torch.Tensor] = {}
    for file in shards(folder):
        merged.update(STOCK.load_file(file))
    return merged


def flip(path: Path, place: int) -> None:
    """Turns one bit of a file over."""
    with path.open("r+b") as file:
        file.seek(place)
        [byte] = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def evict(path: Path) -> None:
    """Takes a file out of the page cache."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
