"""`safetensors.torch`, served by the engine where it loads and by upstream where it saves."""

from os import PathLike
from typing import TYPE_CHECKING

import safetensors.torch as upstream
from safetensors.torch import save, save_file, save_model

from safetensors_streaming._load import load, load_file
from safetensors_streaming._open import safe_open

if TYPE_CHECKING:
    import torch

__all__ = ["load", "load_file", "load_model", "safe_open", "save", "save_file", "save_model"]


def load_model(
    model: "torch.nn.Module",
    filename: str | PathLike[str],
    strict: bool = True,  # noqa: FBT001, FBT002 - upstream's signature
    device: object = "cpu",
    *,
    backend: str = "mmap",
) -> tuple[set[str], list[str]]:
    """Load a file into a model, tensors that share memory included.

    Args:
        model: The module that takes the tensors.
        filename: The file, a str or PathLike.
        strict: Whether a missing or unexpected name is an error.
        device: Where the tensors are put before they are copied into the model.
        backend: As for `load_file`.

    Returns:
        The names that the model has and the file lacks, and those of the reverse.

    Raises:
        RuntimeError: Names are missing or unexpected and `strict` is true.
    """
    state_dict = load_file(filename, device=device, backend=backend)
    duplicates = upstream._remove_duplicate_names(  # noqa: SLF001 - its own load_model's helper
        model.state_dict(), preferred_names=list(state_dict)
    )
    found = model.load_state_dict(state_dict, strict=False)
    missing, unexpected = set(found.missing_keys), list(found.unexpected_keys)
    for name in (name for group in duplicates.values() for name in group):
        if name in missing:
            missing.remove(name)
        else:
            unexpected.append(name)
    if strict and (missing or unexpected):
        error = f"Error(s) in loading state_dict for {type(model).__name__}:"
        if missing:
            error += f"\n    Missing key(s) in state_dict: {_quoted(missing)}"
        if unexpected:
            error += f"\n    Unexpected key(s) in state_dict: {_quoted(unexpected)}"
        raise RuntimeError(error)
    return missing, unexpected


def _quoted(names: set[str] | list[str]) -> str:
    return ", ".join(f'"{name}"' for name in sorted(names))
