"""diffusers: what a model's `from_pretrained` puts onto GPUs, read as one load.

`load_state_dict` loads a file before it is known where its tensors go, here as views of a mapping,
of which nothing is read. `load_model_dict_into_meta` then places them one after the other: those
for GPUs are read in that order, over all files of the model, straight to where they stay, and all
else is done as ever. Files that threads load side by side have a load each.

Whoever names no device gets the one of `patch(device=...)`, as if the model were moved there.
"""

from __future__ import annotations

from contextvars import ContextVar
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from safetensors_streaming._default import moved_to, read_otherwise
from safetensors_streaming._native import PlannedLoad, TensorSlice
from safetensors_streaming._open import safe_open
from safetensors_streaming._upstream import calls
from safetensors_streaming.adapters._devices import gpu_of
from safetensors_streaming.adapters._placed import placed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from safetensors_streaming.adapters import Replacement

#: Bytes read ahead of who puts tensors into the model.
AHEAD_BYTES = 256 << 20

_library: Any = import_module("diffusers.models.model_loading_utils")
_load_state_dict = _library.load_state_dict
_load_into_meta = _library.load_model_dict_into_meta
_device_of = _library._determine_param_device  # noqa: SLF001 - as the library decides


class _State(dict[str, torch.Tensor]):
    """The tensors of a file, and what each is called there, also under another name."""

    def __init__(self, tensors: dict[str, torch.Tensor], path: str) -> None:
        super().__init__(tensors)
        self.path = path
        self._names = {id(tensor): (tensor, name) for name, tensor in tensors.items()}

    def name_of(self, tensor: torch.Tensor) -> str | None:
        """The name in the file, or None where it is not of the file any more."""
        known, name = self._names.get(id(tensor), (None, None))
        return name if known is tensor else None


class _Load:
    """The tensors of files that go to GPUs, in the order of the files."""

    def __init__(self, model: torch.nn.Module, paths: list[str], wishes: dict[str, Any]) -> None:
        self.paths = paths
        self._begun = False
        self._planned = PlannedLoad()
        self._numbers: dict[tuple[str, str], int] = {}
        self._in_part: set[str] = set()
        expected = model.state_dict()
        for path in paths:
            with safe_open(path, "pt") as file:
                for name in file.offset_keys():
                    if name in expected:
                        tensor = file.get_slice(name)
                        self._add(path, name, tensor, _goal(tensor, name, expected[name], wishes))

    def begin(self) -> None:
        """Begins to read: the library has reserved its memory by now."""
        if self._numbers and not self._begun:
            self._begun = True
            calls.serve("diffusers plan")
            self._planned.begin(range(len(self._numbers)), AHEAD_BYTES)

    def _add(self, path: str, name: str, tensor: TensorSlice, goal: _Goal | None) -> None:
        number = None if goal is None else self._planned.add(tensor, *goal)
        if number is None:
            self._in_part.add(path)
        else:
            self._numbers[path, name] = number

    def reads_all_of(self, path: str) -> bool:
        """Whether no tensor of a file is left to its mapping."""
        return path in self.paths and path not in self._in_part

    def take(self, path: str, name: str) -> torch.Tensor | None:
        """Waits for a tensor; None if it is not read here."""
        number = self._numbers.get((path, name))
        return None if number is None else self._planned.take(number)

    def close(self) -> None:
        """Frees what was not taken."""
        self._planned.close()


class _Placed(dict[str, torch.Tensor]):
    """The same tensors; those for GPUs are there already when one comes to them."""

    def __init__(self, state: _State, load: _Load) -> None:
        super().__init__(state)
        self._state = state
        self._load = load

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:  # type: ignore[override]
        """Waits for each tensor that is read to a GPU."""
        for name, tensor in super().items():
            original = self._state.name_of(tensor)
            taken = None if original is None else self._load.take(self._state.path, original)
            yield name, tensor if taken is None else taken


_Goal = tuple[int, "torch.dtype | None"]
_load: ContextVar[_Load | None] = ContextVar("safetensors_streaming_load", default=None)


def _goal(
    tensor: TensorSlice,
    name: str,
    expected: torch.Tensor,
    wishes: dict[str, Any],
) -> _Goal | None:
    """The GPU and the type of a tensor that goes to one, as the library decides it."""
    gpu = gpu_of(_device_of(name, wishes["device_map"]))
    if gpu is None:
        return None
    dtype = wishes.get("dtype")
    if dtype is None:
        return gpu, expected.dtype
    if not tensor.get_dtype().startswith(("F", "BF")):
        return gpu, None
    in_float32 = wishes.get("keep_in_fp32_modules") or []
    if any(part in name.split(".") for part in in_float32):
        return gpu, torch.float32
    return gpu, dtype


def _placed_wishes(wishes: dict[str, Any]) -> dict[str, Any] | None:
    """The wishes with the map that decides, where tensors are placed one by one."""
    if wishes.get("hf_quantizer") is not None or wishes.get("state_dict_index") is not None:
        return None
    device_map, goal = wishes.get("device_map"), moved_to.get()
    if device_map is None and goal is not None:
        device_map = {"": goal}
    return None if device_map is None else {**wishes, "device_map": device_map}


@wraps(_load_state_dict)
def _load_file(checkpoint_file: Any, *args: Any, **keywords: Any) -> Any:  # noqa: ANN401
    load = _load.get()
    if load is not None:
        load.begin()
    if isinstance(checkpoint_file, dict):  # it was loaded before
        return _load_state_dict(checkpoint_file, *args, **keywords)
    # Who maps a cold file has it read in the background, here for nobody.
    otherwise = load is not None and load.reads_all_of(str(checkpoint_file))
    outer = read_otherwise.set(otherwise)
    try:
        state = _load_state_dict(checkpoint_file, *args, **keywords)
    finally:
        read_otherwise.reset(outer)
    plain = not args and not any(keywords.values())  # mapped, on the CPU
    if plain and type(state) is dict and Path(checkpoint_file).suffix == ".safetensors":
        return _State(state, str(checkpoint_file))
    return state


@wraps(_load_into_meta)
def _into_meta(model: Any, state_dict: Any, *args: Any, **keywords: Any) -> Any:  # noqa: ANN401
    wishes = None if args else _placed_wishes(keywords)
    if wishes is None:
        return _load_into_meta(model, state_dict, *args, **keywords)
    if not isinstance(state_dict, _State):
        return _load_into_meta(model, state_dict, **wishes)
    load = _load.get()
    if load is not None and state_dict.path in load.paths:
        return _load_into_meta(model, _Placed(state_dict, load), **wishes)
    load = _Load(model, [state_dict.path], wishes)
    load.begin()
    try:
        return _load_into_meta(model, _Placed(state_dict, load), **wishes)
    finally:
        load.close()


def _paths(state_dict: Any, files: Any, wishes: dict[str, Any]) -> list[str]:  # noqa: ANN401
    """The files of a model that are loaded one after the other."""
    paths = []
    if isinstance(state_dict, _State):
        paths = [state_dict.path]
    elif state_dict is None and isinstance(files, list):
        paths = [str(file) for file in files]
    apart = wishes.get("is_parallel_loading_enabled") or wishes.get("tp_shard_specs") is not None
    apart = apart or wishes.get("offload_state_dict") or "disk" in wishes["device_map"].values()
    mapped = not wishes.get("disable_mmap")
    known = mapped and all(path.endswith(".safetensors") for path in paths)
    return paths if known and not apart else []


def _load_model(
    cls: type,
    model: Any,  # noqa: ANN401
    state_dict: Any,  # noqa: ANN401
    files: Any,  # noqa: ANN401
    *args: Any,  # noqa: ANN401
    **keywords: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    wishes = _placed_wishes(keywords) if keywords.get("low_cpu_mem_usage") else None
    paths = [] if wishes is None else _paths(state_dict, files, wishes)
    load_model = _load_pretrained.__get__(None, cls)
    if wishes is None or not paths:
        return load_model(model, state_dict, files, *args, **keywords)
    try:
        load = _Load(model, paths, wishes)
    except (OSError, SafetensorError):  # the library has words of its own for a bad file
        return load_model(model, state_dict, files, *args, **keywords)
    outer = _load.set(load)
    try:
        return load_model(model, state_dict, files, *args, **keywords)
    finally:
        _load.reset(outer)
        load.close()


_models: Any = import_module("diffusers.models.modeling_utils")
_single_files: Any = import_module("diffusers.loaders.single_file_model")
_load_pretrained = vars(_models.ModelMixin)["_load_pretrained_model"]
_REPLACEMENTS: list[Replacement] = [
    (_load_state_dict, _load_file),
    (_load_into_meta, _into_meta),
    (
        _load_pretrained,
        classmethod(wraps(_load_pretrained.__func__)(_load_model)),
        _models.ModelMixin,
    ),
    placed(_models.ModelMixin, "from_pretrained"),
    placed(_single_files.FromOriginalModelMixin, "from_single_file"),
]


def replacements() -> list[Replacement]:
    """What is replaced by what."""
    return _REPLACEMENTS
