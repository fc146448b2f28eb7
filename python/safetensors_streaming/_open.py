"""`safe_open`: upstream's class, served by the engine."""

from os import PathLike
from types import TracebackType
from typing import Any

from safetensors_streaming._addresses import located, scheme_of
from safetensors_streaming._native import Handle
from safetensors_streaming._upstream import (
    calls,
    cuda_ordinal,
    open_upstream,
    plain_device,
    reason_to_delegate,
)


class safe_open(Handle):  # noqa: N801 - upstream's name
    """Opens a safetensors file and returns its tensors as they are asked for.

    Same signature, methods, results and exceptions as `safetensors.safe_open`. Tensors on the CPU
    are views of one private mapping of the file (copy-on-write, shared with other processes until
    written); `backend="pread"` reads each into memory of its own instead. Tensors on a GPU
    are torch's own allocations, filled by the engine. Other frameworks and devices are handed to
    upstream's class.

    Args:
        filename: The file, a str or PathLike; or the address of a remote one, as for `load_file`.
        framework: "pt", "torch" or "pytorch"; others are upstream's.
        device: "cpu" or None, "cuda" (the first GPU), "cuda:N" or N, or such a torch.device; others
            are upstream's.
        backend: "mmap" or "pread"; for a GPU both read through the engine.

    Raises:
        SafetensorError: The file is not a valid safetensors file; the text says what it is instead.
        OSError: The file cannot be opened; the subclass tells why.
    """

    __slots__ = ("_arguments", "_upstream")

    _arguments: tuple[Any, ...]
    _upstream: Any

    def __new__(  # noqa: PYI034 - or what upstream makes
        cls,
        filename: str | PathLike[str],
        framework: str,
        device: object = "cpu",
        *,
        backend: str = "mmap",
    ) -> "safe_open":
        """Open the file, or let upstream open it."""
        device = plain_device(device)
        reason = reason_to_delegate(framework, device, backend)
        if reason is not None and scheme_of(filename):
            raise ValueError(f"an address is nothing that upstream can open: {reason}")
        if reason is not None:
            calls.delegate(reason)
            upstream: safe_open = open_upstream(filename, framework, device, backend)
            return upstream
        handle = Handle.__new__(cls, located(filename), backend, cuda_ordinal(device))
        handle._arguments = (filename, framework, device, backend)  # noqa: SLF001
        handle._upstream = None  # noqa: SLF001
        calls.serve("safe_open")
        return handle

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any attribute of a newer upstream
        """Methods that newer versions of upstream have are upstream's."""
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self.keys()  # a closed handle is closed for these methods too
        if self._upstream is None:
            self._check_current()
            self._upstream = open_upstream(*self._arguments)
        attribute = getattr(self._upstream, name)
        calls.delegate(f"method {name}")
        return attribute

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        """Close the file; tensors and slices stay valid."""
        super().__exit__(exc_type, exc_value, traceback)
        if self._upstream is not None:
            self._upstream.__exit__(exc_type, exc_value, traceback)
