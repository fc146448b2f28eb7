"""sentence-transformers: a model that is to be moved to a GPU is loaded there.

The library has transformers load for the host and moves the model afterwards. The model's
constructor knows where to; the adapter of transformers is told, so that each weight goes there at
once. Whoever names no device gets the one of `patch(device=...)`.
"""

from __future__ import annotations

from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any

from safetensors_streaming._default import device_for_caller_of, moved_to

if TYPE_CHECKING:
    from safetensors_streaming.adapters import Replacement

_library: Any = import_module("sentence_transformers.base.model")
_model = _library.BaseModel
_init = _model.__init__


@wraps(_init)
def _placed(self: Any, *args: Any, **keywords: Any) -> None:  # noqa: ANN401
    if (keywords.get("model_kwargs") or {}).get("device_map") is not None:
        _init(self, *args, **keywords)
        return
    if keywords.get("device") is None:
        default = device_for_caller_of("sentence_transformers")
        keywords["device"] = _library.get_device_name() if default == "cpu" else default
    outer = moved_to.set(keywords["device"])
    try:
        _init(self, *args, **keywords)
    finally:
        moved_to.reset(outer)


def replacements() -> list[Replacement]:
    """What is replaced by what."""
    return [(_init, _placed, _model)]
