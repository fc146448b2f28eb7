"""Tensors on a GPU without torch: arrays that CuPy, Numba, JAX and torch take over as they are."""

from collections.abc import Callable

from safetensors_streaming import _native
from safetensors_streaming._checkpoint import CachePolicy, Path, PathOrPaths, paths_of
from safetensors_streaming._native import DeviceArray
from safetensors_streaming._upstream import calls

__all__ = ["DeviceArray", "load_checkpoint", "load_file"]


def load_file(filename: Path, device: int = 0) -> dict[str, DeviceArray]:
    """Load all tensors of a file into memory of a GPU.

    Args:
        filename: The file, a str or PathLike.
        device: The number of the GPU.

    Returns:
        The arrays by name, in the order of the file. Each exports `__cuda_array_interface__`
        (version 3) and `__dlpack__`; small ones share allocations of at most 64 MiB.

    Raises:
        SafetensorError: The file is not a valid safetensors file.
        OSError: The file cannot be opened or read.
        RuntimeError: There is no such GPU, its driver refuses, or it has no room.
    """
    calls.serve("cuda.load_file")
    return _native.load_arrays([filename], device, "auto", None)


def load_checkpoint(
    path: PathOrPaths,
    device: int = 0,
    *,
    filter: Callable[[str], object] | None = None,  # noqa: A002 - the term of the field
    cache: CachePolicy = "auto",
) -> dict[str, DeviceArray]:
    """Load the tensors of all shards of a checkpoint into memory of a GPU.

    Args:
        path: A file, a folder, an index, a glob pattern, or several files.
        device: The number of the GPU.
        filter: Called with each name; only tensors for which it is true are loaded.
        cache: As for `safetensors_streaming.load_checkpoint`.

    Returns:
        The arrays by name, as `load_file` gives them, in the order of shards and files.

    Raises:
        SafetensorError: A file is not a valid safetensors file, or names disagree.
        OSError: A file is missing or cannot be read.
        RuntimeError: There is no such GPU, its driver refuses, or it has no room.
    """
    calls.serve("cuda.load_checkpoint")
    return _native.load_arrays(paths_of(path), device, cache, filter)
