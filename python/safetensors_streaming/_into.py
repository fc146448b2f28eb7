"""`load_into`: a checkpoint straight into the tensors that a model has already."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from safetensors_streaming import _native
from safetensors_streaming._checkpoint import (
    CachePolicy,
    PathOrPaths,
    Progress,
    paths_of,
    progress_bar,
)
from safetensors_streaming._upstream import calls

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

Fact = tuple[str, str, list[int]]
Choice = tuple["Tensor", bool]


class IncompatibleKeys(NamedTuple):
    """Names that are on one side only, as torch's `load_state_dict` returns them.

    Attributes:
        missing_keys: Names of the target that the checkpoint does not have.
        unexpected_keys: Names of the checkpoint that the target does not have.
    """

    missing_keys: list[str]
    unexpected_keys: list[str]


def load_into(
    target: "Module | Mapping[str, Tensor]",
    path: PathOrPaths,
    *,
    strict: bool = True,
    cache: CachePolicy = "auto",
    progress: Progress | bool | None = None,
) -> IncompatibleKeys:
    """Load a checkpoint into existing parameters and buffers, without a second copy of them.

    What is contiguous, on the CPU or a GPU, and of the file's type (or of one that a kernel
    converts to on the way, see `load_file`) is filled as it lies; everything else is copied as by
    `Tensor.copy_`. Names and shapes are checked before the first byte is read. An error after that
    leaves the tensors filled in part.

    Args:
        target: A module, or tensors by name as in `state_dict()`.
        path: As for `load_checkpoint`.
        strict: Whether names that are on one side only are an error.
        cache: As for `load_checkpoint`.
        progress: As for `load_checkpoint`.

    Returns:
        The names that are on one side only. A tensor that is in the target under several names is
        missing only if the checkpoint has none of them.

    Raises:
        RuntimeError: Names or shapes do not fit, or a tensor is on the "meta" device.
        SafetensorError: A file is not a valid safetensors file, or names disagree.
        OSError: A file is missing or cannot be read.
    """
    chooser = _Chooser(target, strict=strict)
    paths = paths_of(path)
    calls.serve("load_into")
    with progress_bar(progress) as tell:
        left = _native.load_into(paths, cache, chooser.choose, tell)
    import torch  # noqa: PLC0415 - the native half has imported it

    with torch.no_grad():
        for tensor, loaded in left:
            tensor.copy_(loaded)
    copied = {id(tensor) for tensor, _ in left}
    filled = [tensor for tensor in chooser.chosen if id(tensor) not in copied]
    for tensor in filled:
        # Nobody else tells autograd that its values have changed.
        torch.autograd.graph.increment_version(tensor)
    return IncompatibleKeys(chooser.missing, chooser.unexpected)


class _Chooser:
    """Decides which tensor of a target takes which of a checkpoint."""

    def __init__(self, target: "Module | Mapping[str, Tensor]", *, strict: bool) -> None:
        named = target if isinstance(target, Mapping) else target.state_dict(keep_vars=True)
        self.tensors: dict[str, Tensor] = {
            name: tensor for name, tensor in named.items() if hasattr(tensor, "untyped_storage")
        }
        self.copies = set() if isinstance(target, Mapping) else _copies(target, self.tensors)
        self.what = "dict" if isinstance(target, Mapping) else type(target).__name__
        self.strict = strict
        self.missing: list[str] = []
        self.unexpected: list[str] = []
        self.chosen: list[Tensor] = []

    def choose(self, facts: Sequence[Fact]) -> "list[Choice | None]":
        """For each tensor of the checkpoint the one that takes it, after all were checked."""
        found = {name for name, _, _ in facts} & self.tensors.keys()
        memory = {_memory(self.tensors[name]) for name in found}
        self.missing = [
            name
            for name, tensor in self.tensors.items()
            if name not in found and _memory(tensor) not in memory
        ]
        self.unexpected = [name for name, _, _ in facts if name not in found]
        self._refuse_what_does_not_fit(facts)
        filled: set[tuple[object, ...]] = set()
        choices: list[Choice | None] = []
        for name, _, _ in facts:
            tensor = self.tensors.get(name)
            if tensor is None:
                choices.append(None)
                continue
            # Of names for the same memory the last one wins, as if each were copied in its turn.
            plain = _is_plain(tensor) and _memory(tensor) not in filled
            filled.add(_memory(tensor))
            self.chosen.append(tensor)
            choices.append((tensor, plain))
        return choices

    def _refuse_what_does_not_fit(self, facts: Sequence[Fact]) -> None:
        faults = []
        if self.strict and self.missing:
            faults.append(f"Missing key(s) in the checkpoint: {_quoted(self.missing)}.")
        if self.strict and self.unexpected:
            faults.append(f"Unexpected key(s) in the checkpoint: {_quoted(self.unexpected)}.")
        for name, _, shape in facts:
            tensor = self.tensors.get(name)
            if tensor is None:
                continue
            if list(tensor.shape) != shape:
                faults.append(
                    f"size mismatch for {name}: copying a param with shape {shape} from the "
                    f"checkpoint, the shape in the target is {list(tensor.shape)}."
                )
            if name in self.copies:
                faults.append(f"{name} is given by the module as a copy: use load_state_dict.")
            if tensor.is_meta:
                faults.append(f"{name} is on the meta device: there is no memory to load into.")
        if faults:
            text = "\n\t".join([f"Error(s) in loading into {self.what}:", *faults])
            raise RuntimeError(text)


def _copies(module: "Module", state: "Mapping[str, Tensor]") -> set[str]:
    """Names of the state that are no parameter or buffer: filling them would change nothing."""
    own = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    return {name for name, tensor in state.items() if id(tensor) not in own}


def _memory(tensor: "Tensor") -> tuple[object, ...]:
    """What two tensors have in common if they are the same elements."""
    if tensor.is_meta or tensor.numel() == 0 or not _is_plain(tensor):
        return (id(tensor),)
    return (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())


def _is_plain(tensor: "Tensor") -> bool:
    """Whether a tensor's memory is all there is to it."""
    from torch import Tensor, nn, strided  # noqa: PLC0415 - who has a tensor has imported it

    return (
        type(tensor) in {Tensor, nn.Parameter, getattr(nn, "Buffer", Tensor)}
        and tensor.layout is strided
        and tensor.device.type in {"cpu", "cuda"}
        and not tensor.is_quantized
        and not tensor.is_conj()
        and not tensor.is_neg()
        and tensor.is_contiguous()
    )


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
