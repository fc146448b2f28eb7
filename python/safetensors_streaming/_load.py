"""`load_file` and `load`, with upstream's signatures."""

from os import PathLike
from typing import TYPE_CHECKING

from safetensors_streaming import _native
from safetensors_streaming._addresses import located, scheme_of
from safetensors_streaming._default import read_otherwise
from safetensors_streaming._known import Verify, expected
from safetensors_streaming._upstream import (
    calls,
    cuda_ordinal,
    open_upstream,
    plain_device,
    reason_to_delegate,
)

if TYPE_CHECKING:
    import torch


def load_file(  # noqa: PLR0913 - independent keywords
    filename: str | PathLike[str],
    device: object = "cpu",
    *,
    backend: str = "mmap",
    allocator: str = "torch",
    dtype: "torch.dtype | None" = None,
    verify: Verify | None = None,
    cache_dir: str | PathLike[str] | None = None,
) -> dict[str, "torch.Tensor"]:
    """Load all tensors of a file.

    Args:
        filename: The file, a str or PathLike; or the address of a remote one, a str: "https://...",
            "s3://bucket/key", "gs://bucket/key", "az://container/key" or
            "hf://organisation/model[@revision][/file]". What is remote is read into memory that the
            tensors own.
        device: "cpu" or None, "cuda" (the first GPU), "cuda:N" or N, or such a torch.device; other
            devices are handed to upstream.
        backend: "mmap" maps the file and copies nothing; a file that is not in the page cache is
            read into it in the background. "pread" reads into memory that the tensors own. For a
            GPU both read through the engine.
        allocator: For a GPU: "torch" makes each tensor an allocation of torch's own, "driver" puts
            them into memory that torch's counters do not see.
        dtype: The type that tensors of f64, f32, f16 and bf16 shall have, rounded as torch rounds;
            None leaves them. For a GPU, f32 and f16 become bf16 or f16, and bf16 becomes f16, on
            the way, without memory for the wider tensors.
        verify: What the bytes are compared with before any tensor is handed out: a SHA-256 in
            hexadecimal digits, or "sha256" for the one that the hub's cache has named the file by;
            it is made while the bytes pass, of a file that is mapped in a pass of its own.
            "device" sums what has arrived in a GPU's memory, there, and compares it with what was
            read.
        cache_dir: A folder that keeps what is read of an address: the file is written to it while
            it is loaded, and the next load finds it there. None keeps nothing.

    Returns:
        The tensors by name, in the order of the file.

    Raises:
        SafetensorError: The file is not a valid safetensors file, or its bytes are not those that
            they should be.
        OSError: The file cannot be opened or read; of a remote one, the server's words.
        ValueError: An argument is not among those named here, or no SHA-256 is known of the file.
        torch.OutOfMemoryError: The GPU has no room for the tensors.
        RuntimeError: The GPU or its driver refuses.
    """
    device = plain_device(device)
    reason = reason_to_delegate("pt", device, backend)
    if reason is None:
        ordinal, read_ahead = cuda_ordinal(device), not read_otherwise.get()
        known = expected(verify, ordinal is not None, dtype)
        calls.serve("load_file")
        file = located(filename, cache_dir)
        return _native.load_file(file, backend, ordinal, allocator, dtype, read_ahead, known)
    if scheme_of(filename):
        raise ValueError(f"an address is nothing that upstream can load: {reason}")
    if verify is not None:
        raise ValueError(f"nothing can be verified of a load that upstream does: {reason}")
    calls.delegate(reason)
    tensors: dict[str, torch.Tensor]
    with open_upstream(filename, "pt", device, backend) as handle:
        if hasattr(handle, "get_tensors"):
            tensors = handle.get_tensors()
        else:
            tensors = {name: handle.get_tensor(name) for name in handle.offset_keys()}
    return tensors if dtype is None else {n: _of_type(t, dtype) for n, t in tensors.items()}


def _of_type(tensor: "torch.Tensor", dtype: "torch.dtype") -> "torch.Tensor":
    """The tensor in another type, if it is of plain numbers."""
    plain = tensor.is_floating_point() and tensor.element_size() > 1
    return tensor.to(dtype) if plain else tensor


def load(data: bytes) -> dict[str, "torch.Tensor"]:
    """Load all tensors of a file's bytes, each into memory of its own, on the CPU.

    Args:
        data: The content of a safetensors file; exactly bytes, as upstream asks.

    Returns:
        The tensors by name, in the order of the file.

    Raises:
        SafetensorError: The bytes are not a valid safetensors file.
    """
    calls.serve("load")
    return _native.load_bytes(data)
