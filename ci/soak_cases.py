"""The loads of ci/soak: files, what was written to them, and each kind of load and of fault."""

from __future__ import annotations

import json
import math
import os
import struct
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import safetensors_streaming as ours
import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from random import Random

    from safetensors_streaming._checkpoint import CachePolicy

    Tensors = Mapping[str, torch.Tensor]

KIB, MIB = 1 << 10, 1 << 20
#: 1 KiB to 64 MiB.
SIZES = [KIB << power for power in range(17)]
COLUMNS = 8
CACHES: tuple[CachePolicy, ...] = ("auto", "keep", "bypass")
DTYPES = (torch.float32, torch.bfloat16, torch.uint8, torch.int64)


class WrongError(Exception):
    """A load gave other bytes than were written, or not the promised error."""


class DisturbedError(Exception):
    """What a caller's function raises."""


@dataclass(frozen=True)
class File:
    """A file, and the tensors that were written to it."""

    path: Path
    tensors: dict[str, torch.Tensor]


@dataclass
class Bed:
    """Everything that is loaded."""

    folder: Path
    #: "cpu", and "cuda" where there is one.
    devices: tuple[str, ...]
    files: list[File] = field(default_factory=list)
    checkpoint: list[File] = field(default_factory=list)

    def make(self, draw: Random) -> None:
        """Writes the files."""
        for size in SIZES:
            self.files.append(_file(self.folder / f"{size}.safetensors", size, draw))
        whole = self.folder / "whole"
        whole.mkdir()
        for shard, size in enumerate((300 * KIB, 3 * MIB, 9 * MIB)):
            self.checkpoint.append(_file(whole / f"{shard}.safetensors", size, draw, f"s{shard}."))
        names = {name: file.path.name for file in self.checkpoint for name in file.tensors}
        _write_index(whole, names)
        lacking = self.folder / "lacking"
        lacking.mkdir()
        (lacking / "0.safetensors").symlink_to(self.checkpoint[0].path)
        _write_index(lacking, names)
        content = self.files[8].path.read_bytes()
        (self.folder / "short").write_bytes(content[:-1])
        (self.folder / "bad").write_bytes(struct.pack("<Q", 8) + b'{"a": [}' + content)

    def merged(self) -> dict[str, torch.Tensor]:
        """All tensors of the checkpoint."""
        return {name: tensor for file in self.checkpoint for name, tensor in file.tensors.items()}


def _file(path: Path, size: int, draw: Random, prefix: str = "") -> File:
    """A file of about that size, in one to thirty tensors of various types."""
    count = min(draw.choice([1, 3, 30]), max(1, size // 512))
    tensors = {}
    for index in range(count):
        dtype = draw.choice(DTYPES)
        rows = math.ceil(size / count / COLUMNS / dtype.itemsize)
        content = bytearray(draw.randbytes(rows * COLUMNS * dtype.itemsize))
        tensor = torch.frombuffer(content, dtype=dtype).reshape(rows, COLUMNS)
        tensors[f"{prefix}t{index:02}"] = tensor
    save_file(tensors, path)
    return File(path, tensors)


def _write_index(folder: Path, weight_map: dict[str, str]) -> None:
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def check(name: str, loaded: torch.Tensor, written: torch.Tensor) -> None:
    """Asserts that a tensor has the bytes that were written."""
    there = loaded.cpu()
    if there.dtype != written.dtype or there.shape != written.shape:
        raise WrongError(f"{name} is {there.dtype} {tuple(there.shape)}")
    if not torch.equal(_bytes(there), _bytes(written)):
        raise WrongError(f"{name} has other bytes than were written")


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def check_all(loaded: Tensors, written: Tensors) -> None:
    """The same of all tensors of a file or checkpoint."""
    if loaded.keys() != written.keys():
        raise WrongError(f"the names are {sorted(loaded)}")
    for name, tensor in loaded.items():
        check(name, tensor, written[name])


def refused(kind: type[BaseException], load: Callable[[], object]) -> None:
    """Asserts that a load raises exactly such an error."""
    try:
        load()
    except kind as error:
        if type(error) is not kind:
            raise WrongError(f"{type(error).__name__} in place of {kind.__name__}") from error
    else:
        raise WrongError(f"no {kind.__name__}")


def _onto(bed: Bed, draw: Random) -> dict[str, Any]:
    """A device, and for a GPU an allocator."""
    device = draw.choice(bed.devices)
    return {"device": device, "allocator": draw.choice(["torch", "driver"])}


def _some_file(bed: Bed, draw: Random) -> File:
    """A file, now and then one that is not in the page cache."""
    file = draw.choice(bed.files)
    if draw.random() < 1 / 4:
        _evict(file.path)
    return file


def _evict(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def _cache(draw: Random) -> CachePolicy:
    return draw.choice(CACHES)


# Loads.


def mapped(bed: Bed, draw: Random) -> None:
    """`load_file`, mapped."""
    file = _some_file(bed, draw)
    check_all(ours.load_file(file.path, **_onto(bed, draw)), file.tensors)


def read(bed: Bed, draw: Random) -> None:
    """`load_file` into memory of the tensors."""
    file = _some_file(bed, draw)
    check_all(ours.load_file(file.path, backend="pread", **_onto(bed, draw)), file.tensors)


def checkpoint(bed: Bed, draw: Random) -> None:
    """`load_checkpoint` of a folder, all of it or what a filter takes."""
    wanted = bed.merged()
    name_ends = draw.choice(["", "0", "2"])
    wanted = {name: tensor for name, tensor in wanted.items() if name.endswith(name_ends)}
    loaded = ours.load_checkpoint(
        bed.folder / "whole",
        filter=lambda name: name.endswith(name_ends),
        backend=draw.choice(["mmap", "pread"]),
        cache=_cache(draw),
        **_onto(bed, draw),
    )
    check_all(loaded, wanted)


def streamed(bed: Bed, draw: Random) -> None:
    """`stream` to its end."""
    file = _some_file(bed, draw)
    flow = ours.stream(file.path, cache=_cache(draw), **_onto(bed, draw))
    check_all(dict(flow), file.tensors)


def slices(bed: Bed, draw: Random) -> None:
    """Parts of tensors, and one whole, of a handle."""
    file = _some_file(bed, draw)
    backend, device = draw.choice(["mmap", "pread"]), draw.choice(bed.devices)
    with ours.safe_open(file.path, "pt", device=device, backend=backend) as handle:
        for name in draw.sample(sorted(file.tensors), min(3, len(file.tensors))):
            written = file.tensors[name]
            begin, end = sorted(draw.randrange(written.shape[0] + 1) for _ in range(2))
            rows = handle.get_slice(name)[begin:end]
            check(name, rows, written[begin:end])
            columns = handle.get_slice(name)[:, 2:5]
            check(name, columns, written[:, 2:5])
        check(name, handle.get_tensor(name), written)


# Faults.


def closed_early(bed: Bed, draw: Random) -> None:
    """A stream that is closed after a few tensors."""
    for name, tensor in _taken(bed, draw):
        check(name, tensor, bed.merged()[name])


def _taken(bed: Bed, draw: Random) -> Iterator[tuple[str, torch.Tensor]]:
    flow = ours.stream(bed.folder / "whole", cache=_cache(draw), **_onto(bed, draw))
    with closing(flow):  # type: ignore[type-var]  # it is a generator
        yield from islice(flow, draw.randrange(4))


def abandoned(bed: Bed, draw: Random) -> None:
    """A stream that is dropped after some tensors, or before the first."""
    file = _some_file(bed, draw)
    flow = ours.stream(file.path, **_onto(bed, draw))
    for name, tensor in islice(flow, draw.randrange(3)):
        check(name, tensor, file.tensors[name])


def missing(bed: Bed, draw: Random) -> None:
    """No such file, or a shard of an index that is not there."""
    gone = draw.choice([bed.folder / "gone", bed.folder / "lacking"])
    onto = _onto(bed, draw)
    refused(FileNotFoundError, lambda: ours.load_checkpoint(gone, **onto))


def malformed(bed: Bed, draw: Random) -> None:
    """A file that lacks its last byte, or whose header is no JSON."""
    path, backend = bed.folder / draw.choice(["short", "bad"]), draw.choice(["mmap", "pread"])
    onto = _onto(bed, draw)
    refused(ours.SafetensorError, lambda: ours.load_file(path, backend=backend, **onto))


def truncated(bed: Bed, draw: Random) -> None:
    """A file that is cut after it was opened."""
    path = bed.folder / f"cut-{draw.getrandbits(64):016x}"
    source = bed.files[10]
    path.write_bytes(source.path.read_bytes())
    try:
        handle = ours.safe_open(path, "pt", device=draw.choice(bed.devices), backend="pread")
        os.truncate(path, path.stat().st_size // 2)
        refused(OSError, handle.get_tensors)
    finally:
        path.unlink()


def disturbed(bed: Bed, draw: Random) -> None:
    """A progress function or a filter that raises."""
    onto, where = _onto(bed, draw), bed.folder / "whole"
    backend, calls_left = draw.choice(["mmap", "pread"]), draw.randrange(3)

    def choose(_name: str) -> bool:
        nonlocal calls_left
        calls_left -= 1
        if calls_left < 0:
            raise DisturbedError
        return True

    def tell(_done: int, _total: int) -> None:
        raise DisturbedError

    def told() -> object:
        return ours.load_checkpoint(where, backend=backend, progress=tell, **onto)

    def filtered() -> object:
        return ours.stream(where, filter=choose, **onto)

    refused(DisturbedError, draw.choice([told, filtered]))


LOADS = (mapped, read, checkpoint, streamed, slices)
FAULTS = (closed_early, abandoned, missing, malformed, truncated, disturbed)
