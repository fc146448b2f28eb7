"""All shards of a checkpoint in one plan: `load_checkpoint` and `stream`."""

import atexit
import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from os import PathLike
from typing import TYPE_CHECKING, Literal
from weakref import WeakSet

from safetensors_streaming import _native
from safetensors_streaming._addresses import Located, located, scheme_of
from safetensors_streaming._known import Verify, expected
from safetensors_streaming._upstream import BACKENDS, calls, cuda_ordinal, plain_device

if TYPE_CHECKING:
    import torch

Path = str | PathLike[str]
PathOrPaths = Path | Sequence[Path]
CachePolicy = Literal["auto", "keep", "bypass"]
Progress = Callable[[int, int], object]


def load_checkpoint(  # noqa: PLR0913 - independent keywords
    path: PathOrPaths,
    device: object = "cpu",
    *,
    filter: Callable[[str], object] | None = None,  # noqa: A002 - the term of the field
    backend: str = "mmap",
    cache: CachePolicy = "auto",
    allocator: str = "torch",
    progress: Progress | bool | None = None,
    dtype: "torch.dtype | None" = None,
    device_map: Mapping[str, object] | None = None,
    verify: Verify | None = None,
    cache_dir: Path | None = None,
) -> dict[str, "torch.Tensor"]:
    """Load the tensors of all shards of a checkpoint.

    Every header is read and checked before the first weight byte: a missing shard, a name in two
    shards, or an index that disagrees with the headers is told by name.

    Args:
        path: A file, a folder, a `model.safetensors.index.json`, a glob pattern, or several files;
            or addresses of remote files or of an index, as for `load_file`.
        device: "cpu", "cuda" (the first GPU), "cuda:N" or N, or such a torch.device.
        filter: Called with each name; only tensors for which it is true are loaded.
        backend: "mmap" maps the files, "pread" reads them into memory that the tensors own.
        cache: For "pread": "keep" reads through the page cache, "bypass" past it, "auto" past it
            while the disk is fast or the checkpoint larger than half of the memory available.
        allocator: As for `load_file`.
        progress: Called with the bytes done and the bytes in all, or True for a progress bar.
        dtype: As for `load_file`.
        device_map: Devices by pattern, in place of `device`: a tensor's name, the name of a module
            that it is in, "" for all, or a shell-style pattern as "model.layers.*.mlp.*". The
            longest that fits a name decides. All devices are filled from one pass over the files.
        verify: As for `load_file`; digests of several files by file name. With a filter all bytes
            of the files are read all the same; "device" is about the tensors on GPUs.
        cache_dir: As for `load_file`; a load with a filter writes nothing to it.

    Returns:
        The tensors by name, in the order of shards and files.

    Raises:
        SafetensorError: A file is not a valid safetensors file, names disagree, or the bytes of a
            file are not those that they should be.
        OSError: A file is missing or cannot be read.
        ValueError: An argument is not among those named here, no pattern fits a tensor, or no
            SHA-256 is known of a file.
        torch.OutOfMemoryError: The GPU has no room for the tensors.
        RuntimeError: The GPU or its driver refuses.
    """
    if device_map is not None and plain_device(device) != "cpu":
        raise ValueError("name a device or a device_map, not both")
    gpu = _check(device, backend)
    place, any_gpu = None, gpu is not None
    if device_map is not None:
        place, any_gpu = _placement(device_map)
        backend = "pread" if any_gpu else backend  # one pass for all devices is the engine's
    known = expected(verify, any_gpu, dtype)
    paths = paths_of(path, cache_dir, whole=filter is None)
    calls.serve("load_checkpoint")
    with progress_bar(progress) as tell:
        return _native.load_checkpoint(
            paths, backend, cache, filter, tell, gpu, allocator, dtype, place, known
        )


def stream(  # noqa: PLR0913 - independent keywords
    path: PathOrPaths,
    device: object = "cpu",
    *,
    filter: Callable[[str], object] | None = None,  # noqa: A002 - the term of the field
    backend: str = "pread",
    cache: CachePolicy = "auto",
    allocator: str = "torch",
    cache_dir: Path | None = None,
) -> Iterator[tuple[str, "torch.Tensor"]]:
    """Yield each tensor of a checkpoint as it arrives.

    Reading goes on in the background, at most 256 MiB (or one tensor) ahead of what was taken.
    Closing the iterator early stops it and frees what was not taken.

    Args:
        path: As for `load_checkpoint`.
        device: "cpu", "cuda" (the first GPU), "cuda:N" or N, or such a torch.device.
        filter: Called with each name; only tensors for which it is true are read.
        backend: "pread" reads into memory that the tensors own, "mmap" maps the files.
        cache: As for `load_checkpoint`.
        allocator: As for `load_file`.
        cache_dir: As for `load_checkpoint`.

    Yields:
        Name and tensor, in the order of arrival.

    Raises:
        SafetensorError: A file is not a valid safetensors file, or names disagree.
        OSError: A file is missing or cannot be read.
        ValueError: An argument is not among those named here.
        torch.OutOfMemoryError: The GPU has no room for the tensors.
        RuntimeError: The GPU or its driver refuses.
    """
    gpu = _check(device, backend)
    paths = paths_of(path, cache_dir, whole=filter is None)
    calls.serve("stream")
    if backend == "mmap" and gpu is None:
        return iter(_native.load_checkpoint(paths, backend, cache, filter, None).items())
    native = _native.Stream(paths, cache, filter, gpu, allocator)
    _running.add(native)
    return _closing(native)


#: Streams that read: none may still want the interpreter when it ends.
_running: "WeakSet[_native.Stream]" = WeakSet()


@atexit.register
def _close_all() -> None:
    for native in list(_running):
        native.close()


def _closing(native: _native.Stream) -> Iterator[tuple[str, "torch.Tensor"]]:
    try:
        yield from native
    finally:
        native.close()


def _check(device: object, backend: str) -> int | None:
    """The number of the GPU, or None for the CPU."""
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is invalid (expected one of: 'mmap', 'pread')")
    return named_ordinal(device)


def named_ordinal(device: object) -> int | None:
    """The number of the GPU that a device names, or None for the CPU; others are refused."""
    plain = plain_device(device)
    gpu = cuda_ordinal(plain)
    if plain != "cpu" and gpu is None:
        raise ValueError(f"device {device!r} is not supported here (expected 'cpu' or 'cuda:N')")
    return gpu


def _placement(device_map: Mapping[str, object]) -> tuple[Callable[[str], int | None], bool]:
    """What tells the number of the GPU for a name (None: the CPU), and whether there is any."""
    ordinals = {pattern: named_ordinal(device) for pattern, device in device_map.items()}
    longest_first = sorted(ordinals, key=len, reverse=True)

    def place(name: str) -> int | None:
        for pattern in longest_first:
            inside = pattern in {"", name} or name.startswith(f"{pattern}.")
            if inside or fnmatchcase(name, pattern):
                return ordinals[pattern]
        raise ValueError(f"the device_map has no device for tensor {name!r}")

    return place, any(ordinal is not None for ordinal in ordinals.values())


def paths_of(
    path: PathOrPaths, cache_dir: Path | None = None, *, whole: bool = True
) -> list[Located]:
    """The files that a path, an address, a pattern or a list of paths names."""
    if isinstance(path, str | PathLike):
        if scheme_of(path):
            return [located(path, cache_dir, whole=whole)]
        text = os.fspath(path)
        if os.path.lexists(text) or not glob.has_magic(text):
            return [text]
        found = sorted(glob.glob(text, recursive=True))  # noqa: PTH207 - an absolute pattern too
        if not found:
            raise FileNotFoundError(f"No such file or directory: {text}")
        return list(found)
    paths = [located(os.fspath(item), cache_dir, whole=whole) for item in path]
    if not paths:
        raise ValueError("no files were named")
    return paths


@contextmanager
def progress_bar(
    progress: Progress | bool | None,  # noqa: FBT001 - what the caller was given
    label: str = "loading",
) -> Iterator[Progress | None]:
    """The callback itself, or one that moves a bar with rate and remaining time."""
    if not isinstance(progress, bool):
        yield progress
    elif progress:
        from tqdm.auto import tqdm  # noqa: PLC0415 - only who wants a bar pays for its import

        with tqdm(unit="B", unit_scale=True, desc=label) as bar:

            def tell(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            yield tell
            bar.leave = bar.total is not None  # there was nothing to do: the bar goes
    else:
        yield None
