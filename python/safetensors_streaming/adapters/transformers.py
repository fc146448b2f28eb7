"""transformers: the plan of `from_pretrained`, read as one load.

`convert_and_load_state_dict_in_model` first names every tensor it wants, with device and type, by
`spawn_materialize`, and then waits for them one after the other. What goes to a GPU is read here,
in that order and a little ahead, straight to where it stays; all else is done as ever.

Who names no device gets the one of `patch(device=...)`, as if it were the `device_map`.
"""

from __future__ import annotations

from concurrent.futures import Future
from contextvars import ContextVar
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any

from safetensors_streaming._default import device_for_caller_of
from safetensors_streaming._native import PlannedLoad, TensorSlice
from safetensors_streaming._upstream import calls
from safetensors_streaming.adapters._devices import gpu_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from safetensors_streaming.adapters import Replacement

#: Bytes read ahead of who waits for tensors; less where the library itself reads one at a time, to
#: save memory.
AHEAD_BYTES = 256 << 20
AHEAD_BYTES_SPARING = 64 << 20


class _Load:
    """The tensors of one call that go to GPUs."""

    def __init__(self) -> None:
        self.requests: list[tuple[TensorSlice, int, torch.dtype | None]] = []
        self.sparing = False
        self.planned: PlannedLoad | None = None

    def request(
        self,
        tensor: TensorSlice,
        ordinal: int,
        dtype: torch.dtype | None,
        alone: Callable[[], torch.Tensor | None],
    ) -> Callable[[], torch.Tensor | None]:
        """Adds a tensor to the plan; what is returned waits for it, or reads it alone."""
        number = len(self.requests)
        self.requests.append((tensor, ordinal, dtype))

        def wait() -> torch.Tensor | None:
            if self.planned is None:
                self.begin()
            taken = None if self.planned is None else self.planned.take(number)
            return alone() if taken is None else taken

        return wait

    def begin(self) -> None:
        """Begins to read: the plan is complete when the first tensor is waited for."""
        ahead = AHEAD_BYTES_SPARING if self.sparing else AHEAD_BYTES
        self.planned = PlannedLoad(self.requests, ahead)
        if len(self.planned):
            calls.serve("transformers plan")

    def close(self) -> None:
        """Ends what still goes on."""
        if self.planned is not None:
            self.planned.close()


_load: ContextVar[_Load | None] = ContextVar("safetensors_streaming_load", default=None)
_library: Any = import_module("transformers.core_model_loading")
_spawn = _library.spawn_materialize
_convert = _library.convert_and_load_state_dict_in_model
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
    def spawn(pool: Any) -> Any:  # noqa: ANN401
        return _spawn(pool, tensor, device, dtype, sharding_op, tensor_idx)

    load = _load.get()
    ordinal = None if load is None else gpu_of(device)
    if load is None or ordinal is None:
        return spawn(thread_pool)
    if isinstance(tensor, TensorSlice) and sharding_op is None and load.planned is None:
        load.sparing |= thread_pool is None
        return load.request(tensor, ordinal, dtype, spawn(None))
    # A list of tensors that are merged holds either functions or futures.
    spawned = spawn(thread_pool)
    return spawned.result if isinstance(spawned, Future) else spawned


@wraps(_convert)
def _convert_and_load(*args: Any, **keywords: Any) -> Any:  # noqa: ANN401
    load = _Load()
    outer = _load.set(load)
    try:
        return _convert(*args, **keywords)
    finally:
        _load.reset(outer)
        load.close()


@wraps(_check_map)
def _check_and_set_device_map(device_map: Any) -> Any:  # noqa: ANN401
    checked = _check_map(device_map)
    if checked is not None or _placing.is_deepspeed_zero3_enabled():
        return checked
    default = device_for_caller_of("transformers")
    return None if default == "cpu" else _check_map(default)


def replacements() -> list[Replacement]:
    """What is replaced by what."""
    return [
        (_spawn, _spawn_materialize),
        (_convert, _convert_and_load),
        (_check_map, _check_and_set_device_map),
    ]
