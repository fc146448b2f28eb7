from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Literal, TypeAlias, final

from torch import Tensor, dtype
from typing_extensions import Self, disjoint_base

__all__ = [
    "DEBUG_BUILD",
    "Address",
    "DeviceArray",
    "Handle",
    "PlannedLoad",
    "Report",
    "Stream",
    "TensorSlice",
    "__version__",
    "describe",
    "digest_checkpoint",
    "file_facts",
    "gpu_facts",
    "last_report",
    "load_arrays",
    "load_bytes",
    "load_checkpoint",
    "load_file",
    "load_into",
    "machine_facts",
    "measure_ceilings",
    "read_through",
    "release",
    "settle",
]

_Located: TypeAlias = str | PathLike[str] | Address

__version__: str
DEBUG_BUILD: bool

@final
class Address:
    def __new__(
        cls,
        address: str,
        settings: dict[str, str],
        cache: str | None = None,
        whole: bool = True,
    ) -> Self: ...

@disjoint_base
class Handle:
    def __new__(
        cls,
        filename: _Located,
        backend: str,
        device: int | None = None,
    ) -> Self: ...
    def keys(self) -> list[str]: ...
    def offset_keys(self) -> list[str]: ...
    def metadata(self) -> dict[str, str] | None: ...
    def get_tensor(self, name: str) -> Tensor: ...
    def get_tensors(self) -> dict[str, Tensor]: ...
    def get_slice(self, name: str) -> TensorSlice: ...
    def _check_current(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
        /,
    ) -> None: ...

@final
class TensorSlice:
    def get_shape(self) -> list[int]: ...
    def get_dtype(self) -> str: ...
    def __getitem__(self, key: Any, /) -> Tensor: ...

@final
class PlannedLoad:
    def __new__(cls) -> Self: ...
    def add(
        self, slice: TensorSlice, device: int, dtype: dtype | None, index: object = None
    ) -> int | None: ...
    def begin(self, order: Sequence[int], ahead_bytes: int) -> None: ...
    def take(self, number: int) -> Tensor | None: ...
    def close(self) -> None: ...

@final
class Stream:
    def __new__(
        cls,
        paths: Sequence[_Located],
        cache: str,
        filter: Callable[[str], object] | None = None,
        device: int | None = None,
        allocator: str = "torch",
    ) -> Self: ...
    def __iter__(self) -> Iterator[tuple[str, Tensor]]: ...
    def __next__(self) -> tuple[str, Tensor]: ...
    def close(self) -> None: ...

@final
class DeviceArray:
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def device(self) -> int: ...
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...
    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: Any = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

@final
class Report:
    @property
    def files(self) -> int: ...
    @property
    def tensors(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def read_bytes(self) -> int: ...
    @property
    def seconds(self) -> dict[Literal["open", "plan", "load", "tensors", "total"], float]: ...
    @property
    def busy(self) -> dict[str, float]: ...
    @property
    def bound(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def reader(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def cached_fraction(self) -> float: ...
    @property
    def threads(self) -> int: ...
    @property
    def ring_bytes_peak(self) -> int: ...
    def explain(self, ceilings: dict[str, float] | None = None) -> str: ...
    def trace(self) -> str | None: ...
    def to_json(self) -> str: ...
    def to_dict(self) -> dict[str, Any]: ...

def load_file(
    filename: _Located,
    backend: str,
    device: int | None = None,
    allocator: str = "torch",
    dtype: dtype | None = None,
    read_ahead: bool = True,
    verify: str | Callable[[list[str | PathLike[str]]], list[str]] | None = None,
) -> dict[str, Tensor]: ...
def load_bytes(data: bytes) -> dict[str, Tensor]: ...
def load_checkpoint(
    paths: Sequence[_Located],
    backend: str,
    cache: str,
    filter: Callable[[str], object] | None,
    progress: Callable[[int, int], object] | None,
    device: int | None = None,
    allocator: str = "torch",
    dtype: dtype | None = None,
    place: Callable[[str], int | None] | None = None,
    verify: str | Callable[[list[str | PathLike[str]]], list[str]] | None = None,
) -> dict[str, Tensor]: ...
def load_into(
    paths: Sequence[_Located],
    cache: str,
    choose: Callable[[list[tuple[str, str, list[int]]]], list[tuple[Tensor, bool] | None]],
    progress: Callable[[int, int], object] | None,
) -> list[tuple[Tensor, Tensor]]: ...
def load_arrays(
    paths: Sequence[_Located],
    device: int,
    cache: str,
    filter: Callable[[str], object] | None,
) -> dict[str, DeviceArray]: ...
def describe(
    paths: Sequence[_Located],
) -> list[
    tuple[str, int, int, dict[str, str] | None, list[tuple[str, str, list[int], int, int]]]
]: ...
def digest_checkpoint(
    paths: Sequence[_Located],
    tensors: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> list[tuple[str, list[tuple[str, str]]]]: ...
def file_facts(path: str | PathLike[str]) -> tuple[int | None, int | None]: ...
def gpu_facts(device: int) -> dict[str, int | None]: ...
def machine_facts() -> dict[str, Any]: ...
def measure_ceilings(
    paths: Sequence[_Located], device: int | None = None
) -> tuple[dict[str, float], dict[str, tuple[float, str]]]: ...
def read_through(paths: Sequence[_Located], cache: str = "auto") -> Report: ...
def release() -> int: ...
def settle() -> None: ...
def last_report() -> Report | None: ...
