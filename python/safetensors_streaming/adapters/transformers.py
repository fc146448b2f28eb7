"""transformers: the plan of `from_pretrained`, read as one load.

`convert_and_load_state_dict_in_model` first names every tensor it wants, with device and type, by
`spawn_materialize`, and then waits for them one after the other. What goes to a GPU is read here,
in that order and a little ahead, straight to where it stays; all else is done as ever.

Who names no device gets the one of `patch(device=...)`, as if it were the `device_map`.
"""

from __future__ import annotations

import sys
from concurrent.futures import Future
from contextvars import ContextVar
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from safetensors_streaming._default import device_for_caller_of, moved_to
from safetensors_streaming._native import PlannedLoad, TensorSlice
from safetensors_streaming._upstream import calls
from safetensors_streaming.adapters._devices import gpu_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from safetensors_streaming.adapters import Replacement

#: Bytes read ahead of who waits for tensors; less where the library itself reads one at a time, to
#: save memory.
AHEAD_BYTES = 256 << 20
AHEAD_BYTES_SPARING = 64 << 20


class _Load:
    """The tensors of one call that go to GPUs; `moved_to` is where those for the host go next."""

    def __init__(self, moved_to: int | None) -> None:
        self.moved_to = moved_to
        self.planned = PlannedLoad()
        self.begun = False
        self.sparing = False
        self.turns: dict[int, tuple[int, int]] = {}
        self.groups: dict[object, int] = {}

    def gpu_of(self, device: Any, unnumbered: int | None) -> int | None:  # noqa: ANN401
        """The GPU for what the library puts on a device."""
        on_host = device == "cpu"  # as a map says it that the library made for want of one
        return self.moved_to if on_host else gpu_of(device, unnumbered)

    def add(
        self,
        tensor: TensorSlice,
        gpu: int,
        dtype: torch.dtype | None,
        index: Any = None,  # noqa: ANN401
    ) -> int | None:
        """Adds a tensor, or a part, to the plan; gives its number, if it can be read by it."""
        number = self.planned.add(tensor, gpu, dtype, index)
        if number is not None:
            self.turns[number] = (sys.maxsize, sys.maxsize)
        return number

    def place(self, number: int, target: str, pattern: str) -> None:
        """Tells what a tensor is for: those of one target are waited for pattern by pattern."""
        groups = (target, (target, pattern))
        first, second = (self.groups.setdefault(group, len(self.groups)) for group in groups)
        self.turns[number] = (first, second)

    def begin(self) -> None:
        """Begins to read: the plan is complete when the first tensor is waited for."""
        if not self.begun:
            self.begun = True
            calls.serve("transformers plan")
            order = sorted(self.turns, key=lambda number: (*self.turns[number], number))
            self.planned.begin(order, AHEAD_BYTES_SPARING if self.sparing else AHEAD_BYTES)


class _Waiting:
    """A tensor of the plan; calling it waits for it."""

    __slots__ = ("_alone", "_load", "number")

    def __init__(self, load: _Load, number: int, alone: Callable[[], torch.Tensor | None]) -> None:
        self._load = load
        self._alone = alone
        self.number = number

    def __call__(self) -> torch.Tensor | None:
        # The library's own threads know nothing of the caller's mode.
        if self._load.sparing or not torch.is_inference_mode_enabled():
            return self._take()
        with torch.inference_mode(mode=False):
            return self._take()

    def _take(self) -> torch.Tensor | None:
        self._load.begin()
        taken = self._load.planned.take(self.number)
        return self._alone() if taken is None else taken


class _Probe:
    """Stands for a slice of a file, and remembers which part of it is asked for."""

    def __init__(self, tensor: TensorSlice) -> None:
        self._tensor = tensor
        self.index: Any = None

    def get_shape(self) -> list[int]:
        """As the slice."""
        return self._tensor.get_shape()

    def __getitem__(self, index: Any) -> Self:  # noqa: ANN401
        if self.index is not None:
            raise IndexError("a part of a part")
        self.index = None if index is Ellipsis else index
        return self

    def to(self, **_: object) -> Self:
        """As a tensor."""
        return self


def _part(tensor: TensorSlice, sharding_op: Any, tensor_idx: int | None) -> _Probe | None:  # noqa: ANN401
    """The part that a rank holds, by the library's own reckoning; None where it is not one part."""
    probe = _Probe(tensor)
    if sharding_op is None:
        return probe
    try:
        found = sharding_op.shard_tensor(probe, tensor_idx=tensor_idx)
    except Exception:  # noqa: BLE001 - it needs a tensor: the library's own path tells why
        return None
    return probe if found is probe else None


_load: ContextVar[_Load | None] = ContextVar("safetensors_streaming_load", default=None)
_library: Any = import_module("transformers.core_model_loading")
_spawn = _library.spawn_materialize
_convert = _library.convert_and_load_state_dict_in_model
_transform = _library.WeightTransform
_add = _transform.add_tensor
_placing: Any = import_module("transformers.integrations.accelerate")
_check_map = _placing.check_and_set_device_map


@wraps(_spawn)
def _spawn_materialize(  # noqa: PLR0913, PLR0917 - as the original
    thread_pool: Any,  # noqa: ANN401
    tensor: Any,  # noqa: ANN401
    device: Any = None,  # noqa: ANN401
    dtype: torch.dtype | None = None,
    sharding_op: Any = None,  # noqa: ANN401
    tensor_idx: int | None = None,
) -> Any:  # noqa: ANN401
    load = _load.get()
    gpu = None if load is None else load.gpu_of(device, 0 if thread_pool else None)
    if load is None or gpu is None:
        return _spawn(thread_pool, tensor, device, dtype, sharding_op, tensor_idx)
    # What is merged has to be in one place, also where a part of it is not read here.
    place = torch.device("cuda", gpu) if device == "cpu" else device

    def spawn(pool: Any) -> Any:  # noqa: ANN401
        return _spawn(pool, tensor, place, dtype, sharding_op, tensor_idx)

    part = _part(tensor, sharding_op, tensor_idx) if isinstance(tensor, TensorSlice) else None
    if part is not None:
        load.sparing |= thread_pool is None
        number = load.add(tensor, gpu, dtype, part.index)
        if number is not None:
            return _Waiting(load, number, spawn(None))
    # A list of tensors that are merged holds either functions or futures.
    spawned = spawn(thread_pool)
    return spawned.result if isinstance(spawned, Future) else spawned


@wraps(_add)
def _add_tensor(
    self: Any,  # noqa: ANN401
    target_key: str,
    source_key: str,
    source_pattern: str,
    future: Any,  # noqa: ANN401
) -> None:
    load = _load.get()
    if load is not None and isinstance(future, _Waiting):
        load.place(future.number, target_key, source_pattern)
    _add(self, target_key, source_key, source_pattern, future)


@wraps(_convert)
def _convert_and_load(
    model: Any,  # noqa: ANN401
    state_dict: Any,  # noqa: ANN401
    load_config: Any,  # noqa: ANN401
    *args: Any,  # noqa: ANN401
    **keywords: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    # A quantiser computes where the tensors are: that stays the host.
    unplaced = load_config.device_map is None and load_config.hf_quantizer is None
    load = _Load(gpu_of(moved_to.get()) if unplaced else None)
    outer = _load.set(load)
    try:
        return _convert(model, state_dict, load_config, *args, **keywords)
    finally:
        _load.reset(outer)
        load.planned.close()


@wraps(_check_map)
def _check_and_set_device_map(device_map: Any) -> Any:  # noqa: ANN401
    checked = _check_map(device_map)
    if checked is not None or device_map is not None:
        return checked
    if _placing.is_deepspeed_zero3_enabled() or not _placing.is_accelerate_available():
        return None
    # A context of the CPU's looks to the library like none.
    modes = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    if any(isinstance(mode, DeviceContext) for mode in modes):
        return None
    default = device_for_caller_of("transformers")
    return None if default == "cpu" else _check_map(default)


def replacements() -> list[Replacement]:
    """What is replaced by what."""
    return [
        (_spawn, _spawn_materialize),
        (_convert, _convert_and_load),
        (_check_map, _check_and_set_device_map),
        (_add, _add_tensor, _transform),
    ]
