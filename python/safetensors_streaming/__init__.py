"""Load `.safetensors` files as fast as the hardware allows, without changing a line.

`patch()` makes every library that uses `safetensors` use this package; `load_file`, `safe_open`
and `load_checkpoint` serve direct use. See README.md for what is served by which path.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from safetensors_streaming._checkpoint import load_checkpoint, stream
from safetensors_streaming._into import load_into
from safetensors_streaming._load import load, load_file
from safetensors_streaming._native import DEBUG_BUILD, Report, __version__, last_report, release
from safetensors_streaming._open import safe_open
from safetensors_streaming._patch import Status, patch, patched, status, unpatch

if TYPE_CHECKING:
    from safetensors_streaming.torch import load_model, save, save_file, save_model

__all__ = [
    "Report",
    "SafetensorError",
    "Status",
    "__version__",
    "last_report",
    "load",
    "load_checkpoint",
    "load_file",
    "load_into",
    "load_model",
    "patch",
    "patched",
    "release",
    "safe_open",
    "save",
    "save_file",
    "save_model",
    "status",
    "stream",
    "unpatch",
]

_NEEDS_TORCH = frozenset({"load_model", "save", "save_file", "save_model"})

if DEBUG_BUILD:
    import warnings

    warnings.warn(
        "safetensors_streaming is a debug build: its speed means nothing",
        RuntimeWarning,
        stacklevel=2,
    )


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any attribute of a module
    """Import what needs torch only when it is asked for."""
    if name in _NEEDS_TORCH:
        return getattr(import_module("safetensors_streaming.torch"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
