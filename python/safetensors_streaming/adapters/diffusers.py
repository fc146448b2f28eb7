"""diffusers: what a model's `from_pretrained` puts onto GPUs, read as one load a file.

`load_state_dict` loads a file before it is known where its tensors go, here as views of a mapping,
of which nothing is read. `load_model_dict_into_meta` then knows device and type of each: those for
GPUs are read in its order, straight to where they stay, and all else is done as ever.

Whoever names no device gets the one of `patch(device=...)`, as if the model were moved there.
"""

from __future__ import annotations

from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from safetensors_streaming._default import moved_to
from safetensors_streaming._native import PlannedLoad, TensorSlice
from safetensors_streaming._open import safe_open
from safetensors_streaming._upstream import calls
from safetensors_streaming.adapters._devices import gpu_of
from safetensors_streaming.adapters._placed import placed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from safetensors_streaming.adapters import Replacement

#: Bytes read ahead of who puts tensors into the model.
AHEAD_BYTES = 256 << 20

_library: Any = import_module("diffusers.models.model_loading_utils")
_load_state_dict = _library.load_state_dict
_load_into_meta = _library.load_model_dict_into_meta
_device_of = _library._determine_param_device  # noqa: SLF001 - as the library decides


class _State(dict[str, torch.Tensor]):
    """The tensors of a file, and what each is there, also under another name."""

    def __init__(self, tensors: dict[str, torch.Tensor], path: str) -> None:
        super().__init__(tensors)
        with safe_open(path, "pt") as file:
            self._slices = {
                id(tensor): (tensor, file.get_slice(name)) for name, tensor in tensors.items()
            }

    def slice_of(self, tensor: torch.Tensor) -> TensorSlice | None:
        """What a tensor is in the file, or None where it is not of the file any more."""
        known = self._slices.get(id(tensor))
        return None if known is None or known[0] is not tensor else known[1]


class _Placed(dict[str, torch.Tensor]):
    """The same tensors; those for GPUs are there already when one comes to them."""

    def __init__(self, state: _State, goals: dict[str, tuple[int, torch.dtype]]) -> None:
        super().__init__(state)
        self._planned = PlannedLoad()
        self._numbers: dict[str, int] = {}
        for name, (gpu, dtype) in goals.items():
            found = state.slice_of(state[name])
            number = None if found is None else self._planned.add(found, gpu, dtype)
            if number is not None:
                self._numbers[name] = number

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:  # type: ignore[override]
        """Waits for each tensor that is read to a GPU."""
        if self._numbers:
            calls.serve("diffusers plan")
            self._planned.begin(range(len(self._numbers)), AHEAD_BYTES)
        try:
            for name, tensor in super().items():
                number = self._numbers.get(name)
                taken = None if number is None else self._planned.take(number)
                yield name, tensor if taken is None else taken
        finally:
            self._planned.close()


@wraps(_load_state_dict)
def _load(checkpoint_file: Any, *args: Any, **keywords: Any) -> Any:  # noqa: ANN401
    state = _load_state_dict(checkpoint_file, *args, **keywords)
    plain = not args and not any(keywords.values())  # mapped, on the CPU
    if plain and type(state) is dict and Path(checkpoint_file).suffix == ".safetensors":
        return _State(state, checkpoint_file)
    return state


def _goals(
    model: torch.nn.Module,
    state: _State,
    device_map: Mapping[str, Any],
    dtype: Any,  # noqa: ANN401
    in_float32: list[str],
) -> dict[str, tuple[int, torch.dtype]]:
    """The GPU and the type of each tensor that goes to one, as the library decides it."""
    expected = model.state_dict()
    goals = {}
    for name, tensor in state.items():
        if name not in expected or (gpu := gpu_of(_device_of(name, device_map))) is None:
            continue
        if dtype is None:
            kind = expected[name].dtype
        elif not tensor.is_floating_point():
            kind = tensor.dtype
        elif any(part in name.split(".") for part in in_float32):
            kind = torch.float32
        else:
            kind = dtype
        goals[name] = (gpu, kind)
    return goals


@wraps(_load_into_meta)
def _into_meta(model: Any, state_dict: Any, *args: Any, **keywords: Any) -> Any:  # noqa: ANN401
    plain = not args and keywords.get("hf_quantizer") is None
    device_map = keywords.get("device_map")
    if plain and device_map is None and keywords.get("state_dict_index") is None:
        goal = moved_to.get()
        device_map = keywords["device_map"] = None if goal is None else {"": goal}
    if plain and device_map is not None and isinstance(state_dict, _State):
        in_float32 = keywords.get("keep_in_fp32_modules") or []
        goals = _goals(model, state_dict, device_map, keywords.get("dtype"), in_float32)
        if goals:
            state_dict = _Placed(state_dict, goals)
    return _load_into_meta(model, state_dict, *args, **keywords)


_models: Any = import_module("diffusers.models.modeling_utils")
_single_files: Any = import_module("diffusers.loaders.single_file_model")
_REPLACEMENTS: list[Replacement] = [
    (_load_state_dict, _load),
    (_load_into_meta, _into_meta),
    placed(_models.ModelMixin, "from_pretrained"),
    placed(_single_files.FromOriginalModelMixin, "from_single_file"),
]


def replacements() -> list[Replacement]:
    """What is replaced by what."""
    return _REPLACEMENTS
