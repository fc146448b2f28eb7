"""Tensors on a GPU without torch: arrays that CuPy, Numba, JAX and torch take over as they are."""

from collections.abc import Callable
from dataclasses import dataclass

from safetensors_streaming import _native
from safetensors_streaming._addresses import located
from safetensors_streaming._checkpoint import CachePolicy, Path, PathOrPaths, paths_of
from safetensors_streaming._native import DeviceArray
from safetensors_streaming._upstream import calls

__all__ = ["DeviceArray", "GpuFacts", "gpu_facts", "load_checkpoint", "load_file"]


@dataclass(frozen=True)
class GpuFacts:
    """What NVML, the kernel and the driver tell of a GPU; None where none of them does.

    Attributes:
        pcie_generation: Generation of the PCI Express link now; a link that idles is slow.
        pcie_generation_max: The highest that GPU and host have in common.
        pcie_width: Lanes of the link now.
        pcie_width_max: The most that GPU and host have in common.
        numa_node: The NUMA node that the GPU is attached to. The memory that carries bytes to it,
            and the threads that copy, stay there.
        memory_free: Free memory in bytes.
        memory_total: All memory in bytes.
    """

    pcie_generation: int | None
    pcie_generation_max: int | None
    pcie_width: int | None
    pcie_width_max: int | None
    numa_node: int | None
    memory_free: int | None
    memory_total: int | None


def gpu_facts(device: int = 0) -> GpuFacts:
    """Look up what is known of a GPU and its place in the host.

    Args:
        device: The number of the GPU.

    Raises:
        RuntimeError: There is no such GPU, or its driver refuses.
    """
    return GpuFacts(**_native.gpu_facts(device))


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
    return _native.load_arrays([located(filename)], device, "auto", None)


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
