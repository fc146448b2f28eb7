"""transformers' `pipeline`: a device that is named there is named for its model as well.

The pipeline moves its model after it was loaded, and refuses one that a `device_map` has placed.
"""

from __future__ import annotations

from functools import wraps
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any

from safetensors_streaming._default import device_named

if TYPE_CHECKING:
    from safetensors_streaming.adapters import Replacement

_library: Any = import_module("transformers.pipelines")
_pipeline = _library.pipeline
_place_of_device = list(signature(_pipeline).parameters).index("device")


@wraps(_pipeline)
def _named(*args: Any, **keywords: Any) -> Any:  # noqa: ANN401
    named = keywords.get("device") is not None or len(args) > _place_of_device
    outer = device_named.set(named or device_named.get())
    try:
        return _pipeline(*args, **keywords)
    finally:
        device_named.reset(outer)


def replacements() -> list[Replacement]:
    """What is replaced by what."""
    return [(_pipeline, _named)]
